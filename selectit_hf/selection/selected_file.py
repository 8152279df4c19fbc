"""The kept rows as a file, in one pass over all rows and in bounded memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features
from numpy.typing import NDArray

from selectit_hf.formats import not_floats, with_contents

__all__ = ["write_selected"]

ROWS = 1000
GROUP_ROWS = 8192
GROUP_BYTES = 64 * 2**20
"""A row group ends at either limit, so that rows with images fit as well."""


def write_selected(
    path: Path, scores: Path, dataset: Dataset, kept: NDArray[np.bool_], parts: Sequence[range]
) -> None:
    """Write the kept rows in order, with all their columns followed by their scores.

    Args:
        path: the path of the parquet file that is written.
        scores: a parquet file with a row group of scores for each part.
        dataset: all rows.
        kept: (rows) which of them are kept.
        parts: the rows of each row group of ``scores``.
    """
    with pq.ParquetFile(scores) as stored:
        ours = Features.from_arrow_schema(stored.schema_arrow)
        del ours["row"]
        features = Features({**dataset.features, **ours})
        schema = features.arrow_schema
        pieces = (
            piece
            for number, part in enumerate(parts)
            if kept[part.start : part.stop].any()
            for piece in _kept(
                dataset, stored.read_row_group(number, list(ours)), part, kept, features
            )
        )
        with pq.ParquetWriter(path, schema, use_dictionary=not_floats(schema)) as writer:
            for group in _groups(pieces):
                writer.write_table(group.cast(schema), row_group_size=len(group))


def _kept(
    dataset: Dataset,
    scores: pa.Table,
    part: range,
    kept: NDArray[np.bool_],
    features: Features,
) -> Iterator[pa.Table]:
    """The kept rows of a shard, in pieces."""
    stored = dataset.with_format("arrow")
    for start in range(part.start, part.stop, ROWS):
        stop = min(start + ROWS, part.stop)
        mask = kept[start:stop]
        if mask.any():
            rows = stored[start:stop]
            beside = scores.slice(start - part.start, stop - start)
            both = pa.table({**_arrays(rows), **_arrays(beside)})
            found = both.filter(pa.array(mask))
            yield with_contents(found, features)


def _arrays(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _groups(pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    rows = size = 0
    for piece in pieces:
        held.append(piece)
        rows, size = rows + len(piece), size + piece.nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            yield pa.concat_tables(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.concat_tables(held)
