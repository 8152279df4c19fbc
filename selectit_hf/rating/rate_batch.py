"""The ratings of a batch: stored ones are used again, and a model rates what is missing."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import multiprocess
import numpy as np
from datasets.utils import tqdm

from selectit_hf.errors import RatingsError
from selectit_hf.formats import Pair, pair_hash
from selectit_hf.rating.engine.verification import together
from selectit_hf.rating.ratings import RATED, SETTLED, Batch, Ratings, read_ratings

__all__ = ["inside_batch", "listened", "rate_batch"]

Listener = Callable[[str, int], None]
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)
PATIENCE = 2.0
"""Seconds after which a batch gets a progress bar of its own."""


def rate_batch(
    scorer: Any,
    batch: Batch,
    rank: int | None = None,
    progress: Callable[[int], None] | None = None,
    then: Batch | None = None,
) -> Ratings:
    """The ratings by a ``scorer``; see `RatingScorer.rate`."""
    pairs = scorer.reader.pairs(batch)
    texts = [pair_hash(pair) if isinstance(pair, Pair) else None for pair in pairs]
    stored = _stored(batch, scorer).of_texts(texts)
    had, has = stored.logprobs.shape[1], stored.asked
    count = max(had, scorer.asked)
    logprobs = np.full((len(pairs), count, scorer.k), np.nan, dtype=np.float32)
    logprobs[:, :had] = stored.logprobs
    statuses: list[str] = []
    todo: dict[int, list[int]] = {}  # first rating prompt that is missing, to rows
    for i, (pair, known) in enumerate(zip(pairs, stored.statuses, strict=True)):
        statuses.append(pair if isinstance(pair, str) else known)
        unrated = known not in SETTLED or (known in RATED and not has[i])
        if isinstance(pair, Pair) and (unrated or (known in RATED and has[i] < count)):
            todo.setdefault(0 if unrated else int(has[i]), []).append(i)
    rater = scorer.rater(rank)
    next_pairs = scorer.reader.pairs(then) if then is not None else ()
    coming = [pair for pair in next_pairs if isinstance(pair, Pair)]
    splits, tokens, readings = 0, 0, []
    for first, rows in sorted(todo.items()):
        asked = [cast(Pair, pairs[i]) for i in rows]
        answer = rater.ask(asked, range(first, count), progress, coming)
        logprobs[rows, first:] = answer.logprobs
        splits += answer.splits
        tokens += answer.tokens
        readings += [answer.reading] if answer.reading is not None else []
        for i, status in zip(rows, answer.statuses, strict=True):
            statuses[i] = status
    logprobs[[status not in RATED for status in statuses]] = np.nan
    facts = stored.rater or {**rater.facts(), "rating_key": scorer.rating_key()}
    return Ratings(statuses, logprobs, facts, splits, together(readings), tuple(texts), tokens)


def _stored(batch: Batch, scorer: Any) -> Ratings:
    """The ratings that this scorer left in the batch, with empty statuses where there are none."""
    name, count = scorer.slug, len(next(iter(batch.values()), ()))
    nothing = Ratings([""] * count, np.empty((count, 0, scorer.k), np.float32), {})
    if f"rater__{name}" not in batch:
        _check_overwrites(batch, scorer.columns)
        return nothing
    ratings = read_ratings(batch, name, scorer.k)
    if ratings.rater and ratings.rater["rating_key"] != scorer.rating_key():
        raise RatingsError(
            f"The columns ending in __{name} hold ratings by {ratings.rater['model']!r} with other "
            f"settings{_what_differs(scorer, ratings.rater)}. Give this scorer a name of its own, "
            f"as in name='{name}_2', or drop those columns."
        )
    return ratings if ratings.rater else nothing


def _check_overwrites(batch: Batch, columns: Iterable[str]) -> None:
    taken = [column for column in columns if column in batch]
    if taken:
        raise RatingsError(
            f"The dataset has a column {taken[0]!r} that no scorer wrote and that would be "
            "overwritten; rename it, or give the scorer another name=."
        )


def _what_differs(scorer: Any, rater: Mapping[str, Any]) -> str:
    from selectit_hf.rating.models.loading import DTYPES

    for dtype in DTYPES:
        if dataclasses.replace(scorer, dtype=dtype).rating_key() == rater["rating_key"]:
            return f": they were rated in {dtype}, so give dtype={dtype!r} to reuse them"
    if rater["revision"] != scorer.checkpoint.revision:
        return f": they were rated at the model's revision {rater['revision']}"
    return (
        " (k, rating prompts, template, chat, columns, turns, length, dtype, quantization or "
        "attention)"
    )


# Progress inside a batch


@contextmanager
def listened(listener: Listener | None) -> Iterator[None]:
    """Call ``listener``, if there is one, with slug and rating prompts done while `map` rates."""
    before = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(before)


@contextmanager
def inside_batch(scorer: Any, batch: Batch, rank: int | None) -> Iterator[Callable[[int], None]]:
    """Where progress inside a batch goes: to who listens, else to a bar under that of `map`."""
    listener, done = _LISTENER.get(), 0
    rows, slug = len(next(iter(batch.values()), ())), scorer.slug
    hidden = rank is not None or multiprocess.parent_process() is not None or not _is_watched()
    bar = tqdm(
        total=rows, desc=f"{slug}, this batch", unit=" rows", leave=False, delay=PATIENCE,
        disable=hidden or listener is not None,
    )  # fmt: skip

    def told(prompts: int) -> None:
        nonlocal done
        done += prompts
        bar.update(min(done // scorer.asked, rows) - bar.n)
        if listener is not None:
            listener(slug, prompts)

    with bar:
        yield told
        told(max(rows * scorer.asked - done, 0))  # rows that need no model are done too


def _is_watched() -> bool:
    """Whether there is a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
