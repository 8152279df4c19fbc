"""The lines of a text file, unpacked and as UTF-8: each with its number, or an error."""

import bz2
import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from selectit_hf.errors import InputError

__all__ = ["COMPRESSIONS", "Record", "lines", "opened"]

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
"""Files that are not text, by their first bytes."""
UNPACKED, RATIO = 256 * 2**20, 100
"""A compressed file may unpack to this many bytes, or to this many times its own size."""
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


def lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
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
            f"{name!r} cannot be unpacked after line {number}: {error or 'it ends too early'}. "
            "Copy or download the file again."
        ) from error


def _bounded(file: IO[bytes], most: int | None, name: str) -> Iterator[bytes]:
    """The blocks of a file, at most ``most`` bytes together."""
    total = 0
    while block := file.read(1 << 20):
        total += len(block)
        if most is not None and total > most:
            raise InputError(
                f"{name!r} unpacks to more than {RATIO} times its size, unlike any text. If you "
                "trust it, unpack it yourself and name the unpacked file."
            )
        yield block


def _split(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines that end with a newline; PyArrow's files cannot be iterated by line."""
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
            f"{name!r} is not text but {packed}; give it that extension, or unpack it."
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
