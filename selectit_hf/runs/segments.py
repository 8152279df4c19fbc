"""How the rows of a run are cut: into segments, one for each time it grew, and shards in each.

A segment is a stretch of rows with its own fingerprint, so that a dataset with more rows at its end
is recognised as the one that was rated. Its shards start small, so that an early stop loses little
work, and double up to about a minute of work.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from datasets import Dataset

from selectit_hf.formats import RowReader, fingerprint, survey
from selectit_hf.hashes import sha256
from selectit_hf.json_files import as_json
from selectit_hf.rating import SentenceScore
from selectit_hf.runs.shards import Part

__all__ = ["ends", "gap", "grown", "holds", "minute_of_rows", "parts", "whole_fingerprint"]

SMALLEST, LARGEST = 32, 8192
"""Rows of a shard if no size is given."""
FIRST = 16
"""The first shard is this part of a minute of work."""
TOKENS_OF_A_ROW = 250
FLOPS = {"cuda": 1e14, "cpu": 5e10}
"""Assumed operations per second of a device. Not measured: shards must follow from the plan."""

Segment = dict[str, Any]


def minute_of_rows(scorers: Sequence[SentenceScore]) -> int:
    """Rows that the largest model rates in a minute, estimated from its configuration."""
    device = scorers[0].place(None).device.partition(":")[0]
    sizes = []
    for config in (scorer.checkpoint.config().get_text_config() for scorer in scorers):
        hidden = getattr(config, "hidden_size", 1024)
        blocks = 12 * getattr(config, "num_hidden_layers", 16) * hidden**2
        sizes.append(blocks + hidden * getattr(config, "vocab_size", 0))
    work = 2 * max(sizes) * TOKENS_OF_A_ROW * scorers[0].k
    return min(max(int(60 * FLOPS.get(device, FLOPS["cpu"]) / work), SMALLEST), LARGEST)


def ends(start: int, stop: int, size: int | None, minute: int = 0) -> list[int]:
    """Where the shards of the rows from ``start`` to ``stop`` end.

    Args:
        start, stop: the range of the segment.
        size: rows of every shard; ``None`` for small shards that double up to ``minute`` rows.
        minute: the rows that are a minute of work.
    """
    found, each = [], size or max(minute // FIRST, SMALLEST)
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
    kept = list(old) if old and holds(dataset, old) else []
    start, stop = (kept[-1]["rows"][1] if kept else 0), len(dataset)
    if start < stop:
        found = survey(dataset.select(range(start, stop)), reader)
        cuts = ends(start, stop, size, minute)
        kept.append({"rows": [start, stop], "fingerprint": found, "shards": cuts})
    return kept


def holds(dataset: Dataset, segments: Sequence[Segment]) -> bool:
    """Whether a dataset begins with the rows of all segments, by their fingerprints."""
    return len(dataset) >= segments[-1]["rows"][1] and all(
        fingerprint(dataset.select(range(*one["rows"]))) == one["fingerprint"] for one in segments
    )


def whole_fingerprint(segments: Sequence[Segment]) -> str:
    """The fingerprint of all rows: that of the only segment, or a hash of all segments'."""
    found = [str(one["fingerprint"]) for one in segments]
    return found[0] if len(found) == 1 else f"sha256:{sha256(as_json({'of': found}))}"


def gap(plan: dict[str, Any]) -> str | None:
    """Where a plan's segments and shards leave a gap or overlap; ``None`` if they do not."""
    at = 0
    for i, one in enumerate(plan["segments"]):
        cuts = [at, *one["shards"]]
        if one["rows"] != [at, cuts[-1]] or any(a >= b for a, b in pairwise(cuts)) or len(cuts) < 2:
            return f"segments[{i}]"
        at = cuts[-1]
    return None if at == plan["input"]["rows"] else "input.rows"


def parts(segments: Sequence[Segment]) -> list[Part]:
    """The shards, in order."""
    return [
        Part(range(start, stop), one["fingerprint"])
        for one in segments
        for start, stop in pairwise([one["rows"][0], *one["shards"]])
    ]
