"""A row as a conversation: its turns, how each stands in the row, and the tools beside them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from selectit_hf.formats.layouts import TOOLS, Layout, RowSettings
from selectit_hf.formats.turns import (
    Turn,
    Unratable,
    as_json,
    calls_tool,
    joined,
    plain,
    raw_turns,
    turns_of,
)

__all__ = ["Conversation", "Said", "conversation"]


class Said(NamedTuple):
    """A turn, and how it stands in the row; None where the row does not hold it as a turn."""

    turn: Turn
    raw: Mapping[str, Any] | None = None


class Conversation(NamedTuple):
    """What a row says.

    Attributes:
        said: the turns; all leading system turns are one.
        tools: the definitions of tools, as JSON; None where there are none.
        uses_tools: whether any turn calls a tool or gives what it answered.
    """

    said: list[Said]
    tools: str | None
    uses_tools: bool


def conversation(layout: Layout, row: Mapping[str, Any], settings: RowSettings) -> Conversation:
    """The whole conversation of a row, whatever part of it was rated.

    Args:
        layout: the row's layout.
        row: its columns, by their names in the layout.
        settings: how it is read.

    Raises:
        Unratable: it is not a conversation. Rows that have a score are.
        ValueError: it has two columns of tools.
    """
    beside = [name for name in TOOLS if name in layout.optional and name in row]
    tools = [plain(row[name]) for name in beside]
    texts = [as_json(one) for one in tools if one is not None and one not in ("", [], {}, "[]")]
    if len(texts) > 1:
        raise ValueError(f"has both of {' and '.join(beside)}")
    bare = {name: value for name, value in row.items() if name not in beside}
    said = _said(layout.turns(bare, settings), next(iter(bare.values())), settings)
    uses = any(one.turn.role == "tool" for one in said) or any(map(_calls_tool, bare.values()))
    return Conversation(_one_system(said), texts[0] if texts else None, uses)


def _said(turns: Sequence[Turn], value: Any, settings: RowSettings) -> list[Said]:
    """The turns, each with how it stands in ``value`` if that is where they come from."""
    try:
        raw, read = raw_turns(value), turns_of(value, settings.kinds)
    except Unratable:
        return [Said(turn) for turn in turns]
    for start in range(len(turns) - len(read) + 1):
        if list(turns[start : start + len(read)]) == read:
            stands = [None] * start + list(raw) + [None] * (len(turns) - start - len(read))
            return [Said(*both) for both in zip(turns, stands, strict=True)]
    return [Said(turn) for turn in turns]


def _one_system(said: list[Said]) -> list[Said]:
    count = next((i for i, one in enumerate(said) if one.turn.role != "system"), len(said))
    if count < 2:
        return said
    return [Said(Turn("system", joined(*(one.turn.text for one in said[:count])))), *said[count:]]


def _calls_tool(value: Any) -> bool:
    with suppress(Unratable):
        return any(map(calls_tool, raw_turns(value)))
    return False
