"""A trust check's facts about a model besides AUCs: rating mass, likeliest ratings, template."""

from typing import Any

import numpy as np

from selectit_hf.analysis.comparison import spearman
from selectit_hf.rating import (
    Batch,
    Ratings,
    SentenceScore,
    Template,
    TokenScore,
    encoders_by_end,
    reflection,
    settings_of,
)

__all__ = ["facts_of_model"]

MASS_TO_IMPROVE = 0.5
PAIRS_OF_AN_END = 4


def facts_of_model(
    scorer: SentenceScore, named: SentenceScore, ratings: Ratings, batch: Batch, clean: int
) -> dict[str, Any]:
    """The facts about a model; see `selectit_hf.analysis.trust.trust_check.Check`.

    Args:
        scorer: the scorer as it was given.
        named: the same scorer, reading the columns of ``batch``.
        ratings: the ratings of ``batch``.
        batch: the good rows, and after them the broken copies.
        clean: how many rows are good.
    """
    logprobs = ratings.logprobs[:clean][ratings.rated[:clean]]
    rater, k = ratings.rater, scorer.k
    tokens = reflection.token_score(logprobs, scorer.variant)
    pairs = [(i, j) for i in range(k) for j in range(i)]
    alike = [spearman(tokens[:, i], tokens[:, j]) for i, j in pairs]
    known = [one for one in alike if one is not None]
    mass = float(reflection.rating_mass(logprobs).mean()) if len(logprobs) else None
    everything = ratings.logprobs[ratings.rated]
    likeliest = np.bincount(everything.argmax(axis=-1).reshape(-1), minlength=k)
    few = {name: values[: min(PAIRS_OF_AN_END, clean)] for name, values in batch.items()}
    return {
        "name": scorer.slug,
        **{key: rater[key] for key in ("model", "revision", "parameters")},
        "rating_key": scorer.rating_key(),
        "rating_mass": mass,
        "ratings": (likeliest / max(likeliest.sum(), 1)).round(4).tolist(),
        "truncated": ratings.statuses.count("truncated"),
        "prompt_correlation": float(np.mean(known)) if known else None,
        "other_ends": _other_ends(named, mass, few),
        "chat": scorer.chat,
        "has_chat_template": bool(scorer.checkpoint.tokenizer().chat_template),
    }


def _other_ends(scorer: SentenceScore, mass: float | None, few: Batch) -> dict[str, float]:
    """The rating mass that other ends of the template would have, on a few rows."""
    if scorer.chat or mass is None or mass >= MASS_TO_IMPROVE:
        return {}
    settings = settings_of(scorer)

    def make(template: Template) -> TokenScore:
        made = TokenScore(**settings | {"template": template.text})
        made.prepare()
        return made

    found = {}
    for template, made in encoders_by_end(Template(scorer.template), make).items():
        ratings = made.rate(few)
        if ratings.rated.any():
            masses = reflection.rating_mass(ratings.logprobs[ratings.rated])
            found[template.suffix] = round(float(masses.mean()), 4)
    return found
