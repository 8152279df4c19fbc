"""A dataset written to a file or folder, every value as it was read; whole, or not at all."""

import base64
import datetime
import json
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from selectit_hf import whole_files
from selectit_hf.errors import InputError, SettingError
from selectit_hf.formats.media import check_media, embedded
from selectit_hf.formats.rows import SURROGATE

__all__ = ["check_writable", "writer"]

ROWS = 1000
JSON = {".jsonl": ("", "", ""), ".json": ("[\n", ",", "\n]\n")}
"""What stands before, between and after the lines of rows."""


def writer(out: Path, inputs: Iterable[Path] = ()) -> Callable[[Dataset], Any]:
    """How a dataset is written to ``out``.

    An existing file is replaced once the new one is complete; a link itself is replaced.

    Raises:
        SettingError: it cannot be written, or is one of the ``inputs``; before any work is done.
    """
    is_there = out.exists()  # raises for a name that is too long
    if is_there and any(out.samefile(one) for one in inputs):
        raise SettingError(
            f"--out {out.name} is the input itself, which is never overwritten; name another file."
        )
    if out.suffix and out.is_dir():
        raise SettingError(f"--out {out.name} is a folder; name a file, or a folder without a dot.")
    if out.suffix == ".parquet":
        return lambda rows: _whole(out, embedded(rows).to_parquet)
    if out.suffix in JSON:
        return lambda rows: _whole(out, partial(_to_json, rows, *JSON[out.suffix]))
    if out.suffix:
        raise SettingError(
            f"--out {out.name} must end in .json, .parquet or .jsonl, or be a folder."
        )
    if is_there:
        raise SettingError(f"The folder {out.name!r} already exists; name another with --out.")
    return lambda rows: _whole(out, embedded(rows).save_to_disk)


def _whole(out: Path, write: Callable[[Path], Any]) -> None:
    with whole_files.replacing(out) as partial:
        write(partial)


def check_writable(out: Path, rows: Dataset) -> None:
    """Refuse, before anything is rated, columns that the file cannot hold.

    Raises:
        InputError: bytes for a file of JSON, or media that are only paths.
    """
    check_media(rows)
    for field in rows.features.arrow_schema if out.suffix in JSON else ():
        if _has_bytes(field.type):
            raise InputError(
                f"The column {field.name!r} holds bytes, which JSON cannot hold; write a .parquet "
                "file or a folder."
            )


def _has_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return True
    if pa.types.is_fixed_size_binary(type_):
        return True
    return any(_has_bytes(type_.field(i).type) for i in range(type_.num_fields))


def _to_json(rows: Dataset, before: str, between: str, after: str, out: Path) -> None:
    """One object per line: dates in ISO form, numbers and nulls as they are."""
    plain = rows.with_format(None)
    with out.open("w", encoding="utf-8", newline="\n") as file:
        file.write(before)
        for start in range(0, len(plain), ROWS):
            batch = plain[start : start + ROWS]
            for number, values in enumerate(zip(*batch.values(), strict=True), start):
                row = dict(zip(batch, values, strict=True))
                line = _restored(json.dumps(row, ensure_ascii=False, default=_as_text))
                file.write((f"{between}\n" if number else "") + line)
        file.write(after if before else "\n" if len(plain) else "")


def _restored(line: str) -> str:
    """Halves of surrogate pairs as JSON escapes them."""
    return SURROGATE.sub(lambda half: f"\\u{half[1]}", line)


def _as_text(value: Any) -> Any:
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
