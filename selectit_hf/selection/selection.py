"""Which rows are kept: the top proportion, the top n, or all that reach a threshold.

Rows without a score are never kept, but always counted. Every row gets a decision with a reason.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from numpy.typing import NDArray

from selectit_hf.errors import InputError, SettingError, did_you_mean
from selectit_hf.rating import Variant, check_variant

__all__ = [
    "Cut",
    "Selection",
    "decide",
    "divide",
    "kept_rows",
    "score_column",
    "select",
    "status_column",
    "stored_scores",
    "stored_statuses",
]

logger = logging.getLogger(__name__)

LEVELS = ("token", "sentence", "model")
Statuses: TypeAlias = Sequence[str | None] | pa.Array | pa.ChunkedArray
SELECTED, BELOW, NO_SCORE = "selected", "below the threshold", "no score"


@dataclass(frozen=True)
class Cut:
    """How much is kept: exactly one of the three.

    Attributes:
        proportion: share of *all* rows, ``0 < proportion <= 1`` (paper: 0.2).
        n: number of rows, at least 1.
        threshold: keep every row with at least this score.
        variant: ``"released"`` counts and breaks ties as the released code does.
    """

    proportion: float | None = None
    n: int | None = None
    threshold: float | None = None
    variant: Variant = "paper"

    def __post_init__(self) -> None:
        check_variant(self.variant, 5)
        given = [
            name for name in ("proportion", "n", "threshold") if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise SettingError(f"{' and '.join(given)} contradict each other; give one of them.")
        if not given:
            object.__setattr__(self, "proportion", 0.2)
        if self.proportion is not None and not 0 < self.proportion <= 1:
            meant = (
                f" Did you mean {self.proportion / 100:g}?" if 1 < self.proportion <= 100 else ""
            )
            raise SettingError(
                f"proportion={self.proportion:g} is not a share above 0 and at most 1.{meant}"
            )
        if self.n is not None and (self.n != int(self.n) or self.n < 1):
            raise SettingError(f"n={self.n} must be a whole number of at least 1.")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise SettingError(f"threshold={self.threshold} must be a finite number.")

    def count(self, rows: int) -> int:
        """Rows to keep out of ``rows``, for a proportion or n.

        The floor of the exact decimal product (0.29 of 100 is 29); ``"released"``: ``int()`` of the
        binary product (28).
        """
        if self.n is not None:
            return self.n
        if self.variant == "released":
            return int(rows * float(self.proportion or 0))
        return int(Decimal(str(self.proportion)) * rows)

    def lowest(self, scores: NDArray[np.float64], kept: NDArray[np.bool_]) -> float | None:
        """The given threshold, else the lowest kept score; ``None`` if no row is kept."""
        if self.threshold is not None:
            return self.threshold
        return float(scores[kept].min()) if kept.any() else None


@dataclass(frozen=True)
class Selection:
    """A dataset divided into what is kept and what is not.

    Attributes:
        selected: the kept rows, in the dataset's order, with every column.
        rejected: the other rows, likewise.
        threshold: the given threshold, else the lowest kept score; ``None`` if no row is kept.
        by: the column the rows were ranked by.
        cut: how much to keep.
        decisions: one row for each input row: ``row``, ``score``, ``rank`` (0 is best, null
            without a score) and ``reason`` (``selected``, ``below the threshold``, or the status
            of a row without a score). ``None`` for an `IterableDataset`.
    """

    selected: Any
    rejected: Any
    threshold: float | None
    by: str
    cut: Cut
    decisions: pa.Table | None = None

    def __repr__(self) -> str:
        """One line, as in ``Selection(20 of 100 rows by sentence_score__m, threshold 2.5)``."""
        if self.decisions is None:
            return f"Selection(a lazy selection by {self.by}, threshold {self.threshold})"
        score = "" if self.threshold is None else f", threshold {self.threshold:.6g}"
        return f"Selection({self.kept.sum()} of {len(self.decisions)} rows by {self.by}{score})"

    @property
    def kept(self) -> NDArray[np.bool_]:
        """(n) whether each input row is kept."""
        if self.decisions is None:
            raise SettingError("The kept rows of a lazy selection are unknown until it is read.")
        return kept_rows(self.decisions)

    @property
    def reasons(self) -> dict[str, int]:
        """How many rows there are for each reason, in the order of their first row."""
        if self.decisions is None:
            raise SettingError("The rows of a lazy selection are not counted until it is read.")
        counts = self.decisions["reason"].value_counts()
        return {count["values"]: count["counts"] for count in counts.to_pylist()}


def select(
    dataset: Dataset | IterableDataset,
    *,
    by: str | None = None,
    proportion: float | None = None,
    n: int | None = None,
    threshold: float | None = None,
    variant: Variant = "paper",
) -> Selection:
    """Keep the best rows of a scored dataset (section 3.5); by default the top 20 %.

    Args:
        dataset: rows with score columns; from an `IterableDataset`, rows can be selected only by a
            ``threshold``, lazily.
        by: a level (``"token"``, ``"sentence"``, ``"model"``) or a column; by default
            ``model_score``, else the only sentence score, else the only token score.
        proportion, n, threshold: how much to keep; see `Cut`.
        variant: ``"released"`` counts and breaks ties as the released code does.

    Returns:
        A `Selection`; among rows with equal scores, earlier rows are kept first (``"released"``:
        later rows).

    Raises:
        InputError: no such score column, or several that fit.
        SettingError: contradicting or impossible settings.
    """
    cut = Cut(proportion, n, threshold, variant)
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        raise InputError(
            f"This is a DatasetDict with the splits {list(dataset)}; select from one of them, as "
            "in select(ds['train'])."
        )
    if isinstance(dataset, IterableDataset):
        return _select_lazily(dataset, by, cut)
    column = score_column(dataset.column_names, by)
    statuses = stored_statuses(dataset, column)
    return divide(dataset, column, stored_scores(dataset, column), statuses, cut)


def divide(
    dataset: Dataset, by: str, scores: NDArray[np.float64], statuses: Statuses, cut: Cut
) -> Selection:
    """``dataset`` divided by its ``scores`` (n), which are called ``by``; see `decide`."""
    decisions = decide(scores, cut, statuses)
    kept = kept_rows(decisions)
    return Selection(
        selected=dataset.select(np.flatnonzero(kept)),
        rejected=dataset.select(np.flatnonzero(~kept)),
        threshold=cut.lowest(scores, kept),
        by=by,
        cut=cut,
        decisions=decisions,
    )


def decide(
    scores: NDArray[np.float64],
    cut: Cut,
    statuses: Statuses | None = None,
) -> pa.Table:
    """Rank ``(n)`` scores, NaN for none, and decide on each row; see `Selection.decisions`.

    ``statuses`` are the reasons of rows without a score. No Python object is made for each row, so
    ten million rows take seconds and a few hundred MB.
    """
    scored = np.isfinite(scores)
    order = _best_first(scores, scored, cut.variant)
    if cut.threshold is not None:
        count = int((scores[scored] >= cut.threshold).sum())
    else:
        count = cut.count(len(scores))
        if count > len(order):
            logger.warning("%d rows asked for, but only %d have a score.", count, len(order))
    if count == 0:
        logger.warning("No row is selected out of %d.", len(scores))
    ranks = np.full(len(scores), -1)
    ranks[order] = np.arange(len(order))
    return pa.table(
        {
            "row": pa.array(np.arange(len(scores)), pa.int64()),
            "score": pa.array(scores, pa.float64(), mask=~scored),
            "rank": pa.array(ranks, pa.int64(), mask=~scored),
            "reason": _reasons(scored, order[:count], statuses),
        }
    )


def kept_rows(decisions: pa.Table) -> NDArray[np.bool_]:
    """(n) whether each row of `decide`'s table is kept."""
    return np.asarray(pc.equal(decisions["reason"], SELECTED).to_numpy())


def _best_first(
    scores: NDArray[np.float64], scored: NDArray[np.bool_], variant: Variant
) -> NDArray[np.int64]:
    """The rows with a score, best first; ties by row order (``"released"``: later rows first)."""
    rows = np.flatnonzero(scored)
    if variant == "released":
        return np.asarray(rows[np.argsort(scores[rows], kind="stable")[::-1]])
    return np.asarray(rows[np.argsort(-scores[rows], kind="stable")])


def _reasons(
    scored: NDArray[np.bool_], best: NDArray[np.int64], statuses: Statuses | None
) -> pa.DictionaryArray:
    """(n) reasons, dictionary-encoded."""
    codes = np.full(len(scored), 1, dtype=np.int32)
    codes[best] = 0
    words = [SELECTED, BELOW]
    missing = np.flatnonzero(~scored)
    found = _words(statuses, missing).dictionary_encode()
    here = found.dictionary.to_pylist()
    words += [word for word in here if word not in words]
    places = np.array([words.index(word) for word in here], dtype=np.int32)
    codes[missing] = places[found.indices.to_numpy()]
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(words, pa.string()))


def _words(statuses: Statuses | None, rows: NDArray[np.int64]) -> pa.Array:
    """The statuses of some rows, a word for each."""
    if statuses is None:
        return pa.repeat(NO_SCORE, len(rows))
    words: Any = pa.array(statuses) if isinstance(statuses, Sequence) else statuses
    found = words.take(pa.array(rows)).cast(pa.string())
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    return pc.if_else(pc.equal(found, ""), None, found).fill_null(NO_SCORE)


def score_column(columns: Sequence[str], by: str | None = None) -> str:
    """The column that ``by`` means; see `select`.

    Raises:
        InputError: no such column, or several that fit.
    """
    if by is not None and by not in LEVELS:
        if by not in columns:
            meant = did_you_mean(by, columns)
            raise InputError(f"There is no column {by!r}; the dataset has {list(columns)}.{meant}")
        return by
    for level in LEVELS[::-1] if by is None else (by,):
        found = [c for c in columns if c == f"{level}_score" or c.startswith(f"{level}_score__")]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(
                f"Several columns fit: {', '.join(found)}. Name one with by=, or map "
                "model_score to combine them."
            )
    raise InputError(
        f"There is no {by or 'SelectIT'} score among the columns {list(columns)}; score the "
        "dataset first, as in ds.map(selectit_hf.sentence_score, batched=True)."
    )


def status_column(column: str) -> str:
    """The column that says why a row has no score in ``column``."""
    name = column.partition("__")[2]
    return f"status__{name}" if name else "selectit_status"


def _select_lazily(dataset: IterableDataset, by: str | None, cut: Cut) -> Selection:
    if cut.threshold is None:
        raise SettingError(
            "An IterableDataset has no known length, so a proportion or n cannot be selected "
            "lazily; give threshold=, or use 'selectit run', which ranks in bounded memory."
        )
    columns = dataset.column_names or list(next(iter(dataset), {}))
    column, threshold = score_column(columns, by), cut.threshold

    def keep(row: Mapping[str, Any]) -> bool:
        score = row[column]
        return score is not None and math.isfinite(score) and score >= threshold

    def drop(row: Mapping[str, Any]) -> bool:
        return not keep(row)

    return Selection(dataset.filter(keep), dataset.filter(drop), threshold, column, cut)


def stored_scores(dataset: Dataset, column: str) -> NDArray[np.float64]:
    """(n) scores of a column, NaN for none.

    Raises:
        InputError: the column holds something other than numbers.
    """
    values = _column(dataset, column)
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        if pa.types.is_null(values.type):
            return np.full(len(dataset), np.nan)
        raise InputError(f"The column {column!r} holds {values.type}, not scores.")
    return np.asarray(values.cast(pa.float64()).to_numpy(), dtype=np.float64)


def stored_statuses(dataset: Dataset, column: str) -> pa.ChunkedArray | None:
    """The statuses that belong to a score column; ``None`` if the dataset has none."""
    status = status_column(column)
    return _column(dataset, status) if status in dataset.column_names else None


def _column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    return dataset.with_format("arrow").select_columns([name])[:][name]
