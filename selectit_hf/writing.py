"""A dataset written to a file or folder, every value as it was read."""

import base64
import datetime
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from selectit_hf.errors import InputError, SettingError
from selectit_hf.rows import SURROGATE

__all__ = ["check_writable", "writer"]

ROWS = 1000


def writer(out: Path) -> Callable[[Dataset], Any]:
    """How a dataset is written to ``out``.

    Raises:
        SettingError: it cannot be, before any work is done.
    """
    if out.suffix == ".parquet":
        return lambda rows: rows.to_parquet(out)
    if out.suffix == ".jsonl":
        return lambda rows: _to_jsonl(rows, out)
    if out.suffix:
        raise SettingError(f"--out {out.name} must end in .parquet or .jsonl, or be a folder.")
    if out.exists():
        raise SettingError(f"The folder {out.name!r} is there already; name another with --out.")
    return lambda rows: rows.save_to_disk(out)


def check_writable(out: Path, rows: Dataset) -> None:
    """Refuse, before anything is rated, columns that the file cannot hold.

    Raises:
        InputError: bytes for a jsonl file.
    """
    for field in rows.features.arrow_schema if out.suffix == ".jsonl" else ():
        if _has_bytes(field.type):
            raise InputError(
                f"The column {field.name!r} holds bytes, which JSON cannot; write a .parquet file "
                "or a folder."
            )


def _has_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return True
    if pa.types.is_fixed_size_binary(type_):
        return True
    return any(_has_bytes(type_.field(i).type) for i in range(type_.num_fields))


def _to_jsonl(rows: Dataset, out: Path) -> None:
    """An object a line: dates in ISO form, numbers and nulls as they are."""
    plain = rows.with_format(None)
    with out.open("w", encoding="utf-8", newline="\n") as file:
        for start in range(0, len(plain), ROWS):
            batch = plain[start : start + ROWS]
            for values in zip(*batch.values(), strict=True):
                row = dict(zip(batch, values, strict=True))
                file.write(_restored(json.dumps(row, ensure_ascii=False, default=_as_text)) + "\n")


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
