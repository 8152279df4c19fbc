"""The rows of a CSV file, each with its line: as they stand there, or an error.

Nothing is guessed: a date and ``007`` are texts, and a line with another number of fields than the
header is refused.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from selectit_hf.errors import InputError
from selectit_hf.formats.readers.text_lines import Record, lines

__all__ = ["csv_rows"]


def csv_rows(path: Path, name: str, delimiter: str = ",") -> Iterator[Record]:
    """The rows of a CSV file as dicts of texts; an empty cell is an empty text.

    Raises:
        InputError: a line with another number of fields than the header, or quotes that are not
            closed or not doubled, with the line.
    """
    rows = _fields(path, name, delimiter)
    header = _header(next(rows, (1, []))[1], name, delimiter)
    for number, fields in rows:
        if len(fields) != len(header):
            raise InputError(
                f"{name!r}, line {number}: {_counted(len(fields))}, and the header has "
                f"{len(header)} ({', '.join(header)}). Put a text that holds a comma, a quote or a "
                'newline in double quotes, as in "Apple, of course.", and remove commas at the '
                "ends of lines."
            )
        yield number, dict(zip(header, fields, strict=True))


def _counted(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"


def _header(names: list[str], name: str, delimiter: str) -> list[str]:
    """The column names, each once.

    Raises:
        InputError: two are the same, or another delimiter puts all of them into one field.
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
    texts = (line for _, line in lines(path, name))
    reader = csv.reader(_whole_lines(texts), delimiter=delimiter, strict=True)
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
        if fields:  # a blank line is not a row
            yield start, fields
        start = reader.line_num + 1


def _whole_lines(texts: Iterator[str]) -> Iterator[str]:
    """Lines as the csv module counts them; some end with only a carriage return."""
    for line in texts:
        if "\r" in line.rstrip("\r\n"):
            yield from io.StringIO(line, newline="")
        else:
            yield line
