"""How instruction data is laid out in columns, and how a row of each layout is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from selectit_hf.formats.translation import instruction, languages
from selectit_hf.formats.turns import (
    Turn,
    Unratable,
    as_json,
    joined,
    pair_of_turns,
    parsed,
    plain,
    required_text,
    turns_of,
)

__all__ = ["LAYOUTS", "NAMED_COLUMNS", "TOOLS", "Layout", "RowSettings", "refusal"]


class RowSettings(Protocol):
    """The settings that a row is read with; see `selectit_hf.formats.rows.RowReader`."""

    @property
    def turns(self) -> Any:
        """The policy for several turns."""

    @property
    def translation(self) -> str | None:
        """The languages."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kind of each role, by its normalised name."""


Row = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """One way to lay out instruction data.

    Attributes:
        name: what people call it.
        columns: alternative sets of columns that must be there, in lower case.
        turns: the turns of a row with these columns; two of them where it is no conversation.
        optional: further columns that are part of the sample, read if they are there.
        has_turns: whether a row can hold several turns without any ``history``.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    turns: Callable[[Row, RowSettings], list[Turn]]
    optional: tuple[str, ...] = ()
    has_turns: bool = False

    def read(self, row: Row, settings: RowSettings) -> tuple[str, str]:
        """Instruction and response of a row with these columns."""
        return pair_of_turns(self.turns(row, settings), settings.turns)


# Columns other than the question and the answer

SYSTEM = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions")
BEFORE = (*SYSTEM, *TOOLS, "history")


def _before(row: Row, settings: RowSettings) -> list[Turn]:
    """The turns given by the columns other than the exchange."""
    if row.keys().isdisjoint(BEFORE):
        return []
    said = [_extra(row.get(name)) for name in SYSTEM]
    said += [f"Tools: {text}" for text in (_tools(row.get(n)) for n in TOOLS) if text]
    system = [Turn("system", text) for text in dict.fromkeys(said) if text.strip()]
    return system + _history(row.get("history"), settings)


def _tools(value: Any) -> str:
    value = plain(value)
    return "" if value is None or value in ("", [], {}, "[]") else as_json(value)


def _extra(value: Any) -> str:
    """A text that may be missing; several are joined by newlines."""
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return joined(*(required_text(one) for one in value))
    return required_text(value)


def _history(value: Any, settings: RowSettings) -> list[Turn]:
    """Earlier exchanges: lists of question and answer, or turns."""
    value = plain(value)
    if value is None or value in ("", [], "[]"):
        return []
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [Turn("user", value)]
    value = parsed(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        pairs = [plain(one) for one in value]
        if all(isinstance(one, (list, tuple)) and len(one) == 2 for one in pairs):
            kinds = ("user", "assistant")
            return [
                Turn(k, _extra(text)) for one in pairs for k, text in zip(kinds, one, strict=True)
            ]
    return turns_of(value, settings.kinds)


# Readers of one layout each


def _read_named(row: Row, settings: RowSettings) -> list[Turn]:
    texts = list(row.values())  # one, where instruction and response are the same column
    return _exchange(required_text(texts[0]), required_text(texts[-1]))


def _exchange(asked: str, answered: str) -> list[Turn]:
    return [Turn("user", asked), Turn("assistant", answered)]


def _read_exchange(row: Row, settings: RowSettings) -> list[Turn]:
    """A question and its answer in two columns; either may be a list of turns."""
    asked, answered, *_ = row.values()
    if asked is None or answered is None:
        raise Unratable("empty")
    beside = [_extra(row[name]) for name in (*row,)[2:] if name in ("input", "context")]
    before = _before(row, settings)
    question = _as_turns(asked, "user", settings)
    if any(text.strip() for text in beside):
        question[-1:] = [turn._replace(text=joined(turn.text, *beside)) for turn in question[-1:]]
    answer = _as_turns(answered, "assistant", settings)
    if not _holds(answer, question):
        answer = question + answer
    return before + answer


def _holds(answer: list[Turn], question: list[Turn]) -> bool:
    """Whether an answer is the whole conversation, its question included."""
    return len(answer) > len(question) and all(turn in answer for turn in question)


def _as_turns(value: Any, role: str, settings: RowSettings) -> list[Turn]:
    if isinstance(value, str):
        return [Turn(role, value)]
    return turns_of(value, settings.kinds)


def _read_conversation(row: Row, settings: RowSettings) -> list[Turn]:
    turns = turns_of(next(iter(row.values())), settings.kinds)
    before = _before(row, settings)
    before = [turn for turn in before if turn.role != "system" or turn not in turns]
    chosen = row.get("chosen")
    if chosen is not None and turns and turns[-1].role != "assistant":
        turns += _as_turns(chosen, "assistant", settings)
    return before + turns


def _read_chosen(row: Row, settings: RowSettings) -> list[Turn]:
    return turns_of(row["chosen"], settings.kinds)


def _read_alternating(row: Row, settings: RowSettings) -> list[Turn]:
    texts = plain(row["data"])
    if texts is None:
        raise Unratable("empty")
    if not isinstance(texts, Sequence) or isinstance(texts, str):
        raise Unratable("type")
    kinds = ("user", "assistant")
    return [Turn(kinds[i % 2], required_text(text)) for i, text in enumerate(texts)]


def _read_translation(row: Row, settings: RowSettings) -> list[Turn]:
    source, target = languages(settings.translation or "")
    texts = row["translation"]
    if texts is None:
        raise Unratable("empty")
    if not isinstance(texts, Mapping):
        raise Unratable("type")
    original = required_text(texts.get(source))
    if not original.strip():
        raise Unratable("empty")
    return _exchange(instruction(source, target, original), required_text(texts.get(target)))


def _either(asked: str, *answered: str) -> tuple[tuple[str, str], ...]:
    return tuple((asked, name) for name in answered)


NAMED_COLUMNS = Layout("named columns", (), _read_named)
BESIDE = ("input", "context", *BEFORE)
LAYOUTS = (
    Layout("messages", (("messages",),), _read_conversation, (*BEFORE, "chosen"), True),
    Layout("ShareGPT", (("conversations",),), _read_conversation, (*BEFORE, "chosen"), True),
    Layout(
        "Alpaca",
        _either("instruction", "output", "response", "completion", "answer"),
        _read_exchange,
        BESIDE,
    ),
    Layout(
        "prompt/completion",
        _either("prompt", "completion", "response"),
        _read_exchange,
        BESIDE,
        True,
    ),
    Layout(
        "preference",
        (*_either("prompt", "chosen"), *_either("instruction", "chosen"), ("question", "chosen")),
        _read_exchange,
        BESIDE,
        True,
    ),
    Layout("prompt/output", _either("prompt", "output", "answer"), _read_exchange, BESIDE, True),
    Layout("Orca", _either("question", "response"), _read_exchange, BESIDE),
    Layout("question/answer", _either("question", "answer"), _read_exchange, BESIDE),
    Layout("query/response", _either("query", "response", "answer"), _read_exchange, BESIDE),
    Layout("FLAN", _either("inputs", "targets"), _read_exchange, BESIDE),
    Layout("conversation", (("conversation",),), _read_conversation, (*BEFORE, "chosen"), True),
    Layout("preference of conversations", (("chosen", "rejected"),), _read_chosen, (), True),
    Layout(
        "input/output",
        _either("input", "output", "response"),
        _read_exchange,
        ("context", *BEFORE),
    ),
    Layout("UltraChat", (("data",),), _read_alternating, (), True),
    Layout("translation", (("translation",),), _read_translation),
)
"""The layouts that are detected from the columns; the first that fits is used."""

TREES = (("parent_id", "text", "role"), ("message_tree_id",), ("replies",))


def refusal(columns: Sequence[str]) -> str:
    """Why no layout fits ``columns``, and what helps."""
    small = {name.strip().lower() for name in columns}
    if any(set(tree) <= small for tree in TREES):
        return (
            f"The columns {list(columns)} hold single messages of a tree (as OASST has them), not "
            "conversations. Join each path from a root to a leaf into one row with a column "
            "'messages', a list of {role, content}."
        )
    known = "; ".join(f"{layout.name} ({_alternatives(layout)})" for layout in LAYOUTS)
    whole = " Split a column that holds question and answer in one text." if "text" in small else ""
    return (
        f"No known layout fits the columns {list(columns)}. Known: {known}.{whole} Name the two "
        "columns with instruction_column and response_column (--instruction-column, "
        "--response-column)."
    )


def _alternatives(layout: Layout) -> str:
    return " or ".join(", ".join(columns) for columns in layout.columns)
