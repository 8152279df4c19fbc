"""Images, audio and other media: files that leave this machine hold their bytes, never a path.

A path without bytes is refused rather than followed: somebody else may have written the row, and
the path may name any file of this machine.
"""

from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, LargeList, List
from datasets.features.features import require_storage_embed
from datasets.table import embed_table_storage

from selectit_hf.errors import InputError

__all__ = ["check_media", "embedded", "with_contents"]

ROWS = 1000
REMEDY = (
    "dataset.with_format('arrow').map(datasets.table.embed_table_storage, batched=True)"
    ".to_parquet('rows.parquet')"
)
"""`datasets` writes paths into a parquet file unless it is asked for the contents."""


def check_media(dataset: Dataset) -> None:
    """Refuse rows whose media are only references.

    Raises:
        InputError: an image, audio, video or document has a path and no bytes; names the column.
    """
    features = dataset.features or {}
    names = [name for name, feature in features.items() if require_storage_embed(feature)]
    if names:
        stored = dataset.select_columns(names).with_format("arrow")
        for table in stored.iter(ROWS):
            _check(table, features)


def embedded(dataset: Dataset) -> Dataset:
    """``dataset`` with media as their bytes and base names; itself where it has none.

    Raises:
        InputError: a medium has a path and no bytes.
    """
    features = dataset.features or Features()
    if not any(map(require_storage_embed, features.values())):
        return dataset
    change = partial(with_contents, features=features)
    stored = dataset.with_format("arrow").map(change, batched=True, features=features)
    return stored.with_format(None)


def with_contents(table: pa.Table, features: Features) -> pa.Table:
    """``table`` with media as their bytes and base names.

    Raises:
        InputError: a medium has a path and no bytes.
    """
    features = Features({name: features[name] for name in table.column_names})
    if not any(map(require_storage_embed, features.values())):
        return table
    _check(table, features)
    return embed_table_storage(table.cast(features.arrow_schema), remote_files=False)


def _check(table: pa.Table, features: Features) -> None:
    for name in table.column_names:
        feature = features[name]
        if require_storage_embed(feature) and _has_reference(table[name], feature):
            raise InputError(
                f"The column {name!r} holds paths of media without their contents, and the paths "
                f"are useless elsewhere. Write the rows with the contents, as in {REMEDY}, "
                "and give that file, or remove the column."
            )


def _has_reference(values: Any, feature: Any) -> bool:
    """Whether any value, however deep, is a path without bytes."""
    if hasattr(feature, "embed_storage"):
        if not pa.types.is_struct(values.type):
            return bool(pa.types.is_string(values.type) and values.null_count < len(values))
        missing = pc.is_null(pc.struct_field(values, "bytes"))
        named = pc.is_valid(pc.struct_field(values, "path"))
        return bool(pc.any(pc.and_(missing, named)).as_py())
    if isinstance(feature, dict):
        return any(_has_reference(pc.struct_field(values, [n]), f) for n, f in feature.items())
    if isinstance(feature, List | LargeList):
        return _has_reference(pc.list_flatten(values), feature.feature)
    return False
