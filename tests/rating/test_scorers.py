"""The map callables: what they write, what they hash to, and when they ask a model."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset, concatenate_datasets
from datasets.fingerprint import Hasher

import selectit_hf
from selectit_hf import ModelScore, SentenceScore, TokenScore
from selectit_hf.errors import InputError, ModelError, RatingsError, SettingError
from selectit_hf.rating import rater as raters
from selectit_hf.rating.engine.engine import Engine
from selectit_hf.rating.models import loading

ROWS: dict[str, list[Any]] = {
    "instruction": ["Add 1 and 2.", "Name a colour.", "Say hello.", "Count to three.", "Sing."],
    "input": ["", "Not red.", "", "", ""],
    "output": ["3", "Blue", "Hello!", "1, 2, 3", "La la la"],
}


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict(ROWS)


@pytest.fixture
def scorer(checkpoint: Path) -> SentenceScore:
    return SentenceScore(str(checkpoint))


class Counter:
    """Counts the sequences that go through a model."""

    def __init__(self) -> None:
        self.count = 0


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    counter = Counter()
    original = Engine.next_token_logprobs

    def counted(self: Engine, ids: Any, *rest: Any) -> Any:
        counter.count += len(ids)
        return original(self, ids, *rest)

    monkeypatch.setattr(Engine, "next_token_logprobs", counted)
    return counter


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the models that are loaded, starting from none."""
    counter = Counter()
    original = loading.load_model

    def counted(*args: Any, **kwargs: Any) -> Any:
        counter.count += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(loading, "load_model", counted)
    monkeypatch.setattr(raters, "_ENGINE", raters._Slot())
    return counter


# Columns


def test_the_columns_of_each_level(rows: Dataset, checkpoint: Path) -> None:
    token = rows.map(TokenScore(str(checkpoint)), batched=True)
    sentence = rows.map(SentenceScore(str(checkpoint)), batched=True)
    slug = "random_llama"
    kinds = {"rating_logprobs", "token_score", "status", "rater"}
    assert set(token.column_names) - set(ROWS) == {f"{kind}__{slug}" for kind in kinds}
    kinds |= {"sentence_score"}
    assert set(sentence.column_names) - set(ROWS) == {f"{kind}__{slug}" for kind in kinds}
    assert np.shape(token[f"rating_logprobs__{slug}"]) == (5, 1, 5)
    assert np.shape(sentence[f"rating_logprobs__{slug}"]) == (5, 5, 5)
    np.testing.assert_allclose(
        token[f"token_score__{slug}"], sentence[f"token_score__{slug}"], atol=1e-5
    )
    rater = sentence[0][f"rater__{slug}"]
    assert rater["model"] == "random-llama"
    assert rater["revision"].startswith("sha256:")
    known = [{**one, "pair": rater["pair"]} for one in sentence[f"rater__{slug}"]]
    assert known == [rater] * 5


def test_the_types_are_those_announced(rows: Dataset, scorer: SentenceScore) -> None:
    mapped = rows.map(scorer, batched=True)
    assert mapped.features == scorer.features(rows)
    combined = mapped.map(ModelScore(), batched=True)
    assert combined.features == ModelScore().features(mapped)


def test_original_columns_stay_as_they_are(rows: Dataset, scorer: SentenceScore) -> None:
    mapped = rows.map(scorer, batched=True).map(ModelScore(), batched=True)
    assert mapped.select_columns(list(ROWS)).to_dict() == ROWS


def test_a_dict_of_lists_is_scored_alike(rows: Dataset, scorer: SentenceScore) -> None:
    mapped = rows.map(scorer, batched=True, batch_size=2)
    direct = scorer(ROWS)
    assert isinstance(direct, dict)
    for name in ("token_score__random_llama", "sentence_score__random_llama"):
        np.testing.assert_allclose(mapped[name], direct[name], atol=1e-5)
        assert {type(value) for value in direct[name]} == {np.float32}


def test_an_iterable_dataset_is_scored_alike(rows: Dataset, scorer: SentenceScore) -> None:
    streamed = rows.to_iterable_dataset().map(scorer, batched=True, batch_size=2)
    assert isinstance(streamed, IterableDataset)
    scores = [row["sentence_score__random_llama"] for row in streamed]
    mapped = rows.map(scorer, batched=True)["sentence_score__random_llama"]
    np.testing.assert_allclose(scores, mapped, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
@pytest.mark.parametrize("good", [None, 4])
def test_types_hold_when_the_first_batch_has_no_score(
    scorer: SentenceScore, batch_size: int, good: int | None
) -> None:
    responses: list[Any] = ["", None, " ", "", ""]
    if good is not None:
        responses[good] = "fine"
    rows = Dataset.from_dict({"instruction": ["a"] * 5, "output": responses})
    mapped = rows.map(scorer, batched=True, batch_size=batch_size)
    mapped = mapped.map(ModelScore(), batched=True, batch_size=batch_size)
    assert mapped.features == ModelScore().features(mapped)
    assert mapped["status__random_llama"] == ["ok" if i == good else "empty" for i in range(5)]
    for name in ("sentence_score__random_llama", "model_score", "rating_logprobs__random_llama"):
        assert [value is not None for value in mapped[name]] == [i == good for i in range(5)]


@pytest.mark.parametrize("bad", [0, 1])
def test_a_batch_without_a_score_and_without_its_columns(
    scorer: SentenceScore, checkpoint: Path, bad: int
) -> None:
    outputs = ["", ""] if bad == 0 else ["x", "y"]
    rows = Dataset.from_dict(
        {"instruction": ["a"] * 4, "output": [*outputs, *(["x", "y"] if bad == 0 else ["", ""])]}
    )
    mapped = rows.map(scorer, batched=True, batch_size=2, remove_columns=rows.column_names)
    assert mapped.column_names == list(scorer.columns)
    assert mapped.features == scorer.features(Dataset.from_dict({}))
    empty = [status == "empty" for status in mapped["status__random_llama"]]
    assert empty == [bad == 0, bad == 0, bad == 1, bad == 1]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "abc", "output": "xyz"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"translation": {"de": "a", "en": "b"}},
    ],
)
def test_a_map_that_is_not_batched_is_refused(scorer: SentenceScore, row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="batched=True"):
        Dataset.from_list([row]).map(scorer)


def test_bad_rows_are_null_with_a_status_and_alone(scorer: SentenceScore) -> None:
    bad: list[Any] = [None, 7, "\ud800", "", ["x"]]
    batch = {
        "instruction": [text for i in range(5) for text in ("Name a colour.", f"Question {i}?")],
        "output": [text for value in bad for text in (value, "Blue")],
    }
    found = scorer(batch)
    assert isinstance(found, dict)
    statuses = found["status__random_llama"]
    assert statuses[::2] == ["empty", "type", "encoding", "empty", "type"]
    assert statuses[1::2] == ["ok"] * 5
    clean = scorer({name: values[1::2] for name, values in batch.items()})
    assert isinstance(clean, dict)
    scores = found["sentence_score__random_llama"]
    assert scores[::2] == [None] * 5
    np.testing.assert_allclose(scores[1::2], clean["sentence_score__random_llama"], atol=1e-5)


def test_several_turns_need_a_policy(scorer: SentenceScore, checkpoint: Path) -> None:
    turns = [
        {"role": role, "content": text}
        for role, text in [("user", "Hi"), ("assistant", "Ho"), ("user", "A?"), ("assistant", "B")]
    ]
    batch = {"messages": [turns, turns[:2]]}
    assert scorer(batch)["status__random_llama"] == ["multi_turn", "ok"]
    first = SentenceScore(str(checkpoint), turns="first")(batch)
    assert first["status__random_llama"] == ["ok", "ok"]
    np.testing.assert_allclose(*first["sentence_score__random_llama"], atol=1e-5)


def test_nonfinite_logits_are_a_status(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    import safetensors.torch

    folder = make_checkpoint(tmp_path / "broken")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["lm_head.weight"][:] = float("nan")
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = SentenceScore(str(folder))(ROWS)
    assert found["status__broken"] == ["nonfinite"] * 5
    assert found["sentence_score__broken"] == [None] * 5


def test_out_of_memory_is_a_status_and_tried_again(
    rows: Dataset, scorer: SentenceScore, monkeypatch: pytest.MonkeyPatch, asked: Counter
) -> None:
    def never(self: Engine, *args: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_next_token", never)
        full = rows.map(scorer, batched=True)
    assert full["status__random_llama"] == ["oom"] * 5
    assert full["sentence_score__random_llama"] == [None] * 5
    asked.count = 0
    again = full.map(scorer, batched=True, load_from_cache_file=False)
    assert again["status__random_llama"] == ["ok"] * 5
    assert asked.count == 25


def test_equal_pairs_are_asked_once(checkpoint: Path, rows: Dataset, asked: Counter) -> None:
    batch = rows[:]
    twice = {name: [*values, *values[::-1]] for name, values in batch.items()}
    scorer = SentenceScore(str(checkpoint))
    once = scorer(batch)
    asked.count = 0
    found = scorer(twice)
    assert asked.count == 25
    for name, values in once.items():
        assert repr(found[name]) == repr([*values, *values[::-1]])


# Stored ratings


def test_other_formulas_reuse_the_ratings(
    rows: Dataset, scorer: SentenceScore, checkpoint: Path, asked: Counter, loads: Counter
) -> None:
    mapped = rows.map(scorer, batched=True)
    asked.count = loads.count = 0
    raters._ENGINE = raters._Slot()
    other = SentenceScore(str(checkpoint), alpha=1.5, variant="released")
    again = mapped.map(other, batched=True)
    assert (asked.count, loads.count) == (0, 0)
    assert again["sentence_score__random_llama"] != mapped["sentence_score__random_llama"]
    assert again["rating_logprobs__random_llama"] == mapped["rating_logprobs__random_llama"]
    fresh = rows.map(other, batched=True)
    assert again.to_dict() == fresh.to_dict()


def test_the_sentence_level_asks_only_what_the_token_level_left(
    rows: Dataset, scorer: SentenceScore, checkpoint: Path, asked: Counter
) -> None:
    token = rows.map(TokenScore(str(checkpoint)), batched=True)
    assert asked.count == 5
    sentence = token.map(scorer, batched=True)
    assert asked.count == 25
    fresh = rows.map(scorer, batched=True)
    np.testing.assert_allclose(
        sentence["sentence_score__random_llama"], fresh["sentence_score__random_llama"], atol=1e-5
    )
    back = fresh.map(TokenScore(str(checkpoint)), batched=True)
    assert np.shape(back["rating_logprobs__random_llama"]) == (5, 5, 5)


def test_rows_without_ratings_are_rated_and_others_kept(
    rows: Dataset, scorer: SentenceScore, asked: Counter
) -> None:
    scored = rows.select(range(2)).map(scorer, batched=True)
    mixed = concatenate_datasets([scored, rows.select(range(2, 5))])
    asked.count = 0
    mapped = mixed.map(scorer, batched=True)
    assert asked.count == 15
    assert mapped["status__random_llama"] == ["ok"] * 5


def test_rows_rated_at_either_level_can_be_mixed(
    rows: Dataset, scorer: SentenceScore, checkpoint: Path, asked: Counter
) -> None:
    token = rows.select([0, 1]).map(TokenScore(str(checkpoint)), batched=True)
    sentence = rows.select([2, 3]).map(scorer, batched=True)
    parts = [
        token.map(lambda row: {"sentence_score__random_llama": None}).cast(sentence.features),
        sentence,
        rows.select([4]),
    ]
    fresh = rows.map(scorer, batched=True)
    for order in ([0, 1, 2], [1, 0, 2]):
        mixed = concatenate_datasets([parts[i] for i in order])
        with pytest.raises(RatingsError, match=r"1 rows have not been rated|1 of 5 rating prompts"):
            mixed.map(ModelScore(), batched=True)
        asked.count = 0
        mapped = mixed.map(scorer, batched=True)
        assert asked.count == 2 * 4 + 5
        expected = {row["instruction"]: row["sentence_score__random_llama"] for row in fresh}
        for row in mapped:
            assert row["sentence_score__random_llama"] == pytest.approx(
                expected[row["instruction"]], abs=1e-5
            )


def test_a_status_without_ratings_is_not_believed(rows: Dataset, scorer: SentenceScore) -> None:
    scored = scorer(ROWS)
    kept = dict(scored)
    kept["rating_logprobs__random_llama"] = [
        None if i == 1 else one for i, one in enumerate(scored["rating_logprobs__random_llama"])
    ]
    again = scorer({**ROWS, **kept})
    np.testing.assert_allclose(
        again["sentence_score__random_llama"], scored["sentence_score__random_llama"], atol=1e-5
    )


def test_rows_not_yet_rated_have_no_model_level(rows: Dataset, scorer: SentenceScore) -> None:
    mixed = concatenate_datasets([rows.select([0]).map(scorer, batched=True), rows.select([1])])
    with pytest.raises(RatingsError, match="1 rows have not been rated by 'random_llama'"):
        mixed.map(ModelScore(), batched=True)


def test_columns_of_others_are_not_overwritten(rows: Dataset, scorer: SentenceScore) -> None:
    taken = rows.add_column("status__random_llama", ["mine"] * 5)
    with pytest.raises(RatingsError, match="'status__random_llama' that no scorer wrote"):
        taken.map(scorer, batched=True)
    taken = rows.map(scorer, batched=True).add_column("model_score", ["mine"] * 5)
    with pytest.raises(RatingsError, match="no scorer wrote"):
        taken.map(ModelScore(), batched=True)


def test_another_dtype_is_named(rows: Dataset, checkpoint: Path) -> None:
    mapped = rows.map(SentenceScore(str(checkpoint), dtype="bfloat16"), batched=True)
    with pytest.raises(RatingsError, match="dtype='bfloat16' to reuse them"):
        mapped.map(SentenceScore(str(checkpoint)), batched=True)


def test_ratings_of_another_scorer_are_refused(
    rows: Dataset, scorer: SentenceScore, checkpoint: Path
) -> None:
    mapped = rows.map(scorer, batched=True)
    other = SentenceScore(str(checkpoint), rating_prompts=["1 to {k}?" for _ in range(5)])
    with pytest.raises(RatingsError, match="name='random_llama_2'"):
        mapped.map(other, batched=True)
    named = SentenceScore(str(checkpoint), rating_prompts=other.rating_prompts, name="second")
    assert "sentence_score__second" in mapped.map(named, batched=True).column_names


# What is hashed


def test_the_second_map_asks_nothing(
    rows: Dataset, checkpoint: Path, asked: Counter, tmp_path: Path
) -> None:
    rows.save_to_disk(tmp_path / "rows")
    stored = Dataset.load_from_disk(tmp_path / "rows")
    first = stored.map(SentenceScore(str(checkpoint)), batched=True)
    assert asked.count == 25
    again = stored.map(SentenceScore(str(checkpoint), device="cpu", token_budget=64), batched=True)
    assert asked.count == 25
    assert first.to_dict() == again.to_dict()


CHANGES: dict[str, dict[str, Any]] = {
    "k": {"k": 3},
    "alpha": {"alpha": 0.3},
    "variant": {"variant": "released"},
    "rating prompts": {"rating_prompts": [f"{i}: 1 to {{k}}?" for i in range(5)]},
    "template": {"template": "{rating_prompt} {instruction} {response}\nA number: \n"},
    "columns": {"instruction_column": "input", "response_column": "output"},
    "turns": {"turns": "all"},
    "translation": {"translation": "de:en"},
    "max_length": {"max_length": 100},
    "dtype": {"dtype": "bfloat16"},
    "name": {"name": "other"},
    "chat": {"chat": True},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_settings_changes_the_hash(checkpoint: Path, change: dict[str, Any]) -> None:
    assert Hasher.hash(SentenceScore(str(checkpoint))) != Hasher.hash(
        SentenceScore(str(checkpoint), **change)
    )


def test_a_checkpoint_overwritten_in_place_changes_the_hash(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "model", seed=1)
    scorer = SentenceScore(str(folder))
    before, first = Hasher.hash(scorer), scorer(ROWS)
    make_checkpoint(folder, seed=2)
    assert Hasher.hash(scorer) != before
    second = scorer(ROWS)
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["sentence_score__model"] != second["sentence_score__model"]


def test_an_edited_prompt_file_changes_the_hash(checkpoint: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Prompt {i}: 1 to {{k}}?" for i in range(5)))
    scorer = SentenceScore(str(checkpoint), rating_prompts=prompts)
    before = Hasher.hash(scorer)
    prompts.write_text("\n".join(f"Edited {i}: 1 to {{k}}?" for i in range(5)))
    assert Hasher.hash(scorer) != before


def test_the_environments_model_changes_the_hash(
    checkpoint: Path,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SELECTIT_MODEL", str(checkpoint))
    before = Hasher.hash(selectit_hf.sentence_score)
    assert "sentence_score__random_llama" in selectit_hf.sentence_score(ROWS)
    monkeypatch.setenv("SELECTIT_MODEL", str(make_checkpoint(tmp_path / "second", seed=3)))
    assert Hasher.hash(selectit_hf.sentence_score) != before
    assert "token_score__second" in selectit_hf.token_score(ROWS)


@pytest.mark.parametrize(
    ("module", "constant"),
    [("scorer_settings", "RATING_VERSION"), ("reflection", "FORMULA_VERSION")],
)
def test_a_new_version_changes_the_hash(
    scorer: SentenceScore, monkeypatch: pytest.MonkeyPatch, module: str, constant: str
) -> None:
    before = Hasher.hash(scorer)
    monkeypatch.setattr(f"selectit_hf.rating.{module}.{constant}", 99)
    assert Hasher.hash(scorer) != before


def test_device_and_budget_are_no_part_of_the_hash(checkpoint: Path) -> None:
    plain = SentenceScore(str(checkpoint))
    placed = SentenceScore(str(checkpoint), device="cpu", token_budget=100)
    assert Hasher.hash(plain) == Hasher.hash(placed)
    assert {"device", "token_budget"}.isdisjoint(placed.__getstate__())


def test_a_used_scorer_is_small_and_hashes_as_before(scorer: SentenceScore) -> None:
    before = Hasher.hash(scorer)
    scorer(ROWS)
    assert Hasher.hash(scorer) == before
    assert len(pickle.dumps(scorer)) < 10_000


def test_a_pickled_scorer_scores_the_same(scorer: SentenceScore) -> None:
    copied = pickle.loads(pickle.dumps(scorer))
    assert copied == scorer.resolved()
    first, second = scorer(ROWS), copied(ROWS)
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["sentence_score__random_llama"] == second["sentence_score__random_llama"]


def test_a_pickled_scorer_refuses_a_changed_checkpoint(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "model", seed=1)
    pickled = pickle.dumps(SentenceScore(str(folder)))
    make_checkpoint(folder, seed=2)
    with pytest.raises(ModelError, match="holds sha256"):
        pickle.loads(pickled)(ROWS)


def test_the_model_level_hashes_its_settings_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {
        Hasher.hash(scorer)
        for scorer in (
            ModelScore(),
            ModelScore(alpha=0.5),
            ModelScore(variant="released"),
            ModelScore(weights=[1, 2]),
            ModelScore(models=["a"]),
        )
    }
    monkeypatch.setattr("selectit_hf.rating.reflection.FORMULA_VERSION", 99)
    assert len(hashes | {Hasher.hash(ModelScore())}) == 6
    assert pickle.loads(pickle.dumps(ModelScore(weights=[1, 2]))) == ModelScore(weights=[1, 2])


# Workers


def test_workers_give_the_rows_in_order(rows: Dataset, scorer: SentenceScore) -> None:
    many = concatenate_datasets([rows] * 4)
    alone = many.map(scorer, batched=True)
    together = many.map(scorer, batched=True, with_rank=True, num_proc=2)
    assert together.select_columns(list(ROWS)).to_dict() == many.to_dict()
    np.testing.assert_allclose(
        together["sentence_score__random_llama"], alone["sentence_score__random_llama"], atol=1e-5
    )
    ranked = many.map(scorer, batched=True, with_rank=True)
    assert ranked["sentence_score__random_llama"] == alone["sentence_score__random_llama"]


FORK = """
import sys, torch
from datasets import Dataset
from selectit_hf import SentenceScore
torch.set_num_threads(2)
rows = Dataset.from_dict({"instruction": ["Say it."] * 8, "output": ["It. " * 200] * 8})
scorer = SentenceScore(sys.argv[1])
scorer(rows[:8])
print(len(rows.map(scorer, batched=True, with_rank=True, num_proc=2)))
"""


def test_workers_forked_from_a_parent_with_threads_do_not_hang(checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(checkpoint)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert done.stdout.strip() == "8"


# Models


def test_one_model_is_held_at_a_time(
    rows: Dataset,
    scorer: SentenceScore,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import gc
    import weakref

    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    original = loading.load_model

    def load(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        assert not alive
        model = original(*args, **kwargs)
        alive.add(model)
        return model

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(raters, "_ENGINE", raters._Slot())
    other = SentenceScore(str(make_checkpoint(tmp_path / "other", seed=4)))
    for one in (scorer, other, scorer):
        one(ROWS)
    assert len(alive) == 1


def test_token_and_sentence_level_share_the_model(checkpoint: Path, loads: Counter) -> None:
    TokenScore(str(checkpoint))(ROWS)
    SentenceScore(str(checkpoint))(ROWS)
    SentenceScore(str(checkpoint), k=3)(ROWS)
    assert loads.count == 1


def test_the_model_level_weighs_by_parameters(
    rows: Dataset, scorer: SentenceScore, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    large = SentenceScore(str(make_checkpoint(tmp_path / "large", seed=9, hidden_size=64)))
    mapped = rows.map(scorer, batched=True).map(large, batched=True).map(ModelScore(), batched=True)
    for row in mapped:
        thetas = [row[f"rater__{name}"]["parameters"] for name in ("random_llama", "large")]
        scores = [row[f"sentence_score__{name}"] for name in ("random_llama", "large")]
        expected = sum(t / sum(thetas) * s for t, s in zip(thetas, scores, strict=True))
        assert row["model_score"] == pytest.approx(expected, abs=1e-6)
    chosen = mapped.map(ModelScore(models=["large"]), batched=True)
    np.testing.assert_allclose(chosen["model_score"], chosen["sentence_score__large"], atol=1e-6)


def test_the_worst_status_and_no_score_where_one_model_has_none() -> None:
    def column(statuses: list[str], parameters: int) -> dict[str, list[Any]]:
        rater = {"model": "m", "revision": "r", "parameters": parameters, "rating_key": "x"}
        lists = [[[-1.0, -2.0]] * 2 if s in ("ok", "truncated") else None for s in statuses]
        return {"rater": [rater] * 4, "rating_logprobs": lists, "status": statuses}

    batch = {
        f"{kind}__{name}": values
        for name, statuses in {
            "a": ["ok", "truncated", "ok", "oom"],
            "b": ["ok", "ok", "nonfinite", "empty"],
        }.items()
        for kind, values in column(statuses, 10).items()
    }
    found = ModelScore()(batch)
    assert isinstance(found, dict)
    assert found["selectit_status"] == ["ok", "truncated", "nonfinite", "oom"]
    assert [score is None for score in found["model_score"]] == [False, False, True, True]


def test_the_model_level_needs_all_rating_prompts(rows: Dataset, checkpoint: Path) -> None:
    mapped = rows.map(TokenScore(str(checkpoint)), batched=True)
    with pytest.raises(RatingsError, match="1 of 5 rating prompts"):
        mapped.map(ModelScore(), batched=True)


def test_errors_of_the_model_level(rows: Dataset, scorer: SentenceScore) -> None:
    with pytest.raises(RatingsError, match="No model has rated"):
        rows.map(ModelScore(), batched=True)
    mapped = rows.map(scorer, batched=True)
    with pytest.raises(RatingsError, match="'other' has not rated"):
        mapped.map(ModelScore(models=["other"]), batched=True)
    with pytest.raises(SettingError, match="exactly three models"):
        mapped.map(ModelScore(variant="released"), batched=True)
    with pytest.raises(SettingError, match="2 weights for 1 models"):
        mapped.map(ModelScore(weights=[1, 2]), batched=True)


@pytest.mark.parametrize("k", [2, 3, 5, 7, 9])
def test_every_scale_works(checkpoint: Path, k: int) -> None:
    found = SentenceScore(str(checkpoint), k=k)(ROWS)
    assert isinstance(found, dict)
    assert np.shape(found["rating_logprobs__random_llama"]) == (5, k, k)
    assert all(0 <= score <= k for score in found["sentence_score__random_llama"])


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 1}, "2 to 9"),
        ({"k": 10}, "2 to 9"),
        ({"k": 5.0}, "2 to 9"),
        ({"alpha": -0.1}, "at least 0"),
        ({"alpha": float("nan")}, "at least 0"),
        ({"variant": "other"}, "'paper' or 'released'"),
        ({"variant": "released", "k": 3}, "k=5"),
        ({"turns": "last"}, "'first' or 'all'"),
        ({"translation": "de"}, "two languages"),
        ({"instruction_column": "a"}, "go together"),
        ({"template": "{instruction}"}, "once each"),
        ({"max_length": 0}, "at least 1"),
        ({"token_budget": 0}, "at least 1"),
        ({"name": "My Model"}, "my_model"),
    ],
)
def test_a_setting_out_of_range_is_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SentenceScore(**settings)


def test_missing_columns_are_named(scorer: SentenceScore) -> None:
    with pytest.raises(InputError, match=r"\['text'\].*--instruction-column"):
        scorer({"text": ["a"]})


def test_nothing_is_loaded_where_the_tokenizer_cannot_rate(
    make_checkpoint: Callable[..., Path], tmp_path: Path, loads: Counter
) -> None:
    folder = make_checkpoint(tmp_path / "no-digits")
    described = json.loads((folder / "tokenizer.json").read_text())
    described["normalizer"] = {
        "type": "Replace",
        "pattern": {"Regex": "[0-9]"},
        "content": "#",
    }
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="cannot be told apart"):
        SentenceScore(str(folder))(ROWS)
    assert loads.count == 0


def test_a_length_with_no_room_is_refused(checkpoint: Path) -> None:
    with pytest.raises(SettingError, match="no room"):
        SentenceScore(str(checkpoint), max_length=10)(ROWS)


def test_a_long_response_is_truncated_and_rated(checkpoint: Path, asked: Counter) -> None:
    batch = {"instruction": ["Name a colour."] * 2, "output": ["Blue " * 3000, "Blue"]}
    found = SentenceScore(str(checkpoint))(batch)
    assert found["status__random_llama"] == ["truncated", "ok"]
    assert all(score is not None for score in found["sentence_score__random_llama"])


def test_the_tiny_rater_is_never_picked_silently(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from selectit_hf.rating.models.model_names import DEFAULT_MODEL, _announce_default, model_name

    monkeypatch.delenv("SELECTIT_MODEL", raising=False)
    _announce_default.cache_clear()
    assert model_name(None) == model_name(None) == DEFAULT_MODEL
    assert len(caplog.messages) == 1
    assert DEFAULT_MODEL in caplog.text
    assert "meta-llama/Llama-2-7b-hf" in caplog.text


def test_a_copied_checkpoint_is_the_same_rater(checkpoint: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(checkpoint, tmp_path / "copy")
    assert SentenceScore(str(checkpoint)).rating_key() == SentenceScore(str(copied)).rating_key()
