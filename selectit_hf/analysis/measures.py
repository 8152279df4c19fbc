"""The measurements of a run: what other selectors paid for, stored next to the ratings.

    RUN/measures/<column>.<key>/NNNNN.<hash>.parquet  raw values of one shard; NNNNN.json commits it

A sidecar says what its shard cost. Other settings make another key and hence another folder, so
paid measurements are never thrown away, and nothing is paid for twice.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset

from selectit_hf.runs import Run, Shards
from selectit_hf.selectors import Measurement, Progress, Scores, Selector

__all__ = ["Cost", "Measures"]


class Cost(NamedTuple):
    """The cost of measuring: seconds, sequences through a model (or paid answers), and tokens."""

    seconds: float = 0.0
    sequences: int = 0
    tokens: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """The sum of both costs."""
        return Cost(
            self.seconds + other.seconds,
            self.sequences + other.sequences,
            self.tokens + other.tokens,
        )


SAID = {"seconds": float, "sequences": int, "tokens": int, "unanswered?": int}
"""What a sidecar says; see `selectit_hf.json_files.misfit`."""


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
        self.run.check_rows(self.dataset)

    def scores(self, selector: Selector, progress: Progress | None = None) -> Scores:
        """A selector's scores of all rows; only what is not stored is measured.

        Raises:
            ModelError: a model or an endpoint cannot be asked.
        """
        for one in selector.measurements():
            self.measure(one, progress)
        return selector.scores([self.table(one) for one in selector.measurements()])

    def measure(self, one: Measurement, progress: Progress | None = None) -> Cost:
        """Measure shards that are not stored or have unanswered rows; return the cost."""
        from selectit_hf.rating import set_threads

        set_threads(self.run.plan["threads"])
        shards, paid = self._shards(one), Cost()
        there = shards.committed()
        for number in range(len(shards)):
            facts = there.get(number)
            if facts is not None and shards.table(facts) is None:
                shards.set_aside(number)
                facts = None
            if facts is None or facts.get("unanswered"):
                table, said = self._measured(one, shards.parts[number].rows, progress)
                shards.commit(number, table, said, replace=facts is not None)
                paid = paid.plus(Cost(*(said[name] for name in Cost._fields)))
            elif progress is not None:
                progress(len(shards.parts[number].rows))
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
        facts = shards.all_facts()
        tables = [shards.table(said) for said in facts]
        shards.refuse([number for number, table in enumerate(tables) if table is None])
        return pa.concat_tables(table for table in tables if table is not None)

    def cost(self, measurements: Sequence[Measurement]) -> Cost:
        """The cost of the stored shards of some measurements."""
        total = Cost()
        for one in measurements:
            for facts in self._shards(one).committed().values():
                total = total.plus(Cost(*(facts[name] for name in Cost._fields)))
        return total

    def _shards(self, one: Measurement) -> Shards:
        key = one.key()
        return self.run.measures(f"{one.column}.{key[:8]}", key, SAID)
