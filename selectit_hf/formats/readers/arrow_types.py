"""Arrow types: the one that fits all values of a column, and those that a dataset can hold.

JSON has no schema, so the type of a column follows from all its values: nulls fit anything, whole
numbers fit fractions, the fields of structs add up. If the values are incompatible (text here, a
list there), or a nested struct has other fields in every row, the column holds them as JSON.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from datasets import Features

__all__ = ["as_array", "fit", "held", "holdable", "infer", "not_floats", "unholdable"]

JSON = pa.json_()
LEVELS = 16
"""The deepest nesting of lists and structs; Arrow itself supports no more than 64 levels."""


# Values of JSON


def infer(values: Sequence[Any]) -> pa.DataType:
    """The type that fits all of these values."""
    return _of_all(values, depth=0)


def _of_all(values: Sequence[Any], depth: int, level: int = 0) -> pa.DataType:
    there = [value for value in values if value is not None]
    kinds = {type(value) for value in there}
    if not kinds:
        return pa.null()
    if kinds <= {int, float}:
        return _of_numbers(there, kinds)
    if len(kinds) > 1 or (level > LEVELS and kinds <= {dict, list}):
        return JSON
    (kind,) = kinds
    if kind is dict:
        return _of_structs(there, depth, level)
    if kind is list:
        return pa.list_(_of_all([one for value in there for one in value], depth, level + 1))
    return pa.bool_() if kind is bool else pa.string()


def _of_numbers(values: Sequence[Any], kinds: set[type]) -> pa.DataType:
    if float in kinds:
        return pa.float64()
    return pa.int64() if max(values) < 2**63 else pa.uint64()


def _of_structs(values: Sequence[dict[str, Any]], depth: int, level: int) -> pa.DataType:
    names = list(dict.fromkeys(name for value in values for name in value))
    ragged = any(len(value) != len(names) for value in values)
    if not names or (ragged and depth):
        return JSON
    fields = {n: _of_all([v.get(n) for v in values], depth + 1, level + 1) for n in names}
    return pa.struct(list(fields.items()))


def fit(one: pa.DataType, two: pa.DataType, depth: int = 0) -> pa.DataType:
    """The type that fits the values of both, as `infer` would give for all of them."""
    if one == two or pa.types.is_null(two):
        return one
    if pa.types.is_null(one):
        return two
    if pa.types.is_struct(one) and pa.types.is_struct(two):
        return _fit_structs(one, two, depth)
    if pa.types.is_list(one) and pa.types.is_list(two):
        return pa.list_(fit(one.value_type, two.value_type, depth))
    numbers = [pa.int64(), pa.uint64(), pa.float64()]
    if one in numbers and two in numbers:
        return numbers[max(numbers.index(one), numbers.index(two))]
    return JSON


def _fit_structs(one: pa.DataType, two: pa.DataType, depth: int) -> pa.DataType:
    fields = {field.name: field.type for field in one}
    theirs = {field.name: field.type for field in two}
    if depth and set(fields) != set(theirs):
        return JSON
    for name, type_ in theirs.items():
        fields[name] = fit(fields.get(name, pa.null()), type_, depth + 1)
    return pa.struct(list(fields.items()))


def as_array(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """Values of JSON as an array of a type that fits them.

    Raises:
        OverflowError, pyarrow.ArrowInvalid: a whole number that the type cannot hold exactly.
    """
    if type_ == JSON:
        texts = [None if value is None else _dumped(value) for value in values]
        return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))
    missing = pa.array([value is None for value in values], pa.bool_())
    if pa.types.is_struct(type_):
        rows = [value or {} for value in values]
        inner = [as_array([row.get(f.name) for row in rows], f.type) for f in type_]
        return pa.StructArray.from_arrays(inner, fields=list(type_), mask=missing)
    if pa.types.is_list(type_) and _holds_json(type_):
        ends = [0]
        for value in values:
            ends.append(ends[-1] + len(value or ()))
        flat = as_array([one for value in values for one in value or ()], type_.value_type)
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), flat, type_, mask=missing)
    return pa.array(values, type_)


def _holds_json(type_: pa.DataType) -> bool:
    inner = [type_.field(i).type for i in range(type_.num_fields)]
    return type_ == JSON or any(map(_holds_json, inner))


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


# Types that a dataset can hold


def holdable(type_: pa.DataType) -> pa.DataType:
    """The type of the same values that `datasets` and every parquet reader can hold."""
    if isinstance(type_, pa.BaseExtensionType):
        return type_ if unholdable(type_) is None else holdable(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return holdable(type_.value_type)
    if pa.types.is_run_end_encoded(type_):
        return holdable(type_.value_type)
    if pa.types.is_string_view(type_):
        return pa.large_string()
    if pa.types.is_binary_view(type_):
        return pa.large_binary()
    if pa.types.is_decimal(type_) and type_.bit_width < 128:
        return pa.decimal128(type_.precision, type_.scale)
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(holdable(field.type)) for field in type_])
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(holdable(type_.value_type), type_.list_size)
    if pa.types.is_large_list(type_) or pa.types.is_large_list_view(type_):
        return pa.large_list(holdable(type_.value_type))
    if pa.types.is_list(type_) or pa.types.is_list_view(type_):
        return pa.list_(holdable(type_.value_type))
    return type_


def unholdable(type_: pa.DataType) -> str | None:
    """The part of a type that `datasets` has no name for; ``None`` if there is none."""
    try:
        Features.from_arrow_schema(pa.schema({"column": type_}))
    except (ValueError, TypeError, NotImplementedError, KeyError):
        return str(type_)
    if pa.types.is_string_view(type_) or pa.types.is_binary_view(type_):
        return str(type_)
    if pa.types.is_struct(type_) and type_.num_fields == 0:  # parquet has no such thing
        return str(type_)
    inner = [type_.field(i).type for i in range(type_.num_fields)]
    return next((name for name in map(unholdable, inner) if name), None)


def held(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with its columns cast to the `holdable` types of ``schema``; the values stay."""
    columns = [
        pa.chunked_array([_held(chunk, field.type) for chunk in column.chunks], field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _held(array: Any, type_: pa.DataType) -> Any:
    if array.type == type_:
        return array
    if isinstance(array, pa.ExtensionArray):
        return _held(array.storage, type_)
    if isinstance(array, pa.DictionaryArray):
        words = _held(array.dictionary, type_)
        return pa.DictionaryArray.from_arrays(array.indices, words).dictionary_decode()
    if isinstance(array, pa.StructArray):
        inner = [_held(child, f.type) for child, f in zip(array.flatten(), type_, strict=True)]
        return pa.StructArray.from_arrays(inner, fields=list(type_), mask=array.is_null())
    if array.type.num_fields == 0:
        return array.cast(type_)
    return pa.array(array.to_pylist(), type_)


def not_floats(schema: pa.Schema) -> list[str]:
    """The columns for which parquet's dictionaries pay off: ratings hardly ever repeat."""

    def leaves(name: str, kind: pa.DataType) -> Iterator[str]:
        if pa.types.is_struct(kind):
            for inner in kind:
                yield from leaves(f"{name}.{inner.name}", inner.type)
        elif hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
            yield from leaves(f"{name}.list.element", kind.value_type)
        elif not pa.types.is_floating(kind):
            yield name

    return [leaf for field in schema for leaf in leaves(field.name, field.type)]
