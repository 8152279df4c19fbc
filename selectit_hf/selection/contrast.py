"""How the kept rows differ from the others: how long they are, how many have numbers or turns."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from selectit_hf.formats import Pair, RowReader

__all__ = ["RowStatistics", "contrast", "measure"]

ROWS = 1000
BINS = 40
CONVERSATIONS = ("messages", "ShareGPT", "conversation")
DIGIT = re.compile(r"\d")
PLAIN = ("Alpaca", "named columns")
THIRD = ((), ("input",), ("context",))
"""Layouts whose pairs are plain text columns, and third columns that join the instruction."""
LOST = "\ufdd0"
"""What begins a mark for text that Unicode cannot hold."""
VISIBLE = "^[!-~]"


@dataclass(frozen=True)
class RowStatistics:
    """The measurements of ``n`` rows; 13 bytes for each.

    Attributes:
        instruction, response: (n) int32 characters, -1 where the row is not a pair.
        numeric: (n) whether the response has a digit.
        turns: (n) int32 turns of a conversation, -1 where there are none to count.
    """

    instruction: NDArray[np.int32]
    response: NDArray[np.int32]
    numeric: NDArray[np.bool_]
    turns: NDArray[np.int32]

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(n) whether the row is a pair."""
        return self.response >= 0

    def where(self, rows: NDArray[np.bool_]) -> "RowStatistics":
        """The rows of a mask."""
        return RowStatistics(
            self.instruction[rows], self.response[rows], self.numeric[rows], self.turns[rows]
        )


def measure(dataset: Dataset, reader: RowReader) -> RowStatistics:
    """Read every row once, a thousand at a time."""
    rows = len(dataset)
    lengths = np.full((3, rows), -1, dtype=np.int32)
    numeric = np.zeros(rows, dtype=np.bool_)
    talks = reader.layout_name(dataset.column_names) in CONVERSATIONS
    columns = reader.columns(dataset.column_names)
    wanted = dataset.select_columns(list(dict.fromkeys(columns)))
    in_columns = reader.layout_name(dataset.column_names) in PLAIN
    plain = in_columns and len(columns) >= 2 and columns[2:] in THIRD
    stored = wanted.with_format("arrow")
    for start in range(0, rows, ROWS):
        seen = np.zeros(min(ROWS, rows - start), dtype=np.bool_)
        if plain:
            part = slice(start, start + len(seen))
            table = stored[start : start + ROWS]
            seen = _measure_plain(table, columns, lengths[:2, part], numeric[part])
        left = np.flatnonzero(~seen) + start
        if not len(left):
            continue
        batch = wanted[left] if seen.any() else wanted[start : start + ROWS]
        pairs = reader.pairs(batch)
        for row, pair, value in zip(left, pairs, batch[columns[0]], strict=True):
            if isinstance(pair, Pair):
                turns = _turns(value) if talks else -1
                lengths[:, row] = len(pair.instruction), len(pair.response), turns
                numeric[row] = DIGIT.search(pair.response) is not None
    return RowStatistics(lengths[0], lengths[1], numeric, lengths[2])


def _measure_plain(
    table: pa.Table,
    columns: Sequence[str],
    lengths: NDArray[np.int32],
    numeric: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Measure the rows whose texts are certainly not empty, without an object for each row.

    If every text begins with a visible ASCII character, the pair is exactly the columns.
    """
    if not all(pa.types.is_string(table[name].type) for name in columns):
        return np.zeros(len(table), dtype=np.bool_)
    instruction, response = table[columns[0]], table[columns[1]]
    clear = pc.and_(*(pc.match_substring_regex(one, VISIBLE) for one in (instruction, response)))
    characters = pc.utf8_length(instruction)
    for one in (instruction, response):
        clear = pc.and_(clear, pc.invert(pc.match_substring(one, LOST)))
    for extra in (table[name].fill_null("") for name in columns[2:]):
        length = pc.utf8_length(extra)
        clear = pc.and_(clear, pc.match_substring_regex(extra, f"{VISIBLE}|^$"))
        characters = pc.add(characters, pc.add(length, pc.min_element_wise(length, 1)))
    rows = clear.fill_null(False).to_numpy()
    lengths[0, rows] = characters.to_numpy()[rows]
    lengths[1, rows] = pc.utf8_length(response).to_numpy()[rows]
    numeric[rows] = pc.match_substring_regex(response, r"\p{Nd}").to_numpy()[rows]
    return np.asarray(rows)


def _turns(talk: object) -> int:
    if isinstance(talk, Mapping):
        talk = next(iter(talk.values()), [])
    return len(talk) if isinstance(talk, Sequence) else -1


def contrast(measured: RowStatistics, kept: NDArray[np.bool_]) -> dict[str, Any]:
    """Kept against other rows, as JSON-able facts.

    For each group the rows that could be read, the mean characters of instruction and response, the
    median characters of the response, the share of responses with a digit, and for conversations
    the mean number of turns; and a histogram of response characters with bins of equal ratio.
    """
    readable = measured.readable
    groups = {
        "selected": measured.where(kept & readable),
        "rejected": measured.where(~kept & readable),
    }
    facts: dict[str, Any] = {name: _facts(group) for name, group in groups.items()}
    if readable.any():
        facts["response_characters"] = _histogram(measured.response[readable], groups)
    return facts


def _facts(group: RowStatistics) -> dict[str, Any]:
    if not len(group.response):
        return {"rows": 0}
    facts = {
        "rows": len(group.response),
        "mean_instruction_characters": round(float(group.instruction.mean()), 1),
        "mean_response_characters": round(float(group.response.mean()), 1),
        "median_response_characters": round(float(np.median(group.response)), 1),
        "numeric_share": round(float(group.numeric.mean()), 4),
    }
    turns = group.turns[group.turns >= 0]
    return facts | ({"mean_turns": round(float(turns.mean()), 2)} if len(turns) else {})


def _histogram(lengths: NDArray[np.int32], groups: Mapping[str, RowStatistics]) -> dict[str, Any]:
    whole = np.round(np.geomspace(lengths.min(), lengths.max() + 1, BINS + 1))
    edges = np.unique(whole) - 0.5  # lengths are whole numbers; no bin is narrower than one
    counts = {
        name: np.histogram(group.response, edges)[0].tolist() for name, group in groups.items()
    }
    return {"edges": edges.tolist(), **counts}
