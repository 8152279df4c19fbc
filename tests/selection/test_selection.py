"""The selection, against a loop that takes the best row left until enough are taken."""

import math
import tracemalloc
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import assume, given
from hypothesis import strategies as st

from selectit_hf.errors import InputError, SettingError
from selectit_hf.selection.selection import Cut, decide, kept_rows, score_column, select

NAN = math.nan
SCORES = st.lists(
    st.integers(0, 6).map(lambda half: half / 2) | st.sampled_from([NAN, math.inf, -math.inf]),
    max_size=30,
)
VARIANTS = st.sampled_from(["paper", "released"])
PROPORTIONS = st.integers(1, 100).map(lambda hundredths: hundredths / 100)


def naive_ranking(scores: list[float], variant: str) -> list[int]:
    """Rows with a score, best first."""
    left = [i for i, score in enumerate(scores) if math.isfinite(score)]
    ranking = []
    while left:
        best = max(scores[i] for i in left)
        ties = [i for i in left if scores[i] == best]
        row = ties[-1] if variant == "released" else ties[0]
        left.remove(row)
        ranking.append(row)
    return ranking


def naive_count(rows: int, proportion: float, variant: str) -> int:
    if variant == "released":
        return int(rows * proportion)
    return math.floor(Fraction(str(proportion)) * rows)


def check(decisions: Any, scores: list[float], ranking: list[int], kept: set[int]) -> None:
    rows = decisions.to_pylist()
    assert [row["row"] for row in rows] == list(range(len(scores)))
    for i, row in enumerate(rows):
        if i in ranking:
            assert row["score"] == scores[i]
            assert row["rank"] == ranking.index(i)
            assert row["reason"] == ("selected" if i in kept else "below the threshold")
        else:
            assert (row["score"], row["rank"]) == (None, None)
            assert row["reason"] == "no score"


@given(SCORES, PROPORTIONS, VARIANTS)
def test_a_proportion_is_the_naive_loop(scores, proportion, variant):
    ranking = naive_ranking(scores, variant)
    kept = set(ranking[: naive_count(len(scores), proportion, variant)])
    decisions = decide(np.array(scores), Cut(proportion=proportion, variant=variant))
    check(decisions, scores, ranking, kept)


@given(SCORES, st.integers(1, 40), VARIANTS)
def test_a_number_is_the_naive_loop(scores, n, variant):
    ranking = naive_ranking(scores, variant)
    decisions = decide(np.array(scores), Cut(n=n, variant=variant))
    check(decisions, scores, ranking, set(ranking[:n]))


@given(SCORES, st.floats(-1, 4) | st.sampled_from([0.0, 0.5, 1.0, 3.0]), VARIANTS)
def test_a_threshold_is_the_naive_loop(scores, threshold, variant):
    ranking = naive_ranking(scores, variant)
    kept = {i for i in ranking if scores[i] >= threshold}
    decisions = decide(np.array(scores), Cut(threshold=threshold, variant=variant))
    check(decisions, scores, ranking, kept)


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_the_count_is_the_floor_of_the_decimal_product(rows, millionths):
    proportion = millionths / 10**6
    assert Cut(proportion=proportion).count(rows) == rows * millionths // 10**6
    assert Cut(proportion=proportion, variant="released").count(rows) == int(rows * proportion)


def test_counts_by_hand():
    assert Cut().count(999) == 199
    assert Cut(proportion=0.29).count(100) == 29
    assert Cut(proportion=0.29, variant="released").count(100) == 28
    assert Cut(proportion=1).count(7) == 7
    assert Cut(proportion=np.float64(0.2)).count(5) == 1
    assert Cut(proportion=Decimal("0.2")).count(5) == 1
    assert Cut(n=3).count(2) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"proportion": 0},
        {"proportion": -0.1},
        {"proportion": 1.1},
        {"proportion": NAN},
        {"n": 0},
        {"n": -1},
        {"n": 1.5},
        {"threshold": NAN},
        {"threshold": math.inf},
        {"proportion": 0.2, "n": 1},
        {"n": 1, "threshold": 0.0},
        {"variant": "best"},
    ],
)
def test_impossible_cuts_are_refused(settings):
    with pytest.raises(SettingError):
        Cut(**settings)


# Datasets


def scored(scores: list[float | None], **columns: list[Any]) -> Dataset:
    return Dataset.from_dict(
        {"id": list(range(len(scores))), "text": [f"t{i}" for i in range(len(scores))]}
        | {"model_score": scores}
        | columns
    )


@given(SCORES, st.integers(1, 10), VARIANTS, st.randoms(use_true_random=False))
def test_every_row_is_kept_or_rejected_unchanged(scores, n, variant, random):
    assume(scores)
    dataset = scored([None if math.isnan(s) else s for s in scores])
    order = random.sample(range(len(scores)), len(scores))
    shuffled = dataset.select(order)  # an indices mapping lies over the data
    selection = select(shuffled, n=n, variant=variant)
    kept = set(naive_ranking([scores[i] for i in order], variant)[:n])
    rows = shuffled.to_list()
    assert selection.selected.to_list() == [row for j, row in enumerate(rows) if j in kept]
    assert selection.rejected.to_list() == [row for j, row in enumerate(rows) if j not in kept]
    assert selection.selected.features == dataset.features
    if kept:
        assert selection.threshold == min(scores[order[j]] for j in kept)
    else:
        assert selection.threshold is None


def test_reasons_are_the_statuses_of_rows_without_a_score():
    statuses = ["ok", "empty", "ok", "type", "truncated"]
    dataset = scored([1.0, None, 3.0, None, 2.0], selectit_status=statuses)
    selection = select(dataset, n=2)
    assert selection.decisions["reason"].to_pylist() == [
        "below the threshold",
        "empty",
        "selected",
        "type",
        "selected",
    ]
    assert selection.reasons == {"selected": 2, "below the threshold": 1, "empty": 1, "type": 1}
    assert selection.threshold == 2.0
    assert selection.by == "model_score"


def test_a_status_that_names_a_reason_is_that_reason_and_no_code_of_its_own():
    statuses = ["", "below the threshold", None, "oom", "ok"]
    dataset = scored([None, None, None, None, 1.0], selectit_status=statuses)
    selection = select(dataset, threshold=2.0)
    assert selection.reasons == {"no score": 2, "below the threshold": 2, "oom": 1}
    assert not selection.kept.any()
    assert pa.types.is_dictionary(selection.decisions.schema.field("reason").type)


def test_a_million_rows_make_no_object_each():
    """One value for each row and a handful of words: the peak stays near the arrays' own size."""
    scores = np.random.default_rng(0).random(1_000_000)
    scores[::7] = np.nan
    statuses = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(scores), np.int8)), ["empty"])
    tracemalloc.start()
    decisions = decide(scores, Cut(), statuses)
    peak = tracemalloc.get_traced_memory()[1]  # NumPy's arrays and Python's objects
    tracemalloc.stop()
    assert peak < 80 * len(scores)
    kept = kept_rows(decisions)
    assert kept.sum() == 200_000
    assert scores[kept].min() > np.nanmax(np.where(kept, np.nan, scores))


@pytest.mark.parametrize("format_type", ["numpy", "torch", "pandas", "arrow"])
@pytest.mark.parametrize("columns", [None, ["id"]])
def test_a_format_changes_nothing(format_type, columns):
    statuses = ["ok", "empty", "ok"]
    plain = scored([1.0, None, 3.0], selectit_status=statuses)
    selection = select(plain.with_format(format_type, columns=columns), n=1)
    assert selection.decisions.to_pylist() == select(plain, n=1).decisions.to_pylist()
    assert selection.selected.with_format(None).to_list() == [plain[2]]


def test_more_rows_asked_for_than_have_a_score(caplog):
    selection = select(scored([1.0, None, 2.0]), n=3)
    assert selection.selected["id"] == [0, 2]
    assert "3 rows asked for, but only 2" in caplog.text


def test_nothing_kept_has_no_threshold():
    assert select(scored([1.0, 2.0])).threshold is None
    for dataset in (scored([None, None]), scored([])):
        selection = select(dataset, n=1)
        assert len(selection.selected) == 0
        assert selection.threshold is None
        assert len(selection.rejected) == len(dataset)


def test_integer_scores_are_scores_and_texts_are_not():
    dataset = scored([1.0, 2.0], stars=[5, 3])
    assert select(dataset, by="stars", n=1).selected["id"] == [0]
    with pytest.raises(InputError, match="not scores"):
        select(dataset, by="text", n=1)


def test_a_threshold_keeps_its_own_score():
    values = np.array([0.1, 0.2, 0.3], np.float32)
    dataset = scored(list(values))
    selection = select(dataset, threshold=float(values[1]))
    assert selection.selected["id"] == [1, 2]
    assert selection.threshold == float(values[1])


def test_a_dict_of_splits_is_refused():
    with pytest.raises(InputError, match=r"train.*select\(ds\['train'\]\)"):
        select(DatasetDict({"train": scored([1.0])}))


# The column


@pytest.mark.parametrize(
    ("columns", "by", "found"),
    [
        (["token_score__a", "sentence_score__a", "model_score"], None, "model_score"),
        (["token_score__a", "sentence_score__a"], None, "sentence_score__a"),
        (["token_score__a"], None, "token_score__a"),
        (["token_score__a", "token_score__b", "sentence_score__b"], None, "sentence_score__b"),
        (["token_score__a", "sentence_score__a"], "token", "token_score__a"),
        (["sentence_score__a", "sentence_score__b", "model_score"], "model", "model_score"),
        (["sentence_score__a", "sentence_score__b"], "sentence_score__b", "sentence_score__b"),
        (["model_score", "stars"], "stars", "stars"),
    ],
)
def test_which_column_is_meant(columns, by, found):
    assert score_column(["id", *columns], by) == found


@pytest.mark.parametrize(
    ("columns", "by", "reason"),
    [
        (["sentence_score__a", "sentence_score__b"], None, "sentence_score__a, sentence_score__b"),
        (["token_score__a", "token_score__b", "model_score"], "token", "Several columns"),
        (["id"], None, "score the dataset first"),
        (["token_score__a"], "sentence", "no sentence score"),
        (["model_score"], "stars", "no column 'stars'"),
    ],
)
def test_a_column_that_is_not_clear_is_refused(columns, by, reason):
    with pytest.raises(InputError, match=reason):
        score_column(columns, by)


# Lazily


def streamed(dataset: Dataset, known_features: bool) -> IterableDataset:
    if known_features:
        return dataset.to_iterable_dataset()
    return IterableDataset.from_generator(dataset.to_list().__iter__)


@pytest.mark.parametrize("known_features", [True, False])
@pytest.mark.parametrize("threshold", [0.5, 1.0, 9.0])
def test_a_threshold_of_a_stream_is_that_of_the_dataset(known_features, threshold):
    dataset = scored([1.0, None, 0.5, NAN, math.inf, -math.inf, 2.0])
    eager = select(dataset, threshold=threshold)
    lazy = select(streamed(dataset, known_features), threshold=threshold)
    for part in ("selected", "rejected"):
        ids = [row["id"] for row in getattr(lazy, part)]
        assert ids == getattr(eager, part)["id"]
    assert lazy.threshold == threshold
    with pytest.raises(SettingError, match="lazy"):
        lazy.reasons  # noqa: B018
    with pytest.raises(SettingError, match="lazy"):
        lazy.kept  # noqa: B018


@pytest.mark.parametrize("cut", [{}, {"proportion": 0.2}, {"n": 1}])
def test_a_share_of_a_stream_points_to_the_run(cut):
    with pytest.raises(SettingError, match="selectit run"):
        select(scored([1.0]).to_iterable_dataset(), **cut)


def test_a_stream_without_a_score_is_refused():
    with pytest.raises(InputError, match="no SelectIT score"):
        select(Dataset.from_dict({"id": [1]}).to_iterable_dataset(), threshold=1.0)
