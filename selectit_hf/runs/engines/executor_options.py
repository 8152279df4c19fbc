"""Options of datatrove's executors as text, with the types that they declare; and secrets left out.

Nothing of an executor is listed here: which options there are, and of which types, is read from its
own signature.
"""

import difflib
import importlib.util
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

from selectit_hf.errors import SettingError

__all__ = ["Options", "check_required", "facts", "need", "parse", "redacted"]

OWN = ("self", "pipeline", "tasks", "depends", "skip_completed", "logging_dir")
"""What a launch decides."""
NOT_HERE = ("local_tasks", "local_rank_offset")
"""What would leave shards to others, so that the end would never come."""
HIDDEN = "***"
_SECRET = r"(?:\w*_)?(?:TOKEN|SECRETS?|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?)"


class Options(NamedTuple):
    """Options of both executors, and of the one that finishes alone."""

    common: dict[str, Any]
    finish: dict[str, Any]


def need(package: str) -> None:
    """Refuse to go on without a package.

    Raises:
        SettingError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        which = "'selectit-hf[datatrove]'" if package == "datatrove" else f"'{package}[default]'"
        raise SettingError(f"This needs {package}, which is not installed: pip install {which}.")


def parse(executor: type, on: str, settings: Sequence[str]) -> Options:
    """``key=value`` texts as an executor's keyword arguments.

    Lists and dicts are JSON, or one entry each time: ``dependencies=A dependencies=B``,
    ``env=NAME=VALUE``.

    Raises:
        SettingError: no ``=``, an unknown key, a value of another type.
    """
    hints = _hints(executor)
    found = Options({}, {})
    for text in settings:
        key, equals, value = text.partition("=")
        into = found.finish if key.startswith("finish.") else found.common
        name = key.removeprefix("finish.").replace("-", "_")
        if not equals:
            raise SettingError(f"--set {text} must be KEY=VALUE, as in --set workers=4.")
        _check_name(name, on, hints)
        into[name] = _value(name, value, hints[name], into.get(name))
    return found


def check_required(executor: type, on: str, given: dict[str, Any]) -> None:
    """Refuse what an executor cannot begin with.

    Raises:
        SettingError: options without a default are missing, or with Jobs what to install.
    """
    parameters = inspect.signature(executor).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.name not in OWN]
    missing = [f"--set {name}=..." for name in needed if name not in given]
    if missing:
        raise SettingError(f"--on {on} also needs {' and '.join(missing)}.")
    if on == "jobs" and not given.get("dependencies"):
        raise SettingError(
            "Jobs begin with an empty environment: name a build that can be installed there, as in "
            "--set 'dependencies=selectit-hf[datatrove]' or a git+https URL."
        )


def facts(executor: Any) -> dict[str, Any]:
    """An executor's options as JSON-able facts, the values of secrets left out."""
    said = {name: value for name, value in vars(executor).items() if not name.startswith("_")}
    said["sbatch_args"] = getattr(executor, "_sbatch_args", None)
    said["logging_dir"] = executor.logging_dir.resolve_paths("")
    said["pipeline"] = [repr(step) for step in executor.pipeline]
    said["depends"] = said.get("depends") and "the tasks that rate"
    plain = {n: v for n, v in said.items() if v is not None and not callable(v)}
    return typing.cast(dict[str, Any], _without_secrets(json.loads(json.dumps(plain, default=str))))


def redacted(text: str) -> str:
    """``text`` without tokens, passwords and the values of secrets in this environment."""
    for name, value in os.environ.items():
        if len(value) >= 6 and re.fullmatch(_SECRET, name, re.IGNORECASE):
            text = text.replace(value, HIDDEN)
    text = re.sub(r"\bhf_[A-Za-z0-9]{6,}", HIDDEN, text)
    text = re.sub(r"://[^/\s@\"']+@", f"://{HIDDEN}@", text)
    return re.sub(rf"(?i)\b({_SECRET})=(['\"]?)[^\s'\"]+", rf"\1=\2{HIDDEN}", text)


# One option


def _hints(executor: type) -> dict[str, tuple[Any, ...]]:
    """The types that each option may have."""
    names = [name for name in inspect.signature(executor).parameters if name not in OWN]
    hints = typing.get_type_hints(executor.__init__)  # type: ignore[misc]
    return {name: _alternatives(hints[name]) for name in names if name not in NOT_HERE}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(typing.get_origin(one) or one for one in typing.get_args(hint))
    return (typing.get_origin(hint) or hint,)


def _check_name(name: str, on: str, hints: dict[str, Any]) -> None:
    if name in hints:
        return
    if name in (*OWN, *NOT_HERE):
        raise SettingError(f"--set {name}: this is for 'selectit launch' to set; omit it.")
    close = difflib.get_close_matches(name, hints, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    raise SettingError(
        f"--set {name}: the executor of --on {on} has no such option.{meant} It has: "
        f"{', '.join(hints)}."
    )


def _value(name: str, text: str, kinds: tuple[Any, ...], before: Any) -> Any:
    if text.lower() == "none" and type(None) in kinds:
        return None
    for kind in (bool, int, float, list, tuple, dict):
        if kind in kinds:
            try:
                return _READ[kind](text, before)
            except ValueError:
                continue
    if str in kinds:
        return text
    wanted = [_WORDS[kind] for kind in kinds if kind in _WORDS]
    if not wanted:
        raise SettingError(f"--set {name} is Python; use selectit_hf.runs.datatrove_steps.")
    raise SettingError(f"--set {name}={text} must be {' or '.join(wanted)}.")


def _bool(text: str, before: Any) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _list(text: str, before: Any) -> list[Any]:
    if text.startswith("["):
        return [*(before or []), *json.loads(text)]
    return [*(before or []), text]


def _dict(text: str, before: Any) -> dict[str, Any]:
    if text.startswith("{"):
        return {**(before or {}), **json.loads(text)}
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError(text)
    return {**(before or {}), key: value}


_READ: dict[Any, typing.Callable[[str, Any], Any]] = {
    bool: _bool,
    int: lambda text, _: int(text),
    float: lambda text, _: float(text),
    list: _list,
    tuple: lambda text, before: tuple(_list(text, before)),
    dict: _dict,
}
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list, as JSON or one entry each time",
    tuple: "a list, as JSON or one entry each time",
    dict: "NAME=VALUE each time, or JSON",
    type(None): "none",
}


def _without_secrets(said: Any) -> Any:
    if isinstance(said, list):
        return [_without_secrets(one) for one in said]
    if not isinstance(said, dict):
        return said
    return {
        name: _hidden(value)
        if re.fullmatch(_SECRET, name, re.IGNORECASE)
        else _without_secrets(value)
        for name, value in said.items()
    }


def _hidden(value: Any) -> Any:
    return dict.fromkeys(value, HIDDEN) if isinstance(value, dict) else HIDDEN
