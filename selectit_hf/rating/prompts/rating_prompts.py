"""From a pair to its k rating prompts, byte-exact.

A layout is a template with the fields ``{rating_prompt}``, ``{instruction}`` and ``{response}``,
once each and in this order. Fields are replaced in one pass and never formatted, so braces in a
sample stay as they are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from selectit_hf.errors import InputError, SettingError
from selectit_hf.formats import Pair

__all__ = ["RELEASED_TEMPLATE", "Template", "check_scale", "load_rating_prompts"]

RELEASED_TEMPLATE = (
    "{rating_prompt}\n\nInstruction:{instruction}\nResponse:{response}\nThe answer is: \n"
)
"""The layout of the released code (arXiv 2402.16705), and the default."""

FIELDS = ("rating_prompt", "instruction", "response")
SCALES = range(2, 10)


def check_scale(k: int) -> None:
    """Raise `SettingError` unless ratings ``1..k`` are one digit each: ``k`` in 2..9."""
    if isinstance(k, bool) or not isinstance(k, int) or k not in SCALES:
        raise SettingError(f"k={k!r} must be a whole number from 2 to 9; the paper's default is 5.")


@dataclass(frozen=True)
class Template:
    """A rating prompt's layout.

    Special tokens written in it are text like any other; a chat layout comes from the tokenizer's
    own chat template (``chat=True``).

    Raises:
        SettingError: a field is missing, doubled or out of order, or nothing follows the response
            (otherwise the model would continue the response instead of giving a rating).
    """

    text: str = RELEASED_TEMPLATE

    def __post_init__(self) -> None:
        found = re.findall(r"\{(rating_prompt|instruction|response)\}", self.text)
        if tuple(found) != FIELDS or not self.suffix:
            raise SettingError(
                f"template={self.text!r} must hold {{rating_prompt}}, {{instruction}} and "
                "{response} once each, in this order, and end with text after {response} that "
                "asks for the rating."
            )

    @property
    def suffix(self) -> str:
        """The text between the response and the rating."""
        return self.text.rpartition("{response}")[2]

    def render(self, rating_prompt: str, pair: Pair) -> str:
        """The text whose next token is the rating."""
        values = dict(zip(FIELDS, (rating_prompt, *pair), strict=True))
        return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), self.text)


def load_rating_prompts(source: str | Path | Sequence[str] | None, k: int) -> tuple[str, ...]:
    """The first ``k`` rating prompts for the scale ``1..k``.

    ``source`` is a UTF-8 text file with one prompt a line, a list of texts, or ``None`` for the
    nine of this package. ``{k}`` in a text stands for the top of the scale.

    Raises:
        InputError: the file cannot be read.
        SettingError: fewer than ``k`` texts, or a text without ``{k}`` while ``k`` is not 5.
    """
    check_scale(k)
    texts = _texts(source)
    if len(texts) < k:
        raise SettingError(
            f"{len(texts)} rating prompts given and k={k} needs {k}; add some, or lower k."
        )
    fixed = [text for text in texts[:k] if "{k}" not in text]
    if fixed and k != 5:
        raise SettingError(
            f"The rating prompt {fixed[0]!r} does not say {{k}}, so it cannot be used with k={k}; "
            "write {k} where the top of the scale stands, or use k=5."
        )
    return tuple(text.replace("{k}", str(k)) for text in texts[:k])


def _texts(source: str | Path | Sequence[str] | None) -> list[str]:
    if source is None:
        source_text = files("selectit_hf").joinpath("data/rating_prompts.txt").read_text("utf-8")
    elif isinstance(source, (str, Path)):
        source_text = _read(Path(source))
    else:
        return [text for text in source if text.strip()]
    return [line.rstrip("\r") for line in source_text.split("\n") if line.strip()]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The rating prompt file {path} cannot be read ({error}); give a UTF-8 text file "
            "with one rating prompt a line."
        ) from error
