"""The rows of a JSON or CSV file, each with its line: as they stand there, or an error.

Nothing is guessed: a date is a text, ``007`` in a CSV file is a text, a line with another number of
fields than the header is refused. Half of a surrogate pair, which no table can hold, is kept as
`selectit_hf.rows.SURROGATE` says, so that only its row is refused.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from selectit_hf.errors import InputError

__all__ = ["COMPRESSIONS", "Record", "csv_header", "csv_rows", "json_rows", "opened"]

Record = tuple[int, Any]
"""A line (for a JSON array: the number of the element), and what it holds."""

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
BOMS = {b"\xff\xfe": "UTF-16LE", b"\xfe\xff": "UTF-16BE"}
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
    try:
        with opened(path) as file:
            for number, line in enumerate(_split(file), 1):
                if number == 1:
                    _refuse_utf16(line, name)
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, _decoded(line, name, number)
    except (*BROKEN, OSError) as error:
        if path.suffix.lower() not in COMPRESSIONS:
            raise
        raise InputError(
            f"{name!r} cannot be unpacked behind line {number}: {error or 'it ends too early'}. "
            "Copy or download the file again."
        ) from error


def _split(file: IO[bytes]) -> Iterator[bytes]:
    """Lines that end with a newline; what PyArrow opens has no such loop of its own."""
    rest = b""
    while block := file.read(1 << 20):
        *whole, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def _refuse_utf16(line: bytes, name: str) -> None:
    encoding = BOMS.get(line[:2])
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
    first = next(lines, None)
    if first is None:
        return
    number, line = first
    if line.lstrip().startswith("["):
        yield from _elements(
            line + "".join(text for _, text in _lines_from(path, name, number)), name
        )
        return
    if not _is_whole(line):
        yield from _documents("".join(text for _, text in _lines(path, name)), name)
        return
    yield number, _object(line, name, number)
    for number, line in lines:
        yield number, _object(line, name, number)


def _lines_from(path: Path, name: str, line: int) -> Iterator[tuple[int, str]]:
    return ((number, text) for number, text in _lines(path, name) if number > line)


def _is_whole(line: str) -> bool:
    """Whether a first line that opens an object closes it too, or is broken in another way."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return not (line.lstrip().startswith("{") and error.pos >= len(line.rstrip()))
    except ValueError:
        pass
    return True


def _object(line: str, name: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name!r}, line {number}, character {error.colno}: this is no JSON ({error.msg}). "
            "Correct the line; each must hold one object."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name!r}, line {number}: {error}. Correct the line.") from error
    return _row(value, f"{name!r}, line {number}", line)


def _elements(text: str, name: str) -> Iterator[Record]:
    values = _whole(text, name)
    for number, value in enumerate(values, 1):
        yield number, _row(value, f"{name!r}, element {number}", text)


def _whole(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name!r}, line {error.lineno}, character {error.colno}: this is no JSON "
            f"({error.msg}). Correct the file; it must hold a list of objects."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name!r}: {error}. Correct the file.") from error


def _documents(text: str, name: str) -> Iterator[Record]:
    """Objects over several lines, one after the other."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_twins)
    start = len(text) - len(text.lstrip())
    single = True
    while start < len(text):
        number = text.count("\n", 0, start) + 1
        try:
            value, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{name!r}, line {error.lineno}, character {error.colno}: this is no JSON "
                f"({error.msg}). Correct the file; it must hold a list of objects."
            ) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name!r}, line {number}: {error}. Correct the line.") from error
        start = end + len(text[end:]) - len(text[end:].lstrip())
        single = single and start >= len(text)
        row = _row(value, f"{name!r}, line {number}", text)
        if single:
            _refuse_wrapped(row, name)
        yield number, row


def _refuse_wrapped(row: dict[str, Any], name: str) -> None:
    ((key, value), *more) = row.items() or [("", None)]
    rows = value if isinstance(value, list) and not more else []
    if any(isinstance(one, dict) and not {"role", "from", "speaker"} & set(one) for one in rows):
        raise InputError(
            f"{name!r} is one object whose rows lie under {key!r}; write that list alone into a "
            f"file, as in jq '.{key}' {name} > rows.json."
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


def _row(value: Any, where: str, text: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: a row must be an object with the columns as its keys, as in "
            f'{{"instruction": "...", "output": "..."}}, not {type(value).__name__}.'
        )
    return cast(dict[str, Any], _kept(value, where)) if ESCAPED.search(text) else value


def _kept(value: Any, where: str) -> Any:
    """The value with each half of a surrogate pair as `selectit_hf.rows.SURROGATE` has it."""
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
