"""Facts about a finished selection, by which a person can judge it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from selectit_hf.formats import Pair, RowReader
from selectit_hf.rating import Ratings, rating_mass
from selectit_hf.selection.contrast import contrast, measure
from selectit_hf.selection.selection import Selection

__all__ = ["LOW_RATING_MASS", "ModelFacts", "summarise"]

LOW_RATING_MASS = 0.1
"""If the mean probability of all ratings together is below this, the scores mean little."""

EXAMPLES = 3
EXAMPLE_CHARACTERS = 160


class ModelFacts:
    """Facts about one model's ratings, counted part by part."""

    def __init__(self) -> None:
        self._rater: dict[str, Any] = {}
        self._statuses: Counter[str] = Counter()
        self._mass = 0.0
        self._asked = 0
        self._splits = 0

    def add(self, ratings: Ratings) -> None:
        """Count the ratings of some more rows."""
        self._rater = self._rater or ratings.rater
        self._statuses.update(ratings.statuses)
        masses = rating_mass(ratings.logprobs[ratings.rated])
        self._mass += float(masses.sum())
        self._asked += masses.size
        self._splits += ratings.splits

    def facts(self) -> dict[str, Any]:
        """Model, statuses, mean rating mass and batches halved, JSON-able."""
        return {
            "model": self._rater["model"],
            "revision": self._rater["revision"],
            "parameters": self._rater["parameters"],
            "statuses": dict(sorted(self._statuses.items())),
            "rating_mass": self._mass / self._asked if self._asked else None,
            "oom_splits": self._splits,
        }


def summarise(
    dataset: Dataset,
    selection: Selection,
    models: Mapping[str, Ratings | ModelFacts],
    reader: RowReader,
) -> dict[str, Any]:
    """The summary of a selection, as JSON-able facts.

    Rows, statuses and rating mass for each model, score quantiles (minimum, quarter, median, three
    quarters, maximum), the threshold, the mean response length in characters of kept and of all
    rated rows, and the best and worst rows, shortened. Rows are read a thousand at a time.
    """
    assert selection.decisions is not None
    dataset = dataset.with_format(None)
    scores = selection.decisions["score"].to_numpy()
    finite = scores[np.isfinite(scores)]
    kept = selection.kept
    measured = measure(dataset, reader)
    return {
        "rows": len(dataset),
        "selected": int(kept.sum()),
        "by": selection.by,
        "threshold": selection.threshold,
        "score_quantiles": np.quantile(finite, (0, 0.25, 0.5, 0.75, 1)).tolist()
        if finite.size
        else [],
        "mean_response_characters": {
            "selected": _mean(measured.response[kept & measured.readable]),
            "all": _mean(measured.response[measured.readable]),
        },
        "contrast": contrast(measured, kept),
        "reasons": selection.reasons,
        "models": {slug: _counted(one).facts() for slug, one in models.items()},
        "best": _examples(dataset, selection, reader, best=True),
        "worst": _examples(dataset, selection, reader, best=False),
    }


def _counted(model: Ratings | ModelFacts) -> ModelFacts:
    if isinstance(model, ModelFacts):
        return model
    facts = ModelFacts()
    facts.add(model)
    return facts


def _mean(values: NDArray[np.int32]) -> float | None:
    return round(float(values.mean()), 1) if values.size else None


def _examples(
    dataset: Dataset, selection: Selection, reader: RowReader, best: bool
) -> list[dict[str, Any]]:
    assert selection.decisions is not None
    ranks = selection.decisions["rank"].fill_null(-1).to_numpy()
    last = int(ranks.max(initial=-1))
    wanted = range(min(EXAMPLES, last + 1)) if best else range(last, max(last - EXAMPLES, -1), -1)
    rows = [int(np.flatnonzero(ranks == rank)[0]) for rank in wanted]
    columns = list(reader.columns(dataset.column_names))
    pairs = reader.pairs(dataset.select_columns(columns)[rows]) if rows else []
    return [
        {
            "row": row,
            "score": selection.decisions["score"][row].as_py(),
            "instruction": _shortened(pair.instruction),
            "response": _shortened(pair.response),
        }
        for row, pair in zip(rows, pairs, strict=True)
        if isinstance(pair, Pair)
    ]


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= EXAMPLE_CHARACTERS:
        return line
    return line[: EXAMPLE_CHARACTERS - 1] + "…"
