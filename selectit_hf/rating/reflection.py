"""The formulas of SelectIT (arXiv 2402.16705, section 3), vectorised in NumPy float64.

``logprobs`` are the log-probabilities of the rating tokens ``1..k`` under the softmax over the
whole vocabulary; the last axis always has ``k`` entries, entry ``i`` belonging to rating ``i + 1``.
``variant="paper"`` is the method as published, ``"released"`` the arithmetic of the authors' code:
a second softmax over the normalised probabilities, and fixed model weights.
A NaN anywhere in a row makes that row's scores NaN, never another row's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from selectit_hf.errors import SettingError

__all__ = [
    "FORMULA_VERSION",
    "Reflection",
    "Variant",
    "check_alpha",
    "check_variant",
    "model_score",
    "model_weights",
    "normalised",
    "rating_mass",
    "sentence_score",
    "token_score",
]

FORMULA_VERSION = 1
"""Increased whenever a change here changes a score, so that older cached scores are not reused."""

Variant = Literal["paper", "released"]
Floats = NDArray[np.floating]

RELEASED_K = 5
RELEASED_WEIGHTS = (7 / 20, 13 / 20, 70 / 90)


@dataclass(frozen=True)
class Reflection:
    """How scores are computed from the ratings; a change costs no forward pass.

    Attributes:
        alpha, variant: see `selectit_hf.TokenScore`.
        weights: one for each model; see `selectit_hf.ModelScore`.
        by: a level or a column; see `selectit_hf.selection.selection.select`.
    """

    alpha: float = 0.2
    variant: Variant = "paper"
    weights: tuple[float, ...] | None = None
    by: str | None = None


def check_alpha(alpha: float) -> None:
    """Raise `SettingError` unless ``alpha`` is a finite number of at least 0."""
    if not (np.isfinite(alpha) and alpha >= 0):
        raise SettingError(f"alpha={alpha} must be a finite number of at least 0 (paper: 0.2).")


def check_variant(variant: str, k: int) -> None:
    """Raise `SettingError` unless ``variant`` exists and is defined for scale ``k``."""
    if variant not in get_args(Variant):
        raise SettingError(f"variant={variant!r} is unknown; choose 'paper' or 'released'.")
    if variant == "released" and k != RELEASED_K:
        raise SettingError(
            f"variant='released' is defined for k=5 only, not k={k}; use variant='paper' or k=5."
        )


def normalised(logprobs: Floats, variant: Variant = "paper") -> NDArray[np.float64]:
    """Probabilities ``P'`` over the k ratings (section 3.2, equation 1).

    ``(..., k)`` log-probabilities to ``(..., k)`` float64 that sum to 1. With ``"released"`` the
    normalised probabilities pass through a second softmax, so they lie close together.
    """
    values = np.asarray(logprobs, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # -inf minus -inf: the row's scores are NaN, as they should
        p = np.exp(values - values.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    if variant == "released":
        p = np.exp(p)
        p /= p.sum(axis=-1, keepdims=True)
    return np.asarray(p)


def token_score(logprobs: Floats, variant: Variant = "paper") -> NDArray[np.float64]:
    """Token-level score ``S_token`` (section 3.2, equation 2).

    ``S_base * 1/(k-1) * sum_i |P'_i - P'_{S_base}|`` with ``S_base = 1 + argmax(P')``; of equal
    probabilities the lowest rating is the base. ``(..., k)`` to ``(...)`` float64 in ``[0, k]``.
    """
    p = normalised(logprobs, variant)
    top = p.max(axis=-1)
    gaps = (top[..., None] - p).sum(axis=-1)
    return np.asarray((1 + p.argmax(axis=-1)) * gaps / (p.shape[-1] - 1))


def sentence_score(token_scores: Floats, alpha: float = 0.2) -> NDArray[np.float64]:
    """Sentence-level score ``S_sent`` over the rating prompts (section 3.3, equation 3).

    ``mean / (1 + alpha * std)`` with the population standard deviation over the last axis:
    ``(..., prompts)`` to ``(...)`` float64 in ``[0, k]``.
    """
    scores = np.asarray(token_scores, dtype=np.float64)
    return np.asarray(scores.mean(axis=-1) / (1 + alpha * scores.std(axis=-1)))


def model_weights(
    parameters: Sequence[int],
    variant: Variant = "paper",
    weights: Sequence[float] | None = None,
) -> NDArray[np.float64]:
    """Weights of the models at model level (section 3.4, equation 4).

    ``"paper"``: parameter counts ``theta_m / sum(theta)``, or the given ``weights`` over their sum.
    ``"released"``: 7/20, 13/20 and 70/90 for exactly three models in that order; they sum to 1.78.
    """
    if variant == "released":
        if weights is not None:
            raise SettingError("variant='released' has fixed weights; omit weights.")
        if len(parameters) != len(RELEASED_WEIGHTS):
            raise SettingError(
                "variant='released' weighs exactly three models in the order small, middle, large; "
                f"{len(parameters)} given. Use variant='paper' for another number."
            )
        if sorted(parameters) != list(parameters):
            raise SettingError(
                "variant='released' weighs the models by position (small, middle, large), but "
                f"these have {', '.join(map(str, parameters))} parameters. Name them in that order."
            )
        return np.array(RELEASED_WEIGHTS)
    if weights is not None and len(weights) != len(parameters):
        raise SettingError(f"{len(weights)} weights for {len(parameters)} models; give one each.")
    theta = np.asarray(parameters if weights is None else weights, dtype=np.float64)
    if not (np.isfinite(theta).all() and (theta >= 0).all() and theta.sum() > 0):
        raise SettingError(f"model weights must be finite, not negative, not all zero: {theta}.")
    return np.asarray(theta / theta.sum())


def model_score(sentence_scores: Floats, weights: Floats) -> NDArray[np.float64]:
    """Model-level score ``S_model``: ``(..., models)`` sentence scores to their weighted sum."""
    return np.asarray(np.asarray(sentence_scores, dtype=np.float64) @ np.asarray(weights))


def rating_mass(logprobs: Floats) -> NDArray[np.float64]:
    """Probability that the next token is any rating: ``(..., k)`` to ``(...)`` in ``[0, 1]``.

    If it is near zero, the model did not understand the rating prompt, and its scores mean little.
    """
    return np.asarray(np.exp(np.asarray(logprobs, dtype=np.float64)).sum(axis=-1))
