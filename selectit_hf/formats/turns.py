"""From conversations to the pair that is rated: roles, texts, and which turn is the answer.

A turn is a dict with a role and a content under any of their common names. Tool calls are turns of
the assistant, and tool results are turns of a tool: both are text like any other.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "KINDS",
    "NAMES",
    "ROLES",
    "TURN_KEYS",
    "Turn",
    "UnknownRole",
    "Unratable",
    "as_json",
    "calls_tool",
    "joined",
    "normalised",
    "pair_of_turns",
    "parsed",
    "plain",
    "raw_turns",
    "required_text",
    "turns_of",
]

KINDS = ("user", "assistant", "system", "tool")
"""The kinds of roles."""

NAMES = {
    "system": "system sys developer system_prompt system_message",
    "user": "user human prompter usr customer client questioner asker inquirer student patient "
    "human_user end_user question q",
    "assistant": "assistant gpt chatgpt bing bard model bot chatbot"
    " ai ai_assistant ai_bot agent claude gemini llama llm helper tutor teacher doctor "
    "expert response answer a machine "
    "function_call functioncall function_calls tool_call toolcall tool_calls",
    "tool": "tool tools function observation observations tool_response tool_responses tool_result "
    "tool_results tool_output tool_outputs function_response function_result function_output "
    "function_observation ipython environment",
}
ROLES = {name.replace("_", ""): kind for kind, names in NAMES.items() for name in names.split()}
"""The known roles, in lower case and without separators between words."""
MODEL = re.compile("(chatgpt|gpt|claude|gemini|llama)v?[0-9].*")
"""Roles that are a model name with a version, as in ``gpt-4o``."""

ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
CONTENT_KEYS = ("content", "value", "text", "message", "utterance", "parts", "refusal")
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
CALL_KEYS = ("tool_calls", "function_call")
CALL_ROLES = ("functioncall", "functioncalls", "toolcall", "toolcalls")
TURN_KEYS = (*ROLE_KEYS, *CONTENT_KEYS, *THOUGHT_KEYS, *CALL_KEYS)
"""The keys of a turn that are read."""

TEXT_PARTS = ("text", "input_text", "output_text", "thinking", "reasoning", "refusal")
RESULT_PARTS = ("tool_result", "tool_response")
TOOL_PARTS = ("tool_use", "tool_call", "function_call", *RESULT_PARTS)


class Unratable(Exception):
    """A row that is not a pair; ``status`` says why."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class UnknownRole(Unratable):
    """A row with turns of roles that nobody has mapped."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__("type")
        self.names = tuple(dict.fromkeys(names))


class Turn(NamedTuple):
    """Who says what; ``role`` is one of `KINDS`."""

    role: str
    text: str


# Texts


def required_text(value: object) -> str:
    """A text, which must be there."""
    if value is None:
        raise Unratable("empty")
    if not isinstance(value, str):
        raise Unratable("type")
    return value


def joined(*texts: str) -> str:
    """The texts that are not blank, on lines of their own."""
    return "\n".join(text for text in texts if text.strip())


def as_json(value: object) -> str:
    """A value as a line of JSON that does not depend on the other rows.

    Keys that the table fills with nulls are left out, and the order of the keys, which follows the
    first row of the table, is that of their names. A text stays as it is.
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(_without_nulls(value), ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unratable("type") from error


def _without_nulls(value: object) -> object:
    value = plain(value)
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(one) for one in value]
    return value


def plain(value: Any) -> Any:
    """Lists in place of arrays."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def normalised(role: str) -> str:
    """A role in lower case, without separators between its words.

    Example:
        >>> normalised("AI-Assistant:")
        'aiassistant'
    """
    return re.sub(r"[\W_]+", "", role.casefold())


# Turns


def turns_of(value: object, roles: Mapping[str, str]) -> list[Turn]:
    """The turns of a list of turns, of a dict of lists, or of either as a text of JSON.

    Args:
        value: the value in the row.
        roles: kinds of roles by normalised name; they take precedence over `ROLES`.

    Raises:
        Unratable: it is not a conversation; `UnknownRole` if only roles are unknown.
    """
    read = [_turn(turn, roles) for turn in raw_turns(value)]
    unknown = [role for role, _ in read if role not in KINDS]
    if unknown:
        raise UnknownRole(unknown)
    return [Turn(role, text) for role, text in read]


def raw_turns(value: object) -> Sequence[Any]:
    """What `turns_of` reads, one element for each turn, as it stands in the row.

    Raises:
        Unratable: it is not a list of turns.
    """
    value = plain(parsed(value))
    if value is None:
        raise Unratable("empty")
    if isinstance(value, Mapping):
        value = _rows_of_columns(value)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise Unratable("type")
    return value


def calls_tool(turn: object) -> bool:
    """Whether a turn, as it stands in the row, is or holds a call of a tool."""
    if not isinstance(turn, Mapping):
        return False
    keys = {key.strip().lower(): plain(value) for key, value in turn.items()}
    role, content = _first(keys, ROLE_KEYS), _first(keys, CONTENT_KEYS)
    if any(keys.get(key) for key in CALL_KEYS):
        return True
    parts = content if isinstance(content, list) else [content]
    if any(isinstance(part, Mapping) and part.get("type") in TOOL_PARTS for part in parts):
        return True
    return isinstance(role, str) and normalised(role) in CALL_ROLES


def parsed(value: Any) -> Any:
    """A list that is stored as a text of JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _rows_of_columns(columns: Mapping[str, Any]) -> list[Any]:
    if any(key in columns and isinstance(columns[key], str) for key in ROLE_KEYS):
        return [columns]  # one turn
    lists = {name: plain(values) for name, values in columns.items() if values is not None}
    if not all(isinstance(values, Sequence) for values in lists.values()):
        raise Unratable("type")
    if len({len(values) for values in lists.values()}) > 1:
        raise Unratable("type")
    return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=True)]


def _turn(turn: object, roles: Mapping[str, str]) -> tuple[str, str]:
    """The kind of a turn (or its role as written, if unknown) and its text."""
    if not isinstance(turn, Mapping):
        raise Unratable("type")
    keys = {key.strip().lower(): value for key, value in turn.items() if isinstance(key, str)}
    role = _first(keys, ROLE_KEYS)
    if isinstance(role, Mapping):  # the author of an exported chat
        role = role.get("role")
    if not isinstance(role, str):
        raise Unratable("type")
    name = normalised(role)
    kind = roles.get(name) or ROLES.get(name) or (MODEL.fullmatch(name) and "assistant")
    if kind is None:
        return (f"?{role}" if role in KINDS else role), ""
    if not set(keys) & {*CONTENT_KEYS, *THOUGHT_KEYS, *CALL_KEYS}:
        raise Unratable("type")
    content = _first(keys, CONTENT_KEYS)
    if kind == "user" and _is_result(content):
        kind = "tool"
    said = [_content(content)]
    thought = _first(keys, THOUGHT_KEYS)
    if isinstance(thought, str):
        said.insert(0, thought)
    said += [_calls(keys[key]) for key in CALL_KEYS if key in keys]
    return kind, said[0] if len(said) == 1 else joined(*said)


def _first(keys: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first value that is not empty; else the first that is there at all."""
    there = [plain(keys[name]) for name in names if name in keys]
    filled = (value for value in there if value is not None and value not in ("", []))
    return next(filled, next((value for value in there if value is not None), None))


def _calls(value: object) -> str:
    value = plain(value)
    if value is None or value in ("", [], {}):
        return ""
    calls = value if isinstance(value, list) else [value]
    return "\n".join(as_json(call) for call in calls)


def _content(value: object) -> str:
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return _part(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return joined(*(_part(part) for part in value))
    return required_text(value)


def _is_result(content: Any) -> bool:
    """Whether a turn holds only tool results, which some datasets give as turns of the user."""
    if not isinstance(content, list) or not content:
        return False
    return all(isinstance(p, Mapping) and p.get("type") in RESULT_PARTS for p in content)


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise Unratable("type")
    kind = part.get("type", "text")
    if isinstance(kind, str) and kind in TOOL_PARTS:
        return as_json(part)
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        raise Unratable("type")
    return required_text(_first(part, ("text", "value", "content", "thinking", "refusal")))


# Pairs


def pair_of_turns(turns: Sequence[Turn], policy: str | None) -> tuple[str, str]:
    """Instruction and response of a conversation.

    System turns at the beginning are put before the instruction. One user turn and one assistant
    turn are the pair; for anything longer the policy says which answer is rated, and the turns
    before it become part of the instruction, each with its role.

    Raises:
        Unratable: ``empty``, there is no answer; ``multi_turn``, there is no policy;
            ``unanswered``, the policy rates the last response, and the last turn is not a response.
    """
    if [turn.role for turn in turns] == ["user", "assistant"]:  # nearly every row
        return joined(turns[0].text), turns[1].text
    count = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    system, spoken = [turn.text for turn in turns[:count]], list(turns[count:])
    if not any(turn.role == "assistant" for turn in spoken[1:]):
        raise Unratable("empty")
    if [turn.role for turn in spoken] == ["user", "assistant"]:
        return _pair(system, spoken)
    if policy is None:
        raise Unratable("multi_turn")
    if policy == "first":
        return _pair(system, _first_exchange(spoken))
    if spoken[-1].role != "assistant":
        raise Unratable("unanswered")
    return _pair(system, spoken)


def _pair(system: Sequence[str], turns: Sequence[Turn]) -> tuple[str, str]:
    *earlier, last = turns
    if [turn.role for turn in earlier] == ["user"]:
        return joined(*system, earlier[0].text), last.text
    return joined(*system, *(f"{t.role.capitalize()}: {t.text}" for t in earlier)), last.text


def _first_exchange(turns: Sequence[Turn]) -> list[Turn]:
    """The turns from the first answered question to the last answer before the next question."""
    exchange: list[Turn] = []
    for turn in turns:
        if turn.role == "user" and any(one.role == "assistant" for one in exchange):
            break
        if exchange or turn.role == "user":
            exchange.append(turn)
    while exchange and exchange[-1].role != "assistant":
        exchange.pop()
    if not exchange:
        raise Unratable("empty")
    return exchange
