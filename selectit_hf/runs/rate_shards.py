"""Rating the shards of a run: one of them, or those of one rank. Any engine can call this.

Workers do not claim shards. If two workers rate the same shard, they write the same table and the
first sidecar stays, so an engine decides only who starts with which shard.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

from datasets import Dataset

from selectit_hf import whole_files
from selectit_hf.errors import RunError, SelectItError
from selectit_hf.json_files import as_json
from selectit_hf.rating import SentenceScore
from selectit_hf.runs.run import PROGRESS, Run
from selectit_hf.runs.shards import refuse_mixed, rows_words

__all__ = [
    "Progress",
    "pending",
    "prepare",
    "rate",
    "rate_shard",
    "shards_of",
    "wait_and_take_over",
    "with_next",
]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int], None]
"""Called with a model's slug and how many more rating prompts are done, k for each row."""
NOTE_EVERY = 10.0
"""Seconds between two notes of a worker."""
POLL = 2.0
"""Seconds between two checks of what others have committed."""


def pending(run: Run) -> list[tuple[str, int]]:
    """The shards without a whole sidecar, as model slug and number, model by model.

    Tables are not read; `finish` finds damaged ones and makes them pending.
    """
    return [(slug, number) for slug in run.slugs for number in run.shards(slug).missing()]


def rate_shard(
    run: Run,
    slug: str,
    number: int,
    dataset: Dataset,
    scorer: SentenceScore,
    *,
    local_rank: int = 0,
    halvings: int = 0,
    progress: Progress | None = None,
    allow_mixed: bool = False,
    then: int | None = None,
) -> bool:
    """Rate one shard: its table, then its sidecar. It may be done twice.

    Args:
        run: the run.
        slug, number: the model and the shard.
        dataset: all rows of the run, in order.
        scorer: the model's scorer, as planned; revision, dtype and token budget are the plan's.
        local_rank: this worker's number on its machine, which chooses the GPU.
        halvings: how often to halve the token budget, for a shard at which workers died. The
            sidecar counts them as splits.
        progress: called with how many rating prompts are done.
        then: the shard that this worker rates next, whose rows are tokenized meanwhile.
        allow_mixed: allow other shards to be rated by other versions or on other hardware.

    Returns:
        Whether this rating is the one that stays: ``False`` if another worker was first.

    Raises:
        ModelError: the model is not what it was when the run was planned, or cannot rate.
        RunError: versions or hardware would be mixed, or the scorer is not one of the run's.
        OSError: the disk is full or failing; the shard is not committed.
    """
    from selectit_hf.rating import made_with as made_with_on
    from selectit_hf.rating import set_threads

    shards, rows = run.shards(slug), run.parts[number].rows
    with _noted(rows, slug), _announced(run, slug, number) as announce:
        if shards.is_committed(number):
            return False
        set_threads(run.plan["threads"])
        planned = _planned(run, slug, scorer, halvings)
        made_with = made_with_on(planned.place(local_rank).device)
        if not allow_mixed:
            theirs = shards.any_facts().get("made_with", made_with)
            refuse_mixed(slug, [theirs, made_with])
        planned.rater(local_rank).engine()  # loading it is no part of a shard's speed
        started, asked = time.perf_counter(), 0

        def tell(prompts: int) -> None:
            nonlocal asked
            asked += prompts
            announce(asked // planned.k)
            if progress is not None:
                progress(slug, prompts)

        coming = run.read(dataset, run.parts[then].rows) if then is not None else None
        ratings = planned.rate(run.read(dataset, rows), local_rank, tell, coming)
        run.saw(slug, ratings)
        tell(len(rows) * planned.k - asked)  # rows that cannot be rated are done too
        whole_files.reached("shard rated")
        facts = ratings.facts()
        facts["oom_splits"] += halvings
        facts |= {"token_budget": planned.token_budget, "made_with": made_with}
        facts["seconds"] = round(time.perf_counter() - started, 3)
        run.check_plan()
        return shards.commit(number, ratings.table(rows), facts)


def rate(
    run: Run,
    dataset: Dataset,
    scorers: Sequence[SentenceScore],
    rank: int = 0,
    world: int = 1,
    **settings: Any,
) -> None:
    """Rate the shards of one rank that have no sidecar: those with ``number % world == rank``.

    Args:
        run: the run.
        dataset: all its rows.
        scorers: one for each model, as they were planned.
        rank, world: which part of the shards, of how many.
        settings: ``local_rank``, ``progress`` and ``allow_mixed`` of `rate_shard`.

    Raises:
        The errors of `rate_shard`; each model is checked before any is asked.
    """
    of = prepare(run, scorers)
    left = shards_of(run, rank, world, settings.get("progress"))
    for slug, number, then in with_next(left):
        rate_shard(run, slug, number, dataset, of[slug], then=then, **settings)


def prepare(run: Run, scorers: Sequence[SentenceScore]) -> dict[str, SentenceScore]:
    """The scorers as planned, by slug; errors are raised before any weights are read.

    Raises:
        ModelError: a model is not what it was when the run was planned, or cannot rate.
        RunError: a model of the plan has no scorer, or one with other settings.
    """
    given = {scorer.slug: scorer for scorer in scorers}
    missing = [slug for slug in run.slugs if slug not in given]
    if missing:
        raise RunError(f"The run also has the model {missing[0]!r}; give all its models, in order.")
    of = {slug: _planned(run, slug, given[slug]) for slug in run.slugs}
    for slug in dict(pending(run)):
        of[slug].prepare()
    return of


def shards_of(
    run: Run, rank: int, world: int, progress: Progress | None = None
) -> list[tuple[str, int]]:
    """The pending shards of one rank; ``progress`` is called for the committed ones."""
    left = [(slug, number) for slug, number in pending(run) if number % world == rank]
    mine = {(slug, n) for slug in run.slugs for n in range(rank, len(run.parts), world)}
    _tell(run, mine.difference(left), progress)
    return left


def with_next(left: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int, int | None]]:
    """Each shard, and the one that the same model rates after it, if there is one."""
    for (slug, number), (other, then) in pairwise([*left, ("", 0)]):
        yield slug, number, then if other == slug else None


def wait_and_take_over(
    run: Run,
    dataset: Dataset,
    scorers: Sequence[SentenceScore],
    wait: float,
    world: int = 1,
    **settings: Any,
) -> None:
    """Wait for the shards of the other ranks, and rate those that are not committed in time.

    Args:
        run, dataset, scorers, world, settings: see `rate`, which has rated those of rank 0.
        wait: seconds without a new sidecar after which a shard is taken over.
    """
    of, left, since = prepare(run, scorers), pending(run), time.monotonic()
    theirs = {(slug, n) for slug in run.slugs for n in range(len(run.parts)) if n % world}
    _tell(run, theirs.difference(left), settings.get("progress"))
    while left:
        if time.monotonic() - since < wait:
            time.sleep(min(POLL, wait))
        else:
            slug, number = left.pop(0)
            words = "No shard was finished for %.0f seconds; taking over %s, by %s."
            logger.info(words, wait, rows_words(run.parts[number].rows), slug)
            rate_shard(run, slug, number, dataset, of[slug], **settings)
        committed = set(left).difference(pending(run))
        _tell(run, committed, settings.get("progress"))
        left = [one for one in left if one not in committed]
        since = time.monotonic() if committed else since


def _tell(run: Run, shards: set[tuple[str, int]], progress: Progress | None) -> None:
    """Tell of shards that others have rated, of each model at once, so that no speed is seen."""
    if progress is None:
        return
    for slug in run.slugs:
        rows = sum(len(run.parts[number].rows) for one, number in shards if one == slug)
        if rows:
            progress(slug, rows * run.plan["rating"]["k"])


# One shard


def _planned(run: Run, slug: str, scorer: SentenceScore, halvings: int = 0) -> SentenceScore:
    """The scorer with the plan's settings, wherever this worker is."""
    model = run.model(slug)
    budget = max(1, model["token_budget"] >> halvings)
    wanted = (model["revision"], model["dtype"], budget)
    if (scorer.revision, scorer.dtype, scorer.token_budget) != wanted:
        scorer = replace(
            scorer, revision=model["revision"], dtype=model["dtype"], token_budget=budget
        )
    if scorer.slug != slug or scorer.rating_key() != model["rating_key"]:
        raise RunError(
            f"The run {run.name!r} was planned with other settings of {slug!r} (prompts, template, "
            "columns, length, dtype), or by another version of selectit; give those of its plan."
        )
    return scorer


@contextmanager
def _noted(rows: range, slug: str) -> Iterator[None]:
    """Add to any error which rows were being rated."""
    try:
        yield
    except BaseException as error:
        error.add_note(
            f"This happened at {rows_words(rows)}, by {slug!r}. Whole shards stay; the same "
            "command resumes after them."
        )
        raise


@contextmanager
def _announced(run: Run, slug: str, number: int) -> Iterator[Callable[[int], None]]:
    """Note from time to time how many rows of a shard are done. Only `status` reads it."""
    name, last = f"{PROGRESS}/{slug}.{number:05d}.json", -NOTE_EVERY

    def announce(rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= NOTE_EVERY:
            last = time.monotonic()
            with suppress(OSError, SelectItError):
                run.store.write(name, as_json({"rows": rows, "at": round(time.time())}))

    announce(0)
    try:
        yield announce
    finally:
        with suppress(OSError, SelectItError):
            run.store.remove(name)
