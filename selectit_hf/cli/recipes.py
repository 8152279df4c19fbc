"""Recipes: the flags of ``run``, ``select`` and ``push`` in one YAML file.

A recipe has a section for each command, and in it the command's flags by their names. A command
whose first argument is a recipe takes its section as the defaults of its flags, so flags on the
command line take precedence.
"""

import inspect
import os
import shlex
import types
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin

import typer
import yaml  # type: ignore[import-untyped]
from typer.core import TyperCommand

from selectit_hf import whole_files
from selectit_hf.cli import display
from selectit_hf.errors import SettingError, did_you_mean
from selectit_hf.redaction import holds_token

__all__ = ["SECTIONS", "RecipeCommand", "as_words", "save"]

SECTIONS = ("run", "select", "push")
ENDINGS = (".yaml", ".yml")
NEVER = ("yes", "save_recipe", "as_json", "debug")
"""What is decided each time a command is typed."""
ONE_OF = ("proportion", "n", "threshold")
"""Flags of which a command takes one: one on the command line replaces another in a recipe."""
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text; quote it"}


class RecipeCommand(TyperCommand):
    """A command whose first argument may be a recipe instead."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the defaults of flags from the recipe, if there is one."""
        first = next(one.name for one in self.params if one.param_type_name == "argument")
        typed = self.make_parser(ctx).parse_args(args=list(args))[0]
        recipe = str(typed.get(first) or "")
        if not recipe.lower().endswith(ENDINGS):
            return super().parse_args(ctx, args)
        values = _values(self, Path(recipe))
        if first not in values:
            flag = _keys(self)[first]
            raise SettingError(f"{recipe}: the section {self.name!r} needs the key {flag!r}.")
        if any(typed.get(name) is not None for name in ONE_OF):
            values = {name: value for name, value in values.items() if name not in ONE_OF}
        ctx.default_map = values
        left = super().parse_args(ctx, args)
        ctx.params[first] = values[first]
        return left


def _values(command: TyperCommand, path: Path) -> dict[str, Any]:
    """The section of a command in a recipe, by parameter names.

    Raises:
        SettingError: it is no recipe, or has unknown keys or wrong types; it names file and key.
    """
    section = str(command.name)
    recipe = _read(path)
    _check_names(path, recipe, SECTIONS, "section")
    if section not in recipe:
        raise SettingError(f"{path}: there is no section {section!r}, which this command needs.")
    flags = {key: name for name, key in _keys(command).items()}
    wanted = inspect.signature(command.callback).parameters if command.callback else {}
    given = _mapping(path, recipe[section], f"the section {section!r}")
    given = {key.replace("_", "-"): value for key, value in given.items()}
    _check_names(path, given, flags, f"key of {section!r}")
    return {
        flags[key]: _checked(path, f"{section}.{key}", value, wanted[flags[key]].annotation)
        for key, value in given.items()
        if value is not None
    }


def _keys(command: Any) -> dict[str, str]:
    """What each parameter is called in a recipe: its flag without dashes."""
    named = [one for one in command.params if one.name and one.name not in ("help", *NEVER)]
    return {str(one.name): max(one.opts, key=len).lstrip("-").replace("_", "-") for one in named}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_twice(path, node)
        return _mapping(path, yaml.safe_load(text), "it")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"The recipe {path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise SettingError(f"The recipe {path} is not valid YAML: {said}.") from error


def _check_twice(path: Path, node: Any) -> None:
    """YAML keeps the last of two equal keys, and says nothing."""
    if not isinstance(node, yaml.MappingNode):
        return
    keys = [key.value for key, _ in node.value]
    twice = [key for i, key in enumerate(keys) if key in keys[:i]]
    if twice:
        raise SettingError(f"{path}: the key {twice[0]!r} is there twice; remove one.")
    for _, value in node.value:
        _check_twice(path, value)


def _mapping(path: Path, value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise SettingError(
            f"{path}: {what} must hold lines of the form 'name: value', in sections "
            f"{', '.join(SECTIONS)}."
        )
    return value


def _check_names(path: Path, found: Iterable[str], known: Iterable[str], what: str) -> None:
    known = list(known)
    for name in found:
        if name not in known:
            remedy = did_you_mean(name, known) or f" Known: {', '.join(sorted(known))}."
            raise SettingError(f"{path}: {name!r} is not a {what}.{remedy}")


def _checked(path: Path, key: str, value: Any, annotation: Any) -> Any:
    """A value of the type that the flag has; one value is a list of one where a flag repeats."""
    type_, repeats = _type_of(annotation)
    values = value if repeats and isinstance(value, list) else [value]
    for one in values:
        right = isinstance(one, (int, float) if type_ is float else type_)
        if not right or (isinstance(one, bool) and type_ is not bool):
            _refuse(path, key, one, f"a list of {WORDS[type_]}" if repeats else WORDS[type_])
    return values if repeats else value


def _refuse(path: Path, key: str, value: Any, wanted: str) -> NoReturn:
    raise SettingError(f"{path}: {key} is {value!r}, but must be {wanted}.")


def _type_of(annotation: Any) -> tuple[type, bool]:
    """The type of a parameter's values, and whether there may be several."""
    inner = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    if get_origin(inner) in (Union, types.UnionType):
        inner = next(one for one in get_args(inner) if one is not type(None))
    repeats = get_origin(inner) is list
    inner = get_args(inner)[0] if repeats else inner
    return (inner if inner in WORDS else str), repeats


# Saving


def save(path: Path, ctx: typer.Context, models: list[str]) -> None:
    """Write what a command was given as a recipe: dataset, models, and what differs from defaults.

    Raises:
        SettingError: another file is there, or the recipe would hold an access token.
    """
    command, keys = ctx.command, _keys(ctx.command)
    section = {keys[name]: value for name, value in _chosen(ctx, models).items()}
    said = f"# selectit {command.name} {path.name}\n"
    text = said + yaml.safe_dump({command.name: section}, sort_keys=False, allow_unicode=True)
    if holds_token(text):
        raise SettingError(f"The recipe {path} would hold an access token; it was not written.")
    if path.suffix.lower() not in ENDINGS:
        raise SettingError(f"--save-recipe {path} must end in .yaml.")
    if path.exists() and path.read_bytes() != text.encode():
        raise SettingError(f"--save-recipe {path} holds something else; name another file.")
    whole_files.write(path, text.encode())
    of_here = [key for key, value in section.items() if _is_of_here(value)]
    if of_here:
        display.tell(f"The recipe {path} names paths of this machine: {', '.join(of_here)}.")


def as_words(ctx: typer.Context, models: list[str], names: Container[str]) -> str:
    """The parameters ``names`` of a command, as far as they were given, as flags to be typed."""
    keys, words = _keys(ctx.command), []
    given = {f"--{keys[n]}": value for n, value in _chosen(ctx, models).items() if n in names}
    for flag, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            words += [flag] if one is True else [flag, str(one)]
    return shlex.join(words)


def _chosen(ctx: typer.Context, models: list[str]) -> dict[str, Any]:
    """The models, and the parameters that differ from their defaults."""
    defaults = {one.name: one.default for one in ctx.command.params}
    given = {name: _plain(ctx.params[name]) for name in _keys(ctx.command)} | {"model": models}
    return {name: v for name, v in given.items() if v not in (_plain(defaults[name]), None, [])}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _is_of_here(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(isinstance(one, str) and os.path.isabs(os.path.expanduser(one)) for one in values)
