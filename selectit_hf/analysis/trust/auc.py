"""How well scores put good rows above broken copies, with a bootstrap interval over source rows.

The AUC is the probability that a good row, drawn at random, scores higher than a broken copy of
another row, drawn at random; equal scores count half. 0.5 is chance. A row and its own copies are
compared separately: a copy that is always a little lower says nothing about two rows of a dataset.
A row without a score is never kept, so it ranks below every row that has one.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHANCE", "RESAMPLES", "Auc", "separation"]

RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 64
CHANCE = 0.5
FEWEST = 3
"""Rows that say anything about other rows; the interval of fewer is 0 to 1."""

Floats = NDArray[np.float64]


class Auc(NamedTuple):
    """An AUC over some copies.

    Attributes:
        rows: source rows that have such a copy.
        copies: the broken copies.
        auc: in [0, 1], ties half; 0.5 without a second row.
        low, high: 95 % percentile bootstrap interval over source rows.
        pairs_right: share of copies that score lower than the row they were made from, ties half.
    """

    rows: int
    copies: int
    auc: float
    low: float
    high: float
    pairs_right: float


def separation(
    clean: Floats, copies: Floats, source: NDArray[np.int64], seed: int = 0, matched: bool = True
) -> Auc:
    """Compare good rows with broken copies.

    ``auc`` is the mean of ``(a > b) + (a == b) / 2`` over all good rows ``a`` and copies ``b`` of
    other rows. The interval is given by the 2.5 % and 97.5 % quantiles of the same mean over
    `RESAMPLES` draws of the source rows with replacement, where each draw takes a row and its
    copies together. Draws of one row alone are left out.

    Args:
        clean: (n) scores of the good rows, NaN for none.
        copies: (m) scores of the copies, NaN for none; at least one copy.
        source: (m) the good row that each copy was made from.
        seed: the seed of the bootstrap.
        matched: leave out good rows without a copy, so that both sides are the same rows.
    """
    if matched:
        there, source = np.unique(source, return_inverse=True)
        clean = clean[there]
    above = _above(_ranked(clean), _ranked(copies))
    wins = np.zeros((len(clean), len(clean)))  # of each good row over the copies of each source
    np.add.at(wins.T, source, above.T)
    counts = np.bincount(source, minlength=len(clean)).astype(np.float64)
    whole = _of_others(wins, counts, [np.ones((1, len(clean)))])
    drawn = _of_others(wins, counts, _draws(len(clean), seed))
    tail = (1 - LEVEL) / 2
    known = len(clean) >= FEWEST and drawn.size
    low, high = np.quantile(drawn, [tail, 1 - tail]) if known else (0.0, 1.0)
    return Auc(
        int((counts > 0).sum()),
        len(copies),
        float(whole[0]) if whole.size else CHANCE,
        float(low),
        float(high),
        float(above[source, np.arange(len(copies))].mean()),
    )


def _ranked(scores: Floats) -> Floats:
    return np.where(np.isnan(scores), -np.inf, scores)


def _above(clean: Floats, copies: Floats) -> Floats:
    """(n, m) 1 where the good row is above, 0.5 where they tie."""
    difference = clean[:, None] > copies[None, :]
    return np.asarray(difference + 0.5 * (clean[:, None] == copies[None, :]))


def _draws(n: int, seed: int) -> Iterator[Floats]:
    """How often each resample has each row: (block, n) at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, RESAMPLES, BLOCK):
        rows = rng.integers(n, size=(min(BLOCK, RESAMPLES - start), n))
        yield np.stack([np.bincount(one, minlength=n) for one in rows]).astype(np.float64)


def _of_others(wins: Floats, counts: Floats, draws: Iterable[Floats]) -> Floats:
    """The AUC of rows over other rows' copies in each draw that has such pairs."""
    found = []
    for weights in draws:
        pairs = weights.sum(axis=1) * (weights @ counts) - weights**2 @ counts
        won = ((weights @ wins) * weights).sum(axis=1) - weights**2 @ np.diag(wins)
        found.append(won[pairs > 0] / pairs[pairs > 0])
    return np.concatenate(found)
