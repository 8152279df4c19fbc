"""The trust check of a run, ``RUN/check.json``, which may be written before or after the run."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from selectit_hf.errors import RunError
from selectit_hf.formats import Source
from selectit_hf.rating import RatingScorer
from selectit_hf.runs import CHECK, Run, Store, check_folder, open_run

__all__ = ["aside", "check_place", "read_check"]

logger = logging.getLogger(__name__)

AUC = {
    **dict.fromkeys(("rows", "copies"), int),
    **dict.fromkeys(("auc", "low", "high", "pairs_right"), float),
}
SCHEMA = {
    "input": {"name": str, "config": (str, None), "split": str, "revision": str, "rows": int},
    "rows": int,
    "seed": int,
    "defects": {str: int},
    "models": [
        {
            **dict.fromkeys(("name", "model", "revision", "rating_key"), str),
            "parameters": int,
            "rating_mass": (float, None),
            "ratings": [float],
            "truncated": int,
            "prompt_correlation": (float, None),
            "other_ends": {str: float},
            **dict.fromkeys(("chat", "has_chat_template"), bool),
            **dict.fromkeys(("seconds", "whole_seconds"), float),
        }
    ],
    "selectors": [{"name": str, "all": AUC, "defects": {str: AUC}, "unscored": int}],
    "level": str,
    "formula": {"alpha": float, "variant": str, "weights": ([float], None)},
    "verdict": {"kind": str, "words": str},
    "advice": [str],
}
"""What ``check.json`` holds; see `selectit_hf.json_files.misfit`."""


def check_place(store: Store, source: Source, scorers: Sequence[RatingScorer]) -> None:
    """Refuse, before anything is rated, a folder that the check does not belong to.

    Raises:
        RunError: it is not a run folder, or its run has another dataset, models or settings.
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


def read_check(run: Run) -> dict[str, Any] | None:
    """The check of a run; ``None`` if there is none, or, with a warning, if it is another run's."""
    if not run.store.exists(CHECK):
        return None
    facts: dict[str, Any] = {}
    try:
        facts = run.store.read_json(CHECK, SCHEMA)
        other = _other(run.plan, facts) if _is_whole(facts) else "other fields"
    except RunError:
        other = "something else"
    if other:
        logger.warning(
            "%s of the run %s was made with %s than the run, so it is not shown; make it again "
            "with 'selectit check'.", CHECK, run.name, other,
        )  # fmt: skip
        return None
    return facts


def aside(check: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """How the ranking that a check is about differs from that of a selection; empty if it does not.

    Args:
        check: see `read_check`.
        chosen: ``by`` and ``reflection`` of a selection.
    """
    formula, how = check["formula"], chosen["reflection"]
    settings = [
        f"{name} {formula[name]} instead of {how[name]}"
        for name in formula
        if formula[name] != how[name]
    ]
    level = chosen["by"].partition("_score")[0]
    if level == check["level"] and not settings:
        return ""
    other = f", with {' and '.join(settings)}" if settings else ""
    return (
        f"This verdict is about the {check['level']} level{other}; the rows here are ranked by "
        f"{chosen['by']}."
    )


def _is_whole(facts: Mapping[str, Any]) -> bool:
    """Whether each selector has facts on each defect, and one of them is the ranking level."""
    of = {one["name"]: one["defects"].keys() for one in facts["selectors"]}
    return facts["level"] in of and all(names == facts["defects"].keys() for names in of.values())


def _other(plan: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """How a plan and a check differ."""
    if any(facts["input"][name] != plan["input"][name] for name in ("config", "split", "revision")):
        return "another dataset, or another part or revision of it,"
    mine = {model["name"]: model["rating_key"] for model in facts["models"]}
    theirs = {model["name"]: model["rating_key"] for model in plan["models"]}
    if mine.keys() != theirs.keys():
        return "other models"
    return "" if mine == theirs else "other settings (--chat, --template, --k, --dtype, ...)"
