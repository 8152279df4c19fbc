"""The rows of a report page: the rank of each, and the few whose text is embedded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from selectit_hf.formats import Pair, RowReader
from selectit_hf.rating import Variant
from selectit_hf.selection import Cut, decide

__all__ = ["STEPS", "Ranking", "pairs_of", "sample", "texts", "worth_reading"]

STEPS = 1000
"""Positions of the slider: tenths of a percent of all rows."""

TEXTS = 2_000
UNRATED_TEXTS = 50
INSTRUCTION_CHARACTERS = 600
RESPONSE_CHARACTERS = 1200
BATCH = 1000


@dataclass(frozen=True)
class Ranking:
    """Every row's rank, and what each position of the slider keeps.

    Attributes:
        scores: (n) float64, NaN for none.
        ranks: (n) int64, 0 is the best, -1 for a row without a score.
        order: the rows that have a score, best first.
        counts: (1001) rows kept at each tenth of a percent.
    """

    scores: NDArray[np.float64]
    ranks: NDArray[np.int64]
    order: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, scores: NDArray[np.float64], variant: Variant) -> "Ranking":
        """Rank as the selection did, ties included."""
        everyone = Cut(threshold=float(np.nanmin(scores, initial=0.0)), variant=variant)
        decided = decide(scores, everyone)["rank"]
        ranks = decided.fill_null(-1).to_numpy().astype(np.int64)
        order = np.argsort(ranks, kind="stable")[np.count_nonzero(ranks < 0) :]
        steps = [Cut(proportion=step / STEPS, variant=variant) for step in range(1, STEPS + 1)]
        counts = [0, *(min(cut.count(len(scores)), len(order)) for cut in steps)]
        return cls(scores, ranks, order, np.array(counts, dtype=np.int64))

    def thresholds(self) -> list[float | None]:
        """The lowest score kept at each position of the slider."""
        return [float(self.scores[self.order[c - 1]]) if c else None for c in self.counts]


def sample(random: np.random.Generator, rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """All rows, or a sample of them in order."""
    return rows if len(rows) <= most else np.sort(random.choice(rows, most, replace=False))


def pairs_of(dataset: Dataset, reader: RowReader, rows: NDArray[np.int64]) -> Iterator[Pair | str]:
    """Some rows as they are read, in the order of ``rows``."""
    wanted = dataset.select_columns(list(reader.columns(dataset.column_names)))
    for start in range(0, len(rows), BATCH):
        yield from reader.pairs(wanted[rows[start : start + BATCH]])


def worth_reading(
    random: np.random.Generator, ranking: Ranking, selected: int
) -> NDArray[np.int64]:
    """The rows whose text is embedded: near percents, the threshold and the ends; and a sample."""
    order = ranking.order
    unrated = np.flatnonzero(ranking.ranks < 0)[:UNRATED_TEXTS]
    if len(order) + len(unrated) <= TEXTS:
        return np.concatenate([order, unrated])
    edges = [(0, 100), (len(order), 100), (selected, 150)]
    edges += [(int(count), 4) for count in ranking.counts[10:-1:10]]
    places = np.unique(np.concatenate([np.arange(at - n, at + n) for at, n in edges]))
    places = places[(places >= 0) & (places < len(order))]
    others = np.setdiff1d(np.arange(len(order)), places)
    more = sample(random, others, max(TEXTS - len(places), 0))
    return np.concatenate([order[np.sort(np.concatenate([places, more]))], unrated])


def texts(
    dataset: Dataset, reader: RowReader, rows: NDArray[np.int64], ranking: Ranking
) -> list[dict[str, Any]]:
    """Rows as they are read, shortened, best first; the status of an unreadable row."""
    return [
        {
            "row": int(row),
            "rank": int(ranking.ranks[row]),
            "score": None if ranking.ranks[row] < 0 else float(ranking.scores[row]),
            **_text(pair),
        }
        for row, pair in zip(rows, pairs_of(dataset, reader, rows), strict=True)
    ]


def _text(pair: Pair | str) -> Mapping[str, Any]:
    if not isinstance(pair, Pair):
        return {"instruction": "", "response": "", "status": pair}
    instruction = pair.instruction[:INSTRUCTION_CHARACTERS]
    response = pair.response[:RESPONSE_CHARACTERS]
    left = len(pair.instruction) + len(pair.response) - len(instruction) - len(response)
    return {"instruction": instruction, "response": response, "left": left}
