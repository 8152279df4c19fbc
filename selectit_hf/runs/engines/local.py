"""Several workers on one machine: started, watched, and started again when they die.

A worker that is killed has its shard made again. Killed at the same shard a second time, it is
taken to need less memory: each further try halves the batches, and the shard's sidecar says so. An
error is not retried; it stops the run.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from datasets import Dataset

from selectit_hf import mapping, storage
from selectit_hf.errors import RunError, SelectItError, SettingError
from selectit_hf.mirror import FRESH
from selectit_hf.quiet import quiet_libraries
from selectit_hf.runs import Progress, Run
from selectit_hf.scorers import SentenceScore
from selectit_hf.workers import Worker, deaths

__all__ = ["rate", "shares"]

logger = logging.getLogger(__name__)

LOOK = 0.5
"""Seconds between two looks at what the workers have committed."""
DEATHS = 5
"""So many workers may die at one shard; then the run stops."""

WORDS = 10_000
"""Characters of an error that reach the supervisor; a pipe holds them."""

_CONTEXT = multiprocessing.get_context("spawn")  # CUDA does not survive a fork


class _Member:
    """A worker process, the shard it was last at, and the error it ended with."""

    def __init__(self, worker: Worker, process: Any, said: Connection) -> None:
        self.worker, self.process, self._said = worker, process, said
        self.at: tuple[str, int] | None = None
        self.error: Exception | None = None

    def listen(self) -> None:
        """Take in what it said so far."""
        try:
            while self._said.poll():
                message = self._said.recv()
                if isinstance(message, _Failure):
                    self.error = message.error()
                else:
                    self.at = message
        except EOFError:
            pass


@dataclass(frozen=True)
class _Failure:
    """An error on its way to the supervisor, in parts that can be pickled."""

    kind: type[SelectItError] | None
    words: str
    notes: list[str]

    def error(self) -> Exception:
        error = (self.kind or RuntimeError)(self.words)
        for note in self.notes:
            error.add_note(note)
        return error


def rate(
    run: Run,
    dataset: Dataset,
    scorers: Sequence[SentenceScore],
    count: int,
    progress: Progress | None = None,
) -> None:
    """Rate every shard of a run with ``count`` worker processes; see `Run.rate`.

    Worker ``i`` takes GPU ``i``, or the scorers' own device, or for scorers that spread their model
    the GPUs of its share.

    Raises:
        SettingError: see `shares`.
        RunError: workers died again and again at the same rows.
        SelectItError, OSError, RuntimeError: what stopped a worker, with the rows it was at.
    """
    spread = any(scorer.spread for scorer in scorers)
    seen = shares(count) if spread else [None] * count
    places = [(scorer.device, scorer.device_map) for scorer in scorers]

    def start(worker: Worker) -> _Member:
        listens, speaks = _CONTEXT.Pipe(duplex=False)
        given = (run.folder, dataset, tuple(scorers), places, worker, speaks)
        process = _CONTEXT.Process(target=_serve, args=given)
        with mapping.environment({"CUDA_VISIBLE_DEVICES": seen[worker.rank]}):
            process.start()
        speaks.close()
        return _Member(worker, process, listens)

    watch = _Watch(run, progress)
    died: Counter[str] = Counter()
    members: list[_Member] = []
    try:
        # Of the GPUs of its share, each worker begins with the first.
        members.extend(start(Worker(rank, count, 0 if spread else rank)) for rank in range(count))
        while members:
            connection.wait([member.process.sentinel for member in members], timeout=LOOK)
            watch.look()
            for member in members:
                member.listen()
            for member in [one for one in members if not one.process.is_alive()]:
                members.remove(member)
                member.listen()
                if member.error is not None:
                    raise member.error
                if member.process.exitcode != 0:
                    _bury(run, member, died)
                    members.append(start(member.worker))
    finally:
        for member in members:
            member.process.terminate()
        for member in members:
            member.process.join()
    watch.look()


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
    folder: Path,
    dataset: Dataset,
    scorers: Sequence[SentenceScore],
    places: Sequence[tuple[str | None, str | None]],
    worker: Worker,
    says: Connection,
) -> None:
    """What a worker process does; an error goes to the supervisor, which shows it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor's to handle
    signal.signal(signal.SIGTERM, _leave)
    quiet_libraries()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    placed = [
        replace(scorer, device=device, device_map=device_map)
        for scorer, (device, device_map) in zip(scorers, places, strict=True)
    ]
    try:
        told = replace(worker, at=lambda slug, number: says.send((slug, number)))
        Run.open(folder).rate(dataset, placed, worker=told)
    except Exception as error:
        known = isinstance(error, (SelectItError, OSError))
        words = str(error) if known else f"{type(error).__name__}: {error}"
        notes = getattr(error, "__notes__", [])
        kind = type(error) if isinstance(error, SelectItError) else None
        says.send(_Failure(kind, words[:WORDS], notes))
        raise SystemExit(1) from error


def _leave(number: int, frame: Any) -> None:
    """End, and give back what is claimed on the way."""
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


# In the supervisor


def _bury(run: Run, member: _Member, died: Counter[str]) -> None:
    """Count a death at the shard the worker was at, and let a killed one's be made with less."""
    process = member.process
    slug, number = member.at or ("", -1)
    rows = run.shards(slug).rows_of(number) if slug else range(0)
    at = f"the rows {rows.start} to {rows.stop - 1}, by {slug!r}" if slug else "no shard yet"
    how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"code {process.exitcode}"
    logger.warning("Worker %d died (%s) at %s.", member.worker.rank, how, at)
    died[at] += 1
    if died[at] >= DEATHS:
        raise RunError(
            f"{DEATHS} workers died ({how}) at {at}. If memory ran out, take a machine with more "
            "of it, fewer --workers or a 16-bit --dtype; whole shards stay."
        )
    if slug and process.exitcode == -signal.SIGKILL:
        shards = run.shards(slug)
        counted = deaths(shards, number) + 1
        storage.write_json(shards.beside(number, "retry"), {"deaths": counted})


class _Watch:
    """Tells the progress of all workers, by what they have committed."""

    def __init__(self, run: Run, progress: Progress | None) -> None:
        self.progress = progress
        self.k = run.plan["rating"]["k"]
        self.shards = {slug: run.shards(slug) for slug in run.slugs}
        self.left = {slug: set(range(len(shards))) for slug, shards in self.shards.items()}

    def look(self) -> None:
        for slug, shards in self.shards.items():
            new = {
                number
                for number in self.left[slug]
                if shards.is_committed(number) or shards.is_elsewhere(number, FRESH)
            }
            self.left[slug] -= new
            for number in new:
                if self.progress is not None:
                    self.progress(slug, len(shards.rows_of(number)) * self.k)
