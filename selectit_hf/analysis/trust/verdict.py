"""What a trust check means, in words, by the following rules.

A defect is recognised if the 95 % interval of its AUC lies above 0.5, and preferred if it lies
below. It is undecided if 0.5 is inside, or if fewer than 15 rows have it: an interval of so few is
too narrow. The verdict follows from the AUC over all defects:

    well       the interval lies above 0.5, the AUC is at least 0.7, at least half of the defects
               are recognised, and more are recognised than preferred
    mixed      some defects are recognised, at least half as many are preferred, and it is not well
    backwards  the interval lies below 0.5
    narrowly   the interval lies above 0.5, but of three or more defects at most one is recognised
    weakly     the interval lies above 0.5
    undecided  0.5 is inside the interval
"""

from collections.abc import Mapping, Sequence
from typing import Any

from selectit_hf.analysis.trust.auc import CHANCE
from selectit_hf.selection import LOW_RATING_MASS

__all__ = ["advice", "side", "sides", "verdict"]

FEWEST = 15
WELL = 0.7
ONE_ANSWER = 0.8
BETTER_END = 2.0

OPENINGS = {
    "well": "These rows are ranked well",
    "weakly": "These rows are ranked weakly: better than chance, but many broken rows come out "
    "above good ones",
    "narrowly": "Do not rely on this ranking: it is better than chance over all defects, but "
    "recognises hardly any of them by itself",
    "mixed": "Do not rely on this ranking: it recognises some defects and prefers others, so it "
    "follows something other than quality",
    "backwards": "Do not use this ranking: it puts broken rows above good ones",
    "undecided": "Do not rely on this ranking: it may be no better than chance",
}
TOO_FEW = f"Too few rows to tell; a check needs {FEWEST} of them at least"


def sides(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """The defects that a selector recognises or prefers, and the undecided ones."""
    sorted_: dict[str, list[str]] = {"recognised": [], "preferred": [], "undecided": []}
    for name, auc in found["defects"].items():
        sorted_[side(auc)].append(name)
    return sorted_


def side(auc: Mapping[str, Any]) -> str:
    """``recognised``, ``preferred`` or ``undecided``."""
    if auc["rows"] < FEWEST:
        return "undecided"
    if auc["low"] > CHANCE:
        return "recognised"
    return "preferred" if auc["high"] < CHANCE else "undecided"


def verdict(used: Mapping[str, Any]) -> dict[str, str]:
    """``kind`` and ``words`` for the selector that a run would rank by."""
    kind, by_side, over_all = _kind(used), sides(used), used["all"]
    opening = TOO_FEW if over_all["rows"] < FEWEST else OPENINGS[kind]
    words = (
        f"{opening}. By {used['name']}, a good row scores above a broken copy with "
        f"probability {over_all['auc']:.2f} (95 % interval {over_all['low']:.2f} to "
        f"{over_all['high']:.2f}; chance is 0.5)."
    )
    said = {
        "recognised": "Recognised",
        "preferred": "Preferred to good rows",
        "undecided": "Not told apart",
    }
    lists = [f"{said[side]}: {', '.join(names)}." for side, names in by_side.items() if names]
    return {"kind": kind, "words": " ".join([words, *lists])}


def _kind(used: Mapping[str, Any]) -> str:
    by_side, over_all = sides(used), used["all"]
    right, wrong = len(by_side["recognised"]), len(by_side["preferred"])
    above = side(over_all) == "recognised"
    most = 2 * right >= len(used["defects"]) and right > wrong
    if above and over_all["auc"] >= WELL and most:
        return "well"
    if right and 2 * wrong >= right:
        return "mixed"
    if side(over_all) == "preferred":
        return "backwards"
    if not above:
        return "undecided"
    return "narrowly" if right < 2 and len(used["defects"]) > 2 else "weakly"


def advice(
    used: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    rows: int,
    available: int,
) -> list[str]:
    """What to do, the most promising advice first; empty if all is well.

    Args:
        used: the selector that a run would rank by.
        found: all selectors.
        models: their facts; see `selectit_hf.analysis.trust.trust_check.Check`.
        rows: source rows that were used.
        available: rows of the dataset.
    """
    kind = _kind(used)
    words = [one for model in models for one in _about_model(model, kind)]
    if kind == "well":
        return words
    better = _better(used, found)
    if better is not None:
        words.append(
            f"Of the selectors tried, {better['name']!r} is better: {better['all']['auc']:.2f} "
            f"({better['all']['low']:.2f} to {better['all']['high']:.2f}). Use it with --by."
        )
    if kind in ("undecided", "narrowly") and rows < available:
        more = min(max(4 * rows, FEWEST), available)
        words.append(f"More rows narrow the interval: --rows {more}.")
    if rows >= FEWEST:
        words.append("Try a larger model.")
    return words


def _better(
    used: Mapping[str, Any], found: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The best other selector, if its interval lies above chance and above the used one's AUC."""
    others = [one for one in found if one["name"] not in (used["name"], "random")]
    best = max(others, key=lambda one: one["all"]["auc"], default=None)
    if best is None or side(best["all"]) != "recognised":
        return None
    if best["all"]["low"] <= used["all"]["auc"]:
        return None
    return best


def _about_model(model: Mapping[str, Any], kind: str) -> list[str]:
    name, mass, words = model["name"], model["rating_mass"], []
    if mass is None:
        return [f"{name} could rate none of the rows; see the statuses of a small run."]
    ends = model["other_ends"]
    best = max(ends, key=ends.__getitem__, default="")
    if mass < LOW_RATING_MASS:
        words.append(
            f"{name} gives all ratings together a probability of {mass:.2g}: it hardly understood "
            "the question."
        )
    if ends and ends[best] >= BETTER_END * mass:
        words.append(
            f"With a template that ends in {best!r}, {name} gives all ratings together a "
            f"probability of {ends[best]:.2g} instead of {mass:.2g}; check again with it "
            "(--template FILE)."
        )
    if model["truncated"]:
        words.append(
            f"{model['truncated']} of the rows and copies were cut to fit {name}, so what is "
            "broken at their end is not seen: raise --max-length, or take a model with a longer "
            "context."
        )
    top = max(model["ratings"])
    if kind != "well" and top >= ONE_ANSWER:
        rating = model["ratings"].index(top) + 1
        words.append(
            f"{name} answers {rating} to {top:.0%} of the questions, so it hardly uses the scale; "
            "other rating prompts may help: --rating-prompts FILE."
        )
    if kind != "well" and model["has_chat_template"] and not model["chat"]:
        words.append(f"{name} has a chat template; try --chat.")
    return words
