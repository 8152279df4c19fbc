"""A finished selection: everything that is published and reported of it, however it was made.

`selectit_hf.analysis.finished_run` makes it from a run, `finished_selection` from Python objects.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from numpy.typing import NDArray

from selectit_hf.errors import InputError
from selectit_hf.formats import READING, RowReader
from selectit_hf.selection import Cut, decide

__all__ = [
    "ASKING",
    "BATCH",
    "Finished",
    "Rows",
    "assemble",
    "is_read_alike",
    "is_score",
    "model_facts",
    "raters_of",
]

BATCH = 1000
"""The number of rows in a piece."""
ASKING = (
    "k",
    "rating_prompts",
    "template",
    "chat",
    "chat_template_kwargs",
    "max_length",
    *READING,
)
"""How models were asked: the settings that all of them have in common."""
KINDS = ("rating_logprobs__", "token_score__", "sentence_score__", "status__", "rater__")
COMBINED = ("model_score", "selectit_status")


@dataclass(frozen=True)
class Rows:
    """Rows that are read in pieces, as often as they are needed.

    Attributes:
        features: their columns.
        tables: the pieces, in order, with all columns or only the named ones.
    """

    features: Features
    tables: Callable[[list[str] | None], Iterator[pa.Table]]

    @classmethod
    def of(cls, dataset: Dataset) -> "Rows":
        """The rows of a `Dataset`.

        Raises:
            InputError: a column has no type.
        """

        def tables(columns: list[str] | None) -> Iterator[pa.Table]:
            part = dataset if columns is None else dataset.select_columns(columns)
            yield from part.with_format("arrow").iter(BATCH)

        for name in dataset.column_names:
            if dataset.features[name] is None:
                raise InputError(f"The column {name!r} has no type; give map its features=.")
        return cls(dataset.features, tables)

    def column(self, name: str) -> pa.ChunkedArray:
        """One whole column."""
        chunks = [chunk for table in self.tables([name]) for chunk in table[name].chunks]
        return pa.chunked_array(chunks, self.features.arrow_schema.field(name).type)

    def scores(self, name: str) -> NDArray[np.float64]:
        """One whole column of scores, NaN for none."""
        values = self.column(name).cast(pa.float64()).to_numpy()
        return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True)
class Finished:
    """What is published about a selection.

    Attributes:
        facts: what the manifest holds and the card says: ``input``, ``rating``, ``models``,
            ``selection``, ``contrast`` and ``versions``, as JSON-able values; ``check`` where there
            is a trust check.
        selected: the kept rows with all their columns.
        scores: every row's number, ratings, scores and statuses, and whether it was kept.
        examples: the best and the worst rows, shortened; only shown when asked for.
        written: the run's ``selection.json``, against which everything was checked.
        are_rows_of: whether the rows that were rated are those of a dataset, in its order.
    """

    facts: dict[str, Any]
    selected: Rows
    scores: Rows
    examples: dict[str, list[dict[str, Any]]]
    written: dict[str, Any] = field(default_factory=dict)
    are_rows_of: Callable[[Dataset], bool] = field(default=lambda dataset: False, compare=False)

    @property
    def by(self) -> str:
        """The score column the rows were ranked by."""
        return str(self.facts["selection"]["by"])


def is_score(column: str) -> bool:
    """Whether a column was written by this package."""
    return column.startswith(KINDS) or column in COMBINED


def assemble(
    facts: dict[str, Any], selected: Rows, scores: Rows, summary: dict[str, Any]
) -> Finished:
    """The finished selection with these facts, its numbered scores and its examples.

    Raises:
        InputError: the rows were not ranked by a score of this package, or none was selected.
    """
    by, cut = facts["selection"]["by"], Cut(**facts["selection"]["cut"])
    if by not in scores.features:
        raise InputError(
            f"The rows were ranked by {by!r}, which is not a score of this package; select by one."
        )
    if not facts["selection"]["selected"]:
        raise InputError("No row was selected, so there is nothing to publish.")
    reasons = decide(scores.scores(by), cut)["reason"]
    kept = np.array(reasons.to_pylist()) == "selected"
    examples = {name: summary[name] for name in ("best", "worst")}
    return Finished(facts, selected, _numbered(scores, kept), examples)


def _numbered(scores: Rows, kept: NDArray[np.bool_]) -> Rows:
    """The scores, with the row number as first and ``selected`` as last column."""
    inner = {name: kind for name, kind in scores.features.items() if name != "row"}
    features = Features({"row": Value("int64"), **inner, "selected": Value("bool")})

    def tables(columns: list[str] | None) -> Iterator[pa.Table]:
        wanted = list(features) if columns is None else columns
        start = 0
        for table in scores.tables([c for c in wanted if c in inner] or list(inner)[:1]):
            stop = start + len(table)
            numbers = pa.array(np.arange(start, stop), pa.int64())
            added = {"row": numbers, "selected": pa.array(kept[start:stop])}
            both = {c: table[c] if c in inner else added[c] for c in wanted}
            yield pa.table(both)
            start = stop

    return Rows(features, tables)


def is_read_alike(reader: RowReader, ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether rows with either columns are read from the same ones."""
    try:
        return reader.columns(ours) == reader.columns(theirs)
    except InputError:
        return False


def raters_of(raters: pa.ChunkedArray) -> list[dict[str, Any]]:
    """The raters that occur, whatever texts they rated."""
    fields = raters.combine_chunks().drop_null().flatten()
    table = pa.table(fields, names=[field.name for field in raters.type])
    names = [name for name in table.column_names if name != "pair"]
    found = table.select(names).group_by(names).aggregate([])
    return list(found.to_pylist())


def model_facts(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """What a summary says about one model, in addition to its name and settings."""
    found = summary["models"][name]
    facts = {key: found[key] for key in ("parameters", "statuses", "rating_mass")}
    made_with = found.get("made_with", [])
    return facts | ({"made_with": made_with} if len(made_with) > 1 else {})
