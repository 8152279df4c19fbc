"""The formulas, against loops over plain floats written from the paper's text."""

import math
import statistics
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectit_hf.errors import SettingError
from selectit_hf.rating.reflection import (
    check_variant,
    model_score,
    model_weights,
    normalised,
    rating_mass,
    sentence_score,
    token_score,
)

# Eighths: two ratings are either equally likely or clearly not, in any order of arithmetic.
LOGPROBS = st.integers(-320, 0).map(lambda eighths: eighths / 8)
SCORES = st.floats(0, 9)
VARIANTS = st.sampled_from(["paper", "released"])


def literal_shares(logprobs: list[float], variant: str) -> list[float]:
    p = [math.exp(x) for x in logprobs]
    q = [x / sum(p) for x in p]
    if variant == "released":
        return [math.exp(x) / sum(math.exp(y) for y in q) for x in q]
    return q


def literal_token_score(logprobs: list[float], variant: str) -> float:
    shares = literal_shares(logprobs, variant)
    base = 1
    for rating in range(1, len(shares) + 1):
        if shares[rating - 1] > shares[base - 1]:
            base = rating
    total = 0.0
    for share in shares:
        total += abs(share - shares[base - 1])
    return base * 1 / (len(shares) - 1) * total


def literal_sentence_score(scores: list[float], alpha: float) -> float:
    return statistics.fmean(scores) / (1 + alpha * statistics.pstdev(scores))


@st.composite
def ratings(draw: st.DrawFn) -> tuple[str, list[list[float]]]:
    """A variant, and the k log-probabilities of some rating prompts."""
    variant = draw(VARIANTS)
    k = 5 if variant == "released" else draw(st.integers(2, 9))
    return variant, draw(st.lists(st.lists(LOGPROBS, min_size=k, max_size=k), min_size=1))


@given(ratings())
def test_token_score_is_the_literal_formula(case):
    variant, rows = case
    scores = token_score(np.array(rows, np.float32), variant)
    assert scores.dtype == np.float64
    assert scores == pytest.approx([literal_token_score(row, variant) for row in rows], abs=1e-12)
    assert (scores >= 0).all()
    assert (scores <= len(rows[0])).all()


@given(ratings())
def test_normalised_is_the_literal_formula(case):
    variant, rows = case
    expected = [literal_shares(row, variant) for row in rows]
    assert normalised(np.array(rows, np.float32), variant) == pytest.approx(
        np.array(expected), abs=1e-12
    )


@given(st.lists(SCORES, min_size=1, max_size=9), st.floats(0, 10))
def test_sentence_score_is_the_literal_formula(scores, alpha):
    expected = literal_sentence_score(scores, alpha)
    assert sentence_score(np.array(scores), alpha) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(SCORES, st.integers(1, 10**12)), min_size=1, max_size=5))
def test_model_score_is_the_literal_formula(models):
    scores, thetas = zip(*models, strict=True)
    expected = 0.0
    for score, theta in models:
        expected += theta / sum(thetas) * score
    assert model_score(np.array(scores), model_weights(thetas)) == pytest.approx(expected)


@given(st.tuples(SCORES, SCORES, SCORES))
def test_released_model_score_is_the_literal_formula(scores):
    small, middle, large = scores
    expected = 7 / 20 * small + 13 / 20 * middle + 70 / 90 * large
    weights = model_weights([1, 2, 3], "released")
    assert model_score(np.array(scores), weights) == pytest.approx(expected)


@given(ratings())
def test_all_levels_at_once_are_the_loop_over_rows(case):
    variant, rows = case
    stacked = np.array([rows, rows[::-1]], np.float32)
    scores = sentence_score(token_score(stacked, variant), 0.2)
    literal = literal_sentence_score([literal_token_score(row, variant) for row in rows], 0.2)
    assert scores == pytest.approx([literal, literal], abs=1e-12)


@pytest.mark.parametrize("rating", [1, 2, 3, 4, 5])
def test_a_certain_rating_scores_itself(rating):
    certain = np.full(5, -np.inf, np.float32)
    certain[rating - 1] = 0
    assert token_score(certain) == rating
    e = math.e
    assert token_score(certain, "released") == pytest.approx(rating * (e - 1) / (e + 4))


@pytest.mark.parametrize("k", range(2, 10))
def test_no_preference_scores_nothing(k):
    assert token_score(np.full(k, math.log(1 / k))) == pytest.approx(0)


def test_of_equally_likely_ratings_the_lowest_is_the_base():
    assert token_score(np.log([0.1, 0.4, 0.4, 0.05, 0.05])) == pytest.approx(2 * 1.0 / 4)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_only_the_shares_among_the_ratings_count(variant):
    rows = np.log([[0.1, 0.2, 0.4, 0.2, 0.1], [0.5, 0.1, 0.1, 0.2, 0.1]])
    expected = token_score(rows, variant)
    assert token_score(rows - 3, variant) == pytest.approx(expected)
    assert token_score(rows - 1000, variant) == pytest.approx(expected)  # exp() would be all zero


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("bad", [[np.nan] + [-1.0] * 4, [-np.inf] * 5, [np.inf] + [-1.0] * 4])
def test_a_bad_row_is_nan_and_its_neighbours_are_untouched(bad, variant):
    good = [-1.0, -2.0, -3.0, -0.5, -4.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = token_score(np.array([good, bad, good]), variant)
    assert np.isnan(scores).tolist() == [False, True, False]
    assert scores[0] == scores[2] == token_score(np.array(good), variant)


def test_one_nan_token_score_makes_the_sentence_and_the_model_nan():
    sentences = sentence_score(np.array([[1.0, 2.0], [1.0, np.nan]]))
    assert np.isnan(sentences).tolist() == [False, True]
    models = model_score(np.array([[1.0, 2.0], [np.nan, 2.0]]), np.array([0.5, 0.5]))
    assert np.isnan(models).tolist() == [False, True]


def test_agreement_is_not_punished_and_alpha_zero_is_the_mean():
    assert sentence_score(np.array([3.0, 3.0, 3.0]), alpha=9) == 3
    assert sentence_score(np.array([1.0, 3.0]), alpha=0) == 2
    assert sentence_score(np.array([1.0, 3.0]), alpha=0.5) == pytest.approx(2 / 1.5)


@given(ratings())
def test_rating_mass_is_the_sum_of_the_probabilities(case):
    _, rows = case
    expected = [sum(math.exp(x) for x in row) for row in rows]
    assert rating_mass(np.array(rows)) == pytest.approx(expected)


def test_model_weights():
    assert model_weights([7, 13, 70]) == pytest.approx([7 / 90, 13 / 90, 70 / 90])
    assert model_weights([7, 13], weights=[1, 3]) == pytest.approx([0.25, 0.75])
    assert model_weights([7, 13], weights=[1, 0]) == pytest.approx([1, 0])
    assert model_weights([1, 1, 1], "released") == pytest.approx([0.35, 0.65, 7 / 9])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (([1, 2], "released"), "exactly three models"),
        (([1, 2, 3, 4], "released"), "exactly three models"),
        (([1, 2, 3], "released", [1, 2, 3]), "fixed weights"),
        (([1, 2], "paper", [1.0]), "1 weights for 2 models"),
        (([1, 2], "paper", [3.0, -1.0]), "not negative"),
        (([1, 2], "paper", [0.0, 0.0]), "not all zero"),
        (([1, 2], "paper", [1.0, math.nan]), "finite"),
        (([1, 2], "paper", [1.0, math.inf]), "finite"),
    ],
)
def test_weights_that_mean_nothing_are_refused(arguments, reason):
    with pytest.raises(SettingError, match=reason):
        model_weights(*arguments)


def test_variants():
    check_variant("paper", 3)
    check_variant("released", 5)
    with pytest.raises(SettingError, match="k=5 only"):
        check_variant("released", 4)
    with pytest.raises(SettingError, match="unknown"):
        check_variant("Paper", 5)
