"""The rows of a JSON file, each with its line: as they stand there, or an error.

Nothing is guessed: a date is a text. Half of a surrogate pair, which no table can hold, is kept as
`selectit_hf.formats.rows.SURROGATE` says, so that only its row is refused.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, cast

from selectit_hf.errors import InputError
from selectit_hf.formats.readers.text_lines import Record, lines

__all__ = ["json_rows"]


def json_rows(path: Path, name: str) -> Iterator[Record]:
    """The objects of a file: one a line, a list of them, or one after the other.

    Raises:
        InputError: something is not a JSON object; the message names the line.
    """
    filled = ((n, line) for n, line in lines(path, name) if line.strip())
    number, line = next(filled, (0, ""))
    if not line:
        return
    if line.lstrip().startswith("["):
        yield from _elements("".join(text for _, text in lines(path, name)), name)
        return
    if not _is_whole(line):
        yield from _documents("".join(text for _, text in lines(path, name)), name)
        return
    row = _object(line, name, number)
    second = next(filled, None)
    if second is None:
        _refuse_wrapped(row, name)
    yield number, row
    for number, line in chain([second] if second else [], filled):
        yield number, _object(line, name, number)


def _is_whole(line: str) -> bool:
    """Whether a first line that opens an object also closes it, or is malformed anyway."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return not (line.lstrip().startswith("{") and error.pos >= len(line.rstrip()))
    except (ValueError, RecursionError):
        pass
    return True


def _object(line: str, name: str, number: int) -> dict[str, Any]:
    where = f"{name!r}, line {number}"
    with _is_json(name, "the line; each must hold one object", number):
        value = json.loads(line, **_hooks(line))
    return _row(value, where, _has_halves(line))


def _elements(text: str, name: str) -> Iterator[Record]:
    with _is_json(name, "the file; it must hold a list of objects"):
        values = json.loads(text, **_hooks(text))
    halves = _has_halves(text)
    for number, value in enumerate(values, 1):
        yield number, _row(value, f"{name!r}, element {number}", halves)


def _documents(text: str, name: str) -> Iterator[Record]:
    """Objects over several lines, one after the other."""
    decoder = json.JSONDecoder(**_hooks(text))
    halves = _has_halves(text)
    start, number = _next(text, 0, 1)
    first = start
    while start < len(text):
        with _is_json(name, "the file; it must hold a list of objects", number, text):
            value, end = decoder.raw_decode(text, start)
        row = _row(value, f"{name!r}, line {number}", halves)
        line = number + text.count("\n", start, end)
        is_first = start == first
        start, after = _next(text, end, line)
        if is_first and start >= len(text):
            _refuse_wrapped(row, name)
        yield number, row
        number = after


SPACE = re.compile(r"\s*")


def _next(text: str, end: int, line: int) -> tuple[int, int]:
    """Where the next object begins, and its line."""
    start = cast(re.Match[str], SPACE.match(text, end)).end()
    return start, line + text.count("\n", end, start)


@contextmanager
def _is_json(name: str, what: str, line: int = 0, whole: str = "") -> Iterator[None]:
    """Say what is wrong with JSON and where: in a file, or in the text of one line of it."""
    where = f"{name!r}, line {line}" if line else f"{name!r}"
    try:
        yield
    except json.JSONDecodeError as error:
        number = error.lineno if whole or not line else line
        raise InputError(
            f"{name!r}, line {number}, character {error.colno}: this is no JSON "
            f"({error.msg}). Correct {what}."
        ) from error
    except RecursionError as error:
        raise InputError(f"{where}: {DEEP}") from error
    except ValueError as error:
        raise InputError(f"{where}: {error}. Correct {what.partition(';')[0]}.") from error


LEVELS = 100
DEEP = (
    f"lists and objects are nested too deeply (more than {LEVELS} levels). Flatten the value, or "
    "store it as text."
)


def _is_deep(row: dict[str, Any]) -> bool:
    level: list[Any] = [row]
    for _ in range(LEVELS):
        inner = (one.values() if type(one) is dict else one for one in level)
        level = [value for values in inner for value in values if type(value) in (dict, list)]
        if not level:
            return False
    return True


LARGE = re.compile(r"[eE]\+?[0-9]{3}|[0-9]{309}")


def _hooks(text: str) -> dict[str, Any]:
    """How objects are read, and numbers where one of them may be too large."""
    large = {"parse_float": _finite} if LARGE.search(text) else {}
    return {"object_pairs_hook": _without_twins, **large}


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"the number {number[:20]} is too large for a column")
    return value


TABLES = ("data", "rows", "train", "test", "validation", "examples", "instances", "records")


def _refuse_wrapped(row: dict[str, Any], name: str) -> None:
    """Refuse a single object that is the whole table, not a row of it."""
    tables = [key for key, value in row.items() if _is_table(value)]
    if tables and (len(tables) == len(row) or tables[0] in TABLES):
        raise InputError(
            f"{name!r} is one object whose rows are under {tables[0]!r}; write only that list "
            f"to a file, as in jq '.{tables[0]}' {name} > rows.json."
        )
    values = list(row.values())
    lists = [len(value) for value in values if isinstance(value, list)]
    as_lists = len(lists) == len(row) > 1 and len(set(lists)) == 1 and not tables
    if as_lists or (len(row) > 1 and all(isinstance(value, dict) for value in values)):
        raise InputError(
            f"{name!r} is one object that holds a whole table by its columns or names; write a "
            "list of rows, as pandas does with to_json(orient='records')."
        )


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(one, dict) and not {"role", "from", "speaker"} & set(one) for one in value
    )


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [key for key, _ in pairs]
        twin = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"an object has the key {twin!r} twice")
    return value


HALF = re.compile("[\ud800-\udfff]")
ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


def _has_halves(text: str) -> bool:
    """Whether JSON may hold half of a surrogate pair."""
    return ESCAPED.search(text) is not None


def _row(value: Any, where: str, halves: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: a row must be an object with the columns as its keys, as in "
            f'{{"instruction": "...", "output": "..."}}, not {type(value).__name__}.'
        )
    if _is_deep(value):
        raise InputError(f"{where}: {DEEP}")
    return cast(dict[str, Any], _kept(value, where)) if halves else value


def _kept(value: Any, where: str) -> Any:
    """The value with each half of a surrogate pair written as `SURROGATE` says."""
    if isinstance(value, str):
        return HALF.sub(lambda half: f"\ufdd0{ord(half[0]):04x}", value)
    if isinstance(value, list):
        return [_kept(one, where) for one in value]
    if isinstance(value, dict):
        if any(HALF.search(key) for key in value):
            raise InputError(f"{where}: a key is not valid Unicode; rename it.")
        return {key: _kept(one, where) for key, one in value.items()}
    return value
