"""Several processes of one machine, each watched and started again if it dies.

After the second death at a shard, each further try halves the batches, and the shard's sidecar
counts that as splits. An error is not retried; it stops the run.
"""

import fcntl
import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from datasets import Dataset

from selectit_hf import mapping
from selectit_hf.errors import RunError, SelectItError, SettingError
from selectit_hf.quiet import quiet_libraries
from selectit_hf.runs.rating import Progress, prepare, rate_shard, shards_of, with_next
from selectit_hf.runs.run import LOCK, Run
from selectit_hf.runs.shards import rows_words
from selectit_hf.runs.store import Store
from selectit_hf.scorers import SentenceScore

__all__ = ["alone", "rate", "shares"]

logger = logging.getLogger(__name__)

DEATHS = 5
"""So many workers may die at one shard; then the run stops."""
PATIENCE = 10.0
"""Seconds for a worker to end in order when it is asked to."""
WORDS = 10_000
"""Characters of an error that reach the supervisor; a pipe holds them."""

_CONTEXT = multiprocessing.get_context("spawn")  # CUDA does not survive a fork

Shard = tuple[str, int]


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Keep a second ``run`` out of a local folder, until this process ends, however it does.

    Raises:
        RunError: another is at work there.
    """
    if not store.is_local:
        yield
        return
    store.path().mkdir(parents=True, exist_ok=True)
    with store.path(LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"Another 'selectit run' is at work in {store.name!r}; 'selectit status' shows how "
                "far it is. To share the work among processes or machines, use 'selectit launch "
                f"{store}' or 'selectit rate {store} --rank R --world N'."
            ) from None
        try:
            yield
        finally:
            _tidy(store.path())


def _tidy(folder: Path) -> None:
    """Remove a folder in which nothing was planned."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def rate(
    run: Run,
    dataset: Dataset,
    scorers: Sequence[SentenceScore],
    count: int,
    *,
    progress: Progress | None = None,
    allow_mixed: bool = False,
) -> None:
    """Rate every pending shard of a run with ``count`` worker processes, each those of its rank.

    Worker ``i`` takes GPU ``i``, or the scorers' own device, or for scorers that spread their model
    the GPUs of its share.

    Args:
        run, dataset, scorers, progress, allow_mixed: see `rating.rate`.
        count: processes.

    Raises:
        SettingError: see `shares`.
        RunError: workers died again and again at the same rows.
        SelectItError, OSError, RuntimeError: what stopped a worker, with the rows it was at.
    """
    of = prepare(run, scorers)
    shards_of(run, 0, 1, progress)  # tells the progress of those that are there
    spread = any(scorer.spread for scorer in scorers)
    seen = shares(count) if spread else [None] * count
    # Where a scorer rates does not travel with it when it is pickled.
    places = {slug: (one.device, one.device_map, one.token_budget) for slug, one in of.items()}
    died: Counter[Shard | None] = Counter()

    def start(rank: int) -> _Member:
        listens, speaks = _CONTEXT.Pipe(duplex=False)
        # Of the GPUs of its share, each worker begins with the first.
        where = (rank, count, 0 if spread else rank)
        given = (run, dataset, of, places, where, dict(died), allow_mixed, speaks)
        process = _CONTEXT.Process(target=_serve, args=given)
        with mapping.environment({"CUDA_VISIBLE_DEVICES": seen[rank]}):
            process.start()
        speaks.close()
        return _Member(rank, process, listens, progress)

    members: list[_Member] = []
    try:
        members.extend(map(start, range(count)))
        while members:
            waited = [one for m in members for one in (m.process.sentinel, *m.pipes)]
            connection.wait(waited)
            for member in list(members):
                is_over = not member.process.is_alive()
                member.listen()
                if is_over:
                    members.remove(member)
                    if member.process.exitcode != 0:
                        _bury(run, member, died)
                        members.append(start(member.rank))
    finally:
        for member in members:
            member.process.terminate()
        for member in members:
            member.process.join(PATIENCE)
            member.process.kill()


class _Member:
    """A worker process and the shard it is at."""

    def __init__(
        self, rank: int, process: Any, pipe: Connection, progress: Progress | None
    ) -> None:
        self.rank, self.process, self.progress = rank, process, progress
        self.pipes = [pipe]
        """What it speaks through, until it is closed."""
        self.at: Shard | None = None
        self.told = 0
        """Prompts of this shard that the progress knows of."""

    def listen(self) -> None:
        """Take in what it said so far.

        Raises:
            Exception: what stopped it.
        """
        try:
            while self.pipes and self.pipes[0].poll():
                said = self.pipes[0].recv()
                if isinstance(said, Exception):
                    raise said
                if isinstance(said, tuple):
                    self.at, self.told = said, 0
                else:
                    self.tell(said)
        except EOFError:
            self.pipes.clear()

    def tell(self, prompts: int) -> None:
        """Tell the progress of so many more prompts."""
        self.told += prompts
        if self.progress is not None and self.at is not None:
            self.progress(self.at[0], prompts)


def _bury(run: Run, member: _Member, died: Counter[Shard | None]) -> None:
    """Count a death at the shard the worker was at."""
    code, at = member.process.exitcode, member.at
    where = f"{rows_words(run.parts[at[1]].rows)}, by {at[0]!r}" if at else "no shard yet"
    how = f"signal {-code}" if code < 0 else f"code {code}"
    logger.warning("Worker %d died (%s) at %s.", member.rank, how, where)
    member.tell(-member.told)
    died[at] += 1
    if died[at] >= DEATHS:
        raise RunError(
            f"{DEATHS} workers died ({how}) at {where}. If memory ran out, take a machine with "
            "more of it, fewer --workers or a 16-bit --dtype; whole shards stay."
        )


def shares(count: int) -> list[str | None]:
    """The GPUs of each of ``count`` workers that spread their model, for CUDA_VISIBLE_DEVICES.

    Those that are visible here, in equal parts; ``None`` where there are none.

    Raises:
        SettingError: the parts are not equal.
    """
    gpus = mapping.device_count()
    if gpus % count:
        raise SettingError(
            f"--workers {count} cannot each have the same number of {gpus} GPUs to spread a model "
            f"over; take a number that divides {gpus}."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:gpus] if visible else [str(number) for number in range(gpus)]
    each = gpus // count
    parts = [",".join(names[rank * each : (rank + 1) * each]) for rank in range(count)]
    return [part or None for part in parts]


# In the worker


def _serve(
    run: Run,
    dataset: Dataset,
    scorers: dict[str, SentenceScore],
    places: dict[str, tuple[str | None, str | None, int | None]],
    where: tuple[int, int, int],
    died: dict[Shard | None, int],
    allow_mixed: bool,
    says: Connection,
) -> None:
    """What a worker process does; an error goes to the supervisor, which shows it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor's to handle
    signal.signal(signal.SIGTERM, _leave)
    quiet_libraries()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank, world, local_rank = where
    try:
        for slug, number, then in with_next(shards_of(run, rank, world)):
            device, device_map, budget = places[slug]
            scorer = replace(
                scorers[slug], device=device, device_map=device_map, token_budget=budget
            )
            says.send((slug, number))
            # The first death at a shard may have had any cause; the second asks for less memory.
            halvings = max(0, died.get((slug, number), 0) - 1)
            rate_shard(
                run, slug, number, dataset, scorer,
                local_rank=local_rank, halvings=halvings, allow_mixed=allow_mixed, then=then,
                progress=lambda slug, prompts: says.send(prompts),
            )  # fmt: skip
    except Exception as error:
        says.send(_sendable(error))
        raise SystemExit(1) from error


def _sendable(error: Exception) -> Exception:
    """An error that can be pickled, with its notes."""
    if isinstance(error, (SelectItError, OSError)):
        return error
    sent = RuntimeError(f"{type(error).__name__}: {error}"[:WORDS])
    for note in getattr(error, "__notes__", ()):
        sent.add_note(note)
    return sent


def _leave(number: int, frame: Any) -> None:
    """End, and remove on the way what is half written."""
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
