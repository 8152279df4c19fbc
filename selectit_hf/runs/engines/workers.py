"""Worker processes on one machine, each watched and restarted if it dies.

After the second death at a shard, each further try halves the batches, and the shard's sidecar
counts that as splits. An error is not retried; it stops the run.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from datasets import Dataset

from selectit_hf.errors import RunError, SelectItError
from selectit_hf.quiet_libraries import quiet_libraries
from selectit_hf.rating import SentenceScore, environment, shares
from selectit_hf.runs.rate_shards import Progress, rate_shard, shards_of, with_next
from selectit_hf.runs.run import Run
from selectit_hf.runs.shards import rows_words

__all__ = ["Work", "supervise"]

logger = logging.getLogger(__name__)

DEATHS = 5
"""How many workers may die at one shard before the run stops."""
PATIENCE = 10.0
"""Seconds that a worker has to stop when it is asked to."""
WORDS = 10_000
"""Characters of an error that reach the supervisor; a pipe holds them."""

_CONTEXT = multiprocessing.get_context("spawn")  # CUDA does not survive a fork

Shard = tuple[str, int]


@dataclass(frozen=True)
class Work:
    """What every worker is given. Pickled scorers lose their device, device map and token budget,
    so ``places`` holds these for each scorer.
    """

    run: Run
    dataset: Dataset
    scorers: dict[str, SentenceScore]
    places: dict[str, dict[str, Any]]
    count: int
    spread: bool
    allow_mixed: bool


@dataclass
class _Worker:
    """A worker process, and the shard it is rating."""

    rank: int
    process: Any
    pipe: Connection
    at: Shard | None = None
    told: int = 0
    """Prompts of this shard that were reported as progress."""
    speaks: bool = True

    def listen(self, progress: Progress | None) -> None:
        """Read the messages that it has sent.

        Raises:
            Exception: the error that stopped it.
        """
        try:
            while self.speaks and self.pipe.poll():
                said = self.pipe.recv()
                if isinstance(said, Exception):
                    raise said
                if isinstance(said, tuple):
                    self.at, self.told = said, 0
                else:
                    self.tell(progress, said)
        except EOFError:
            self.speaks = False

    def tell(self, progress: Progress | None, prompts: int) -> None:
        """Report so many more prompts as done."""
        self.told += prompts
        if progress is not None and self.at is not None:
            progress(self.at[0], prompts)


def supervise(work: Work, progress: Progress | None) -> None:
    """Run the workers until all shards are rated, and restart each worker that dies.

    Raises:
        SettingError: see `selectit_hf.rating.mapping.shares`.
        RunError: workers died again and again at the same rows.
        SelectItError, OSError, RuntimeError: what stopped a worker, with the rows it was at.
    """
    count = work.count
    seen = shares(count) if work.spread else [None] * count
    died: Counter[Shard | None] = Counter()
    workers: list[_Worker] = []
    try:
        workers += [_start(work, rank, seen[rank], died) for rank in range(count)]
        while workers:
            pipes = [worker.pipe for worker in workers if worker.speaks]
            connection.wait([*pipes, *(worker.process.sentinel for worker in workers)])
            for worker in list(workers):
                is_over = not worker.process.is_alive()
                worker.listen(progress)
                if is_over:
                    workers.remove(worker)
                if is_over and worker.process.exitcode != 0:
                    worker.tell(progress, -worker.told)
                    _bury(work.run, worker, died)
                    workers.append(_start(work, worker.rank, seen[worker.rank], died))
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(PATIENCE)
            worker.process.kill()


def _start(work: Work, rank: int, gpus: str | None, died: Counter[Shard | None]) -> _Worker:
    listens, speaks = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_serve, args=(work, rank, dict(died), speaks))
    with environment({"CUDA_VISIBLE_DEVICES": gpus}):
        process.start()
    speaks.close()
    return _Worker(rank, process, listens)


def _bury(run: Run, worker: _Worker, died: Counter[Shard | None]) -> None:
    """Count a death at the shard that the worker was rating."""
    code, at = worker.process.exitcode, worker.at
    where = f"{rows_words(run.parts[at[1]].rows)}, by {at[0]!r}" if at else "its start"
    how = f"signal {-code}" if code < 0 else f"code {code}"
    logger.warning("Worker %d died (%s) at %s.", worker.rank, how, where)
    died[at] += 1
    if died[at] >= DEATHS:
        raise RunError(
            f"{DEATHS} workers died ({how}) at {where}. If memory ran out, use a machine with "
            "more of it or fewer --workers, where whole shards stay; or start another run with a "
            "16-bit --dtype, in another --out."
        )


# In the worker


def _serve(work: Work, rank: int, died: dict[Shard | None, int], says: Connection) -> None:
    """What a worker process does; an error goes to the supervisor, which shows it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor's to handle
    signal.signal(signal.SIGTERM, _leave)
    quiet_libraries()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for slug, number, then in with_next(shards_of(work.run, rank, work.count)):
            says.send((slug, number))
            # The first death at a shard may have any cause; after the second, use less memory.
            halvings = max(0, died.get((slug, number), 0) - 1)
            rate_shard(
                work.run, slug, number, work.dataset,
                replace(work.scorers[slug], **work.places[slug]),
                local_rank=0 if work.spread else rank,  # the first GPU of its share
                halvings=halvings, allow_mixed=work.allow_mixed, then=then,
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
    """Exit, and remove files that are half written."""
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
