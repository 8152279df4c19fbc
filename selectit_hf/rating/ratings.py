"""The raw ratings of rows: from a model to columns, and back from stored columns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Features
from numpy.typing import NDArray

from selectit_hf.errors import RatingsError
from selectit_hf.formats import STATUSES
from selectit_hf.rating.engine.verification import Verification

__all__ = [
    "RATED",
    "SETTLED",
    "Batch",
    "Ratings",
    "Totals",
    "TypedColumn",
    "nested_lists",
    "nulled",
    "read_ratings",
    "typed",
]

RATED = ("ok", "truncated")
SETTLED = (*RATED, "encoding", "nonfinite")
"""Statuses that another attempt would not change; a row that ran out of memory is tried again."""


Batch = Mapping[str, Sequence[Any]]


class Ratings(NamedTuple):
    """The raw ratings of ``n`` rows by one model.

    Attributes:
        statuses: (n) one of `rows.STATUSES` each.
        logprobs: (n, prompts, k) float32 log-probabilities of the ratings ``1..k`` under the
            softmax over the whole vocabulary; NaN in the rows without a rating.
        rater: who rated: ``model``, ``revision``, ``parameters``, and the ``rating_key``, a hash of
            everything that can change a rating.
        splits: batches that had to be halved for memory.
        reading: how the log-probabilities were computed; ``None`` where none were.
        pairs: (n) `rows.pair_hash` of the text that was rated, ``None`` for a row that is not a
            pair; empty if unknown.
        tokens: how many tokens the model was given to make them, before padding.
    """

    statuses: list[str]
    logprobs: NDArray[np.float32]
    rater: dict[str, Any]
    splits: int = 0
    reading: Verification | None = None
    pairs: Sequence[str | None] | pa.ChunkedArray = ()
    tokens: int = 0

    def texts(self) -> Sequence[str | None] | pa.ChunkedArray:
        """(n) the ``pairs``, all ``None`` if unknown."""
        return self.pairs if len(self.pairs) else (None,) * len(self.statuses)

    def of_texts(self, texts: Sequence[str | None]) -> "Ratings":
        """These ratings, without those whose text differs from the present ``texts`` (n)."""
        same = [old == new for old, new in zip(self.texts(), texts, strict=True)]
        statuses = [s if ok else "" for s, ok in zip(self.statuses, same, strict=True)]
        logprobs = self.logprobs.copy()
        logprobs[~np.array(same, np.bool_)] = np.nan
        return self._replace(statuses=statuses, logprobs=logprobs, pairs=tuple(texts))

    @property
    def rated(self) -> NDArray[np.bool_]:
        """(n) whether a row has a rating."""
        return np.array([s in RATED for s in self.statuses], dtype=np.bool_)

    @property
    def asked(self) -> NDArray[np.int64]:
        """(n) how many of the rating prompts a row has ratings for."""
        return np.asarray(np.isfinite(self.logprobs).all(axis=2).sum(axis=1))

    def facts(self) -> dict[str, Any]:
        """Facts about the ratings, JSON-able, for a shard's sidecar."""
        facts: dict[str, Any] = {"rater": self.rater, "oom_splits": self.splits}
        return facts | ({"reading": self.reading._asdict()} if self.reading is not None else {})

    def table(self, rows: range) -> pa.Table:
        """The ratings of the rows with these numbers, as they are stored."""
        _, prompts, k = self.logprobs.shape
        values = pa.array(self.logprobs.reshape(-1), pa.float32())
        return pa.table(
            {
                "row": pa.array(np.asarray(rows), pa.int64()),
                "status": pa.array(self.statuses, pa.string()),
                "pair": pa.array(self.texts(), pa.string()),
                "logprobs": pa.FixedSizeListArray.from_arrays(values, prompts * k),
            }
        )

    @staticmethod
    def is_table(table: pa.Table, k: int, rows: range) -> bool:
        """Whether a table is one of `table`, with these rows and k rating prompts."""
        kinds = {name: table.schema.field(name).type for name in {*table.column_names}}
        pair, logprobs = kinds.get("pair", pa.string()), kinds.get("logprobs")
        if (kinds.get("row"), kinds.get("status"), pair) != (pa.int64(), pa.string(), pa.string()):
            return False
        if logprobs != pa.list_(pa.float32(), k * k) or len(kinds) < table.num_columns:
            return False
        whole = all(table[name].null_count == 0 for name in ("row", "status", "logprobs"))
        return (
            whole
            and np.array_equal(table["row"].to_numpy(), np.asarray(rows))
            and {*table["status"].unique().to_pylist()} <= {*STATUSES}
        )

    @classmethod
    def from_table(cls, table: pa.Table, k: int, facts: Mapping[str, Any]) -> "Ratings":
        """The ratings that `table` and `facts` stored, of all k rating prompts."""
        flat = table["logprobs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        pairs = table["pair"] if "pair" in table.column_names else ()
        logprobs, statuses = flat.reshape(-1, k, k), table["status"].to_pylist()
        return cls(statuses, logprobs, facts["rater"], facts["oom_splits"], pairs=pairs)


# Ratings that are already in a batch


@dataclass
class Totals:
    """Totals over ratings: rows, tokens, the rating mass of ``count`` prompts."""

    rows: int = 0
    tokens: int = 0
    mass: float = 0.0
    count: int = 0

    def add(self, ratings: Ratings) -> None:
        """Count some more."""
        made = np.exp(ratings.logprobs[ratings.rated]).sum(axis=-1)
        self.rows += len(ratings.statuses)
        self.tokens += ratings.tokens
        self.mass += float(made.sum())
        self.count += made.size


def read_ratings(batch: Batch, name: str, k: int = 0) -> Ratings:
    """The ratings stored under the slug ``name``; an empty ``rater`` where no row has any.

    ``k`` is the last dimension of ``logprobs`` where no row of the batch has a rating.

    Raises:
        RatingsError: a column is missing, or the rows were rated by different scorers.
    """
    try:
        rows = list(batch[f"rater__{name}"])
        lists = list(batch[f"rating_logprobs__{name}"])
        statuses = [status or "" for status in batch[f"status__{name}"]]
    except KeyError as error:
        raise RatingsError(
            f"The column {error.args[0]} is missing, but rater__{name} is there; score the dataset "
            f"again, or drop every column ending in __{name}."
        ) from error
    _check_kinds(name, rows, lists, statuses)
    pairs = tuple(None if rater is None else rater.get("pair") for rater in rows)
    raters = [{k: v for k, v in one.items() if k != "pair"} for one in rows if one is not None]
    if any(rater != raters[0] for rater in raters):
        keys = sorted({rater["rating_key"] for rater in raters})
        raise RatingsError(
            f"The rows hold ratings by different scorers under the name {name!r}, with the keys "
            f"{', '.join(keys)}. Score the parts under different names."
        )
    return Ratings(statuses, _array(lists, k), raters[0] if raters else {}, pairs=pairs)


def _check_kinds(name: str, raters: list[Any], lists: list[Any], statuses: list[Any]) -> None:
    """Refuse columns that are no longer what a scorer wrote, for example after a CSV file.

    Raises:
        RatingsError: the message names the column.
    """
    wrong = {
        "rater": any(not _is_rater(one) for one in raters),
        "rating_logprobs": any(not _is_table(one) for one in lists),
        "status": any(not isinstance(one, str) for one in statuses),
    }
    for kind in (kind for kind, found in wrong.items() if found):
        raise RatingsError(
            f"The column {kind}__{name} does not hold what a scorer writes; CSV files keep only "
            "text. Score the dataset from a parquet file, a jsonl file or a saved "
            f"dataset, or drop every column ending in __{name}."
        )


def _is_rater(value: object) -> bool:
    return value is None or (isinstance(value, Mapping) and "rating_key" in value)


def _is_table(value: object) -> bool:
    """Whether a value can be one row's log-probabilities: lists of equally many numbers."""
    if value is None:
        return True
    try:
        return np.asarray(value, np.float32).ndim == 2
    except (TypeError, ValueError):
        return False


def _array(lists: Sequence[Any], k: int) -> NDArray[np.float32]:
    """(n, prompts, k), with as many prompts as any row has; NaN for those that a row lacks."""
    shapes = [np.shape(one) for one in lists if one is not None]
    prompts = max((shape[0] for shape in shapes), default=0)
    k = shapes[0][1] if shapes else k
    array = np.full((len(lists), prompts, k), np.nan, dtype=np.float32)
    for i, one in enumerate(lists):
        if one is not None:
            array[i, : len(one)] = one
    return array


# Columns


class TypedColumn(list[Any]):
    """A list with an Arrow type, so that a batch of nulls does not make the column null."""

    def __init__(self, values: Iterable[Any], type: pa.DataType) -> None:
        super().__init__(values)
        self._type = type

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return pa.array(list(self), type or self._type)


def nulled(values: NDArray[np.float32], rated: NDArray[np.bool_]) -> list[Any]:
    """``(n, ...)`` values as a list, with ``None`` in the rows that are not rated.

    Arrays in it have one dimension, which is what Arrow takes.
    """
    rows = values if values.ndim < 3 else map(list, values)
    return [row if ok else None for row, ok in zip(rows, rated.tolist(), strict=True)]


def nested_lists(values: NDArray[np.float32], rated: NDArray[np.bool_]) -> pa.Array:
    """``(n, prompts, k)`` values as Arrow lists of lists, null in the rows that are not rated."""
    _, prompts, k = values.shape
    counts = np.where(rated, prompts, 0)
    lists = int(counts.sum())
    inner = pa.ListArray.from_arrays(
        pa.array(np.arange(lists + 1) * k, pa.int32()), pa.array(values[rated].reshape(-1))
    )
    outer = np.concatenate([[0], np.cumsum(counts)])
    return pa.ListArray.from_arrays(pa.array(outer, pa.int32()), inner, mask=pa.array(~rated))


def typed(values: dict[str, list[Any]], types: dict[str, Any]) -> dict[str, list[Any]]:
    """``values`` with a `TypedColumn` for each column of nulls only, or of structs with nulls."""
    schema = Features(types).arrow_schema
    return {
        name: TypedColumn(column, schema.field(name).type)
        if all(value is None or isinstance(value, dict) for value in column)
        else column
        for name, column in values.items()
    }
