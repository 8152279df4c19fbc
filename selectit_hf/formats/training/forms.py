"""The forms that trainers read, and rows in each of them.

``messages``           {"messages": [{"role", "content"}, ...]}
``sharegpt``           {"conversations": [{"from", "value"}, ...]}
``alpaca``             {"instruction", "input", "output"}; the input is empty
``prompt-completion``  {"prompt", "completion"}; the prompt ends with a line break
``text``               {"text"}: prompt and completion in one

The first two keep whole conversations, and tools in a column ``tools``, as JSON. The others hold
what was rated: one instruction and one response.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from datasets import Features, Json, List, Value
from datasets.features.features import require_storage_embed

from selectit_hf.errors import InputError, SettingError
from selectit_hf.formats.layouts import TOOLS
from selectit_hf.formats.rows import Pair, RowReader
from selectit_hf.formats.training.conversations import Conversation, Said, conversation
from selectit_hf.formats.turns import Unratable, calls_tool, pair_of_turns

__all__ = ["FORMS", "Form", "Trainable"]

Form = Literal["messages", "prompt-completion", "alpaca", "sharegpt", "text"]
FORMS: tuple[str, ...] = get_args(Form)
BETWEEN = "\n"
"""What separates prompt and completion for trainers that put one right after the other.

Tokenizers keep one line break apart from the word after it; of two, some cut the second off.
"""
ELSEWHERE = "selected.parquet in the run folder holds it as it was"

PAIRS: dict[str, Callable[[Pair], dict[str, str]]] = {
    "prompt-completion": lambda p: {"prompt": p.instruction + BETWEEN, "completion": p.response},
    "alpaca": lambda p: {"instruction": p.instruction, "input": "", "output": p.response},
    "text": lambda p: {"text": p.instruction + BETWEEN + p.response},
}
CONVERSATIONS = {"messages": "messages", "sharegpt": "conversations"}
"""The column of the forms that hold whole conversations."""
NAMES = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}
"""ShareGPT's names of the roles."""
ALTERNATING = (("human", "observation"), ("gpt", "function_call"))


class Trainable:
    """Rows of one dataset, in one form.

    Attributes:
        columns: the columns that are read.
        left_out: the other columns.
        features: the columns that are made.
        shortened: how many of the rows made so far hold only the part that was rated.
        uneven: how many conversations of ``sharegpt`` do not alternate between question and answer.

    Raises:
        SettingError: an unknown form.
        InputError: no layout fits the columns.
    """

    def __init__(self, form: str, reader: RowReader, features: Features) -> None:
        if form not in FORMS:
            raise SettingError(f"--format {form} is unknown; choose one of {', '.join(FORMS)}.")
        self.form, self.reader = form, reader
        self.columns = list(reader.columns(list(features)))
        self.left_out = [name for name in features if name not in self.columns]
        self.media = [name for name in features if require_storage_embed(features[name])]
        self._turn = _verbatim(features[self.columns[0]])
        self.features = self._made()
        self.shortened = self.uneven = 0

    def _made(self) -> Features:
        if self.form in PAIRS:
            return Features({name: Value("string") for name in PAIRS[self.form](Pair("", ""))})
        keys = ("role", "content") if self.form == "messages" else ("from", "value")
        turn: Any = {key: Value("string") for key in keys}
        if self.form == "messages" and self._turn is not None:
            turn = self._turn
        has_tools = any(name.strip().lower() in TOOLS for name in self.columns)
        tools = {"tools": Value("string")} if has_tools else {}
        return Features({CONVERSATIONS[self.form]: List(turn), **tools})

    def rows(
        self, batch: Mapping[str, Sequence[Any]], numbers: Iterable[int]
    ) -> list[dict[str, Any]]:
        """The rows of a dict of lists, in this form.

        Args:
            batch: the columns that are read, and those with media.
            numbers: the row number of each, for errors.

        Raises:
            InputError: this form cannot hold a row; it names the row, and a form that can.
        """
        numbers = list(numbers)
        self._check_media(batch, numbers)
        read = {name: batch[name] for name in self.columns}
        pairs = self.reader.pairs(read)
        layout, rows = self.reader.layout_rows(read)
        made = []
        for number, pair, row in zip(numbers, pairs, rows, strict=True):
            if not isinstance(pair, Pair):
                raise InputError(f"Row {number} has no instruction and response: {pair}.")
            try:
                talk = conversation(layout, row, self.reader)
            except (Unratable, ValueError) as error:
                raise InputError(f"Row {number} {error}; {ELSEWHERE}.") from error
            self._check_tools(talk, number)
            made.append(self._row(pair, talk))
        return made

    def _row(self, pair: Pair, talk: Conversation) -> dict[str, Any]:
        if self.form in PAIRS:
            self.shortened += not _is_whole(pair, talk)
            return PAIRS[self.form](pair)
        if self.form == "messages":
            turns = [self._message(one) for one in talk.said]
        else:
            turns = [{"from": _name(one), "value": one.turn.text} for one in talk.said]
            self.uneven += not _alternates([turn["from"] for turn in turns])
        tools = {"tools": talk.tools} if "tools" in self.features else {}
        return {CONVERSATIONS[self.form]: turns, **tools}

    def _message(self, one: Said) -> dict[str, Any]:
        plain = {"role": one.turn.role, "content": one.turn.text}
        if self._turn is None:
            return plain
        if one.raw is not None and _is_message(one.raw):
            return {**one.raw, "role": one.turn.role}
        return plain if isinstance(self._turn, Json) else {**dict.fromkeys(self._turn), **plain}

    # What a form cannot hold

    def _holds(self, form: str, talk: Conversation) -> bool:
        """Whether a form can hold the tools of a conversation."""
        if form in PAIRS:
            return not talk.uses_tools and talk.tools is None
        if not talk.uses_tools:
            return True
        using = [one.raw for one in talk.said if one.turn.role == "tool" or calls_tool(one.raw)]
        if form == "messages":
            return bool(using) and self._turn is not None and all(map(_is_message, using))
        return bool(using) and all(map(_is_sharegpt, using))

    def _check_tools(self, talk: Conversation, number: int) -> None:
        if self._holds(self.form, talk):
            return
        others = [form for form in CONVERSATIONS if self._holds(form, talk)]
        remedy = f"choose --format {others[0]}, which can" if others else ELSEWHERE
        raise InputError(
            f"Row {number} has tools, or calls of them, which --format {self.form} cannot hold; "
            f"{remedy}."
        )

    def _check_media(self, batch: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> None:
        for name in self.media:
            for number, value in zip(numbers, batch[name], strict=True):
                if value is not None and value != []:
                    raise InputError(
                        f"Row {number} has media in the column {name!r}, which no form of text can "
                        f"hold; {ELSEWHERE}, and 'selectit push' publishes it."
                    )


def _verbatim(feature: Any) -> Any:
    """The type of a turn that is a message already, so that it can stay as it is; else None."""
    turn = feature.feature if isinstance(feature, List) else None
    if isinstance(turn, Json):
        return turn
    texts = isinstance(turn, dict) and [turn.get("role"), turn.get("content")]
    return turn if texts == [Value("string")] * 2 else None


def _is_whole(pair: Pair, talk: Conversation) -> bool:
    """Whether the pair that was rated is all of the conversation."""
    try:
        return pair_of_turns([one.turn for one in talk.said], "all") == pair
    except Unratable:
        return False


def _alternates(names: Sequence[str]) -> bool:
    """Whether questions and answers take turns behind the system, as LLaMA-Factory wants it."""
    spoken = names[1:] if names[:1] == ["system"] else names
    right = [name in ALTERNATING[i % 2] for i, name in enumerate(spoken)]
    return all(right) and len(right) % 2 == 0


def _is_message(raw: Mapping[str, Any] | None) -> bool:
    return raw is not None and isinstance(raw.get("role"), str) and "content" in raw


def _is_sharegpt(raw: Mapping[str, Any] | None) -> bool:
    if raw is None or any(raw.get(key) for key in ("tool_calls", "function_call")):
        return False
    return all(isinstance(raw.get(key), str) for key in ("from", "value"))


def _name(one: Said) -> str:
    return "function_call" if calls_tool(one.raw) else NAMES[one.turn.role]
