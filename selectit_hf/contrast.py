"""How the kept rows differ from the others: how long they are, how many have numbers or turns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from selectit_hf.rows import Pair, RowReader

__all__ = ["contrast"]

ROWS = 1000
BINS = 40
CONVERSATIONS = ("messages", "ShareGPT")


class _Measures(NamedTuple):
    """What is measured of a row; NaN where the row is no pair, or has no turns to count."""

    instruction: float = np.nan
    response: float = np.nan
    numeric: float = np.nan
    turns: float = np.nan


def contrast(dataset: Dataset, kept: NDArray[np.bool_], reader: RowReader) -> dict[str, Any]:
    """Kept against other rows, as JSON-able facts.

    For each group the rows that could be read, the mean characters of instruction and response, the
    median characters of the response, the share of responses with a digit, and for conversations
    the mean number of turns; and a histogram of response characters with bins of equal ratio.
    """
    measured = np.array(list(_measures(dataset, reader)), dtype=np.float64).reshape(-1, 4)
    readable = np.isfinite(measured[:, 1])
    groups = {"selected": measured[kept & readable], "rejected": measured[~kept & readable]}
    facts: dict[str, Any] = {name: _facts(group) for name, group in groups.items()}
    if readable.any():
        facts["response_characters"] = _histogram(measured[readable, 1], groups)
    return facts


def _measures(dataset: Dataset, reader: RowReader) -> Iterator[_Measures]:
    talks = reader.layout_name(dataset.column_names) in CONVERSATIONS
    columns = reader.columns(dataset.column_names)
    wanted = dataset.select_columns(list(columns))
    for start in range(0, len(wanted), ROWS):
        batch = wanted[start : start + ROWS]
        values = batch[columns[0]]
        for pair, value in zip(reader.pairs(batch), values, strict=True):
            yield _measure(pair, value if talks else None)


def _measure(pair: Pair | str, talk: object) -> _Measures:
    if not isinstance(pair, Pair):
        return _Measures()
    numeric = any(character.isdigit() for character in pair.response)
    return _Measures(len(pair.instruction), len(pair.response), numeric, _turns(talk))


def _turns(talk: object) -> float:
    if isinstance(talk, Mapping):
        talk = next(iter(talk.values()), [])
    return len(talk) if isinstance(talk, Sequence) else np.nan


def _facts(group: NDArray[np.float64]) -> dict[str, Any]:
    if not len(group):
        return {"rows": 0}
    facts = {
        "rows": len(group),
        "mean_instruction_characters": round(float(group[:, 0].mean()), 1),
        "mean_response_characters": round(float(group[:, 1].mean()), 1),
        "median_response_characters": round(float(np.median(group[:, 1])), 1),
        "numeric_share": round(float(group[:, 2].mean()), 4),
    }
    turns = group[np.isfinite(group[:, 3]), 3]
    return facts | ({"mean_turns": round(float(turns.mean()), 2)} if len(turns) else {})


def _histogram(
    lengths: NDArray[np.float64], groups: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any]:
    whole = np.round(np.geomspace(lengths.min(), lengths.max() + 1, BINS + 1))
    edges = np.unique(whole) - 0.5  # lengths are whole numbers; no bin is narrower than one
    counts = {name: np.histogram(group[:, 1], edges)[0].tolist() for name, group in groups.items()}
    return {"edges": edges.tolist(), **counts}
