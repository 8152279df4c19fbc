"""A run on one machine: locking its folder, and rating with several worker processes."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from datasets import Dataset

from selectit_hf.errors import RunError
from selectit_hf.rating import SentenceScore
from selectit_hf.runs.engines.workers import Work, supervise
from selectit_hf.runs.rate_shards import Progress, prepare, shards_of
from selectit_hf.runs.run import LOCK, Run
from selectit_hf.runs.store import Store

__all__ = ["alone", "rate"]


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Keep a second ``run`` out of a local folder until this process ends, even if it is killed.

    Raises:
        RunError: another ``run`` is at work there.
    """
    if not store.is_local:
        yield
        return
    folder = store.path()
    folder.mkdir(parents=True, exist_ok=True)
    with store.path(LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"Another 'selectit run' is at work in {store.name!r}; 'selectit status' shows its "
                "progress. To share the work among processes or machines, use 'selectit launch "
                f"{store} --on ENGINE --tasks N' or 'selectit rate {store} --rank R --world N'."
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):
                if os.listdir(folder) == [LOCK]:  # nothing was planned
                    store.path(LOCK).unlink()
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

    Worker ``i`` uses GPU ``i``, or the scorers' own device, or its share of the GPUs if the scorers
    spread their model.

    Args:
        run, dataset, scorers, progress, allow_mixed: see `rating.rate`.
        count: processes.

    Raises:
        SettingError: see `selectit_hf.rating.mapping.shares`.
        RunError: workers died again and again at the same rows.
        SelectItError, OSError, RuntimeError: the error that stopped a worker, with its rows.
    """
    of = prepare(run, scorers)
    shards_of(run, 0, 1, progress)  # reports the committed shards as progress
    place = ("device", "device_map", "token_budget")
    places = {slug: {name: getattr(one, name) for name in place} for slug, one in of.items()}
    spread = any(scorer.spread for scorer in scorers)
    work = Work(run, dataset, of, places, count, spread, allow_mixed)
    supervise(work, progress)
