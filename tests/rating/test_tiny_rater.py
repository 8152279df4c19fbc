"""tiny-rater really rates: a scorer that reads the wrong place, tokens or row is found out.

A random checkpoint gives plausible numbers whatever is read from it. This one was taught to tell
the sample's good rows from its broken ones, so its scores are right or they are noise.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import released_loop
from datasets import Dataset

import selectit_hf
from selectit_hf import SentenceScore, select
from selectit_hf.errors import ModelError
from selectit_hf.rating.models import model_names
from selectit_hf.rating.models.loading import load_model
from selectit_hf.rating.models.model_names import TINY_RATER, resolve
from selectit_hf.rating.prompts.rating_prompts import load_rating_prompts

SAMPLE = Path(selectit_hf.__file__).parent / "data" / "sample.jsonl"
SCORES = "sentence_score__tiny_rater"


@pytest.fixture(scope="module")
def sample() -> Dataset:
    rows: Dataset = Dataset.from_json(str(SAMPLE))
    return rows


@pytest.fixture(scope="module")
def scored(sample: Dataset) -> Dataset:
    mapped: Dataset = sample.select(range(250)).map(SentenceScore(TINY_RATER), batched=True)
    return mapped


def auc(rows: Dataset) -> float:
    """The chance that a good row has a higher score than a broken one; ties count half."""
    good = [score for score, defect in zip(rows[SCORES], rows["defect"], strict=True)
            if defect == "none"]  # fmt: skip
    broken = [score for score, defect in zip(rows[SCORES], rows["defect"], strict=True)
              if defect != "none"]  # fmt: skip
    wins = [(a > b) + (a == b) / 2 for a in good for b in broken]
    return float(np.mean(wins))


def test_good_rows_are_told_from_broken_ones(scored: Dataset) -> None:
    assert auc(scored) > 0.85


def test_few_broken_rows_are_selected(scored: Dataset) -> None:
    selected = select(scored, proportion=0.2).selected

    def broken(rows: Dataset) -> float:
        return float(np.mean([defect != "none" for defect in rows["defect"]]))

    assert broken(selected) <= 0.3 * broken(scored)


def test_the_ratings_are_those_of_the_last_position(sample: Dataset, scored: Dataset) -> None:
    """tiny-rater expects a rating all through the suffix, so order alone cannot tell these apart.

    One place too early, its ratings are others in the second decimal.
    """
    checkpoint = resolve(TINY_RATER)
    model, tokenizer = load_model(checkpoint.path, "float32", "cpu"), checkpoint.tokenizer()
    rating_ids = [tokenizer.convert_tokens_to_ids(str(rating)) for rating in range(1, 6)]
    prompts = load_rating_prompts(None, 5)
    for row in range(10):
        literal = [
            released_loop.rating_probabilities(
                model, released_loop.encode(tokenizer, text), rating_ids
            )
            for text in released_loop.prompt_texts(sample[row], prompts)
        ]
        ours = np.exp(scored[row]["rating_logprobs__tiny_rater"])
        np.testing.assert_allclose(ours, literal, rtol=0, atol=1e-4)


def test_nearly_all_probability_lies_on_the_ratings(scored: Dataset) -> None:
    logprobs = np.array(scored["rating_logprobs__tiny_rater"])
    assert np.exp(logprobs).sum(axis=-1).min() > 0.5


def test_the_answer_columns_are_not_read(sample: Dataset, scored: Dataset) -> None:
    few = sample.select(range(20)).remove_columns(["family", "defect"])
    alone = few.map(SentenceScore(TINY_RATER), batched=True)
    np.testing.assert_allclose(alone[SCORES], scored[:20][SCORES], atol=1e-5)


def test_the_sample_is_what_the_demo_says_of_it(sample: Dataset) -> None:
    assert 500 <= len(sample) <= 700
    assert sample.column_names == ["instruction", "input", "output", "family", "defect"]
    assert len(set(sample["family"])) >= 12
    defects: list[Any] = [defect for defect in sample["defect"] if defect != "none"]
    for kind in set(defects):
        assert defects.count(kind) <= 0.2 * len(defects)


def test_the_checkpoint_is_small_safe_and_described() -> None:
    folder = Path(resolve(TINY_RATER).path)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sum(files.values()) < 8 * 2**20
    assert {Path(name).suffix for name in files} == {".json", ".md", ".safetensors"}
    card = (folder / "README.md").read_text("utf-8")
    for words in ("For demos and tests", "No evidence for SelectIT", "unseen"):
        assert words in card


def test_a_folder_of_its_name_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(resolve(TINY_RATER).path, tmp_path / TINY_RATER)
    model_names._say_which_tiny_rater.cache_clear()
    own = resolve(TINY_RATER)
    monkeypatch.chdir(tmp_path)
    assert resolve(TINY_RATER) == own
    assert "not the folder of that name here" in caplog.text
    for name in (f"./{TINY_RATER}", str(tmp_path / TINY_RATER)):
        with pytest.raises(ModelError, match="Rename the folder 'tiny-rater'"):
            resolve(name)
    assert resolve(own.path).revision == own.revision
