"""A rating prompt in a tokenizer's chat template: rendering it, and checking the template.

A template is a program. It may write the date into the prompt, so that the same plan gives other
ratings tomorrow; it may drop the text, or ignore a keyword argument that is misspelt.
"""

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

from jinja2 import Environment

from selectit_hf.errors import SettingError, TokenizerError, in_short
from selectit_hf.rating.prompts.chat_probe import check_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["chat_kwargs_text", "check_chat_template", "render_chat"]

CLOCKS = (
    datetime.datetime(2001, 2, 3, 4, 5, 6, 789),
    datetime.datetime(2038, 11, 26, 16, 48, 39, 123456),
)
"""Two times that differ in every part, including the day of the week."""
TIMES = 8
"""Renderings under each clock: a random choice of two is missed in one of 2**15 templates."""
LONG = " ".join(map(str, range(5000)))
QUESTIONS = ("Name a colour:\n\n  - {red} & <blue>", 'Add 1 and 2. "Why?"', LONG)
CHANCE = ("random", "lipsum")
"""What Jinja offers that gives different text each time, even if it is rarely reached."""
TIME_NAME = re.compile(r"\b\w*(?:date|today|time|now)\w*\b", re.IGNORECASE)
FIXED_DATE = "26 Jul 2024"


def chat_kwargs_text(kwargs: Mapping[str, Any] | str | None) -> str | None:
    """Keyword arguments of a chat template as the JSON text of an object; ``None`` for none.

    Raises:
        SettingError: they are not a JSON object.
    """
    if kwargs is None or kwargs == {}:
        return None
    try:
        values = json.loads(kwargs) if isinstance(kwargs, str) else dict(kwargs)
        text = json.dumps(values, sort_keys=True, allow_nan=False)
        if not isinstance(values, dict) or json.loads(text) != values:
            raise ValueError("it is not a JSON object")
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"chat_template_kwargs={kwargs!r} must be a dict of JSON values, as in "
            f"{{'enable_thinking': False}} ({error})."
        ) from error
    return text if values else None


def render_chat(
    tokenizer: "PreTrainedTokenizerBase", text: str, kwargs: Mapping[str, Any] | str | None = None
) -> str:
    """The text of a chat in which the user says ``text`` and the assistant is about to answer.

    ``kwargs`` are the template's keyword arguments, as a dict or as JSON text.

    Raises:
        TokenizerError: the template cannot be rendered.
    """
    values = json.loads(kwargs) if isinstance(kwargs, str) else dict(kwargs or {})
    try:
        rendered: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            tokenize=False,
            **values,
        )
    except Exception as error:  # a template is a program, and may raise anything
        raise TokenizerError(
            "Leave chat unset, or give the keyword arguments that the chat template needs "
            f"(--chat-kwarg NAME=VALUE): it cannot be rendered ({in_short(error)})."
        ) from error
    return str(rendered)


def check_chat_template(
    tokenizer: "PreTrainedTokenizerBase", kwargs: Mapping[str, Any] | str | None = None
) -> None:
    """Refuse a chat template that does not ask the same, whole question every time.

    Raises:
        TokenizerError: there is none, it does not end, its text changes with the time or by chance,
            or it does not hold what the user says.
        SettingError: a keyword argument that the template does not read.
    """
    if not tokenizer.chat_template:
        raise TokenizerError(
            "Leave chat unset for a base model: chat=True needs a tokenizer with a chat template, "
            "and this one has none."
        )
    values = json.loads(kwargs) if isinstance(kwargs, str) else dict(kwargs or {})
    _check_names(tokenizer, values)
    shown = {**tokenizer.special_tokens_map, **values}
    check_ends(_template(tokenizer), shown, QUESTIONS)
    for question in QUESTIONS:
        if question not in render_chat(tokenizer, question, values):
            raise TokenizerError(
                "Leave chat unset, or use another model: the chat template drops or changes what "
                f"the user says (tried with {in_short(ValueError(question))!r})."
            )
    if _is_by_chance(tokenizer, values):
        raise TokenizerError(
            "Leave chat unset, or use another model: the chat template writes other text each time."
        )
    if _changes_with_time(tokenizer, values):
        raise TokenizerError(_pinned_by(tokenizer, values))


def _check_names(tokenizer: "PreTrainedTokenizerBase", values: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that the template does not read or that have reserved names."""
    ours = signature(tokenizer.apply_chat_template).parameters
    for name in values:
        if name in ours or not re.search(rf"\b{re.escape(name)}\b", _template(tokenizer)):
            raise SettingError(
                f"Correct or omit the chat template's keyword argument {name!r}: the template of "
                "this tokenizer does not read it."
            )


def _template(tokenizer: "PreTrainedTokenizerBase") -> str:
    return str(tokenizer.get_chat_template())


@contextmanager
def _clock(now: datetime.datetime) -> Iterator[None]:
    """Let it be ``now`` for `strftime_now`, which is all that a template can see of the time."""
    from transformers.utils import chat_template_utils

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return now

    module: Any = chat_template_utils
    before = module.datetime
    module.datetime = Fixed
    try:
        yield
    finally:
        module.datetime = before


def _texts(
    tokenizer: "PreTrainedTokenizerBase", values: Mapping[str, Any], now: datetime.datetime
) -> set[str]:
    with _clock(now):
        return {render_chat(tokenizer, QUESTIONS[0], values) for _ in range(TIMES)}


def _is_by_chance(tokenizer: "PreTrainedTokenizerBase", values: Mapping[str, Any]) -> bool:
    asked = Environment().lex(_template(tokenizer))
    named = {text.strip("'\"") for _, kind, text in asked if kind in ("name", "string")}
    if named & set(CHANCE):
        return True
    return any(len(_texts(tokenizer, values, now)) > 1 for now in CLOCKS)


def _changes_with_time(tokenizer: "PreTrainedTokenizerBase", values: Mapping[str, Any]) -> bool:
    first, other = (_texts(tokenizer, values, now) for now in CLOCKS)
    return first != other


def _pinned_by(tokenizer: "PreTrainedTokenizerBase", values: Mapping[str, Any]) -> str:
    """The remedy for a template that writes the time: an argument that fixes it, if any."""
    for name in sorted(set(TIME_NAME.findall(_template(tokenizer))) - set(values)):
        try:
            fixed = {**values, name: FIXED_DATE}
            if not _changes_with_time(tokenizer, fixed):
                return (
                    f"Give the date that the chat template writes, as in --chat-kwarg "
                    f'{name}="{FIXED_DATE}" (chat_template_kwargs={{{name!r}: {FIXED_DATE!r}}}); '
                    "otherwise it writes today's, and ratings would change with the day."
                )
        except TokenizerError:
            continue
    return (
        "Leave chat unset, or give a copy of the model whose chat template has a fixed date: this "
        "one writes the time into the prompt, and ratings would change with it."
    )
