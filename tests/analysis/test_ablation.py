"""Ablations against selections made by hand from the same ratings."""

import itertools
import json
import math

import numpy as np
import pytest

from selectit_hf.analysis.ablation import ablate
from selectit_hf.errors import RatingsError
from selectit_hf.rating.ratings import Ratings
from selectit_hf.selection.selection import Cut


def ratings(count: int = 120, seed: int = 0, k: int = 5, parameters: int = 1) -> Ratings:
    """Ratings whose prompts agree in part, some rows without any."""
    rng = np.random.default_rng(seed)
    lean = rng.normal(size=(count, 1, k))
    logits = 2 * lean + rng.normal(size=(count, k, k))
    logprobs = (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)
    logprobs[::17] = np.nan
    statuses = ["empty" if i % 17 == 0 else "ok" for i in range(count)]
    return Ratings(statuses, logprobs, {"parameters": parameters})


def literal_score(row, prompts, alpha, released=False) -> float:
    """Section 3 of the paper for one row, in plain Python."""
    tokens = []
    for prompt in prompts:
        p = [math.exp(float(x)) for x in row[prompt]]
        p = [x / sum(p) for x in p]
        if released:
            p = [math.exp(x) for x in p]
            p = [x / sum(p) for x in p]
        best = max(range(len(p)), key=lambda i: (p[i], -i))
        tokens.append((best + 1) * sum(abs(x - p[best]) for x in p) / (len(p) - 1))
    mean = sum(tokens) / len(tokens)
    spread = math.sqrt(sum((t - mean) ** 2 for t in tokens) / len(tokens))
    return mean / (1 + alpha * spread)


def literal_kept(scores: list[float], n: int, later_first: bool = False) -> set[int]:
    rows = [i for i, s in enumerate(scores) if not math.isnan(s)]
    return set(sorted(rows, key=lambda i: (-scores[i], -i if later_first else i))[:n])


def scores_of(rated: Ratings, prompts, alpha=0.2, released=False) -> list[float]:
    return [
        literal_score(row, prompts, alpha, released) if status == "ok" else math.nan
        for row, status in zip(rated.logprobs, rated.statuses, strict=True)
    ]


def test_fewer_prompts_are_every_subset_of_the_stored_ones():
    rated = ratings()
    found = ablate({"a": rated}, Cut(proportion=0.2))
    default = literal_kept(scores_of(rated, range(5)), 24)
    for facts in found.prompts:
        subsets = list(itertools.combinations(range(5), facts["prompts"]))
        overlaps = [
            len(default & literal_kept(scores_of(rated, subset), 24)) / 24 for subset in subsets
        ]
        assert facts["subsets"] == len(subsets)
        assert facts["first"] == overlaps[0]
        assert facts["mean"] == pytest.approx(sum(overlaps) / len(overlaps))
        assert (facts["least"], facts["greatest"]) == (min(overlaps), max(overlaps))
    assert found.prompts[-1]["mean"] == 1.0
    assert found.prompts[0]["mean"] < 1.0


def test_alpha_proportion_variant_and_level():
    rated = ratings()
    found = ablate({"a": rated}, Cut(proportion=0.2))
    default = literal_kept(scores_of(rated, range(5)), 24)
    for facts in found.alphas:
        kept = literal_kept(scores_of(rated, range(5), facts["alpha"]), 24)
        assert facts["overlap"] == len(default & kept) / 24
    assert {facts["alpha"] for facts in found.alphas} >= {0.0, 0.2, 1.0}
    for facts in found.proportions:
        count = int(facts["proportion"] * 120 + 1e-9)
        scores = scores_of(rated, range(5))
        kept = literal_kept(scores, count)
        assert facts["kept"] == len(kept)
        assert facts["threshold"] == pytest.approx(min(scores[i] for i in kept))
        first = literal_kept(scores_of(rated, [0]), count)
        assert facts["token_overlap"] == pytest.approx(len(kept & first) / len(kept))
    released = literal_kept(scores_of(rated, range(5), released=True), 24, later_first=True)
    assert [facts["variant"] for facts in found.variants] == ["paper", "released"]
    assert found.variants[1]["overlap"] == len(default & released) / 24
    assert [facts["level"] for facts in found.levels] == ["token:a", "sentence:a"]
    first = literal_kept(scores_of(rated, [0]), 24)
    assert found.levels[0]["overlap"] == len(default & first) / 24
    assert found.levels[1]["overlap"] == 1.0
    assert json.loads(json.dumps(found.to_dict()))["default"]["kept"] == 24


def test_several_models_are_ranked_by_the_model_level():
    a, b = ratings(seed=1, parameters=1), ratings(seed=2, parameters=3)
    found = ablate({"a": a, "b": b}, Cut(n=20))
    both = zip(scores_of(a, range(5)), scores_of(b, range(5)), strict=True)
    default = literal_kept([(x + 3 * y) / 4 for x, y in both], 20)
    overlaps = {facts["level"]: facts["overlap"] for facts in found.levels}
    assert overlaps["model"] == 1.0
    for slug, rated in (("a", a), ("b", b)):
        alone = literal_kept(scores_of(rated, range(5)), 20)
        assert overlaps[f"sentence:{slug}"] == len(default & alone) / 20
    assert [facts["variant"] for facts in found.variants] == ["paper"]  # released needs three


def test_the_released_arithmetic_is_left_out_where_it_is_not_defined():
    assert len(ablate({"a": ratings(k=3)}, Cut()).variants) == 1
    three = {name: ratings(seed=i, parameters=7 + i) for i, name in enumerate("abc")}
    assert len(ablate(three, Cut()).variants) == 2
    assert len(ablate(dict(reversed(three.items())), Cut()).variants) == 1
    assert len(ablate(three, Cut(), weights=[1, 1, 1]).variants) == 1


def test_nothing_kept_and_nothing_rated():
    rated = ratings(count=4)
    found = ablate({"a": rated}, Cut(proportion=0.1))
    assert found.default["kept"] == 0
    assert found.alphas[0]["overlap"] is None
    assert found.prompts[0]["mean"] is None
    with pytest.raises(RatingsError, match="no ratings"):
        ablate({}, Cut())
    with pytest.raises(RatingsError, match="different rows or scales"):
        ablate({"a": rated, "b": ratings(count=4, k=3)}, Cut())
