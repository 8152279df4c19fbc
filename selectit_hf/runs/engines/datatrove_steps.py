"""The steps of a run for datatrove's executors; needs the extra ``datatrove``.

A step holds only the place of a run. The task opens its rows and models, and the sidecars decide
which shards are left, so a task may be run again at any time.
"""

import os
from typing import Any

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from selectit_hf.rating import Reflection
from selectit_hf.runs import rate_shards, results
from selectit_hf.runs.run import open_run
from selectit_hf.runs.run_inputs import inputs, rows_of
from selectit_hf.selection import Cut

__all__ = ["Finish", "Rate"]


class Rate(PipelineStep):  # type: ignore[misc]
    """Rates the uncommitted shards of the task's rank; documents pass unchanged.

    Args:
        where: the run folder's absolute path or URL.
        opened: the arguments of `selectit_hf.runs.inputs` other than the run.
        allow_mixed: see `selectit_hf.runs.rate_shard`.
    """

    name = "Rate"
    type = "SelectIT"

    def __init__(self, where: str, opened: dict[str, Any], allow_mixed: bool = False) -> None:
        super().__init__()
        self.where, self.opened, self.allow_mixed = where, opened, allow_mixed

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """See `selectit_hf.runs.rate`."""
        yield from data or ()
        run = open_run(self.where)
        mine = sum(number % world_size == rank for _, number in rate_shards.pending(run))
        logger.info(f"{mine} shards are left for rank {rank} of {world_size}.")
        if not mine:
            return
        rows, scorers = inputs(run, **self.opened)
        rate_shards.rate(
            run, rows, scorers, rank, world_size,
            local_rank=_local_rank(rank), allow_mixed=self.allow_mixed,
        )  # fmt: skip
        self.stat_update("shards", value=mine, unit="task")


class Finish(PipelineStep):  # type: ignore[misc]
    """Writes scores, selection and summary; for an executor of one task, after that of `Rate`.

    Args:
        where: the run folder's absolute path or URL.
        opened: ``data`` and ``split`` of `selectit_hf.runs.rows_of`.
        how, cut, allow_mixed: see `selectit_hf.runs.finish`.
    """

    name = "Finish"
    type = "SelectIT"

    def __init__(
        self,
        where: str,
        opened: dict[str, Any],
        how: Reflection,
        cut: Cut,
        allow_mixed: bool = False,
    ) -> None:
        super().__init__()
        self.where, self.opened, self.allow_mixed = where, opened, allow_mixed
        self.how, self.cut = how, cut

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """See `selectit_hf.runs.finish`; only the first rank does it."""
        yield from data or ()
        if rank:
            return
        run = open_run(self.where)
        rows = rows_of(run, **self.opened)
        summary = results.finish(run, rows, self.how, self.cut, allow_mixed=self.allow_mixed)
        self.stat_update("rows", value=summary["rows"], unit="run")


def _local_rank(rank: int) -> int:
    """The number of the task's GPU: clusters show each task its own, the local executor all."""
    return rank if os.environ.get("DATATROVE_EXECUTOR") == "LOCAL" else 0
