"""Every row is read once, before any model is loaded: what is read, and what cannot be read.

Problems that would show only after hours of rating are found here: rows that are not pairs, unknown
roles, columns that cannot be written again, ranking by a column that is not there, too small a
disk.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from selectit_hf.errors import InputError, SettingError, did_you_mean
from selectit_hf.formats.readers.arrow_types import unholdable
from selectit_hf.formats.rows import RowReader
from selectit_hf.formats.turns import KINDS, TURN_KEYS

__all__ = [
    "REMEDIES",
    "Survey",
    "check_ranking",
    "check_space",
    "look",
    "of_statuses",
    "several_turns",
    "space_needed",
    "take_in",
]

ROWS = 1000
SHOWN = 8
TURNS = (
    "Choose what to rate: --turns first (turns='first') for the first exchange, as the released "
    "code does, or --turns all for the last response with the earlier turns in its instruction."
)
REMEDIES = {
    "empty": "the instruction or the response is missing or blank; fill it, or drop these rows.",
    "type": "the value is not text, or has turns with an unknown role; make it text, name other "
    "columns with --instruction-column and --response-column, or map roles with --role NAME=KIND.",
    "multi_turn": TURNS,
    "unanswered": "the last turn is not a response of the assistant; --turns first rates the "
    "first exchange.",
    "encoding": "the text is not valid Unicode, or the model's tokenizer or chat template cannot "
    "handle it; rewrite these rows, or use another model.",
}
"""What to do about rows of each status that does not depend on the model."""


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        rows: how many there are.
        layout: how they are read.
        read, unread: the columns.
        unread_keys: keys in the turns of a conversation that are not read.
        statuses: the number of rows of each status other than a pair.
        roles: the number of rows in which each unknown role occurs.
    """

    rows: int
    layout: str
    read: tuple[str, ...]
    unread: tuple[str, ...]
    unread_keys: tuple[str, ...]
    statuses: dict[str, int]
    roles: dict[str, int]

    @property
    def unrated(self) -> int:
        """How many rows are not pairs."""
        return sum(self.statuses.values())

    def words(self, name: str) -> str:
        """For a person: what is read from where, and what is not."""
        said = [f"{self.rows} rows of {name}, read as {self.layout}: {', '.join(self.read)}"]
        if self.unread:
            said.append(f"Not read: {_listed(self.unread, 'column')}")
        if self.unread_keys:
            said.append(f"Not read in the turns: {', '.join(self.unread_keys)}")
        if self.statuses:
            said.append(f"{_rows(self.unrated)} cannot be rated: {of_statuses(self.statuses)}")
        if self.roles:
            said.append(self._unknown())
        return ". ".join(said)

    def _unknown(self) -> str:
        counts = ", ".join(f"{role!r} in {_rows(n)}" for role, n in self.roles.items())
        first = next(iter(self.roles))
        return f"Unknown roles: {counts}; map each, as in --role {first!r}={'|'.join(KINDS)}"


def take_in(dataset: Dataset, reader: RowReader) -> Survey:
    """Read all rows.

    Raises:
        InputError: the columns do not fit, hold no text, or could not be written again.
    """
    names = dataset.column_names
    layout, columns = reader.layout(names), reader.columns(names)
    _check_types(dataset)
    _check_texts(dataset, columns[: len(layout.columns[0]) if layout.columns else 2])
    statuses: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    read = dataset.with_format(None).select_columns(list(columns))
    for batch in _decoded(read):
        found = [pair for pair in reader.pairs(batch) if isinstance(pair, str)]
        statuses.update(found)
        if "type" in found:
            roles += reader.unknown_roles(batch)
    return Survey(
        len(dataset),
        layout.name,
        columns,
        tuple(name for name in names if name not in columns),
        tuple(sorted({key for c in columns for key in _unread_keys(_type_of(dataset, c))})),
        dict(statuses.most_common()),
        dict(roles.most_common(2 * SHOWN)),
    )


def _decoded(rows: Dataset) -> Iterator[dict[str, list[Any]]]:
    """Batches, or an error that names the text that is not valid."""
    try:
        yield from _batches(rows)
    except UnicodeDecodeError as error:
        for name in rows.column_names:
            for i in range(len(rows)):
                try:
                    rows.select_columns([name])[i]
                except UnicodeDecodeError:
                    raise InputError(
                        f"The text in column {name!r} of row {i} is not UTF-8 ({error.reason}); "
                        "write the rows again from their source, or remove that row."
                    ) from error
        raise


def look(dataset: Dataset, reader: RowReader, allow_unrated: bool = False) -> Survey:
    """Read all rows, and refuse them if rating would be useless.

    Args:
        dataset: the rows.
        reader: how they are read.
        allow_unrated: accept that more than half of them cannot be rated.

    Raises:
        InputError: see `take_in`; or rows have several turns and no policy says which, more than
            half cannot be rated, or none can.
    """
    found = take_in(dataset, reader)
    several = found.statuses.get("multi_turn", 0)
    if several:
        raise several_turns(several, found.rows)
    most = max(found.statuses, key=lambda status: found.statuses[status], default="")
    why = f"{of_statuses(found.statuses)}. For {most!r}: {REMEDIES.get(most, '')}"
    if found.roles:
        why += f" {found._unknown()}."
    if found.unrated == found.rows:
        raise InputError(f"None of the {found.rows} rows can be rated: {why}")
    if 2 * found.unrated > found.rows and not allow_unrated:
        raise InputError(
            f"{found.unrated} of {found.rows} rows cannot be rated: {why} --allow-unrated rates "
            "the others."
        )
    return found


def several_turns(count: int, rows: int) -> InputError:
    """The error where ``count`` rows have several turns and no policy says which to rate."""
    return InputError(f"{count} of {rows} rows have several turns. {TURNS}")


def of_statuses(counts: dict[str, int]) -> str:
    """As in ``3 empty, 1 type``."""
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _batches(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for start in range(0, len(dataset), ROWS):
        yield dataset[start : start + ROWS]


def _listed(names: Sequence[str], noun: str) -> str:
    counted = f"{len(names)} {noun}{'s' * (len(names) != 1)}"
    more = ", ..." if len(names) > SHOWN else ""
    return f"{counted} ({', '.join(names[:SHOWN])}{more})"


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


# Types


def _type_of(dataset: Dataset, column: str) -> pa.DataType:
    return dataset.features.arrow_schema.field(column).type


def _check_types(dataset: Dataset) -> None:
    try:
        schema = dataset.features.arrow_schema
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"A column has a type that cannot be written: {error}. Cast it, or drop it."
        ) from error
    for field in schema:
        unknown = unholdable(field.type)
        if unknown:
            raise InputError(
                f"The column {field.name!r} has the Arrow type {unknown}, which could not be "
                "written again with the kept rows. Cast it, as in "
                f"ds.cast_column({field.name!r}, Value('string')), or drop it."
            )


def _check_texts(dataset: Dataset, columns: Sequence[str]) -> None:
    names = ("instruction", "response") if len(columns) == 2 else ("only",)
    for column, what in zip(columns, names, strict=False):
        kind = _no_text(_type_of(dataset, column))
        if kind:
            raise InputError(
                f"The {what} column {column!r} holds {kind}, not text, so no row could be rated. "
                "Write its values as text, as in "
                f"ds.cast_column({column!r}, Value('string')), or put them in quotes in the "
                "file; or name another column with --instruction-column and --response-column."
            )


def _no_text(type_: pa.DataType) -> str | None:
    kinds = {
        "numbers": (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
        "true and false": (pa.types.is_boolean,),
        "dates or times": (pa.types.is_temporal,),
        "bytes": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
    }
    return next((kind for kind, fits in kinds.items() if any(f(type_) for f in fits)), None)


def _unread_keys(type_: pa.DataType) -> list[str]:
    """The keys of turns that are not read, as far as the type tells."""
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        type_ = type_.value_type
    if not pa.types.is_struct(type_):
        return []
    names = [field.name for field in type_]
    small = {name.strip().lower() for name in names}
    if not small & {"role", "from", "content", "value"}:
        return []
    return [name for name in names if name.strip().lower() not in TURN_KEYS]


# Later steps of a run


def check_ranking(
    dataset: Dataset, by: str | None, threshold: float | None, known: Sequence[str]
) -> None:
    """Refuse a ranking that would fail when all is rated.

    Args:
        dataset: the rows.
        by: what they will be ranked by, as ``--by`` and ``--per`` say.
        threshold: the threshold, if there is one.
        known: the selectors.

    Raises:
        InputError: a column that is not there or holds no numbers, or an unknown selector.
        SettingError: a threshold for shares of groups.
    """
    if by is None:
        return
    if by in dataset.column_names:
        _check_numbers(dataset, by)
        return
    kind, _, rest = by.partition(":")
    if kind == "per":
        column, _, inner = rest.partition(":")
        if column not in dataset.column_names:
            raise InputError(
                f"--per {column!r}: there is no such column of groups; the dataset has "
                f"{', '.join(dataset.column_names)}.{did_you_mean(column, dataset.column_names)}"
            )
        if threshold is not None:
            raise SettingError(
                "--threshold and --per contradict each other: a threshold cannot keep a share of "
                "each group. Give --proportion or --n."
            )
        check_ranking(dataset, inner or None, threshold, known)
    elif kind == "diverse":
        check_ranking(dataset, rest or None, threshold, known)
    elif kind not in {name.partition(":")[0] for name in known}:
        raise InputError(
            f"--by {by!r}: there is no such column or selector. Selectors: {', '.join(known)}. "
            f"Columns: {', '.join(dataset.column_names)}."
            f"{did_you_mean(by, (*known, *dataset.column_names))}"
        )


def _check_numbers(dataset: Dataset, column: str) -> None:
    type_ = _type_of(dataset, column)
    if not (pa.types.is_floating(type_) or pa.types.is_integer(type_) or pa.types.is_null(type_)):
        raise InputError(
            f"--by {column}: the column holds {type_}, not numbers; name a column of scores."
        )


def check_space(folder: Path, dataset: Dataset, models: int, k: int, share: float) -> None:
    """Refuse a disk that cannot hold what a run writes.

    Args:
        folder: the run folder; it need not exist.
        dataset: the rows.
        models, k: the number of models and their scale; their float32 ratings are stored twice.
        share: the share of the rows that is kept with all columns.

    Raises:
        InputError: there is not enough room.
    """
    need = space_needed(dataset, models, k, share)
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(there).free
    if need > free:
        raise InputError(
            f"The run needs about {_size(need)} on the disk of {folder.name!r}, but only "
            f"{_size(free)} are free; make room, or name another folder with --out."
        )


def space_needed(dataset: Dataset, models: int, k: int, share: float) -> int:
    """Bytes that a run writes, about; see `check_space`."""
    kept = dataset.data.nbytes / max(len(dataset.data), 1) * len(dataset) * min(share, 1.0)
    return int(len(dataset) * models * 2 * (4 * k * k + 64) + kept)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
