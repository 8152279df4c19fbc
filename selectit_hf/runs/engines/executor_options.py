"""Options of datatrove's executors as text, with the types that their signatures declare."""

import importlib.util
import inspect
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

from selectit_hf.errors import SettingError, did_you_mean, how_to_install

__all__ = ["Options", "check_required", "need", "parse"]

OWN = ("self", "pipeline", "tasks", "depends", "skip_completed", "logging_dir")
"""Options that a launch sets itself."""
NOT_HERE = ("local_tasks", "local_rank_offset")
"""Options that would leave out shards, so that the run would never finish."""
COUNTS: dict[str, tuple[int, ...]] = {
    "workers": (-1,),
    "tasks_per_job": (),
    "max_array_size": (-1,),
    "nodes_per_task": (),
    "cpus_per_task": (),
}
"""Options that count something, and which lower values datatrove takes for no limit."""
PLAIN = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list, as JSON or one entry each time",
    tuple: "a list, as JSON or one entry each time",
    dict: "NAME=VALUE each time, or JSON",
    type(None): "null",
}


class Options(NamedTuple):
    """Options of both executors, and options of the finishing executor only."""

    common: dict[str, Any]
    finish: dict[str, Any]


def need(package: str) -> None:
    """Refuse to go on without a package.

    Raises:
        SettingError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        how = how_to_install("datatrove")
        how = how if package == "datatrove" else f"pip install '{package}[default]'"
        raise SettingError(f"This needs {package}, which is not installed: {how}.")


def parse(executor: type, on: str, settings: Sequence[str]) -> Options:
    """``key=value`` texts as an executor's keyword arguments.

    Lists and dicts are JSON, or one entry each time: ``dependencies=A dependencies=B``,
    ``env=NAME=VALUE``.

    Raises:
        SettingError: no ``=``, an unknown key, a value of another type.
    """
    hints = typing.get_type_hints(executor.__init__)  # type: ignore[misc]
    known = [n for n in inspect.signature(executor).parameters if n not in (*OWN, *NOT_HERE)]
    found = Options({}, {})
    for text in settings:
        key, equals, value = text.partition("=")
        into = found.finish if key.startswith("finish.") else found.common
        name = key.removeprefix("finish.").replace("-", "_")
        if not equals:
            raise SettingError(f"--set {text} must be KEY=VALUE, as in --set workers=4.")
        if name not in known:
            raise SettingError(
                f"--set {name}: the executor of --on {on} has no such option, or 'selectit launch' "
                f"sets it itself; omit it.{did_you_mean(name, known)} It has: {', '.join(known)}."
            )
        into[name] = _value(name, value, _kinds(hints[name]), into.get(name))
        if name in COUNTS and into[name] < 1 and into[name] not in COUNTS[name]:
            raise SettingError(f"--set {text} must be at least 1.")
    return found


def check_required(executor: type, on: str, given: dict[str, Any]) -> None:
    """Refuse what an executor cannot begin with.

    Raises:
        SettingError: options without a default are missing, or for Jobs the package to install.
    """
    parameters = inspect.signature(executor).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.name not in OWN]
    missing = [f"--set {name}=..." for name in needed if name not in given]
    if missing:
        raise SettingError(f"--on {on} also needs {' and '.join(missing)}.")
    if on == "jobs" and not given.get("dependencies"):
        raise SettingError(
            "Jobs begin with an empty environment: name a build that can be installed there, as in "
            "--set 'dependencies=selectit-hf[datatrove] @ git+https://...'."
        )


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that an option may have."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return tuple(typing.get_origin(h) or h for h in (typing.get_args(hint) if is_union else [hint]))


def _value(name: str, text: str, kinds: tuple[Any, ...], before: Any) -> Any:
    try:
        said = json.loads(text)
    except ValueError:
        said = text
    key, equals, value = text.partition("=")
    if dict in kinds and (isinstance(said, dict) or (key and equals)):
        return {**(before or {}), **(said if isinstance(said, dict) else {key: value})}
    for kind in {list, tuple} & {*kinds}:
        return kind([*(before or ()), *(said if isinstance(said, list) else [text])])
    if type(said) in kinds and not isinstance(said, str):
        return said
    if type(said) is int and float in kinds:
        return float(said)
    if str in kinds:
        return text
    wanted = [PLAIN[kind] for kind in kinds if kind in PLAIN]
    if not wanted:
        raise SettingError(f"--set {name} takes Python; use selectit_hf.runs.datatrove_steps.")
    raise SettingError(f"--set {name}={text} must be {' or '.join(wanted)}.")
