"""The measurements of a run: what other selectors paid for, stored beside the ratings.

    RUN/measures/<column>.<key>/NNNNN.parquet  raw values of one shard; NNNNN.json commits it

A sidecar says what its shard cost. Other settings make another key and hence another folder, so
nothing that was paid is ever thrown away, and what is stored is not paid for again. Shards are
claimed as those of ratings are, so that several processes share the work.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset

from selectit_hf import claims
from selectit_hf.errors import RunError
from selectit_hf.fingerprint import fingerprint
from selectit_hf.runs import Run
from selectit_hf.selectors import Measurement, Progress, Scores, Selector
from selectit_hf.shards import Shards
from selectit_hf.workers import Job, work

__all__ = ["Cost", "Measures"]

POLL = 0.05
"""Seconds between two looks at a shard that is being replaced."""


class Cost(NamedTuple):
    """What measuring took: seconds, sequences through a model (or answers paid), and tokens."""

    seconds: float = 0.0
    sequences: int = 0
    tokens: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost(
            self.seconds + other.seconds,
            self.sequences + other.sequences,
            self.tokens + other.tokens,
        )


@dataclass(frozen=True)
class Measures:
    """Measures the rows of a run and keeps what was measured.

    Attributes:
        run: the run; its shard size and threads are used.
        dataset: the run's rows, as they were rated.

    Raises:
        RunError: the dataset is not the run's.

    Example:
        >>> scores = Measures(run, dataset).scores(IFD("my-model"))  # doctest: +SKIP
    """

    run: Run
    dataset: Dataset

    def __post_init__(self) -> None:
        planned = self.run.plan["input"]["fingerprint"]
        if fingerprint(self.dataset) != planned:
            raise RunError(
                f"These rows are not those of the run {self.run.folder.name!r}; load the dataset "
                "that its plan names, or start another run."
            )

    def scores(self, selector: Selector, progress: Progress | None = None) -> Scores:
        """A selector's scores of all rows; only what is not stored is measured.

        Raises:
            ModelError: a model or an endpoint cannot be asked.
        """
        for one in selector.measurements():
            self.measure(one, progress)
        return selector.scores([self.table(one) for one in selector.measurements()])

    def measure(self, one: Measurement, progress: Progress | None = None) -> Cost:
        """Measure every shard that is not stored, or has rows without an answer; what it took.

        Whoever measures the same at the same time, on whatever machine, takes other shards.
        """
        shards, paid = self._shards(one), Cost()

        def make(number: int, halvings: int) -> tuple[pa.Table, dict[str, Any]]:
            from selectit_hf import engine

            nonlocal paid
            engine.set_threads(self.run.plan["threads"])
            table, facts = self._measured(one, shards.rows_of(number), progress)
            paid = paid.plus(Cost(*(facts[name] for name in Cost._fields)))
            return table, facts

        def seen(job: Job, number: int) -> None:
            if progress is not None:
                progress(len(shards.rows_of(number)))

        shards.fetch(repair=True)
        facts = enumerate(map(shards.facts, range(len(shards))))
        stale = {n: shards.version(n) for n, said in facts if said and said.get("unanswered")}
        work([Job(one.column, shards, make, stale)], seen=seen)
        while shards.missing():  # those of other machines, and what is bad there
            shards.fetch(repair=True)
            work([Job(one.column, shards, make)])
        return paid

    def _measured(
        self, one: Measurement, rows: range, progress: Progress | None
    ) -> tuple[pa.Table, dict[str, Any]]:
        """The table of a shard, and what its sidecar says."""
        columns = self.run.reader.columns(self.dataset.column_names)
        batch = self.dataset.select_columns(list(columns))[rows.start : rows.stop]
        started = time.perf_counter()
        measured = one.measure(batch, progress=progress)
        took = Cost(round(time.perf_counter() - started, 3), measured.sequences, measured.tokens)
        return measured.table, {**took._asdict(), "unanswered": measured.unanswered}

    def table(self, one: Measurement) -> pa.Table:
        """All stored values of a measurement, in row order.

        Raises:
            RunError: some are missing.
        """
        shards = self._shards(one)
        return pa.concat_tables([_table(shards, number) for number in range(len(shards))])

    def cost(self, measurements: Sequence[Measurement]) -> Cost:
        """What the stored shards of some measurements took."""
        total = Cost()
        for one in measurements:
            shards = self._shards(one)
            for facts in map(shards.facts, range(len(shards))):
                if facts is not None:
                    total = total.plus(Cost(*(facts[name] for name in Cost._fields)))
        return total

    def _shards(self, one: Measurement) -> Shards:
        key = one.key()
        folder = self.run.folder / "measures" / f"{one.column}.{key[:8]}"
        plan = self.run.plan
        return Shards(
            folder,
            self.run.rows,
            int(plan["shard_size"]),
            key,
            mirror=self.run.mirror,
            of=plan["input"]["fingerprint"],
        )


def _table(shards: Shards, number: int) -> pa.Table:
    """A shard's rows; one that another is just replacing is waited for."""
    while True:
        replaced = claims.is_live(shards.beside(number, "claim"))
        try:
            return shards.table(number)
        except RunError:
            if not replaced:
                raise
            time.sleep(POLL)
