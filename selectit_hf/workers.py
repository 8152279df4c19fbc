"""Workers: any number of processes, on any number of machines, at the shards of one folder.

The folder is their only channel. A worker looks which shards are not committed, its own first
(every ``world``-th), then those of others that nobody is at; claims one, makes it, commits it, and
looks again until all are there. Rank and world are hints for who begins where: two workers with
the same rank, or a world that changes between two starts, do the same work in another order.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from selectit_hf import claims, storage
from selectit_hf.errors import RunError, SettingError
from selectit_hf.mirror import FRESH
from selectit_hf.shapes import misfit
from selectit_hf.shards import Shards

__all__ = ["Job", "Worker", "deaths", "work"]

POLL = 1.0
"""Seconds between two looks at a folder in which others are at all that is left."""


@dataclass(frozen=True)
class Job:
    """Shards that are to be made, and how.

    Attributes:
        name: what makes them, for messages.
        shards: where they are committed.
        make: a shard's number, and how often its batches are to be halved from the start, to the
            table of its rows and what its sidecar says.
        stale: shards that are there and are to be made anew, with their `Shards.version`; one that
            has another by now has been.
    """

    name: str
    shards: Shards
    make: Callable[[int, int], tuple[pa.Table, dict[str, Any]]]
    stale: Mapping[int, object] = field(default_factory=dict)

    def is_stale(self, number: int) -> bool:
        """Whether a shard is still to be made anew."""
        return number in self.stale and (
            self.shards.facts(number) is None or self.shards.version(number) == self.stale[number]
        )


@dataclass(frozen=True)
class Worker:
    """One of ``world`` processes at the same folder.

    Attributes:
        rank: its number, from 0.
        world: how many were started together.
        local_rank: its number on its machine, which chooses the GPU.
        at: told of each shard (the job's name, its number) before it is made.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    at: Callable[[str, int], None] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.local_rank < 0:
            raise SettingError(
                f"rank {self.rank} (local rank {self.local_rank}) of {self.world} workers is "
                "impossible; ranks count from 0. Look at how the launcher sets them."
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Worker":
        """What the launcher says: torchrun and accelerate, else Slurm, else a worker alone.

        A Slurm array of tasks with several processes each counts them all.

        Raises:
            SettingError: a variable is no whole number, or they contradict each other.
        """

        environment = os.environ if environment is None else environment

        def number(name: str, default: int) -> int:
            text = environment.get(name, "")
            if not text:
                return default
            if not text.isdecimal():
                raise SettingError(f"{name}={text!r} must be a whole number; the launcher sets it.")
            return int(text)

        if environment.get("RANK") and environment.get("WORLD_SIZE"):
            rank = number("RANK", 0)
            return cls(rank, number("WORLD_SIZE", 1), number("LOCAL_RANK", rank))
        step, first = number("SLURM_ARRAY_TASK_STEP", 1) or 1, number("SLURM_ARRAY_TASK_MIN", 0)
        task = (number("SLURM_ARRAY_TASK_ID", first) - first) // step
        tasks = max(number("SLURM_ARRAY_TASK_COUNT", 1), 1)
        processes = max(number("SLURM_NTASKS", 1), 1)
        rank = task * processes + number("SLURM_PROCID", 0)
        return cls(rank, tasks * processes, number("SLURM_LOCALID", 0))

    def order(self, count: int) -> Iterator[int]:
        """All of ``count`` shards: this worker's, then its neighbour's, and so on."""
        for other in range(self.world):
            yield from range((self.rank + other) % self.world, count, self.world)

    def owns(self, number: int) -> bool:
        """Whether a shard is this worker's to begin with."""
        return number % self.world == self.rank


def work(
    jobs: Sequence[Job],
    worker: Worker | None = None,
    seen: Callable[[Job, int], None] | None = None,
) -> None:
    """Make every shard that is not there yet, until all are, whoever makes them.

    Its own shards are hashed, those of other ranks are looked at only; whoever puts the parts
    together hashes all.

    Args:
        jobs: what is to be made, in this order.
        worker: who this is; alone by default.
        seen: told of each shard that was there already or was made by another.

    Raises:
        RunError, OSError and what a job raises, with a note of the rows that were being made.
    """
    worker = worker or Worker()
    done: set[tuple[str, int]] = set()
    for job in jobs:
        _tidy(job)
    while True:
        made, left = 0, 0
        for job in jobs:
            for number in worker.order(len(job.shards)):
                if (job.name, number) in done:
                    continue
                there = _is_there(job, number, worker)
                if not there and not _make(job, number, worker):
                    left += 1
                    continue
                made += not there
                done.add((job.name, number))
                if there and seen is not None:
                    seen(job, number)
        if not left:
            for job in jobs:
                _clear(job)
            return
        if not made:
            time.sleep(max(POLL, *(job.shards.mirror.poll for job in jobs)))


def deaths(shards: Shards, number: int) -> int:
    """How many workers died at a shard since it was last begun anew."""
    path = shards.beside(number, "retry")
    if not path.exists():
        return 0
    facts = storage.read_json(path)
    problem = misfit(facts, {"deaths": int})
    if problem:
        raise RunError(f"In {path.name} of the run {problem}; delete that file.")
    return int(facts["deaths"])


def _is_there(job: Job, number: int, worker: Worker) -> bool:
    if number in job.stale:
        return not job.is_stale(number)
    shards, owned = job.shards, worker.owns(number)
    here = shards.facts(number) is not None if owned else shards.is_committed(number)
    if here:
        shards.send(number, FRESH)  # whoever committed it may have been killed before that
    return here or shards.is_elsewhere(number, FRESH)


def _tidy(job: Job) -> None:
    if job.shards.folder.is_dir():
        storage.sweep(job.shards.folder)
        job.shards.set_strays_aside()


def _clear(job: Job) -> None:
    """Remove what the killed left beside shards, which are all there now."""
    for path in job.shards.folder.glob("*.retry"):
        path.unlink(missing_ok=True)
    for path in job.shards.folder.glob("*.claim"):
        if not claims.is_live(path):
            path.unlink(missing_ok=True)
    job.shards.mirror.clear(job.shards.folder)


def _make(job: Job, number: int, worker: Worker) -> bool:
    """Make one shard; whether that was ours to do."""
    path = job.shards.beside(number, "claim")
    claim = claims.take(path)
    if claim is None:
        return False
    with claim, _noted(job, number):
        lease = job.shards.mirror.take(path)
        if lease is None:
            return False
        with lease:
            storage.reached("claimed in the mirror")
            return _make_claimed(job, number, worker)


def _make_claimed(job: Job, number: int, worker: Worker) -> bool:
    shards, stale = job.shards, number in job.stale
    if stale:
        shards.refresh(number)
        made = not job.is_stale(number)
    else:
        made = shards.facts(number) is not None or shards.is_elsewhere(number)
    if made:  # by another, before it was claimed
        return False
    if worker.at is not None:
        worker.at(job.name, number)
    # The first death at a shard may have had any cause; the second asks for less memory.
    table, facts = job.make(number, max(0, deaths(shards, number) - 1))
    storage.reached("shard rated")
    shards.commit(number, table, facts, replace=stale)
    shards.beside(number, "retry").unlink(missing_ok=True)
    return True


@contextmanager
def _noted(job: Job, number: int) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        rows = job.shards.rows_of(number)
        error.add_note(
            f"This was at the rows {rows.start} to {rows.stop - 1}, by {job.name!r}. Whole shards "
            "stay; the same command goes on from them."
        )
        raise
