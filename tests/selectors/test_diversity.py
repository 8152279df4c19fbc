"""Diversity, near duplicates and quotas against literal double loops."""

import logging
import re
import sys

import numpy as np
import pytest

from selectit_hf.errors import SettingError
from selectit_hf.selection.selection import Cut
from selectit_hf.selectors.diversity import Diverse, best_first, embed, too_close
from selectit_hf.selectors.duplicates import DuplicateIndex
from selectit_hf.selectors.quotas import quotas
from selectit_hf.selectors.selector import Scores

WORDS = [f"word{i}" for i in range(3000)]


def made_up(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(20, 90))) for _ in range(count)]


def planted(texts: list[str], seed: int = 1) -> tuple[list[str], dict[int, int]]:
    """The texts with near copies of some among them, and which row copies which."""
    rng = np.random.default_rng(seed)
    sources = rng.choice(len(texts), len(texts) // 5, replace=False)
    copies = list(texts)
    pairs = {}
    for number, source in enumerate(sources.tolist()):
        words = texts[source].split()
        if number % 3 == 1:
            words[int(rng.integers(len(words)))] = "other"
        if number % 3 == 2:
            words = [word.upper() + "," for word in words]
        pairs[len(copies)] = source
        copies.append("  ".join(words))
    return copies, pairs


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(max(len(words) - 2, 1))} if words else set()


def literal_repeats(texts: list[str], order: list[int], jaccard: float) -> set[int]:
    """The rows that overlap with a row taken before, by comparing each two."""
    taken, repeated = [], set()
    for i in order:
        own = shingles(texts[i])
        if any(len(own & its) / len(own | its) >= jaccard for its in taken if own):
            repeated.add(i)
        elif own:
            taken.append(own)
    return repeated


def test_all_planted_duplicates_are_found_and_nothing_else():
    texts, pairs = planted(made_up(400))
    order = np.random.default_rng(2).permutation(len(texts))
    found = DuplicateIndex(texts).repeats(order)
    assert set(np.flatnonzero(found >= 0).tolist()) == literal_repeats(texts, order.tolist(), 0.8)
    exact = [(copy, source) for n, (copy, source) in enumerate(pairs.items()) if n % 3 != 1]
    for copy, source in exact:
        assert found[copy] == source or found[source] == copy
    place = {int(row): n for n, row in enumerate(order)}
    for row in np.flatnonzero(found >= 0).tolist():
        assert place[int(found[row])] < place[row]
        assert found[found[row]] == -1


def test_templated_texts_that_share_buckets_are_told_apart():
    template = "please rewrite the following sentence in the past tense and keep its meaning: "
    texts = [template + text for text in made_up(60)] + [template + made_up(60)[7]]
    order = np.arange(len(texts))
    found = DuplicateIndex(texts).repeats(order)
    assert np.flatnonzero(found >= 0).tolist() == [60]
    assert found[60] == 7
    assert literal_repeats(texts, order.tolist(), 0.8) == {60}


@pytest.mark.parametrize("jaccard", [0.6, 0.8, 1.0])
def test_duplicates_at_other_overlaps(jaccard):
    rng = np.random.default_rng(5)
    base = made_up(1, 9)[0].split() * 2
    texts = []
    for changed in range(40):
        words = list(base)
        for at in rng.choice(len(words), changed % 12, replace=False).tolist():
            words[at] = f"new{rng.integers(10**6)}"
        texts.append(" ".join(words))
    found = DuplicateIndex(texts, jaccard).repeats(np.arange(40))
    assert set(np.flatnonzero(found >= 0).tolist()) == literal_repeats(texts, [*range(40)], jaccard)


def test_texts_without_a_word_repeat_nothing():
    texts = ["", "  ", "!!", "...", "a", "A.", "a b", "a b c", "", "☃"]
    found = DuplicateIndex(texts).repeats(np.arange(len(texts)))
    assert found.tolist() == [-1, -1, -1, -1, -1, 4, -1, -1, -1, -1]
    assert DuplicateIndex([]).repeats(np.arange(0)).tolist() == []


def literal_too_close(vectors: np.ndarray, order: list[int], cap: float) -> list[int]:
    taken: list[int] = []
    left_out = []
    for i in order:
        if any(float(vectors[i] @ vectors[j]) >= cap for j in taken):
            left_out.append(i)
        else:
            taken.append(i)
    return sorted(left_out)


@pytest.mark.parametrize(("count", "dimensions", "cap"), [(300, 3, 0.9), (2600, 4, 0.97)])
def test_the_cap_is_the_literal_double_loop(count, dimensions, cap):
    rng = np.random.default_rng(count)
    vectors = rng.normal(size=(count, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = rng.permutation(count)
    found = too_close(vectors, order, cap)
    left_out = np.flatnonzero(found >= 0)
    assert left_out.tolist() == literal_too_close(vectors, order.tolist(), cap)
    assert 0 < len(left_out) < count
    assert (found[found[left_out]] == -1).all()
    for row in left_out[:50].tolist():
        assert float(vectors[row] @ vectors[found[row]]) >= cap


def test_the_cap_over_many_taken_rows(monkeypatch):
    monkeypatch.setattr("selectit_hf.selectors.diversity.BLOCK", 7)
    monkeypatch.setattr("selectit_hf.selectors.diversity.CHUNK", 11)
    test_the_cap_is_the_literal_double_loop(300, 3, 0.9)


def test_what_is_taken_does_not_depend_on_how_many_are_wanted():
    texts, _ = planted(made_up(200))
    base = Scores(np.random.default_rng(3).random(len(texts)), ["ok"] * len(texts))
    vectors = embed(texts, dimensions=8)
    whole = Diverse(cap=0.8).scores(base, texts, vectors)
    order = best_first(base.values)
    first = np.isin(np.arange(len(texts)), order[:120])
    part = Scores(np.where(first, base.values, np.nan), list(base.statuses))
    some = Diverse(cap=0.8).scores(part, texts, vectors)
    np.testing.assert_array_equal(some.values[first], whole.values[first])
    assert {"ok", "near_duplicate", "too_similar"} == set(whole.statuses)


def test_the_better_of_two_duplicates_is_kept_and_rows_without_a_score_hide_nothing():
    texts = ["the very same words here", "The very same words here!", "some other words stand here"]
    base = Scores(np.array([1.0, 2.0, 0.5]), ["ok", "ok", "ok"])
    scores = Diverse().scores(base, texts)
    np.testing.assert_array_equal(scores.values, [np.nan, 2.0, 0.5])
    assert scores.statuses == ["near_duplicate", "ok", "ok"]
    assert base.statuses == ["ok"] * 3
    hidden = Scores(np.array([1.0, np.nan, 0.5]), ["ok", "empty", "ok"])
    assert Diverse().scores(hidden, texts).statuses == ["ok", "empty", "ok"]
    assert Diverse(jaccard=None).scores(base, texts).statuses == ["too_similar", "ok", "ok"]
    assert Diverse(jaccard=None, cap=None).scores(base, texts).statuses == ["ok"] * 3


def test_embeddings_are_unit_vectors_that_know_words_from_others(monkeypatch):
    animals = [f"the cat and the dog and the horse number {i} run in the field" for i in range(30)]
    numbers = [f"add {i} and {i + 1}, divide by seven and write the sum" for i in range(30)]
    vectors = embed([*animals, *numbers, "", "?"], dimensions=4)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[:60], axis=1), 1, atol=1e-5)
    assert not vectors[60:].any()
    similar = vectors @ vectors.T
    assert similar[:30, :30].min() > similar[:30, 30:60].max() + 0.1
    assert similar[30:60, 30:60].min() > similar[:30, 30:60].max() + 0.1
    np.testing.assert_array_equal(embed([*animals, *numbers, "", "?"], dimensions=4), vectors)
    monkeypatch.setattr("selectit_hf.selectors.diversity.CHUNK", 7)
    parts = embed([*animals, *numbers, "", "?"], dimensions=4)
    np.testing.assert_allclose(parts, vectors, atol=1e-6)


def test_with_dimensions_enough_similarity_is_that_of_tf_idf_by_hand():
    rng = np.random.default_rng(4)
    texts = [" ".join(rng.choice(WORDS[:40], 12)) for _ in range(20)]
    texts += texts[:2]  # so that one direction fewer than there are texts holds them all
    words = sorted({word for text in texts for word in text.split()})
    table = np.zeros((len(texts), len(words)))
    for i, text in enumerate(texts):
        for j, word in enumerate(words):
            count = text.split().count(word)
            rows = sum(word in other.split() for other in texts)
            if count:
                table[i, j] = (1 + np.log(count)) * (np.log((1 + len(texts)) / (1 + rows)) + 1)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    vectors = embed(texts)
    np.testing.assert_allclose(vectors @ vectors.T, table @ table.T, atol=1e-5)


@pytest.mark.parametrize("texts", [["a"], ["a", "a"], ["a b", "c d"], ["", ""]])
def test_embeddings_of_very_few_texts(texts):
    vectors = embed(texts)
    assert vectors.shape[0] == len(texts)
    assert np.isfinite(vectors).all()


def test_embeddings_of_ones_own():
    texts = ["one", "two", "three"]
    base = Scores(np.array([3.0, 2.0, 1.0]), ["ok"] * 3)
    own = np.array([[1.0, 0.0], [0.0, 5.0], [9.0, 0.1]])
    assert Diverse().scores(base, texts, own).statuses == ["ok", "ok", "too_similar"]
    with pytest.raises(SettingError, match="2 embeddings for 3 rows"):
        Diverse().scores(base, texts, own[:2])
    with pytest.raises(SettingError, match="finite vectors"):
        Diverse().scores(base, texts, own * np.nan)


@pytest.mark.parametrize("settings", [{"cap": 0}, {"cap": 1.1}, {"jaccard": -1}])
def test_settings_out_of_range(settings):
    with pytest.raises(SettingError, match="must be above 0"):
        Diverse(**settings)


@pytest.mark.parametrize(
    ("library", "ask"),
    [
        ("sklearn.decomposition", lambda: embed(["a", "b"])),
        ("datasketch", lambda: DuplicateIndex(["a"])),
    ],
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, library, ask):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SettingError, match=r"pip install .*scikit-learn"):
        ask()


# Quotas


def literal_quotas(scores: np.ndarray, groups: list[str], total: int) -> set[int]:
    """Largest remainder by hand, then the best of each group."""
    names = list(dict.fromkeys(groups))
    sizes = {name: groups.count(name) for name in names}
    exact = {name: total * sizes[name] / len(groups) for name in names}
    shares = {name: int(exact[name]) for name in names}
    left = total - sum(shares.values())
    ranked = sorted(
        names, key=lambda n: (-round(exact[n] - shares[n], 9), -sizes[n], names.index(n))
    )
    for name in ranked[:left]:
        shares[name] += 1
    kept: set[int] = set()
    for name in names:
        rows = [i for i, group in enumerate(groups) if group == name and np.isfinite(scores[i])]
        kept |= set(sorted(rows, key=lambda i: (-scores[i], i))[: shares[name]])
    return kept


@pytest.mark.parametrize("seed", range(8))
def test_quotas_are_the_literal_shares(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(5, 120))
    groups = rng.choice(["a", "b", "c", "d"], count, p=[0.6, 0.2, 0.15, 0.05]).tolist()
    values = np.round(rng.random(count), 1)
    values[rng.random(count) < 0.1] = np.nan
    scores = Scores(values, ["empty"] * count)
    for proportion in (0.1, 0.2, 0.5, 1.0):
        cut = Cut(proportion=proportion)
        decided = quotas(scores, groups, cut)
        kept = {r["row"] for r in decided.to_pylist() if r["reason"] == "selected"}
        assert kept == literal_quotas(values, groups, cut.count(count))
        assert decided["row"].to_pylist() == list(range(count))
        for row in decided.to_pylist():
            assert (row["score"] is None) == (row["reason"] == "empty") == (row["rank"] is None)


def test_one_category_cannot_take_all(caplog):
    scores = Scores(np.array([9.0, 8.0, 7.0, 6.0, 1.0, 0.0]), ["ok"] * 6)
    with caplog.at_level(logging.WARNING):
        decided = quotas(scores, ["x"] * 4 + [None] * 2, Cut(n=3))
    reasons = decided["reason"].to_pylist()
    assert [i for i, reason in enumerate(reasons) if reason == "selected"] == [0, 1, 4]
    assert decided["rank"].to_pylist() == [0, 1, 2, 3, 0, 1]
    assert not caplog.records


def test_quotas_that_cannot_be():
    scores = Scores(np.array([1.0, 2.0]), ["ok"] * 2)
    with pytest.raises(SettingError, match="1 groups for 2 rows"):
        quotas(scores, ["a"], Cut())
    with pytest.raises(SettingError, match="threshold cannot keep a share"):
        quotas(scores, ["a", "b"], Cut(threshold=1.0))
    none = quotas(scores, ["a", "b"], Cut(proportion=0.2))
    assert none["reason"].to_pylist() == ["below the threshold"] * 2
