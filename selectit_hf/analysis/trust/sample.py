"""The rows of a trust check, drawn from a dataset."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from selectit_hf.errors import InputError
from selectit_hf.formats import REMEDIES, Pair, RowReader, of_statuses

__all__ = ["Sample", "draw"]


@dataclass(frozen=True)
class Sample:
    """The rows of a trust check.

    Attributes:
        rows: their numbers.
        pairs: their instructions and responses.
        bad: by column, the pairs with its worse responses; ``None`` where it has none.
    """

    rows: list[int]
    pairs: list[Pair]
    bad: dict[str, list[Pair | None]]


def draw(dataset: Dataset, reader: RowReader, count: int, seed: int, bad: Sequence[str]) -> Sample:
    """Different rows that can be read, in a random order that the seed decides.

    Raises:
        InputError: fewer than two can be read, or a column of ``bad`` does not exist.
    """
    names = dataset.column_names
    columns, response = list(reader.columns(names)), _response_column(reader, names)
    for column in bad:
        if column not in names or column == response:
            raise InputError(
                f"--bad {column!r} must be a column with worse responses than {response!r}; the "
                f"dataset has {names}."
            )
    read = dataset.with_format(None).select_columns(list(dict.fromkeys([*columns, *bad])))
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    found = Sample([], [], {column: [] for column in bad})
    seen: set[Pair] = set()
    unread: Counter[str] = Counter()
    for start in range(0, len(order), count):
        numbers = order[start : start + count]
        batch = read[numbers]
        good = {column: batch[column] for column in columns}
        pairs = reader.pairs(good)
        worse = {c: reader.pairs({**good, response: batch[c]}) for c in bad}
        unread.update(pair for pair in pairs if isinstance(pair, str))
        for i, pair in enumerate(pairs):
            if isinstance(pair, Pair) and pair not in seen and len(found.rows) < count:
                seen.add(pair)
                found.rows.append(numbers[i])
                found.pairs.append(pair)
                for column in bad:
                    other = worse[column][i]
                    found.bad[column].append(other if isinstance(other, Pair) else None)
        if len(found.rows) == count:
            break
    if len(found.rows) < 2:
        why = f" The others: {of_statuses(dict(unread))}." if unread else ""
        remedy = f" {REMEDIES.get(unread.most_common(1)[0][0], '')}" if unread else ""
        raise InputError(
            f"The check needs at least 2 different rows; of {len(dataset)} it can read "
            f"{len(found.rows)}.{why}{remedy}"
        )
    for column, worse_pairs in found.bad.items():
        if not any(worse_pairs):
            raise InputError(
                f"--bad {column!r} gives no response that can be read in any of the rows; it must "
                f"have the form of {response!r}."
            )
    return found


def _response_column(reader: RowReader, names: Sequence[str]) -> str:
    """The column that holds the response, or the whole conversation."""
    layout, columns = reader.layout(names), reader.columns(names)
    own = columns[: len(layout.columns[0]) if layout.columns else 2]
    return next((column for column in own if column.lower() == "chosen"), own[-1])
