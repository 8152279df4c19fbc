"""The bench of a trust check: each model and selector scores good rows and broken copies."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from selectit_hf.analysis.speed import PROBE, duration, measure
from selectit_hf.analysis.trust.auc import separation
from selectit_hf.analysis.trust.defects import Planted
from selectit_hf.analysis.trust.rated_model import facts_of_model
from selectit_hf.formats import READING
from selectit_hf.rating import Batch, ModelScore, Ratings, SentenceScore
from selectit_hf.selectors import IFD, Expected, Length, Perplexity, Random, Selector

__all__ = ["Bench", "Progress", "Tell"]

BESIDE = 100
"""Characters that a rating prompt adds to a pair, roughly, for estimates of time."""
FEW_MINUTES, FEWEST = 300.0, 20
"""A check that takes much longer than these seconds says how many rows would not, if this many."""
READS = {"perplexity": ("given",), "ifd": ("given", "alone")}
"""The passes over each response that a selector needs, which are shared."""
COLUMNS: dict[str, Any] = {
    **dict.fromkeys(READING),
    "instruction_column": "instruction",
    "response_column": "response",
}

Floats = NDArray[np.float64]
Tell = Callable[[str], None]
Progress = Callable[[str, int, int], None]


class Bench:
    """The good rows and their copies, scored by one model or selector after another."""

    def __init__(self, planted: Planted, whole: int, tell: Tell, progress: Progress | None) -> None:
        self.planted, self._whole, self._tell, self._progress = planted, whole, tell, progress
        self.batch: Batch = {
            "instruction": [pair.instruction for pair in planted.pairs],
            "response": [pair.response for pair in planted.pairs],
        }
        self._sizes = np.array([BESIDE + sum(map(len, pair)) for pair in planted.pairs])
        self._ratings: dict[str, Ratings] = {}
        self._tables: dict[tuple[str, str], pa.Table] = {}
        self.scores: dict[str, Floats] = {}
        self.models: list[dict[str, Any]] = []

    def rate(self, scorer: SentenceScore, alone: bool, by: Sequence[str | Selector] = ()) -> None:
        """Let a model rate all pairs, as `Dataset.map` and runs do.

        ``by`` are the selectors that it will compute afterwards; how long they take is told, too.
        """
        slug, named = scorer.slug, replace(scorer, **COLUMNS)
        named.prepare()
        took = measure(named, self.batch, self._sizes).seconds(float(self._sizes.sum()))
        copies, probed = len(self._sizes) - self.planted.clean, min(PROBE, len(self._sizes))
        reading = [one for one in READS if one in by]
        passes = {which for one in reading for which in READS[one]}
        then = f", then reads them for {' and '.join(reading)}" if reading else ""
        took *= 1 + len(passes) / scorer.k
        self._tell(
            f"{slug} rates {self.planted.clean} different rows and {copies} broken copies{then}, "
            f"in about {duration(took)}, estimated from {probed} of them." + self._shorter(took)
        )
        started = time.perf_counter()
        ratings = named.rate(self.batch, progress=self._counted(slug, named))
        seconds = time.perf_counter() - started
        if self._progress is not None:  # what was not asked is done, too
            self._progress(slug, len(self._sizes) * scorer.k, len(self._sizes) * scorer.k)
        self._ratings[slug] = ratings
        values = named.values(ratings)
        suffix = "" if alone else f":{slug}"
        for level in ("token", "sentence"):
            self.scores[f"{level}{suffix}"] = _floats(values[f"{level}_score__{slug}"])
        self.scores[f"expected{suffix}"] = Expected().combine({slug: ratings}).values
        rows = self._sizes[: self.planted.clean].mean() * self._whole
        whole = {"seconds": round(seconds, 1), "whole_seconds": round(self._share(seconds, rows))}
        facts = facts_of_model(scorer, named, ratings, self.batch, self.planted.clean)
        self.models.append(facts | whole)

    def _shorter(self, seconds: float) -> str:
        """How many rows would take a few minutes, if that makes sense."""
        rows = int(self.planted.clean * FEW_MINUTES / seconds)
        shorter = seconds > 2 * FEW_MINUTES and rows >= FEWEST
        return f" With --rows {rows} it would take {duration(FEW_MINUTES)}." if shorter else ""

    def _share(self, seconds: float, size: float) -> float:
        return float(seconds * size / self._sizes.sum())

    def _counted(self, slug: str, scorer: SentenceScore) -> Callable[[int], None] | None:
        if self._progress is None:
            return None
        progress, total, done = self._progress, len(self._sizes) * scorer.k, 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            progress(slug, min(done, total), total)

        return told

    # What follows from the ratings, and other selectors

    def combine(self, scorer: SentenceScore, weights: Sequence[float] | None) -> None:
        """The model level, and the expected rating of all models."""
        level = ModelScore(weights=weights, alpha=scorer.alpha, variant=scorer.variant)
        self.scores["model"] = _floats(level.combine(self._ratings)["model_score"])
        self.scores["expected"] = Expected(weights=weights).combine(self._ratings).values

    def measure(self, by: str | Selector, scorer: SentenceScore, seed: int) -> None:
        """Another selector's scores; a measurement that two of them need is made once."""
        if by == "random":
            self.scores["random"] = Random(seed).draw(range(len(self._sizes))).values
            return
        selector = _selector(by, scorer) if isinstance(by, str) else by
        name = by if isinstance(by, str) else selector.name
        tables = []
        for one in selector.measurements():
            key = (one.column, one.key())
            if key not in self._tables:
                self._tables[key] = one.measure(self.batch).table
            tables.append(self._tables[key])
        self.scores[name] = selector.scores(tables).values

    def found(self, name: str, seed: int) -> dict[str, Any]:
        """How well the scores of this name put good rows above broken ones."""
        scores, at = self.scores[name], self.planted.clean
        clean, copies = scores[:at], scores[at:]
        source, defect = self.planted.source[at:], self.planted.defect[at:]
        each = {}
        for i, one in enumerate(self.planted.names):
            mine = defect == i
            each[one] = separation(clean, copies[mine], source[mine], seed)._asdict()
        return {
            "name": name,
            "all": separation(clean, copies, source, seed, matched=False)._asdict(),
            "defects": each,
            "unscored": int(np.isnan(scores).sum()),
        }


def _selector(name: str, scorer: SentenceScore) -> Selector:
    """A selector that uses this scorer's model, in the same place."""
    who = ("model", "revision", "base_model")
    settings = {key: getattr(scorer, key) for key in who} | COLUMNS
    if name == "length":
        return Length(**settings)
    where = (
        "max_length", "dtype", "quantization", "attn_implementation", "device", "device_map",
        "token_budget",
    )  # fmt: skip
    settings |= {key: getattr(scorer, key) for key in where}
    return IFD(**settings) if name == "ifd" else Perplexity(**settings)


def _floats(values: Sequence[Any]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)
