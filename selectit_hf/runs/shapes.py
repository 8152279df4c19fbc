"""What shape a JSON value must have, and by name what does not fit."""

from typing import Any

__all__ = ["Shape", "misfit"]

Shape = Any
"""A type; a tuple of types; ``[shape]`` for a list of such; ``{name: shape}`` for an object that
has at least these names."""

WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


def misfit(value: Any, shape: Shape, path: str = "") -> str | None:
    """The first thing about ``value`` that is not as ``shape`` says; ``None`` if all is.

    Example:
        >>> misfit({"rows": ["4"]}, {"rows": [int]})
        "rows.0 is '4', not a whole number"
    """
    if isinstance(shape, dict):
        return _object_misfit(value, shape, path)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _wrong(path, value, list)
        found = (misfit(one, shape[0], f"{path}.{i}") for i, one in enumerate(value))
        return next((words for words in found if words), None)
    return None if _is_a(value, shape) else _wrong(path, value, shape)


def _object_misfit(value: Any, shape: dict[str, Shape], path: str) -> str | None:
    if not isinstance(value, dict):
        return _wrong(path, value, dict)
    for name, inner in shape.items():
        where = f"{path}.{name}" if path else name
        if name not in value:
            return f"{where} is missing"
        words = misfit(value[name], inner, where)
        if words:
            return words
    return None


def _is_a(value: Any, types: Any) -> bool:
    kinds = types if isinstance(types, tuple) else (types,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds)


def _wrong(path: str, value: Any, types: Any) -> str:
    kinds = types if isinstance(types, tuple) else (types,)
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"{path or 'it'} is {shown}, not {' or '.join(WORDS[kind] for kind in kinds)}"
