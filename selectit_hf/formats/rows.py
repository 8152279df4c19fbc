"""From the rows of any dataset to the pair that is rated.

A row becomes `Pair(instruction, response)`, or a status that says why it cannot:
``empty`` (nothing to rate), ``type`` (not text, or turns of an unknown role), ``encoding`` (not
valid Unicode), ``multi_turn`` (several turns and no policy for them), ``unanswered`` (the last turn
is no response). The columns tell the layout; see `selectit_hf.formats.layouts`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from selectit_hf.errors import InputError, SettingError, did_you_mean
from selectit_hf.formats.layouts import LAYOUTS, NAMED_COLUMNS, Layout, refusal
from selectit_hf.formats.translation import languages
from selectit_hf.formats.turns import KINDS, UnknownRole, Unratable, normalised

__all__ = [
    "READING",
    "STATUSES",
    "SURROGATE",
    "Pair",
    "RowReader",
    "Turns",
    "check_batch",
    "pair_hash",
    "worst",
]

STATUSES = (
    "ok",
    "truncated",
    "empty",
    "type",
    "multi_turn",
    "unanswered",
    "encoding",
    "oom",
    "nonfinite",
)
"""Every status a row can have, from best to worst. Only the first two come with a score."""

Turns = Literal["first", "all"]

SURROGATE = re.compile("\ufdd0(d[89a-f][0-9a-f]{2})")
"""What a table holds in place of half a surrogate pair, which Unicode text cannot hold."""


class Pair(NamedTuple):
    """The instruction and response that a rating prompt asks about."""

    instruction: str
    response: str


def pair_hash(pair: Pair) -> str:
    """16 hexadecimal digits that identify the text that ratings belong to."""
    return hashlib.sha256(json.dumps(pair).encode()).hexdigest()[:16]


def worst(statuses: Sequence[str]) -> str:
    """The worst of several statuses, in the order of `STATUSES`."""
    return max(statuses, key=STATUSES.index)


def check_batch(batch: Mapping[str, Sequence[Any]]) -> None:
    """Raise `InputError` unless this is a dict of lists, as ``map(..., batched=True)`` gives."""
    if not isinstance(batch, Mapping):
        raise InputError(
            f"A scorer reads a dict of lists, not a {type(batch).__name__}; map the dataset "
            "without a table format, as in ds.with_format(None).map(...)."
        )
    if any(map(_is_a_cell, batch.values())) or _is_one_conversation(batch):
        raise InputError(
            "This is one row, but a scorer reads batches; map it with batched=True, as in "
            "ds.map(scorer, batched=True)."
        )


def _is_a_cell(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float, Mapping))


def _is_one_conversation(batch: Mapping[str, Sequence[Any]]) -> bool:
    """Whether a column of conversations holds turns, and so is one of them."""
    if len(batch) > 1 and len({len(values) for values in batch.values()}) == 1:
        return False
    talks = [batch[name] for name in ("messages", "conversations", "conversation") if name in batch]
    first = [talk[0] for talk in talks if isinstance(talk, Sequence) and talk]
    return any(
        isinstance(t, Mapping) and isinstance(t.get("role", t.get("from")), str) for t in first
    )


@dataclass(frozen=True)
class RowReader:
    """Reads pairs out of batches of rows, whatever their layout.

    Attributes:
        instruction_column, response_column: read these two columns instead of a detected layout.
        turns: what to do with several turns. ``"first"`` rates the first exchange, as the released
            code does; ``"all"`` rates the last response and moves earlier turns into the
            instruction; ``None`` gives such rows the status ``multi_turn``.
        translation: ``"de:en"`` for rows with a ``translation`` column.
        roles: ``"NAME=user"`` (or ``assistant``, ``system``, ``tool``) for each role name that is
            unknown, or that has another meaning by default.

    Example:
        >>> RowReader().pairs({"instruction": ["Add 1 and 2."], "output": ["3"]})
        [Pair(instruction='Add 1 and 2.', response='3')]
    """

    instruction_column: str | None = None
    response_column: str | None = None
    turns: Turns | None = None
    translation: str | None = None
    roles: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.instruction_column is None) != (self.response_column is None):
            raise SettingError(
                "instruction_column and response_column go together; one of them is missing."
            )
        if self.turns is not None and self.turns not in get_args(Turns):
            raise SettingError(f"turns={self.turns!r} is unknown; choose 'first' or 'all'.")
        if self.translation is not None:
            languages(self.translation)
        if self.roles is not None:
            object.__setattr__(self, "roles", tuple(self.roles))
        self.kinds  # noqa: B018  (checks the roles)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "RowReader":
        """The reader with settings from a plan or a scorer's state; older ones lack some."""
        return cls(**{name: settings.get(name) for name in READING})

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each of the ``roles``, by its normalised name."""
        found: dict[str, str] = {}
        for mapping in self.roles or ():
            name, _, kind = str(mapping).rpartition("=")
            if not normalised(name) or kind.strip().lower() not in KINDS:
                raise SettingError(
                    f"roles holds {mapping!r}, which must be NAME=KIND (--role NAME=KIND), with "
                    f"one of {', '.join(KINDS)} for KIND."
                )
            found[normalised(name)] = kind.strip().lower()
        return found

    def columns(self, available: Sequence[str]) -> tuple[str, ...]:
        """The columns that are read, instruction first.

        Raises:
            InputError: no layout fits ``available``, or a named column is not there.
        """
        return tuple(self._layout(available)[1].values())

    def pairs(self, batch: Mapping[str, Sequence[Any]]) -> list[Pair | str]:
        """One `Pair` or status for each row of a dict of lists, in order.

        Raises:
            InputError: the columns do not fit, or ``translation`` is needed and not set.
        """
        layout, rows = self.layout_rows(batch)
        return [self._pair(layout, row) for row in rows]

    def unknown_roles(self, batch: Mapping[str, Sequence[Any]]) -> Counter[str]:
        """The number of rows in which each unmapped role occurs."""
        layout, rows = self.layout_rows(batch)
        counts: Counter[str] = Counter()
        for row in rows:
            try:
                layout.read(row, self)
            except UnknownRole as problem:
                counts.update(problem.names)
            except Unratable:
                pass
        return counts

    def layout(self, available: Sequence[str]) -> Layout:
        """The layout that fits the columns.

        Raises:
            InputError: see `columns`.
        """
        return self._layout(available)[0]

    def layout_name(self, available: Sequence[str]) -> str:
        """What the layout is called, for people."""
        return self.layout(available).name

    def layout_rows(
        self, batch: Mapping[str, Sequence[Any]]
    ) -> tuple[Layout, list[dict[str, Any]]]:
        """The layout of a dict of lists, and its rows: the columns that are read, by their names
        in the layout, in the order of `columns`.

        Raises:
            InputError: see `pairs`.
        """
        check_batch(batch)
        layout, columns = self._layout(list(batch))
        values = zip(*(batch[c] for c in columns.values()), strict=True)
        return layout, [dict(zip(columns, row, strict=True)) for row in values]

    def _layout(self, available: Sequence[str]) -> tuple[Layout, dict[str, str]]:
        """The layout, and its columns: their names in it, and in the dataset."""
        if self.instruction_column is not None:
            return NAMED_COLUMNS, {name: name for name in self._explicit_columns(available)}
        # An exact name takes precedence over one in other case.
        actual = {name.strip().lower(): name for name in reversed(available)}
        actual |= {name: name for name in available}
        for layout in LAYOUTS:
            for columns in layout.columns:
                if set(columns) <= set(actual):
                    self._check_translation(layout)
                    more = [c for c in layout.optional if c in actual and c not in columns]
                    return layout, {c: actual[c] for c in (*columns, *more)}
        raise InputError(refusal(available))

    def _check_translation(self, layout: Layout) -> None:
        if layout.name == "translation" and self.translation is None:
            raise InputError(
                "The dataset has a 'translation' column; say which languages to rate with "
                "translation='de:en' (--translation de:en), source first."
            )

    def _pair(self, layout: Layout, row: dict[str, Any]) -> Pair | str:
        try:
            pair = Pair(*layout.read(row, self))
        except Unratable as problem:
            return problem.status
        if not pair.instruction.strip() or not pair.response.strip():
            return "empty"
        return pair if all(map(_encodable, pair)) else "encoding"

    def _explicit_columns(self, available: Sequence[str]) -> tuple[str, str]:
        named = (str(self.instruction_column), str(self.response_column))
        missing = [c for c in named if c not in available]
        if missing:
            raise InputError(
                f"Column {missing[0]!r} is not in the dataset, which has {list(available)}. "
                "Correct instruction_column or response_column."
                f"{did_you_mean(missing[0], available)}"
            )
        return named


READING = ("instruction_column", "response_column", "turns", "translation", "roles")
"""The settings of a `RowReader`, which scorers and plans have too."""


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return SURROGATE.search(text) is None
