"""Every row is read once, before any model is loaded: can it be rated, and what is its hash?

The fingerprint depends on the values alone. How the rows are cut into chunks and files, which of
several Arrow types holds a text or an integer, and the order of the columns do not matter.
"""

import hashlib
import json
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from selectit_hf.formats.rows import RowReader
from selectit_hf.formats.survey import several_turns

__all__ = ["fingerprint", "survey"]

ROWS = 1000
"""Rows hashed at a time. It is part of the hash's definition: another number, another hash."""


class _Digest(Protocol):
    def update(self, data: Any, /) -> None: ...


def survey(dataset: Dataset, reader: RowReader) -> str:
    """Refuse rows that no policy covers, and hash all rows.

    Returns:
        See `fingerprint`.

    Raises:
        InputError: the columns do not fit, or rows have several turns and no policy says which to
            rate.
    """
    multi_turn = _multi_turn(dataset, reader)
    if multi_turn:
        raise several_turns(multi_turn, len(dataset))
    return fingerprint(dataset)


def _multi_turn(dataset: Dataset, reader: RowReader) -> int:
    columns = list(reader.columns(dataset.column_names))
    layout = reader.layout(dataset.column_names)
    if reader.turns is not None or not (layout.has_turns or "history" in columns):
        return 0
    read = dataset.with_format(None).select_columns(columns)
    return sum(
        reader.pairs(read[start : start + ROWS]).count("multi_turn")
        for start in range(0, len(read), ROWS)
    )


def fingerprint(dataset: Dataset) -> str:
    """``sha256:`` and the hash of all values of all rows, in order; media are hashed as stored.

    A thousand rows at a time, column by column in the order of their names: for each array its
    kind, its length, which values are null, then the lengths of texts and lists, then the values.
    """
    digest = hashlib.sha256()
    stored = dataset.with_format("arrow")
    names = sorted(dataset.column_names)
    for start in range(0, len(dataset), ROWS):
        table = stored[start : start + ROWS]
        for name in names:
            _say(digest, name)
            _add(digest, table[name].combine_chunks())
    return f"sha256:{digest.hexdigest()}"


def _say(digest: _Digest, *words: object) -> None:
    digest.update(json.dumps(words).encode())


def _add(digest: _Digest, array: Any) -> None:
    """Hash one Arrow array."""
    if isinstance(array, pa.ChunkedArray):  # of no chunk at all
        array = pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count == len(array):
        _say(digest, "null", len(array))
        return
    kind = _kind(array.type)
    _say(digest, kind, len(array))
    digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)))
    if kind in ("text", "bytes"):
        _add_bytes(digest, array)
    elif kind == "list":
        digest.update(pc.list_value_length(array).fill_null(0).cast(pa.int64()).to_numpy())
        _add(digest, array.flatten())
    elif kind == "struct":
        _add_fields(digest, array.drop_null())
    elif kind == "other":
        digest.update(json.dumps(array.to_pylist(), sort_keys=True, default=str).encode())
    else:
        values = array.drop_null().cast(KINDS[kind]).to_numpy(zero_copy_only=False)
        digest.update(np.ascontiguousarray(values))


def _add_bytes(digest: _Digest, array: Any) -> None:
    values = array.drop_null().cast(pa.large_binary())
    _, ends, data = values.buffers()
    offsets = np.frombuffer(ends, np.int64)[values.offset : values.offset + len(values) + 1]
    digest.update(np.diff(offsets))
    digest.update(memoryview(data if data is not None else b"")[offsets[0] : offsets[-1]])


def _add_fields(digest: _Digest, structs: Any) -> None:
    fields = dict(zip((field.name for field in structs.type), structs.flatten(), strict=True))
    for name in sorted(fields):
        _say(digest, name)
        _add(digest, fields[name])


KINDS = {"bool": pa.uint8(), "whole": pa.int64(), "large": pa.uint64(), "float": pa.float64()}


def _kind(type_: pa.DataType) -> str:
    """What an array holds, whatever the width it is stored in."""
    kinds = {
        "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        "bytes": (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
            pa.types.is_binary_view,
        ),
        "list": (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
        "struct": (pa.types.is_struct,),
        "bool": (pa.types.is_boolean,),
        "large": (pa.types.is_uint64,),
        "whole": (pa.types.is_integer,),
        "float": (pa.types.is_floating,),
    }
    return next((kind for kind, fits in kinds.items() if any(f(type_) for f in fits)), "other")
