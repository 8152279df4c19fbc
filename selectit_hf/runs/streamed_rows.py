"""A stream put into a run folder once, in bounded memory: its rows can be read in any order.

    RUN/rows/<hash>.arrow   the rows, as Arrow record batches; the hash is of where they came from
    RUN/rows/<hash>.json    where that is, how many they are, and the hash of the file; the commit

Rows of another source lie beside them, so a stream that grew takes nothing from what was rated.
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
    """Read a stream to its end, a thousand rows at a time, and give its rows from the disk.

    Rows of the same source that lie there already are not read again. Columns whose type becomes
    clear only later (a first thousand rows of nulls, whole numbers and then fractions) get the
    type that fits all rows.

    Args:
        stream: of any kind; it must end.
        run: the run folder, or its URL; it is made.
        source: where the stream comes from, as `sources.stream` says; without it, its rows are
            hashed, and it is read anew each time.

    Raises:
        InputError: the stream cannot be read, has no rows, or columns of types that do not go
            together.
    """
    store = open_store(run)
    with suppress(RunError):  # of rows that are not what was written, which are read again
        there = streamed(store, source) if source is not None else None
        if there is not None and source is not None:
            return there, source
    store.sweep("rows")
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
    """The rows of a source that `spool` left in a run folder; ``None`` where it did not end.

    Those of a remote run are fetched, once, into the cache of `datasets`.
    """
    for name in (_sidecar(source), "rows/source.json"):  # 0.1.0 wrote the latter
        facts = json_object(store.read_many([name]).get(name, b"")) or {}
        if all(facts.get(key) == value for key, value in asdict(source).items()):
            with suppress(OSError, pa.ArrowException):
                rows = Dataset.from_file(str(_here(store, facts)))
                return rows if len(rows) == facts.get("rows") else None
    return None


def _here(store: Store, facts: dict[str, Any]) -> Path:
    """The file of rows, as one of this machine."""
    name, digest = str(facts.get("file", "rows/rows.arrow")), facts.get("sha256")
    if not re.fullmatch(r"rows/[0-9a-z]+\.arrow", name):
        raise RunError(f"The run's rows lie in {name!r}, which is no place for them; remove it.")
    path = store.path(name) if store.is_local else None
    if path is None:
        cache = Store(Path(datasets.config.HF_DATASETS_CACHE) / "selectit_hf")
        path = cache.path(f"{digest}.arrow")
        if not path.exists():
            with cache.replacing(path.name) as partial:
                store.fetch(name, partial)
    if digest is not None and file_sha256(path) != digest:
        raise RunError(
            f"{name} is not what was written there: its hash does not fit. Restore it, or remove "
            "the folder 'rows' of the run to read the stream again."
        )
    return path


def _sidecar(source: Source) -> str:
    return f"rows/{sha256(json.dumps(asdict(source)).encode())[:16]}.json"
