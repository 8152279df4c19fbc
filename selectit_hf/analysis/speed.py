"""How fast a model rates, measured on a few rows of all lengths."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from selectit_hf.rating import Batch, Ratings

__all__ = ["PROBE", "Speed", "duration", "measure", "of_all_lengths"]

PROBE = 8
"""Rows that are rated to measure."""
FIXED = 0.4
"""The largest part of a measured call that can be its fixed cost: a few of its sequences again."""


class Speed(NamedTuple):
    """What rating takes: seconds for each call, and seconds for each unit of a row's size.

    Attributes:
        fixed, each: the two.
        ratings: of the rows that were measured.
    """

    fixed: float
    each: float
    ratings: Ratings

    def seconds(self, size: float, calls: int = 1) -> float:
        """For rows of this size together, in so many calls."""
        return self.fixed * calls + self.each * size


def of_all_lengths(sizes: Sequence[float] | NDArray[Any]) -> NDArray[np.int64]:
    """The numbers of a few rows, from the smallest to the largest."""
    order = np.argsort(np.asarray(sizes), kind="stable")
    places = np.linspace(0, len(order) - 1, min(PROBE, len(order))).round().astype(int)
    return np.asarray(order[places], np.int64)


def measure(scorer: Any, batch: Batch, sizes: NDArray[Any]) -> Speed:
    """The speed of a `RatingScorer` at a batch with rows of these sizes.

    Every call has a fixed cost, since the engine compares some of its sequences with plain passes.
    The difference of two calls leaves that cost out. A first call loads the model.

    Raises:
        ModelError: the model cannot be loaded, or cannot rate.
    """
    some = of_all_lengths(sizes)
    scorer.rate(_part(batch, some[:1]))
    few = some[1::3]
    short = _timed(scorer, _part(batch, few))[0] if len(few) else 0.0
    long, ratings = _timed(scorer, _part(batch, some))
    little, much = float(sizes[few].sum()), float(sizes[some].sum())
    each = max((long - short) / max(much - little, 1.0), long / much * (1 - FIXED))
    each = min(each, long / much)
    return Speed(max(long - each * much, 0.0), each, ratings)


def _timed(scorer: Any, batch: Batch) -> tuple[float, Ratings]:
    started = time.perf_counter()
    ratings = scorer.rate(batch)
    return time.perf_counter() - started, ratings


def _part(batch: Batch, rows: NDArray[np.int64]) -> Batch:
    return {name: [values[i] for i in rows.tolist()] for name, values in batch.items()}


def duration(seconds: float) -> str:
    """As in ``40 s``, ``3 min`` or ``2 h 10 min``."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
