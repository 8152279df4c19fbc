"""Several processes of one machine: each is given a shard, watched, and started again if it dies.

A shard whose worker was killed is given out again. After the second death at a shard, each further
try halves the batches, and the shard's sidecar counts that as splits. An error is not retried; it
stops the run.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from datasets import Dataset

from selectit_hf import mapping
from selectit_hf.errors import RunError, SelectItError, SettingError
from selectit_hf.quiet import quiet_libraries
from selectit_hf.runs.rating import Progress, prepare, rate_shard, shards_of
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
    import fcntl

    path = store.path(LOCK)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"Another 'selectit run' is at work in {store.name!r}; 'selectit status' shows how "
                "far it is. To share the work among processes or machines, use 'selectit launch "
                f"{store}' or 'selectit rate {store} --rank R --world N'."
            ) from None
        yield


class _Member:
    """A worker process and the shard it is at."""

    def __init__(self, rank: int, process: Any, pipe: Connection) -> None:
        self.rank, self.process, self.pipe = rank, process, pipe
        self.at: Shard | None = None
        self.told = 0
        """Prompts of this shard that the progress knows of."""
        self.is_free = False


def rate(
    run: Run,
    dataset: Dataset,
    scorers: Sequence[SentenceScore],
    count: int,
    *,
    progress: Progress | None = None,
    allow_mixed: bool = False,
) -> None:
    """Rate every pending shard of a run with ``count`` worker processes.

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
    left = deque(shards_of(run, 0, 1, progress))
    _Supervisor(run, dataset, of, min(count, max(len(left), 1)), progress, allow_mixed).rate(left)


class _Supervisor:
    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        scorers: dict[str, SentenceScore],
        count: int,
        progress: Progress | None,
        allow_mixed: bool,
    ) -> None:
        self.run, self.progress = run, progress
        self.spread = any(scorer.spread for scorer in scorers.values())
        self.seen = shares(count) if self.spread else [None] * count
        # Where a scorer rates does not travel with it when it is pickled.
        places = {
            slug: (one.device, one.device_map, one.token_budget) for slug, one in scorers.items()
        }
        self.given = (run, dataset, scorers, places, allow_mixed)
        self.died: Counter[Shard | None] = Counter()

    def rate(self, left: deque[Shard]) -> None:
        members: list[_Member] = []
        try:
            members.extend(self._start(rank) for rank in range(len(self.seen)) if left)
            while left or any(member.at for member in members):
                connection.wait([one for m in members for one in (m.pipe, m.process.sentinel)])
                for member in list(members):
                    self._listen(member)
                    if not member.process.is_alive():
                        self._listen(member)
                        members.remove(member)
                        self._bury(member, left)
                        members.append(self._start(member.rank))
                    elif member.is_free and left:
                        self._give(member, left.popleft())
        finally:
            for member in members:
                member.process.terminate()
            for member in members:
                member.process.join(PATIENCE)
                member.process.kill()
                member.process.join()

    def _start(self, rank: int) -> _Member:
        ours, theirs = _CONTEXT.Pipe()
        # Of the GPUs of its share, each worker begins with the first.
        given = (*self.given, 0 if self.spread else rank, theirs)
        process = _CONTEXT.Process(target=_serve, args=given)
        with mapping.environment({"CUDA_VISIBLE_DEVICES": self.seen[rank]}):
            process.start()
        theirs.close()
        return _Member(rank, process, ours)

    def _give(self, member: _Member, shard: Shard) -> None:
        # The first death at a shard may have had any cause; the second asks for less memory.
        member.at, member.told, member.is_free = shard, 0, False
        with suppress(OSError):  # it has just died, and will be buried
            member.pipe.send((*shard, max(0, self.died[shard] - 1)))

    def _listen(self, member: _Member) -> None:
        """Take in what a worker said so far."""
        try:
            while member.pipe.poll():
                said = member.pipe.recv()
                if isinstance(said, Exception):
                    raise said
                if said is None:
                    member.at, member.is_free = None, True
                else:
                    self._tell(member, *said)
        except (EOFError, ConnectionError):
            pass

    def _tell(self, member: _Member, slug: str, prompts: int) -> None:
        member.told += prompts
        if self.progress is not None:
            self.progress(slug, prompts)

    def _bury(self, member: _Member, left: deque[Shard]) -> None:
        """Count a death, and let the shard the worker was at be rated by another."""
        code, at = member.process.exitcode, member.at
        where = "no shard yet"
        if at is not None:
            where = f"{rows_words(self.run.parts[at[1]].rows)}, by {at[0]!r}"
            left.appendleft(at)
            self._tell(member, at[0], -member.told)
        how = f"signal {-code}" if code < 0 else f"code {code}"
        logger.warning("Worker %d died (%s) at %s.", member.rank, how, where)
        self.died[at] += 1
        if self.died[at] >= DEATHS:
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
    allow_mixed: bool,
    local_rank: int,
    pipe: Connection,
) -> None:
    """What a worker process does; an error goes to the supervisor, which shows it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor's to handle
    signal.signal(signal.SIGTERM, _leave)
    quiet_libraries()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    placed = {slug: _placed(one, *places[slug]) for slug, one in scorers.items()}

    def tell(slug: str, prompts: int) -> None:
        pipe.send((slug, prompts))

    try:
        pipe.send(None)
        while True:
            slug, number, halvings = pipe.recv()
            rate_shard(
                run, slug, number, dataset, placed[slug],
                local_rank=local_rank, halvings=halvings, progress=tell, allow_mixed=allow_mixed,
            )  # fmt: skip
            pipe.send(None)
    except EOFError:
        return
    except Exception as error:
        pipe.send(_sendable(error))
        raise SystemExit(1) from error


def _placed(
    scorer: SentenceScore, device: str | None, device_map: str | None, budget: int | None
) -> SentenceScore:
    return replace(scorer, device=device, device_map=device_map, token_budget=budget)


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
