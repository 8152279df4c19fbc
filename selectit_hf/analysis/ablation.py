"""How K, alpha, the proportion, the variant and the level change a selection.

Everything is computed from stored ratings and compared with the selection that the given settings
make. No model is asked, so a hundred settings take seconds. Fewer rating prompts are sound: each
prompt was asked by itself on the same scale, so a subset of the prompts gives what a run with only
those prompts would have given. Another *scale* is not: a model that may answer 1 to 3 spreads its
probabilities differently from one that may answer 1 to 5, so ratings on another scale do not
follow from the stored ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selectit_hf.analysis.comparison import spearman
from selectit_hf.errors import RatingsError
from selectit_hf.rating import Ratings, Variant, reflection
from selectit_hf.selection import Cut, decide, kept_rows

__all__ = ["Ablation", "ablate"]

ALPHAS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0)
PROPORTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ablation:
    """What each setting keeps of the default selection.

    ``overlap`` is the share of the default's kept rows that the setting keeps too, ``spearman`` the
    rank correlation of the scores.

    Attributes:
        default: the settings that all others are compared with, and how many rows they keep.
        prompts: for each number of rating prompts below and up to k, the mean, least and greatest
            ``overlap`` over all subsets of that size, and that of the ``first`` prompts.
        alphas: for each alpha its ``overlap`` and ``spearman``.
        proportions: for each proportion the number ``kept``, the ``threshold``, and
            ``token_overlap``: how much of it the first rating prompt alone keeps.
        variants: ``paper`` and, where it is defined, ``released``.
        levels: every model's token and sentence level, and the model level.
    """

    default: dict[str, Any]
    prompts: list[dict[str, Any]]
    alphas: list[dict[str, Any]]
    proportions: list[dict[str, Any]]
    variants: list[dict[str, Any]]
    levels: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        return dict(vars(self))


def ablate(
    ratings: Mapping[str, Ratings],
    cut: Cut,
    alpha: float = 0.2,
    variant: Variant = "paper",
    weights: Sequence[float] | None = None,
) -> Ablation:
    """Vary one setting at a time.

    Args:
        ratings: the stored ratings of each model, by slug; several are ranked by the model level.
        cut: how much is kept.
        alpha, variant, weights: the default settings; see `selectit_hf.ModelScore`.

    Raises:
        RatingsError: no ratings, or models that rated different rows or on different scales.
        SettingError: settings that do not fit the models.
    """
    table = _Table(ratings, weights)
    default = table.scores(alpha, variant)
    against = _Against(default, cut)
    facts = {
        "alpha": alpha,
        "variant": variant,
        "weights": None if weights is None else list(weights),
        "prompts": table.prompts,
        "scale": table.scale,
        "models": list(ratings),
        "kept": int(against.kept.sum()),
    }
    return Ablation(
        facts,
        [_of_prompts(table, against, alpha, variant, n) for n in range(1, table.prompts + 1)],
        [{"alpha": a, **against.facts(table.scores(a, variant))} for a in _with(ALPHAS, alpha)],
        [_of_proportion(table, default, p, alpha, variant) for p in PROPORTIONS],
        _of_variants(table, against, alpha),
        _of_levels(table, against, alpha, variant),
    )


class _Table:
    """The ratings of all models over the rows that all of them rated."""

    def __init__(self, ratings: Mapping[str, Ratings], weights: Sequence[float] | None) -> None:
        if not ratings:
            raise RatingsError("There are no ratings; rate the rows first.")
        self.ratings, self.weights = ratings, weights
        self._tokens: dict[Variant, list[Floats]] = {}
        shapes = {one.logprobs.shape for one in ratings.values()}
        if len(shapes) > 1:
            raise RatingsError(f"The models rated different rows or scales: {sorted(shapes)}.")
        self.rows, self.prompts, self.scale = shapes.pop()
        self.parameters = [int(one.rater.get("parameters", 1)) for one in ratings.values()]

    def tokens(self, variant: Variant) -> list[Floats]:
        """(n, prompts) token scores of each model."""
        if variant not in self._tokens:
            found = [reflection.token_score(r.logprobs, variant) for r in self.ratings.values()]
            self._tokens[variant] = found
        return self._tokens[variant]

    def combined(self, sentences: Sequence[Floats], variant: Variant) -> Floats:
        """The scores of the level that rows are ranked by."""
        if len(sentences) == 1:
            return sentences[0]
        weights = reflection.model_weights(self.parameters, variant, self.weights)
        return reflection.model_score(np.stack(sentences, axis=-1), weights)

    def scores(
        self, alpha: float, variant: Variant, prompts: Sequence[int] | None = None
    ) -> Floats:
        """(n) scores from some of the rating prompts, by default all."""
        chosen = list(range(self.prompts) if prompts is None else prompts)
        tokens = self.tokens(variant)
        sentences = [reflection.sentence_score(one[:, chosen], alpha) for one in tokens]
        return self.combined(sentences, variant)


class _Against:
    """Compares scores with the default's."""

    def __init__(self, scores: Floats, cut: Cut) -> None:
        self.scores, self.cut = scores, cut
        self.kept = _kept(scores, cut)

    def overlap(self, scores: Floats, cut: Cut | None = None) -> float | None:
        both = self.kept & _kept(scores, cut or self.cut)
        return float(both.sum() / self.kept.sum()) if self.kept.any() else None

    def facts(self, scores: Floats) -> dict[str, Any]:
        return {"overlap": self.overlap(scores), "spearman": spearman(scores, self.scores)}


def _kept(scores: Floats, cut: Cut) -> NDArray[np.bool_]:
    return kept_rows(decide(scores, cut))


def _of_prompts(
    table: _Table, against: _Against, alpha: float, variant: Variant, count: int
) -> dict[str, Any]:
    subsets = list(combinations(range(table.prompts), count))
    found = [against.overlap(table.scores(alpha, variant, subset)) for subset in subsets]
    known = [one for one in found if one is not None]
    summary = {
        "mean": float(np.mean(known)) if known else None,
        "least": min(known, default=None),
        "greatest": max(known, default=None),
    }
    return {"prompts": count, "subsets": len(subsets), "first": found[0], **summary}


def _of_proportion(
    table: _Table, default: Floats, proportion: float, alpha: float, variant: Variant
) -> dict[str, Any]:
    cut = Cut(proportion=proportion)
    against = _Against(default, cut)
    first = table.scores(alpha, variant, [0])
    return {
        "proportion": proportion,
        "kept": int(against.kept.sum()),
        "threshold": cut.lowest(default, against.kept),
        "token_overlap": against.overlap(first),
    }


def _of_variants(table: _Table, against: _Against, alpha: float) -> list[dict[str, Any]]:
    variants: tuple[Variant, ...] = ("paper", "released") if _has_released(table) else ("paper",)
    found = []
    for variant in variants:
        scores, cut = table.scores(alpha, variant), replace(against.cut, variant=variant)
        facts = {"overlap": against.overlap(scores, cut)}
        found.append({"variant": variant, **facts, "spearman": spearman(scores, against.scores)})
    return found


def _has_released(table: _Table) -> bool:
    """Whether the released arithmetic is defined: k=5, one model, or three in order of size."""
    models = table.parameters
    return (
        table.scale == 5
        and table.prompts == 5
        and table.weights is None
        and (len(models) == 1 or (len(models) == 3 and sorted(models) == models))
    )


def _of_levels(
    table: _Table, against: _Against, alpha: float, variant: Variant
) -> list[dict[str, Any]]:
    levels = []
    tokens = dict(zip(table.ratings, table.tokens(variant), strict=True))
    for slug, scores in tokens.items():
        levels.append({"level": f"token:{slug}", **against.facts(scores[:, 0])})
        sentence = reflection.sentence_score(scores, alpha)
        levels.append({"level": f"sentence:{slug}", **against.facts(sentence)})
    if len(tokens) > 1:
        levels.append({"level": "model", **against.facts(table.scores(alpha, variant))})
    return levels


def _with(values: Sequence[float], value: float) -> list[float]:
    return sorted({*values, value})
