"""Batches of rows as the libraries pass them, and score columns returned in the same form.

`datasets` passes a dict of lists, or by format a dict of NumPy arrays, a ``pandas.DataFrame`` or a
``pyarrow.Table``; Ray Data passes the last three. A scorer reads dicts of lists, so batches are
converted first. `datasets` adds the columns of a returned dict to the rows. A returned table, and
anything returned to Ray Data, replaces the rows, so there the score columns join the others.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Features

__all__ = ["as_lists", "with_columns"]


def as_lists(batch: Any) -> Any:
    """A table or a dict of arrays as a dict of lists, nulls as ``None``; all else as it is.

    Example:
        >>> as_lists({"output": np.array(["3", None], dtype=object)})
        {'output': ['3', None]}
    """
    if isinstance(batch, pa.Table):
        return {name: _values(batch, name) for name in batch.column_names}
    if isinstance(batch, pd.DataFrame) or _has_arrays(batch):
        return {name: _cells(batch[name]) for name in batch}
    return batch


def _values(table: pa.Table, name: str) -> list[Any]:
    """The values of a column; values stored as JSON are decoded."""
    values: list[Any] = table[name].to_pylist()
    if not _holds_json(table.schema.field(name).type):
        return values
    features = Features.from_arrow_schema(pa.schema([table.schema.field(name)]))
    return list(features.decode_column(values, name))


def _holds_json(type_: pa.DataType) -> bool:
    inner = [type_.field(i).type for i in range(type_.num_fields)]
    return type_ == pa.json_() or any(map(_holds_json, inner))


def with_columns(batch: Any, values: Mapping[str, Sequence[Any]], types: dict[str, Any]) -> Any:
    """Score columns in the form that the caller who passed ``batch`` expects.

    Args:
        batch: what a scorer was called with.
        values: the score columns, one entry for each row.
        types: their `datasets` feature types, which the columns of a table get exactly.

    Returns:
        For a table, the same kind of table with these columns added or replaced; for a dict of
        arrays that Ray Data passed, a dict of all columns; otherwise ``values``.
    """
    if isinstance(batch, (pa.Table, pd.DataFrame)):
        schema = Features(types).arrow_schema
        added = pa.table({f.name: pa.array(values[f.name], f.type) for f in schema}, schema)
        return _beside(batch, added)
    if _has_arrays(batch) and _is_ray_task():
        return {name: _storable(column) for name, column in batch.items()} | dict(values)
    return values


def _has_arrays(batch: object) -> bool:
    """Whether this is a plain dict with arrays; the lazy dict of `datasets` is not opened."""
    return isinstance(batch, dict) and any(isinstance(v, np.ndarray) for v in batch.values())


def _is_ray_task() -> bool:
    """Whether Ray calls; otherwise its dicts of arrays look like those of `datasets`."""
    ray: Any = sys.modules.get("ray")
    return bool(ray and ray.is_initialized() and ray.get_runtime_context().get_task_id())


def _cells(column: Any) -> list[Any]:
    """Python values; in a column of text or nested values, NaN may stand for a missing one."""
    return [_cell(value) for value in (column if isinstance(column, list) else column.tolist())]


def _cell(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if value is pd.NA or (isinstance(value, float) and value != value) else value


def _storable(column: Any) -> Any:
    """Array cells as lists, since Ray stores lists as Arrow but pickles arrays."""
    is_nested = isinstance(column, np.ndarray) and column.dtype == object
    return _cells(column) if is_nested else column


def _beside(batch: pa.Table | pd.DataFrame, added: pa.Table) -> pa.Table | pd.DataFrame:
    """``batch`` with columns added or replaced, with exactly their types, also in pandas."""
    if isinstance(batch, pd.DataFrame):
        frame = added.to_pandas(types_mapper=pd.ArrowDtype).set_axis(batch.index)
        return batch.assign(**{str(name): frame[name] for name in frame})
    fields = {field.name: field for field in batch.schema} | {f.name: f for f in added.schema}
    columns = {name: batch[name] for name in batch.column_names}
    columns |= {name: added[name] for name in added.column_names}
    return pa.table(columns, pa.schema(fields.values()))
