"""The errors that users may see. Each message is one paragraph with a remedy.

SelectItError
├── InputError      the dataset: a source, split, column or file that cannot be read
├── SettingError    a field or flag out of range, or two that contradict each other
├── ModelError      a checkpoint that cannot be found or loaded
│   └── TokenizerError  a tokenizer in which the rating tokens cannot be told apart
├── RatingsError    stored ratings that do not belong to the scorer that reads them
├── RunError        a run folder that does not fit the request
└── HubError        a push that was refused, stopped or found wrong, and what the Hub holds now

A row that cannot be rated is not an error: it gets null scores and a status.
"""

import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import requires

__all__ = [
    "HubError",
    "InputError",
    "ModelError",
    "RatingsError",
    "RunError",
    "SelectItError",
    "SettingError",
    "TokenizerError",
    "did_you_mean",
    "how_to_install",
    "in_short",
]


class SelectItError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(SelectItError):
    """A dataset source, split, column or file that cannot be read."""


class SettingError(SelectItError, ValueError):
    """A field or flag out of range, or two that contradict each other."""


class ModelError(SelectItError):
    """A checkpoint that cannot be found, reached or loaded."""


class TokenizerError(ModelError):
    """A tokenizer in which the rating tokens ``1..k`` cannot be told apart at the last position."""


class RatingsError(SelectItError):
    """Stored ratings that do not belong to the scorer that reads them."""


class RunError(SelectItError):
    """A run folder that does not fit the request."""


class HubError(SelectItError):
    """A push that was refused, stopped or found wrong; the message says what the Hub holds now."""


CLASS_LISTS = ("Model type should be one of", "or contain one of the following strings")


def in_short(error: BaseException) -> str:
    """What a library's error says, on one line, without its lists of all known classes."""
    text = " ".join((str(error).strip() or type(error).__name__).split())
    for words in CLASS_LISTS:
        text = text.partition(words)[0].strip()
    text = text.removesuffix(",").removesuffix(".")
    return text if len(text) <= 400 else f"{text[:397]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names what is spelled most like ``word``, after a space; else nothing.

    Example:
        >>> did_you_mean("Sentense", ["token", "sentence"])
        " Did you mean 'sentence'?"
    """
    small = {one.lower(): one for one in known}
    found = get_close_matches(word.lower(), small, 1)
    return f" Did you mean {small[found[0]]!r}?" if found else ""


def how_to_install(extra: str) -> str:
    """The command that installs the packages of an extra, in a checkout and for a wheel alike.

    Example:
        >>> how_to_install("gguf")
        "pip install 'gguf>=0.19'"
    """
    said = (one.partition(";") for one in requires("selectit-hf") or ())
    marker = f"extra == '{extra}'"
    names = [name.strip() for name, _, when in said if marker in when.replace('"', "'")]
    return f"pip install {shlex.join(names)}"
