"""JSON files that anybody may have written: their bytes, and what they must hold."""

import json
import re
from typing import Any

from selectit_hf.hashes import sha256

__all__ = ["as_json", "facts_hash", "json_object", "misfit"]

HALF = re.compile(rb"\\u[dD][89a-fA-F]")
LARGEST = 2**63
"""No number in a file may be this large: useless, and more than other programs can hold."""


def as_json(facts: dict[str, Any]) -> bytes:
    """A JSON object as the bytes of a file."""
    return (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()


def json_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in ``data``, if it is one; NaN and infinity are not JSON.

    Nor is half of a surrogate pair, which no text file can hold.
    """
    try:
        found = json.loads(data, parse_constant=_refuse)
        if HALF.search(data):
            as_json(found)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def facts_hash(facts: dict[str, Any]) -> str:
    """The hash of facts, whatever their order."""
    return sha256(json.dumps(facts, sort_keys=True).encode())


def misfit(value: Any, schema: Any, at: str = "") -> str | None:
    """Where ``value`` violates ``schema``, as in ``"segments[0].rows"``; ``None`` if nowhere.

    Args:
        value: read from JSON.
        schema: a type; a compiled pattern for a text; ``None`` for null; a tuple of alternatives;
            ``[schema]`` for a list; ``{"key": schema, "maybe?": schema}`` for an object with these
            keys and any others; ``{str: schema}`` for one of any keys.
        at: the position of ``value``.
    """
    if isinstance(schema, tuple):
        return at if all(misfit(value, one, at) is not None for one in schema) else None
    if isinstance(schema, list):
        if not isinstance(value, list):
            return at
        places = (misfit(one, schema[0], f"{at}[{i}]") for i, one in enumerate(value))
        return next((place for place in places if place is not None), None)
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return at
        places = (_member(value, key, inner, at) for key, inner in schema.items())
        return next((place for place in places if place is not None), None)
    return None if _is(value, schema) else at


def _member(value: dict[str, Any], key: Any, schema: Any, at: str) -> str | None:
    if key is str:
        places = (misfit(one, schema, f"{at}.{name}") for name, one in value.items())
        return next((place for place in places if place is not None), None)
    name, at = key.removesuffix("?"), f"{at}.{key.removesuffix('?')}".lstrip(".")
    if name not in value:
        return None if key.endswith("?") else at
    return misfit(value[name], schema, at)


def _is(value: Any, schema: Any) -> bool:
    if schema is None:
        return value is None
    if isinstance(schema, re.Pattern):
        return isinstance(value, str) and schema.fullmatch(value) is not None
    if schema in (int, float):
        kinds = (int, float) if schema is float else int
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < LARGEST
    return isinstance(value, schema)
