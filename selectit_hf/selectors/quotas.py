"""A share for each group, so that one category cannot fill the selection."""

from collections.abc import Hashable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from selectit_hf.errors import SettingError
from selectit_hf.selection import Cut, decide
from selectit_hf.selectors.selector import Scores

__all__ = ["quotas", "rank_in_group"]

Rows = NDArray[np.int64]


def quotas(scores: Scores, groups: Sequence[Hashable], cut: Cut) -> pa.Table:
    """Decide within each group, so that no category fills the selection; see `Selection.decisions`.

    The number of rows that ``cut`` keeps is divided in proportion to the groups' sizes (largest
    remainders first, then larger groups), and each group keeps its own best rows. ``rank`` counts
    within the group. ``groups`` are (n) values of any kind; ``None`` is a group like any other.

    Raises:
        SettingError: the numbers of groups and scores differ, or the cut is a threshold.
    """
    if len(groups) != len(scores.values):
        raise SettingError(f"{len(groups)} groups for {len(scores.values)} rows; give one each.")
    if cut.threshold is not None:
        raise SettingError("A threshold cannot keep a share of each group; give proportion or n.")
    decided = decide(scores.values, cut, scores.statuses)
    codes = _codes(groups)
    ranks = _ranks_within(decided["rank"].fill_null(len(codes)).to_numpy(), codes)
    shares = _shares(np.bincount(codes), min(cut.count(len(codes)), len(codes)))
    scored = np.isfinite(scores.values)
    kept = scored & (ranks < shares[codes])
    if kept.any():
        chosen = np.where(scored, kept.astype(np.float64), np.nan)
        decided = decide(chosen, Cut(n=int(kept.sum())), scores.statuses)
    return pa.table(
        {
            "row": decided["row"],
            "score": pa.array(scores.values, pa.float64(), mask=~scored),
            "rank": pa.array(ranks, pa.int64(), mask=~scored),
            "reason": decided["reason"],
        }
    )


def rank_in_group(scores: Scores, groups: Sequence[Hashable]) -> Scores:
    """Each row's relative rank in its own group, between 0 and 1, highest for the best row.

    It is ``1 - (r + 1/2) / g`` for a row with ``r`` better rows in its group of ``g`` rows,
    including rows without a score; equal scores keep row order. Whatever is selected by it, no
    group loses more than one row of its share. Rows without a score stay without one.

    Raises:
        SettingError: the numbers of groups and scores differ.
    """
    if len(groups) != len(scores.values):
        raise SettingError(f"{len(groups)} groups for {len(scores.values)} rows; give one each.")
    codes = _codes(groups)
    ranks = decide(scores.values, Cut(), scores.statuses)["rank"]
    within = _ranks_within(ranks.fill_null(len(codes)).to_numpy(), codes)
    places = 1 - (within + 0.5) / np.bincount(codes)[codes]
    return Scores(np.where(np.isfinite(scores.values), places, np.nan), scores.statuses)


def _codes(groups: Sequence[Hashable]) -> Rows:
    """The groups as numbers, in order of appearance."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(group, len(known)) for group in groups], dtype=np.int64)


def _ranks_within(ranks: Rows, codes: Rows) -> Rows:
    """Ranks among all rows to ranks among the rows of the same group."""
    order = np.lexsort((ranks, codes))
    starts = np.searchsorted(codes[order], codes[order])
    within = np.empty(len(codes), np.int64)
    within[order] = np.arange(len(codes)) - starts
    return within


def _shares(sizes: Rows, total: int) -> Rows:
    """``total`` divided in proportion to ``sizes``, by largest remainder."""
    shares, remainders = np.divmod(sizes * total, max(int(sizes.sum()), 1))
    first = np.lexsort((np.arange(len(sizes)), -sizes, -remainders))
    shares[first[: total - int(shares.sum())]] += 1
    return np.asarray(shares)
