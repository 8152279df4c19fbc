"""A stream put on the disk once, in bounded memory, so that its rows can be read in any order.

FOLDER/rows.arrow    the rows, as Arrow record batches
FOLDER/source.json   where they came from, and how many; written last: the commit
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset

from selectit_hf import storage
from selectit_hf.errors import InputError, RunError
from selectit_hf.fingerprint import fingerprint
from selectit_hf.sources import Source, readable, without_rows

__all__ = ["spool", "spooled"]

ROWS = 1000
FILE, SIDECAR = "rows.arrow", "source.json"


def spool(
    stream: IterableDataset, folder: Path, source: Source | None = None
) -> tuple[Dataset, Source]:
    """Read a stream to its end, a thousand rows at a time, and give its rows from the disk.

    Rows of the same source that lie there already are not read again. Columns whose type becomes
    clear only later (a first thousand rows of nulls, whole numbers and then fractions) get the
    type that fits all rows.

    Args:
        stream: of any kind; it must end.
        folder: where the rows shall lie, such as ``RUN/rows``; it is made.
        source: where the stream comes from, as `sources.stream` says; without it, its rows are
            hashed, and it is read anew each time.

    Raises:
        InputError: the stream cannot be read, has no rows, or columns of types that do not go
            together.
        RunError: the folder holds the rows of another source.
    """
    there = spooled(folder)
    if there is not None and source is not None:
        if there[1] != source:
            raise RunError(
                f"The folder {folder.name!r} holds the rows of {there[1].name!r} at "
                f"{there[1].revision}, not of {source.name!r} at {source.revision}; name another "
                "run folder with --out."
            )
        return there
    folder.mkdir(parents=True, exist_ok=True)
    storage.sweep(folder)
    name = source.name if source is not None else "stream"
    with storage.replacing(folder / FILE) as partial:
        rows = _write(stream, partial, name)
        if source is None:
            revision = fingerprint(Dataset.from_file(str(partial)))
            source = Source(name, None, "train", revision)
    storage.write_json(folder / SIDECAR, asdict(source) | {"rows": rows})
    return Dataset.from_file(str(folder / FILE)), source


def spooled(folder: Path) -> tuple[Dataset, Source] | None:
    """The rows that `spool` left in a folder; ``None`` where it did not end."""
    try:
        facts = storage.read_json(folder / SIDECAR)
        rows = Dataset.from_file(str(folder / FILE))
        source = Source(*(facts[name] for name in ("name", "config", "split", "revision")))
    except (RunError, OSError, KeyError, pa.ArrowException):
        return None
    return (rows, source) if len(rows) == facts.get("rows") else None


def _write(stream: IterableDataset, path: Path, name: str) -> int:
    """Write each stretch of rows of one schema to a file, then all under the schema of all."""
    parts: list[Path] = []
    schemas: list[pa.Schema] = []
    try:
        for schema, tables in groupby(_tables(stream, name), key=lambda table: table.schema):
            parts.append(path.with_name(path.name.replace(FILE, f"{len(parts)}-{FILE}", 1)))
            schemas.append(schema)
            _write_part(parts[-1], schema, tables)
        if not parts:
            raise without_rows(name)
        if len(parts) == 1:
            parts[0].replace(path)
        else:
            schema = _unified(schemas, name)
            _write_part(path, schema, _promoted(parts, schema))
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    return len(Dataset.from_file(str(path)))


def _tables(stream: IterableDataset, name: str) -> Iterator[pa.Table]:
    with readable(name):
        if stream.features is not None:
            schema = stream.features.arrow_schema
            for table in stream.with_format("arrow").iter(ROWS):
                yield table.cast(schema)
        else:
            for batch in stream.with_format(None).iter(ROWS):
                yield Dataset.from_dict(batch).data.table


def _write_part(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _unified(schemas: list[pa.Schema], name: str) -> pa.Schema:
    plain = [schema.remove_metadata() for schema in schemas]
    try:
        return pa.unify_schemas(plain, promote_options="permissive")
    except pa.ArrowException as error:
        detail = str(error).strip().split("\n", 1)[0]
        raise InputError(
            f"The rows of {name!r} have columns of types that do not go together: {detail} Give "
            "the stream its features, as in stream.cast(features)."
        ) from error


def _promoted(parts: list[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    for part in parts:
        with pa.memory_map(str(part)) as source, pa.ipc.open_stream(source) as batches:
            for batch in batches:
                both = [schema.empty_table(), pa.Table.from_batches([batch])]
                table: Any = pa.concat_tables(both, promote_options="permissive")
                yield table.replace_schema_metadata(None).cast(schema)
