"""A stream of rows as an Arrow file, in bounded memory, whatever its types turn out to be."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset

from selectit_hf.errors import InputError
from selectit_hf.formats.readers.arrow_types import held
from selectit_hf.formats.readers.failures import readable, without_rows
from selectit_hf.formats.readers.files import holdable_schema, write_arrow

__all__ = ["write_stream"]

ROWS = 1000


def write_stream(stream: IterableDataset, path: Path, name: str) -> int:
    """Write a stream to an Arrow file, a thousand rows at a time; return the number of rows.

    Each stretch of rows with one schema goes to its own file; then all files are merged under a
    common schema. Columns whose type becomes clear only later get the type that fits all rows.

    Args:
        stream: any stream that ends.
        path: the path of the file.
        name: the stream's name in messages.

    Raises:
        InputError: the stream cannot be read, has no rows, or columns of types that do not go
            together.
    """
    parts: list[Path] = []
    schemas: list[pa.Schema] = []
    try:
        for schema, tables in groupby(_tables(stream, name), key=lambda table: table.schema):
            parts.append(path.with_name(f"{path.name}-{len(parts)}.partial"))
            schemas.append(schema)
            write_arrow(parts[-1], schema, tables)
        if not parts:
            raise without_rows(name)
        if len(parts) == 1:
            parts[0].replace(path)
        else:
            schema = _unified(schemas, name)
            write_arrow(path, schema, _promoted(parts, schema))
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    return len(Dataset.from_file(str(path)))


def _tables(stream: IterableDataset, name: str) -> Iterator[pa.Table]:
    with readable(name):
        if stream.features is not None:
            schema = stream.features.arrow_schema
            wanted = holdable_schema(schema, name)
            for table in stream.with_format("arrow").iter(ROWS):
                yield held(table.cast(schema), wanted)
        else:
            for batch in stream.with_format(None).iter(ROWS):
                yield Dataset.from_dict(batch).data.table


def _unified(schemas: list[pa.Schema], name: str) -> pa.Schema:
    plain = [schema.remove_metadata() for schema in schemas]
    try:
        return pa.unify_schemas(plain, promote_options="permissive")
    except pa.ArrowException as error:
        detail = str(error).strip().split("\n", 1)[0]
        raise InputError(
            f"The rows of {name!r} have columns of incompatible types: {detail} Give "
            "the stream its features, as in stream.cast(features)."
        ) from error


def _promoted(parts: list[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    for part in parts:
        with pa.memory_map(str(part)) as source, pa.ipc.open_stream(source) as batches:
            for batch in batches:
                both = [schema.empty_table(), pa.Table.from_batches([batch])]
                table: Any = pa.concat_tables(both, promote_options="permissive")
                yield table.replace_schema_metadata(None).cast(schema)
