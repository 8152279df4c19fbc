"""The text of a report page: what was kept and why, and reasons not to trust it."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selectit_hf.analysis import Finished
from selectit_hf.rating import model_weights
from selectit_hf.report.data import PageData
from selectit_hf.selection import LOW_RATING_MASS, ranking_flags

__all__ = [
    "cautions",
    "cut_words",
    "level_of",
    "points_words",
    "reason",
    "select_command",
    "weights_of",
]

DISAGREE = 0.2
"""Models whose rankings correlate less than this hardly rate the same property."""

PROMPTS_DISAGREE = 0.3
"""The same for the mean correlation of rating prompts."""

WEAK_MASS = 0.2
"""Below this mean rating mass, the page says so."""

ONE_RATING = 0.8
"""A model that gives one rating more often than this hardly uses the scale."""

TRUNCATED = 0.05
UNRATED = 0.01
LENGTH_RATIO = 1.5


def reason(finished: Finished) -> str:
    """How much was kept, of which dataset, and by which score."""
    facts, level = finished.facts, level_of(finished)
    by = finished.by.partition("__")[2] or _listed([model["name"] for model in facts["models"]])
    score = f"{level}-level score of SelectIT" if level else f"column {finished.by}"
    part = f" ({facts['input']['split']})" if "[" in facts["input"]["split"] else ""
    words = [
        f"From {facts['input']['name']}{part}: {cut_words(finished)} by the {score}, rated by {by}."
    ]
    if facts["selection"]["threshold"] is not None:
        words.append(f"Every kept row scores {facts['selection']['threshold']:.4f} or more.")
    if unrated := sum(_unrated(finished).values()):
        words.append(f"{unrated:,} rows could not be rated and are not kept.")
    return " ".join(words)


def level_of(finished: Finished) -> str:
    """The level of SelectIT that ranked the rows: token, sentence or model; empty for a column."""
    level = finished.by.partition("_score")[0]
    return level if level in ("token", "sentence", "model") else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def cut_words(finished: Finished) -> str:
    """The requested cut, in words."""
    cut = finished.facts["selection"]["cut"]
    if cut["proportion"] is not None:
        return f"the best {100 * cut['proportion']:g} %"
    if cut["n"] is not None:
        return f"the best {cut['n']:,} rows"
    return f"all rows that score {cut['threshold']:g} or more"


def select_command(finished: Finished) -> str:
    """The command that selects again from the run, but for the flag of the cut."""
    flags = ranking_flags(finished.facts["selection"])
    return shlex.join(["selectit", "select", "RUN", "--out", "OTHER", *flags])


def _unrated(finished: Finished) -> dict[str, int]:
    decided = ("selected", "below the threshold")
    reasons = finished.facts["selection"]["reasons"]
    return {name: count for name, count in reasons.items() if name not in decided}


def weights_of(finished: Finished) -> list[float]:
    """The models' weights at model level; empty at other levels."""
    how = finished.facts["selection"]["reflection"]
    if finished.by != "model_score":
        return []
    parameters = [model["parameters"] for model in finished.facts["models"]]
    return [float(one) for one in model_weights(parameters, how["variant"], how["weights"])]


def points_words(data: PageData) -> str:
    """How many of the rated rows are drawn as points."""
    rated, drawn = data.numbers["rated"], data.numbers["points"]["count"]
    return f"A random {drawn:,} of {rated:,} rated rows." if drawn < rated else ""


def cautions(finished: Finished, data: PageData) -> list[str]:
    """Reasons not to trust the scores, each with what to do."""
    found = (
        _about_check(finished.facts.get("check")),
        _about_models(finished.facts["models"]),
        _about_favourites(data),
        _about_agreement(data),
        _about_unrated(finished),
        _about_ties(finished, data),
        _about_length(finished),
    )
    return [words for part in found for words in part]


def _about_check(check: Mapping[str, Any] | None) -> Iterator[str]:
    if check and check["verdict"]["kind"] != "well":
        yield f"The trust check on {check['rows']:,} rows: {check['verdict']['words']}"
    if check and check["aside"]:
        yield check["aside"]


def _about_favourites(data: PageData) -> Iterator[str]:
    for name, (rating, share) in data.favourites.items():
        if share > ONE_RATING:
            yield (
                f"{name} gives the rating {rating} in {100 * share:.0f} % of its answers, so it "
                "hardly tells these rows apart. Try a larger model, or another ending of the "
                "template."
            )


def _about_agreement(data: PageData) -> Iterator[str]:
    if data.models is not None and data.models.lowest < DISAGREE:
        yield (
            f"The models disagree: the lowest rank correlation between two models is only "
            f"{data.models.lowest:.2f}. Check their rating mass, and omit a model that does not "
            "understand the question."
        )
    for prompts in data.prompts:
        if prompts.mean < PROMPTS_DISAGREE:
            yield (
                f"The rating prompts of {prompts.name} disagree: their mean rank correlation "
                f"is {prompts.mean:.2f}. The scores depend on the wording; try a stronger model or "
                "other rating prompts."
            )


def _about_unrated(finished: Finished) -> Iterator[str]:
    rows, unrated = finished.facts["selection"]["rows"], _unrated(finished)
    if sum(unrated.values()) > UNRATED * rows:
        counts = ", ".join(f"{count:,} {name}" for name, count in unrated.items())
        yield f"{sum(unrated.values()):,} of {rows:,} rows have no score: {counts}."


def _about_models(models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for model in models:
        mass = model["rating_mass"]
        if mass is not None and mass < WEAK_MASS:
            verdict = "hardly understood" if mass < LOW_RATING_MASS else "often does not answer"
            yield (
                f"Low rating mass: {model['name']} gives all ratings together a probability of "
                f"only {mass:.4f} on average, so it {verdict} the question. Try a stronger base "
                "model, another ending of the template, or other rating prompts."
            )
        statuses = model["statuses"]
        rated = statuses.get("ok", 0) + statuses.get("truncated", 0)
        if statuses.get("truncated", 0) > TRUNCATED * rated:
            yield (
                f"{statuses['truncated']:,} of {rated:,} rows were cut to fit {model['name']}. "
                "A model with a longer context would see them whole."
            )


def _about_ties(finished: Finished, data: PageData) -> Iterator[str]:
    threshold, scores = finished.facts["selection"]["threshold"], data.ranking.scores
    level = scores == threshold
    best = data.ranking.ranks < finished.facts["selection"]["selected"]
    outside = int((level & ~best).sum())
    if outside:
        yield (
            f"{outside:,} rows that were not kept have the same score as the last kept one; "
            "their order in the dataset broke the tie."
        )


def _about_length(finished: Finished) -> Iterator[str]:
    groups = [finished.facts["contrast"].get(name, {}) for name in ("selected", "rejected")]
    kept, other = (group.get("median_response_characters") for group in groups)
    if not kept or not other:
        return
    if max(kept / other, other / kept) >= LENGTH_RATIO:
        longer = "longer" if kept > other else "shorter"
        yield (
            f"The kept responses are {longer}: a median of {kept:,.0f} characters, against "
            f"{other:,.0f} for the others. The scores may partly reflect length."
        )
