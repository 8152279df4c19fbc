"""The interface of selectors: each writes a score column and a status column with its name.

Rows with higher scores are kept first; a row without a score has null, and its status says why. An
expensive fact about a row (from a forward pass or a paid answer) is a `Measurement`: a struct
column of raw values with the key of the settings that made it, so that two selectors that need the
same measurement share it. Computing scores from measurements is cheap.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from numpy.typing import NDArray

from selectit_hf.errors import RatingsError
from selectit_hf.formats import check_batch
from selectit_hf.rating import RATED, Batch, TypedColumn

__all__ = [
    "Measured",
    "Measurement",
    "Progress",
    "ResolvedSelector",
    "Scores",
    "Selector",
    "key_of",
    "numbers",
    "score_columns",
    "texts",
    "to_columns",
    "worst_status",
]

UNSETTLED = ("oom", "unanswered")
"""Statuses that another attempt may change."""

Progress = Callable[[int], None]
"""Called with how many more sequences or answers are done."""


class Scores(NamedTuple):
    """Scores of ``n`` rows: (n) float64, NaN for none, and (n) statuses, ``"ok"`` or a reason."""

    values: NDArray[np.float64]
    statuses: list[str]


class Measured(NamedTuple):
    """Raw values of ``n`` rows and what they cost.

    Attributes:
        table: (n) rows of the measurement's fields, ``status`` among them; null where unknown.
        sequences: sequences that went through a model, or answers that were paid.
        tokens: tokens in them.
    """

    table: pa.Table
    sequences: int = 0
    tokens: int = 0

    @property
    def unanswered(self) -> int:
        """The number of rows without an answer from the endpoint; they are asked again."""
        return texts(self.table, "status").count("unanswered")


class Measurement(Protocol):
    """Something expensive to know about every row."""

    @property
    def column(self) -> str:
        """The name of its struct column, and of its folder in a run."""

    @property
    def fields(self) -> dict[str, Any]:
        """The raw values, with their `datasets` types; ``status`` is one of them."""

    def key(self) -> str:
        """A hash of all that can change a value."""

    def measure(
        self, batch: Batch, rank: int | None = None, progress: Progress | None = None
    ) -> Measured:
        """The raw values of a batch of rows."""


class Selector:
    """A selector that reads each row on its own, for ``Dataset.map(selector, batched=True)``."""

    @property
    def name(self) -> str:
        """Its part of the names ``score__NAME`` and ``status__NAME``."""
        raise NotImplementedError

    def measurements(self) -> tuple[Measurement, ...]:
        """The measurements that it needs of each row."""
        raise NotImplementedError

    def scores(self, tables: Sequence[pa.Table]) -> Scores:
        """The scores from one table of raw values for each of `measurements`; no model is asked."""
        raise NotImplementedError

    @property
    def columns(self) -> dict[str, Any]:
        """The columns it writes, with their `datasets` types."""
        raw = {one.column: {**one.fields, "key": Value("string")} for one in self.measurements()}
        return {**raw, **score_columns(self.name)}

    def features(self, dataset: Dataset) -> Features:
        """The dataset's features with these columns added, for ``map(features=...)``."""
        return Features({**dataset.features, **self.columns})

    def __call__(self, batch: Batch, rank: int | None = None) -> dict[str, Any]:
        """Add the columns to a batch; measurements that are already in it are used again.

        They are recognised by their settings, not by the text: if you edit rows, drop the columns
        before you measure again.

        Raises:
            InputError: the columns do not fit.
            ModelError: a model or an endpoint cannot be asked.
            RatingsError: a column of a measurement's name holds something else.
        """
        check_batch(batch)
        columns: dict[str, Any] = {}
        tables = []
        for one in self.measurements():
            rows = _measured_rows(one, batch, rank)
            type = Features(self.columns).arrow_schema.field(one.column).type
            columns[one.column] = TypedColumn(rows, type)
            tables.append(pa.Table.from_pylist(rows, pa.schema(list(type))))
        return columns | to_columns(self.name, self.scores(tables))


class ResolvedSelector(Selector):
    """A dataclass selector whose pickled state holds its resolved settings."""

    def __post_init__(self) -> None:
        """Check the settings, and derive the rest from them."""
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        for one in dataclasses.fields(cast(Any, self)):
            if one.init:
                object.__setattr__(self, one.name, state.get(one.name, one.default))
        self.__post_init__()


def _measured_rows(one: Measurement, batch: Batch, rank: int | None) -> list[dict[str, Any]]:
    """A measurement of each row; only rows without it are measured."""
    count = len(next(iter(batch.values()), ()))
    rows: list[Any] = list(batch.get(one.column, [None] * count))
    key = one.key()
    for row in rows:
        if row is not None and (not isinstance(row, Mapping) or row.get("key") != key):
            raise RatingsError(
                f"The column {one.column!r} was measured with other settings (model, revision, "
                "template, columns, length or dtype), or no selector wrote it; drop or rename it, "
                "or give this selector another slug."
            )
    todo = [i for i, row in enumerate(rows) if row is None or row["status"] in UNSETTLED]
    if todo:
        part = {name: [values[i] for i in todo] for name, values in batch.items()}
        for i, row in zip(todo, one.measure(part, rank).table.to_pylist(), strict=True):
            rows[i] = {**row, "key": key}
    return rows


def score_columns(name: str) -> dict[str, Any]:
    """The two columns of a selector, with their `datasets` types."""
    return {f"score__{name}": Value("float64"), f"status__{name}": Value("string")}


def to_columns(name: str, scores: Scores) -> dict[str, Any]:
    """Scores as the two columns, null where there is none."""
    values = [value if ok else None for value, ok in zip(
        scores.values.tolist(), np.isfinite(scores.values).tolist(), strict=True
    )]  # fmt: skip
    return {
        f"score__{name}": TypedColumn(values, pa.float64()),
        f"status__{name}": TypedColumn(scores.statuses, pa.string()),
    }


def key_of(settings: Mapping[str, Any]) -> str:
    """A short hash of settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def numbers(table: pa.Table, field: str) -> NDArray[np.float64]:
    """A field of raw values as (n) float64, NaN for null."""
    values = table[field].cast(pa.float64()).to_numpy()
    return np.asarray(values, dtype=np.float64)


def texts(table: pa.Table, field: str) -> list[str]:
    """A field of raw texts as (n) strings."""
    found: list[str] = table[field].to_pylist()
    return found


def worst_status(*statuses: Sequence[str]) -> list[str]:
    """For each row, the first status that means no value, else the first that is not ``ok``."""
    return [
        next((s for s in row if s not in RATED), next((s for s in row if s != "ok"), "ok"))
        for row in zip(*statuses, strict=True)
    ]
