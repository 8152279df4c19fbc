"""From the rows people have to the pair that is rated.

A row becomes `Pair(instruction, response)`, or a status that says why it cannot:
``empty`` (nothing to rate), ``type`` (not text), ``encoding`` (not valid Unicode), ``multi_turn``
(several turns and no policy for them). The columns tell the layout; see `LAYOUTS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from selectit_hf.errors import InputError, SettingError

__all__ = ["LAYOUTS", "STATUSES", "Layout", "Pair", "RowReader", "Turns", "check_batch", "worst"]

STATUSES = (
    "ok",
    "truncated",
    "empty",
    "type",
    "multi_turn",
    "encoding",
    "oom",
    "nonfinite",
)
"""Every status a row can have, from best to worst. Only the first two come with a score."""

Turns = Literal["first", "all"]


class Pair(NamedTuple):
    """What a rating prompt is asked about."""

    instruction: str
    response: str


class _Unratable(Exception):
    def __init__(self, status: str) -> None:
        self.status = status


class _Turn(NamedTuple):
    role: str
    text: str


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
    if any(_is_of_one_row(name, value) for name, value in batch.items()):
        raise InputError(
            "This is one row, and a scorer reads batches; map it with batched=True, as in "
            "ds.map(scorer, batched=True)."
        )


def _is_of_one_row(name: str, value: object) -> bool:
    if value is None or isinstance(value, (str, int, float, Mapping)):
        return True
    talk = name in ("messages", "conversations") and isinstance(value, Sequence) and value
    first = talk[0] if talk else None
    return isinstance(first, Mapping) and isinstance(first.get("role", first.get("from")), str)


@dataclass(frozen=True)
class RowReader:
    """Reads pairs out of batches of rows, whatever their layout.

    Attributes:
        instruction_column, response_column: read these two columns instead of a detected layout.
        turns: what to do with several turns. ``"first"`` rates the first exchange, as the released
            code does; ``"all"`` rates the last response and moves earlier turns into the
            instruction; ``None`` gives such rows the status ``multi_turn``.
        translation: ``"de:en"`` for rows with a ``translation`` column.

    Example:
        >>> RowReader().pairs({"instruction": ["Add 1 and 2."], "output": ["3"]})
        [Pair(instruction='Add 1 and 2.', response='3')]
    """

    instruction_column: str | None = None
    response_column: str | None = None
    turns: Turns | None = None
    translation: str | None = None

    def __post_init__(self) -> None:
        if (self.instruction_column is None) != (self.response_column is None):
            raise SettingError(
                "instruction_column and response_column go together; one of them is missing."
            )
        if self.turns is not None and self.turns not in get_args(Turns):
            raise SettingError(f"turns={self.turns!r} is unknown; choose 'first' or 'all'.")
        if self.translation is not None:
            _languages(self.translation)

    def columns(self, available: Sequence[str]) -> tuple[str, ...]:
        """The columns that are read, instruction first.

        Raises:
            InputError: no layout fits ``available``, or a named column is not there.
        """
        return self._layout(available)[1]

    def pairs(self, batch: Mapping[str, Sequence[Any]]) -> list[Pair | str]:
        """One `Pair` or status for each row of a dict of lists, in order.

        Raises:
            InputError: the columns do not fit, or ``translation`` is needed and not set.
        """
        check_batch(batch)
        layout, columns = self._layout(list(batch))
        rows = zip(*(batch[c] for c in columns), strict=True)
        return [self._pair(layout, dict(zip(columns, row, strict=True))) for row in rows]

    def layout_name(self, available: Sequence[str]) -> str:
        """What the layout is called, for people."""
        return self._layout(available)[0].name

    def _layout(self, available: Sequence[str]) -> tuple["Layout", tuple[str, ...]]:
        if self.instruction_column is not None:
            return NAMED_COLUMNS, self._explicit_columns(available)
        for layout in LAYOUTS:
            for columns in layout.columns:
                if set(columns) <= set(available):
                    self._check_translation(layout)
                    optional = [c for c in layout.optional if c in available]
                    return layout, (*columns, *optional)
        known = "; ".join(f"{layout.name} ({_alternatives(layout)})" for layout in LAYOUTS)
        raise InputError(
            f"No known layout fits the columns {list(available)}. Known: {known}. Name the two "
            "columns with instruction_column and response_column (--instruction-column, "
            "--response-column)."
        )

    def _check_translation(self, layout: "Layout") -> None:
        if layout.name == "translation" and self.translation is None:
            raise InputError(
                "The dataset has a 'translation' column; say which languages to rate with "
                "translation='de:en' (--translation de:en), source first."
            )

    def _pair(self, layout: "Layout", row: dict[str, Any]) -> Pair | str:
        try:
            pair = layout.read(row, self)
        except _Unratable as problem:
            return problem.status
        if not pair.instruction.strip() or not pair.response.strip():
            return "empty"
        return pair if all(map(_encodable, pair)) else "encoding"

    def _explicit_columns(self, available: Sequence[str]) -> tuple[str, ...]:
        named = (str(self.instruction_column), str(self.response_column))
        missing = [c for c in named if c not in available]
        if missing:
            raise InputError(
                f"Column {missing[0]!r} is not in the dataset, which has {list(available)}. "
                "Correct instruction_column or response_column."
            )
        return named


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _text(value: object) -> str:
    if value is None:
        raise _Unratable("empty")
    if not isinstance(value, str):
        raise _Unratable("type")
    return value


def _joined(*texts: str) -> str:
    return "\n".join(text for text in texts if text.strip())


def _optional_text(value: object) -> str:
    return "" if value is None else _text(value)


# Readers of one layout each: a row as a dict, and the reader's settings, to a pair.


def _read_named(row: dict[str, Any], settings: RowReader) -> Pair:
    return Pair(
        _text(row[str(settings.instruction_column)]), _text(row[str(settings.response_column)])
    )


def _read_alpaca(row: dict[str, Any], settings: RowReader) -> Pair:
    instruction, response = (row[c] for c in ("instruction", _first(row, "output", "response")))
    extra = row.get("input", row.get("context"))
    return Pair(_joined(_text(instruction), _optional_text(extra)), _text(response))


def _first(row: dict[str, Any], *names: str) -> str:
    return next(name for name in names if name in row)


def _read_orca(row: dict[str, Any], settings: RowReader) -> Pair:
    system = _optional_text(row.get("system_prompt"))
    return Pair(_joined(system, _text(row["question"])), _text(row["response"]))


def _read_prompt_completion(row: dict[str, Any], settings: RowReader) -> Pair:
    prompt, completion = row["prompt"], row["completion"]
    if any(value is None or isinstance(value, str) for value in (prompt, completion)):
        return Pair(_text(prompt), _text(completion))
    return _from_turns(_turns(prompt) + _turns(completion), settings.turns)


def _read_conversation(row: dict[str, Any], settings: RowReader) -> Pair:
    (value,) = row.values()
    return _from_turns(_turns(value), settings.turns)


def _read_translation(row: dict[str, Any], settings: RowReader) -> Pair:
    source, target = _languages(settings.translation or "")
    texts = row["translation"]
    if texts is None:
        raise _Unratable("empty")
    if not isinstance(texts, Mapping):
        raise _Unratable("type")
    fields = {
        "source_language": LANGUAGES.get(source, source),
        "target_language": LANGUAGES.get(target, target),
    }
    instruction = _translation_template()
    for name, value in fields.items():
        instruction = instruction.replace(f"{{{name}}}", value)
    original = _text(texts.get(source))
    if not original.strip():
        raise _Unratable("empty")
    return Pair(instruction.replace("{text}", original), _text(texts.get(target)))


@dataclass(frozen=True)
class Layout:
    """One way to lay out instruction data: the columns it needs, and how to read a row of it."""

    name: str
    columns: tuple[tuple[str, ...], ...]
    read: Callable[[dict[str, Any], RowReader], Pair]
    optional: tuple[str, ...] = ()


NAMED_COLUMNS = Layout("named columns", (), _read_named)
LAYOUTS = (
    Layout("messages", (("messages",),), _read_conversation),
    Layout("ShareGPT", (("conversations",),), _read_conversation),
    Layout(
        "Alpaca",
        (("instruction", "output"), ("instruction", "response")),
        _read_alpaca,
        optional=("input", "context"),
    ),
    Layout("prompt/completion", (("prompt", "completion"),), _read_prompt_completion),
    Layout("Orca", (("question", "response"),), _read_orca, optional=("system_prompt",)),
    Layout("translation", (("translation",),), _read_translation),
)
"""The layouts that are detected from the columns; the first that fits is read."""


def _alternatives(layout: Layout) -> str:
    return " or ".join(", ".join(columns) for columns in layout.columns)


# Conversations

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


def _turns(value: object) -> list[_Turn]:
    """Turns of a list of ``{role, content}`` or ``{from, value}``, or of a dict of lists."""
    if value is None:
        raise _Unratable("empty")
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        value = _rows_of_columns(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _Unratable("type")
    return [_turn(turn) for turn in value]


def _rows_of_columns(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not all(isinstance(values, Sequence) for values in columns.values()):
        raise _Unratable("type")
    return [dict(zip(columns, turn, strict=True)) for turn in zip(*columns.values(), strict=False)]


def _turn(turn: object) -> _Turn:
    if not isinstance(turn, Mapping):
        raise _Unratable("type")
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise _Unratable("type")
    return _Turn(ROLES[role.lower()], _content(turn.get("content", turn.get("value"))))


def _content(value: object) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _joined(*(_text_part(part) for part in value))
    return _optional_text(value)


def _text_part(part: object) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        raise _Unratable("type")
    return _text(part.get("text"))


def _from_turns(turns: list[_Turn], policy: Turns | None) -> Pair:
    system = [turn.text for turn in turns if turn.role == "system"]
    spoken = [turn for turn in turns if turn.role != "system"]
    answers = [i for i, turn in enumerate(spoken) if turn.role == "assistant" and i > 0]
    if not answers:
        raise _Unratable("empty")
    if [turn.role for turn in spoken] == ["user", "assistant"]:
        return Pair(_joined(*system, spoken[0].text), spoken[1].text)
    if policy is None:
        raise _Unratable("multi_turn")
    if policy == "first":
        return _first_exchange(system, spoken)
    earlier, last = spoken[: answers[-1]], spoken[answers[-1]]
    history = [f"{turn.role.capitalize()}: {turn.text}" for turn in earlier]
    return Pair(_joined(*system, *history), last.text)


def _first_exchange(system: list[str], spoken: list[_Turn]) -> Pair:
    for asked, answered in pairwise(spoken):
        if (asked.role, answered.role) == ("user", "assistant"):
            return Pair(_joined(*system, asked.text), answered.text)
    raise _Unratable("empty")


# Translation

LANGUAGES = {
    "ar": "Arabic",
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "ha": "Hausa",
    "hi": "Hindi",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "zh": "Chinese",
}
"""Names put into the translation instruction; another code stands for itself."""


def _languages(pair: str) -> tuple[str, str]:
    source, _, target = pair.partition(":")
    if not source or not target or source == target:
        raise SettingError(
            f"translation={pair!r} must name two languages, source first, as in 'de:en'."
        )
    return source, target


def _translation_template() -> str:
    text = files("selectit_hf").joinpath("data/translation_instruction.txt").read_text("utf-8")
    return text.rstrip("\n")
