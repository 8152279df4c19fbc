"""Facts about a finished selection: numbers a person can judge it by."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from selectit_hf.contrast import contrast
from selectit_hf.ratings import Ratings
from selectit_hf.reflection import rating_mass
from selectit_hf.rows import Pair, RowReader
from selectit_hf.selection import Selection

__all__ = ["LOW_RATING_MASS", "summarise"]

LOW_RATING_MASS = 0.1
"""Below this mean probability of any rating at all, the scores mean little."""

EXAMPLES = 3
EXAMPLE_CHARACTERS = 160
LENGTH_ROWS = 1000


def summarise(
    scored: Dataset, selection: Selection, ratings: Mapping[str, Ratings], reader: RowReader
) -> dict[str, Any]:
    """The summary of a selection, as JSON-able facts.

    Rows, statuses and rating mass for each model, score quantiles (minimum, quarter, median, three
    quarters, maximum), the threshold, the mean response length in characters of kept and of all
    rated rows, and the best and worst rows, shortened.
    """
    assert selection.decisions is not None
    scores = selection.decisions["score"].to_numpy()
    kept = np.array(selection.decisions["reason"].to_pylist()) == "selected"
    finite = scores[np.isfinite(scores)]
    lengths = _response_lengths(scored, reader)
    return {
        "rows": len(scored),
        "selected": int(kept.sum()),
        "by": selection.by,
        "threshold": selection.threshold,
        "score_quantiles": np.quantile(finite, (0, 0.25, 0.5, 0.75, 1)).tolist()
        if finite.size
        else [],
        "mean_response_characters": {
            "selected": _mean(lengths[kept]),
            "all": _mean(lengths),
        },
        "contrast": contrast(scored, kept, reader),
        "reasons": selection.reasons,
        "models": {slug: _model_facts(rated) for slug, rated in ratings.items()},
        "best": _examples(scored, selection, reader, best=True),
        "worst": _examples(scored, selection, reader, best=False),
    }


def _model_facts(ratings: Ratings) -> dict[str, Any]:
    rated = ratings.logprobs[ratings.rated]
    return {
        "model": ratings.rater["model"],
        "revision": ratings.rater["revision"],
        "parameters": ratings.rater["parameters"],
        "statuses": dict(sorted(Counter(ratings.statuses).items())),
        "rating_mass": float(rating_mass(rated).mean()) if len(rated) else None,
        "oom_splits": ratings.splits,
    }


def _response_lengths(scored: Dataset, reader: RowReader) -> Any:
    """(n) response lengths in characters, NaN for rows that are no pair."""
    lengths: list[float] = []
    for start in range(0, len(scored), LENGTH_ROWS):
        pairs = reader.pairs(scored[start : start + LENGTH_ROWS])
        lengths += [len(p.response) if isinstance(p, Pair) else np.nan for p in pairs]
    return np.array(lengths)


def _mean(values: Any) -> float | None:
    finite = values[np.isfinite(values)]
    return round(float(finite.mean()), 1) if finite.size else None


def _examples(
    scored: Dataset, selection: Selection, reader: RowReader, best: bool
) -> list[dict[str, Any]]:
    assert selection.decisions is not None
    order = "ascending" if best else "descending"
    decisions = selection.decisions.filter(selection.decisions["rank"].is_valid())
    chosen = decisions.sort_by([("rank", order)]).slice(0, EXAMPLES).to_pylist()
    pairs = reader.pairs(scored[[row["row"] for row in chosen]]) if chosen else []
    return [
        {
            "row": row["row"],
            "score": row["score"],
            "instruction": _shortened(pair.instruction),
            "response": _shortened(pair.response),
        }
        for row, pair in zip(chosen, pairs, strict=True)
        if isinstance(pair, Pair)
    ]


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= EXAMPLE_CHARACTERS:
        return line
    return line[: EXAMPLE_CHARACTERS - 1] + "…"
