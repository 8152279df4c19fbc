"""Files of rows as a dataset: read once, unchanged, into an Arrow file in the cache.

The Arrow file is named by a hash of the contents, so a file overwritten in place is read again.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features

from selectit_hf import whole_files
from selectit_hf.errors import InputError
from selectit_hf.formats.readers.arrow_types import as_array, fit, held, holdable, infer, unholdable
from selectit_hf.formats.readers.csv_records import csv_rows
from selectit_hf.formats.readers.json_records import json_rows
from selectit_hf.formats.readers.text_lines import COMPRESSIONS, Record
from selectit_hf.hashes import file_sha256

__all__ = ["KINDS", "as_held", "holdable_schema", "kind_of", "read_files", "write_arrow"]

VERSION = 1
"""Increased whenever the same files are read in another way."""
ROWS = 1000
BYTES = 32 * 2**20
"""A batch ends at either limit, so that long rows fit as well."""

TEXT = ("json", "csv", "tsv")
KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""The kind of a file, by its lower-case extension; text may be compressed."""

Tables = Iterator[pa.Table]


def kind_of(path: Path) -> str | None:
    """One of the values of `KINDS`, ``None`` for a file that is not read."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if endings and endings[-1] in COMPRESSIONS:
        kind = KINDS.get(endings[0]) if len(endings) == 2 else None
        return kind if kind in TEXT else None
    return KINDS.get(endings[-1]) if endings else None


def read_files(
    paths: Sequence[Path],
    names: Sequence[str],
    kind: str,
    features: Features | None = None,
    delimiter: str | None = None,
) -> Dataset:
    """The rows of files of one kind, one file after the other.

    Args:
        paths: where they are.
        names: their names in error messages.
        kind: a value of `KINDS`.
        features: declared types; without them, the types follow from the values of all rows.
        delimiter: the delimiter of a CSV file.

    Raises:
        InputError: a file is malformed; for text, the message names the line.
    """
    said = f"{VERSION} {kind} {delimiter} {features} {[file_sha256(path) for path in paths]}"
    cached = _folder() / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.arrow"
    if not cached.exists():
        if kind in TEXT:
            schema, tables = _of_text(paths, names, kind, delimiter)
        else:
            schema, tables = _of_arrow(paths, names, kind)
        if features is not None:
            schema, tables = _cast(schema, tables, features, names)
        _store(cached, schema, tables)
    return Dataset.from_file(str(cached))


def as_held(dataset: Dataset, name: str) -> Dataset:
    """A dataset with each column in a type that can be written again.

    Raises:
        InputError: a column has no such type.
    """
    stored = dataset.with_format("arrow")
    schema = dataset.features.arrow_schema
    if all(unholdable(field.type) is None for field in schema):
        return dataset
    wanted = holdable_schema(schema, name)
    cached = _folder() / f"{VERSION}-{dataset._fingerprint}.arrow"
    if not cached.exists():
        _store(cached, wanted, (held(table, wanted) for table in stored.iter(ROWS)))
    return Dataset.from_file(str(cached))


def _folder() -> Path:
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "selectit_hf"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _store(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    with whole_files.replacing(path) as partial:
        write_arrow(partial, schema, tables)


def write_arrow(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write tables of one schema to an Arrow file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _cast(
    schema: pa.Schema, tables: Tables, features: Features, names: Sequence[str]
) -> tuple[pa.Schema, Tables]:
    """The tables with the types that the dataset's card declares."""
    from datasets.table import table_cast

    wanted = features.arrow_schema
    if set(schema.names) != set(wanted.names):
        raise InputError(
            f"The dataset's card declares the columns {wanted.names}, but {names[0]!r} has "
            f"{schema.names}; correct the card or the file."
        )

    def each() -> Tables:
        for table in tables:
            try:
                yield table_cast(table.select(wanted.names), wanted)
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise InputError(
                    f"{names[0]!r} does not hold the types that the dataset's card declares: "
                    f"{str(error).splitlines()[0]} Correct the card or the file."
                ) from error

    return wanted, each()


# Text


def _of_text(
    paths: Sequence[Path], names: Sequence[str], kind: str, delimiter: str | None
) -> tuple[pa.Schema, Tables]:
    """Read the files twice: for the types that fit all rows, then for the rows."""
    read: Callable[[Path, str], Iterator[Record]] = json_rows
    if kind != "json":
        read = partial(csv_rows, delimiter=delimiter or ("\t" if kind == "tsv" else ","))
    types: dict[str, pa.DataType] = {}
    for rows in _pieces(paths, names, read):
        with _numbers_fit(rows):
            found = {c: infer([row.get(c) for _, _, row in rows]) for c in _columns(rows)}
        types |= {c: fit(types.get(c, pa.null()), type_) for c, type_ in found.items()}
    schema = Features.from_arrow_schema(pa.schema(types)).arrow_schema if types else pa.schema({})
    return schema, _tables(_pieces(paths, names, read), pa.schema(types), schema)


Rows = list[tuple[str, int, dict[str, Any]]]


def _pieces(
    paths: Sequence[Path], names: Sequence[str], read: Callable[[Path, str], Iterator[Record]]
) -> Iterator[Rows]:
    """``(file, line, row)``, a thousand at a time, or fewer if they are long."""
    rows: Rows = []
    size = 0
    for path, name in zip(paths, names, strict=True):
        for line, row in read(path, name):
            rows.append((name, line, row))
            size += sum(len(value) for value in row.values() if isinstance(value, (str, list)))
            if len(rows) >= ROWS or size >= BYTES:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(column for _, _, row in rows for column in row))


def _tables(pieces: Iterator[Rows], types: pa.Schema, schema: pa.Schema) -> Tables:
    for rows in pieces:
        with _numbers_fit(rows, types):
            arrays = [as_array([row.get(f.name) for _, _, row in rows], f.type) for f in types]
        yield pa.Table.from_arrays(arrays, names=types.names).cast(schema)


@contextmanager
def _numbers_fit(rows: Rows, types: pa.Schema | None = None) -> Iterator[None]:
    """Refuse whole numbers that no column can hold, with the line."""
    try:
        yield
    except (OverflowError, pa.ArrowInvalid) as error:
        file, line, column = next(_misfits(rows, types), (rows[0][0], rows[0][1], "?"))
        raise InputError(
            f"{file!r}, line {line}: the number in {column!r} is too large to be kept exactly "
            "(64 bits, or 53 in a column with fractions). Put the column's numbers in quotes."
        ) from error


def _misfits(rows: Rows, types: pa.Schema | None) -> Iterator[tuple[str, int, str]]:
    for file, line, row in rows:
        for column, value in row.items():
            try:
                as_array([value], infer([value]) if types is None else types.field(column).type)
            except (OverflowError, pa.ArrowInvalid):
                yield file, line, column


# Arrow and parquet


def _of_arrow(paths: Sequence[Path], names: Sequence[str], kind: str) -> tuple[pa.Schema, Tables]:
    opened = _parquet if kind == "parquet" else _ipc
    schemas = [opened(path)[0] for path in paths]
    wanted = [holdable_schema(schema, name) for schema, name in zip(schemas, names, strict=True)]
    try:
        schema = pa.unify_schemas(
            [one.remove_metadata() for one in wanted], promote_options="permissive"
        )
    except pa.ArrowException as error:
        raise InputError(
            f"The files {', '.join(names)} have columns of incompatible types: "
            f"{str(error).splitlines()[0]} Convert them, or read them one by one."
        ) from error
    if all(one.remove_metadata() == schema for one in wanted):
        schema = wanted[0]

    def each() -> Tables:
        for path, one in zip(paths, wanted, strict=True):
            for table in opened(path)[1]:
                whole = held(table, one)
                if one.remove_metadata() != schema.remove_metadata():
                    empty = schema.empty_table()
                    whole = pa.concat_tables([empty, whole], promote_options="permissive")
                yield whole.cast(schema)

    return schema, each()


def _parquet(path: Path) -> tuple[pa.Schema, Tables]:
    file = pq.ParquetFile(path)
    batches = file.iter_batches(ROWS) if file.metadata.num_rows else iter(())
    return file.schema_arrow, (pa.Table.from_batches([batch]) for batch in batches)


def _ipc(path: Path) -> tuple[pa.Schema, Tables]:
    source = pa.memory_map(str(path))
    try:
        file = pa.ipc.open_file(source)
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
        return file.schema, (pa.Table.from_batches([batch]) for batch in batches)
    except pa.ArrowInvalid:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema, (pa.Table.from_batches([batch]) for batch in stream)


def holdable_schema(schema: pa.Schema, name: str) -> pa.Schema:
    """The schema with types that can be written again, and its features if they still fit.

    Raises:
        InputError: a column has no such type, or two have one name.
    """
    twins = sorted({one for one in schema.names if schema.names.count(one) > 1})
    if twins:
        raise InputError(f"{name!r}: two columns are called {twins[0]!r}; rename one.")
    wanted = pa.schema([field.with_type(holdable(field.type)) for field in schema])
    wanted = pa.schema([pa.field(field.name, field.type) for field in wanted])
    for field in wanted:
        unknown = unholdable(field.type)
        if unknown:
            raise InputError(
                f"{name!r}: the column {field.name!r} has the Arrow type {unknown}, which "
                "'datasets' cannot hold, so it could not be written again. Drop the column, or "
                "convert it (for example a map to a list of structs)."
            )
    same = all(a.type == b.type for a, b in zip(schema, wanted, strict=True))
    source = schema if same else wanted
    return Features.from_arrow_schema(source).arrow_schema
