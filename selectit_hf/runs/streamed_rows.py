"""A stream stored in a run folder once, in bounded memory, to read its rows in any order.

    RUN/rows/<random>.arrow the rows, as Arrow record batches
    RUN/rows/<hash>.json    where they came from, of which it is the hash; how many they are, the
                            name and the hash of their file; the commit

Rows of another source get another file, so a stream that grew does not affect what was rated.
"""

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset

from selectit_hf.errors import RunError
from selectit_hf.formats import Source, fingerprint, write_stream
from selectit_hf.hashes import file_sha256, sha256
from selectit_hf.json_files import json_object
from selectit_hf.runs.store import Store, open_store

__all__ = ["spool", "streamed"]


def spool(
    stream: IterableDataset, run: str | Path | Store, source: Source | None = None
) -> tuple[Dataset, Source]:
    """Read a stream to its end, a thousand rows at a time, and return its rows from the disk.

    Rows of the same source that are already there are not read again. Columns whose type becomes
    clear only later (a first thousand rows of nulls, whole numbers and then fractions) get the
    type that fits all rows.

    Args:
        stream: any stream that ends.
        run: the run folder, or its URL; it is created if need be.
        source: where the stream comes from, as `sources.stream` returns it; without it, the rows
            are hashed, and the stream is read again each time.

    Raises:
        InputError: the stream cannot be read, has no rows, or has columns of incompatible types.
    """
    store = open_store(run)
    with suppress(RunError):  # rows that were changed since are read again
        there = streamed(store, source) if source is not None else None
        if there is not None and source is not None:
            return there, source
    store.sweep()
    name = source.name if source is not None else "stream"
    file = f"rows/{os.urandom(8).hex()}.arrow"
    with store.replacing(file) as partial:
        rows = write_stream(stream, partial, name)
        if source is None:
            source = Source(name, None, "train", fingerprint(Dataset.from_file(str(partial))))
        digest = file_sha256(partial)
    facts = {**asdict(source), "rows": rows, "file": file, "sha256": digest}
    store.write_json(_sidecar(source), facts)
    found = streamed(store, source)
    assert found is not None
    return found, source


def streamed(store: Store, source: Source) -> Dataset | None:
    """The rows of a source that `spool` stored in a run folder; ``None`` if it did not finish.

    The rows of a remote run are downloaded once, into the cache of `datasets`.
    """
    for name in (_sidecar(source), "rows/source.json"):  # 0.1.0 wrote the latter
        facts = json_object(store.read_many([name]).get(name, b"")) or {}
        if all(facts.get(key) == value for key, value in asdict(source).items()):
            with suppress(OSError, pa.ArrowException):
                rows = Dataset.from_file(str(_here(store, facts)))
                return rows if len(rows) == facts.get("rows") else None
    return None


def _here(store: Store, facts: dict[str, Any]) -> Path:
    """The local path of the file of rows."""
    name, digest = str(facts.get("file", "rows/rows.arrow")), facts.get("sha256")
    if not re.fullmatch(r"rows/[0-9a-z]+\.arrow", name):
        raise RunError(f"The run's rows are in {name!r}, which is not a valid place; remove it.")
    path = store.path(name) if store.is_local else None
    if path is None:
        cache = Store(Path(datasets.config.HF_DATASETS_CACHE) / "selectit_hf")
        path = cache.path(f"{digest or sha256(f'{store}/{name}'.encode())}.arrow")
        if not path.exists():
            with cache.replacing(path.name) as partial:
                store.fetch(name, partial)
    if digest is not None and file_sha256(path) != digest:
        raise RunError(
            f"{name} was changed after it was written: its hash differs. Restore it, or remove "
            "the folder 'rows' of the run to read the stream again."
        )
    return path


def _sidecar(source: Source) -> str:
    return f"rows/{sha256(json.dumps(asdict(source)).encode())[:16]}.json"
