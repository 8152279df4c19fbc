"""The rows of a JSON or CSV file, each with its line: as they stand there, or an error.

Nothing is guessed: a date is a text, ``007`` in a CSV file is a text, a line with another number of
fields than the header is refused. Half of a surrogate pair, which no table can hold, is kept as
`selectit_hf.formats.rows.SURROGATE` says, so that only its row is refused.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from selectit_hf.errors import InputError

__all__ = ["COMPRESSIONS", "Record", "csv_header", "csv_rows", "json_rows", "opened"]

Record = tuple[int, Any]
"""A line (for a JSON array: the number of the element), and what it holds."""

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
WIDE = {
    b"\xff\xfe\0\0": "UTF-32LE",
    b"\0\0\xfe\xff": "UTF-32BE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
}
PACKED = {
    b"\x1f\x8b": "gzip (.gz)",
    b"BZh": "bzip2 (.bz2)",
    b"\xfd7zXZ\0": "xz (.xz)",
    b"\x28\xb5\x2f\xfd": "zstandard (.zst)",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet (.parquet)",
}
"""What is no text, by its first bytes."""
UNPACKED, RATIO = 256 * 2**20, 100
"""A compressed file may unpack to so many bytes, or to so many times its own size."""
BROKEN = (EOFError, lzma.LZMAError, gzip.BadGzipFile, pa.ArrowException)


def opened(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where its ending says that it is compressed."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression == "gzip":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if compression == "bz2":
        return cast(IO[bytes], bz2.open(path, "rb"))
    if compression == "xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    if compression == "zstd":
        return cast(IO[bytes], pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a file as text, each with its number from 1."""
    number = 0
    is_packed = path.suffix.lower() in COMPRESSIONS
    most = max(UNPACKED, RATIO * path.stat().st_size) if is_packed else None
    try:
        with opened(path) as file:
            for number, line in enumerate(_split(_bounded(file, most, name)), 1):
                if number == 1:
                    _refuse_other(line, name)
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, _decoded(line, name, number)
    except (*BROKEN, OSError) as error:
        if not is_packed:
            raise
        raise InputError(
            f"{name!r} cannot be unpacked behind line {number}: {error or 'it ends too early'}. "
            "Copy or download the file again."
        ) from error


def _bounded(file: IO[bytes], most: int | None, name: str) -> Iterator[bytes]:
    """The blocks of a file, which are ``most`` bytes together."""
    total = 0
    while block := file.read(1 << 20):
        total += len(block)
        if most is not None and total > most:
            raise InputError(
                f"{name!r} unpacks to more than {RATIO} times its size, as text does not. If you "
                "trust it, unpack it yourself and name the unpacked file."
            )
        yield block


def _split(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines that end with a newline; what PyArrow opens has no such loop of its own."""
    parts: list[bytes] = []
    for block in blocks:
        first, *lines = block.split(b"\n")
        parts.append(first)
        if lines:
            yield b"".join(parts) + b"\n"
            yield from (line + b"\n" for line in lines[:-1])
            parts = lines[-1:]
    if any(parts):
        yield b"".join(parts)


def _refuse_other(line: bytes, name: str) -> None:
    packed = next((kind for start, kind in PACKED.items() if line.startswith(start)), None)
    if packed:
        raise InputError(
            f"{name!r} is not text but {packed}; give it the ending of what it is, or unpack it."
        )
    encoding = next((kind for start, kind in WIDE.items() if line.startswith(start)), None)
    if encoding is None and b"\0" in line[:2] and len(line) > 3:
        encoding = "UTF-16LE" if line[1] == 0 else "UTF-16BE"
    if encoding:
        raise InputError(
            f"{name!r} is text in {encoding}, not UTF-8; convert it, as in "
            f"iconv -f {encoding} -t UTF-8 {name} > utf8-{name}."
        )


def _decoded(line: bytes, name: str, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name!r}, line {number}: byte {error.start + 1} (0x{line[error.start]:02x}) is not "
            "UTF-8. Convert the file from the encoding it was saved in, as in "
            f"iconv -f WINDOWS-1252 -t UTF-8 {name} > utf8-{name}."
        ) from error


# JSON


def json_rows(path: Path, name: str) -> Iterator[Record]:
    """The objects of a file: one a line, a list of them, or one after the other.

    Raises:
        InputError: what is no JSON object, with its line.
    """
    lines = ((n, line) for n, line in _lines(path, name) if line.strip())
    number, line = next(lines, (0, ""))
    if not line:
        return
    if line.lstrip().startswith("["):
        yield from _elements("".join(text for _, text in _lines(path, name)), name)
        return
    if not _is_whole(line):
        yield from _documents("".join(text for _, text in _lines(path, name)), name)
        return
    row = _object(line, name, number)
    second = next(lines, None)
    if second is None:
        _refuse_wrapped(row, name)
    yield number, row
    for number, line in chain([second] if second else [], lines):
        yield number, _object(line, name, number)


def _is_whole(line: str) -> bool:
    """Whether a first line that opens an object closes it too, or is broken in another way."""
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
    "store it as a text."
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
    """Refuse the only object of a file that is the table and no row of it."""
    tables = [key for key, value in row.items() if _is_table(value)]
    if tables and (len(tables) == len(row) or tables[0] in TABLES):
        raise InputError(
            f"{name!r} is one object whose rows lie under {tables[0]!r}; write that list alone "
            f"into a file, as in jq '.{tables[0]}' {name} > rows.json."
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
    """The value with each half of a surrogate pair as `SURROGATE` has it."""
    if isinstance(value, str):
        return HALF.sub(lambda half: f"\ufdd0{ord(half[0]):04x}", value)
    if isinstance(value, list):
        return [_kept(one, where) for one in value]
    if isinstance(value, dict):
        if any(HALF.search(key) for key in value):
            raise InputError(f"{where}: a key is not valid Unicode; rename it.")
        return {key: _kept(one, where) for key, one in value.items()}
    return value


# CSV


def csv_rows(path: Path, name: str, delimiter: str = ",") -> Iterator[Record]:
    """The rows of a CSV file as dicts of texts; an empty cell is an empty text.

    Raises:
        InputError: a line with another number of fields than the header, or quotes that are not
            closed or not doubled, with the line.
    """
    rows = _fields(path, name, delimiter)
    header = csv_header(next(rows, (1, []))[1], name, delimiter)
    for number, fields in rows:
        if len(fields) != len(header):
            raise InputError(
                f"{name!r}, line {number}: {_counted(len(fields))}, and the header has "
                f"{len(header)} ({', '.join(header)}). Put a text that holds a comma, a quote or a "
                'newline into double quotes, as in "Apple, of course.", and remove commas at the '
                "ends of lines."
            )
        yield number, dict(zip(header, fields, strict=True))


def _counted(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"


def csv_header(names: list[str], name: str, delimiter: str) -> list[str]:
    """The column names, each once.

    Raises:
        InputError: two are the same, or all stand in one field with another delimiter.
    """
    twins = sorted({one for one in names if names.count(one) > 1})
    if twins:
        raise InputError(f"{name!r}, line 1: two columns are called {twins[0]!r}; rename one.")
    other = [one for one in ";\t|" if one != delimiter and len(names) == 1 and one in names[0]]
    if other:
        raise InputError(
            f"{name!r}, line 1: the columns are separated by {other[0]!r}, not by {delimiter!r}. "
            "Save the file with commas (tabs are read from a file that ends in .tsv)."
        )
    return names


def _fields(path: Path, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)
    lines = (line for _, line in _lines(path, name))
    reader = csv.reader(_whole_lines(lines), delimiter=delimiter, strict=True)
    start = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{name!r}, line {start}: {error}. Close every quote, and write a quote within "
                'quotes twice, as in "She said ""yes""."'
            ) from error
        if fields:  # a blank line is none
            yield start, fields
        start = reader.line_num + 1


def _whole_lines(lines: Iterator[str]) -> Iterator[str]:
    """Lines as the csv module counts them, of which some end with a carriage return alone."""
    for line in lines:
        if "\r" in line.rstrip("\r\n"):
            yield from io.StringIO(line, newline="")
        else:
            yield line
