"""The trust check of a run, ``RUN/check.json``: written before or after the run, read with it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from selectit_hf.errors import RunError
from selectit_hf.formats import Source
from selectit_hf.rating import RatingScorer
from selectit_hf.runs import CHECK, Run, Store, check_folder, open_run

__all__ = ["check_place", "has_check", "read_check", "write_check"]

logger = logging.getLogger(__name__)

FIELDS = ("input", "rows", "seed", "defects", "models", "selectors", "level", "verdict", "advice")


def check_place(store: Store, source: Source, scorers: Sequence[RatingScorer]) -> None:
    """Refuse, before anything is rated, a folder that the check does not belong to.

    Raises:
        RunError: it is no run's, or a run of another dataset or with other models or settings.
    """
    check_folder(store)
    if not store.exists("plan.json"):
        return
    models = [{"name": s.slug, "rating_key": s.rating_key()} for s in scorers]
    other = _other(open_run(store).plan, {"input": vars(source), "models": models})
    if other:
        raise RunError(
            f"The run {store.name!r} was planned with {other} than this check; give the dataset, "
            "models and settings of the run, or another --out."
        )


def has_check(store: Store) -> bool:
    """Whether a check was made for this run."""
    return store.exists(CHECK)


def write_check(store: Store, facts: Mapping[str, Any]) -> None:
    """Write the facts of a `Check` into a run folder, whole or not."""
    store.write_json(CHECK, dict(facts))


def read_check(run: Run) -> dict[str, Any] | None:
    """The check of a run; ``None`` without one, or where it is of something else, which is told."""
    if not has_check(run.store):
        return None
    try:
        facts = run.store.read_json(CHECK)
        other = _other(run.plan, facts) if all(key in facts for key in FIELDS) else "other fields"
    except (RunError, KeyError, TypeError, AttributeError):
        other = "something else"
    if other:
        logger.warning(
            "%s of the run %s was made with %s than the run, so it is not shown; make it again "
            "with 'selectit check'.", CHECK, run.name, other,
        )  # fmt: skip
        return None
    return facts


def _other(plan: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What a plan and a check do not have in common."""
    if facts["input"]["revision"] != plan["input"]["revision"]:
        return "another dataset, or another revision of it,"
    mine = {model["name"]: model["rating_key"] for model in facts["models"]}
    theirs = {model["name"]: model["rating_key"] for model in plan["models"]}
    return "" if mine == theirs else "other models or settings"
