"""How the rows of a run are cut: segments that it grew by, and shards in each.

A segment is a stretch of rows with a fingerprint of its own, so that a dataset with more rows at
its end is recognised as the one that was rated, grown. Its shards begin small, so that a stop at
the beginning loses little, and double up to about a minute of work.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from datasets import Dataset

from selectit_hf import fingerprint
from selectit_hf.rows import RowReader
from selectit_hf.runs.shards import Part
from selectit_hf.runs.store import as_json, sha256
from selectit_hf.scorers import SentenceScore

__all__ = ["ends", "grown", "holds", "minute_of_rows", "parts", "whole_fingerprint"]

SMALLEST, LARGEST = 32, 8192
"""Rows of a shard whose size is not given."""
FIRST = 16
"""The first shard is this part of a minute of work."""
TOKENS_OF_A_ROW = 250
FLOPS = {"cuda": 1e14, "cpu": 5e10}
"""What a device is taken to do in a second. Not measured: the shards must follow from the plan."""

Segment = dict[str, Any]


def minute_of_rows(scorers: Sequence[SentenceScore]) -> int:
    """How many rows the largest model is taken to rate in a minute, from its configuration."""
    device = scorers[0].place(None).device.partition(":")[0]
    size = max(_parameters(scorer.checkpoint.config()) for scorer in scorers)
    work = 2 * size * TOKENS_OF_A_ROW * scorers[0].k
    return min(max(int(60 * FLOPS.get(device, FLOPS["cpu"]) / work), SMALLEST), LARGEST)


def _parameters(config: Any) -> float:
    """About how many weights a token meets: the blocks, and the head."""
    text = config.get_text_config()
    hidden = float(getattr(text, "hidden_size", 0) or 1024)
    layers = float(getattr(text, "num_hidden_layers", 0) or 16)
    return 12 * layers * hidden**2 + hidden * float(getattr(text, "vocab_size", 0) or 0)


def ends(start: int, stop: int, size: int | None, minute: int) -> list[int]:
    """Where the shards of the rows from ``start`` to ``stop`` end.

    Args:
        start, stop: of the segment.
        size: rows of every shard; ``None`` for small shards that double up to ``minute`` rows.
        minute: rows of a minute of work.
    """
    found, each = [], size or max(minute // FIRST, min(SMALLEST, minute))
    while start < stop:
        start = min(start + each, stop)
        found.append(start)
        each = size or min(2 * each, minute)
    return found


def grown(
    dataset: Dataset, reader: RowReader, old: Sequence[Segment], size: int | None, minute: int
) -> list[Segment]:
    """The segments of a dataset: the old ones, if it begins with their rows, and what is new.

    Raises:
        InputError: see `fingerprint.survey`.
    """
    kept = list(old) if old and holds(dataset, old, reader) else []
    start, stop = (kept[-1]["rows"][1] if kept else 0), len(dataset)
    if start == stop:
        return kept
    new = {
        "rows": [start, stop],
        "fingerprint": fingerprint.survey(dataset.select(range(start, stop)), reader),
        "shards": ends(start, stop, size, minute),
    }
    return [*kept, new]


def holds(dataset: Dataset, segments: Sequence[Segment], reader: RowReader | None = None) -> bool:
    """Whether a dataset begins with the rows of all segments, by their fingerprints."""
    if len(dataset) < segments[-1]["rows"][1]:
        return False
    for one in segments:
        rows = dataset.select(range(*one["rows"]))
        found = fingerprint.survey(rows, reader) if reader else fingerprint.fingerprint(rows)
        if found != one["fingerprint"]:
            return False
    return True


def whole_fingerprint(segments: Sequence[Segment]) -> str:
    """Of all rows: that of the only segment, or a hash of those of all."""
    if len(segments) == 1:
        return str(segments[0]["fingerprint"])
    return f"sha256:{sha256(as_json({'of': [one['fingerprint'] for one in segments]}))}"


def parts(segments: Sequence[Segment]) -> list[Part]:
    """The shards, in order."""
    return [
        Part(range(start, stop), one["fingerprint"])
        for one in segments
        for start, stop in pairwise([one["rows"][0], *one["shards"]])
    ]
