"""`score`: one call for one device or many, the same columns from both."""

import os
from pathlib import Path
from typing import Any

import multiprocess
import numpy as np
import pytest
from datasets import Dataset, Features, concatenate_datasets

from selectit_hf import ModelScore, SentenceScore, TokenScore
from selectit_hf.errors import SettingError
from selectit_hf.rating import mapping
from selectit_hf.rating.mapping import score
from selectit_hf.rating.models import loading


@pytest.fixture
def rows(tmp_path: Path) -> Dataset:
    """Rows with cache files, whose count `datasets` would go by."""
    made = {
        "instruction": [f"Say {i}." for i in range(7)],
        "output": ["" if i == 3 else f"{i} " * i for i in range(7)],
    }
    Dataset.from_dict(made).save_to_disk(tmp_path / "rows")
    return Dataset.load_from_disk(tmp_path / "rows")


def test_two_processes_score_as_one(
    rows: Dataset, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = SentenceScore(str(checkpoint), device="cpu", token_budget=256)
    one = score(rows, scorer)
    before = (multiprocess.get_start_method(), dict(os.environ))
    two = score(rows, scorer, num_proc=2)
    assert (multiprocess.get_start_method(), dict(os.environ)) == before
    assert two.column_names == one.column_names
    assert two.features == one.features
    assert two.select_columns(rows.column_names).to_list() == rows.to_list()
    assert two["status__random_llama"] == one["status__random_llama"]
    for row, other in zip(one, two, strict=True):
        assert (row["sentence_score__random_llama"] is None) == (row["output"] == "")
        for column in ("rating_logprobs__random_llama", "sentence_score__random_llama"):
            if row[column] is not None:
                np.testing.assert_allclose(row[column], other[column], atol=1e-4)
    combined = score(two, ModelScore())
    assert [s is None for s in combined["model_score"]] == [not t for t in rows["output"]]


def test_no_rows_have_the_columns_too() -> None:
    rows = Dataset.from_dict({"instruction": [], "output": []})
    scored = score(rows, SentenceScore("tiny-rater"))
    assert len(scored) == 0
    assert "sentence_score__tiny_rater" in scored.column_names


class Mapped(Exception):
    pass


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `map` is called with, and in which environment; nothing is scored."""
    calls: list[dict[str, Any]] = []

    def noted(self: Dataset, function: Any, **given: Any) -> Dataset:
        here = {name: os.environ.get(f"SELECTIT_{name}") for name in ("DEVICE", "TOKEN_BUDGET")}
        calls.append(given | here | {"start": multiprocess.get_start_method()})
        missing = Features({n: f for n, f in given["features"].items() if n not in self.features})
        nulls = Dataset.from_dict({name: [None] * len(self) for name in missing}, missing)
        return concatenate_datasets([self, nulls], axis=1)

    monkeypatch.setattr(Dataset, "map", noted)
    return calls


def test_every_gpu_gets_a_process_that_knows_its_rank(
    rows: Dataset, checkpoint: Path, mapped: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "device_count", lambda: 4)
    scorer = TokenScore(str(checkpoint), token_budget=99, dtype="float32")
    score(rows, scorer)
    score(rows, scorer, num_proc=2)
    score(rows, TokenScore(str(checkpoint), device="cpu"))
    score(rows.select(range(3)), scorer)
    four, two, alone, few = mapped
    assert (four["num_proc"], four["with_rank"], four["start"]) == (4, True, "spawn")
    assert (four["TOKEN_BUDGET"], four["DEVICE"]) == ("99", None)
    assert two["num_proc"] == 2
    assert two["new_fingerprint"] != four["new_fingerprint"]  # no cached file of the other is met
    assert "num_proc" not in alone
    assert alone["start"] != "spawn"
    assert few["num_proc"] == 3
    assert "SELECTIT_TOKEN_BUDGET" not in os.environ


def test_no_process_at_all_is_refused(rows: Dataset, checkpoint: Path) -> None:
    with pytest.raises(SettingError, match="num_proc=0"):
        score(rows, TokenScore(str(checkpoint)), num_proc=0)


def test_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(device: str) -> str:
        if device in ("cuda:0", "cuda:1"):
            return device
        raise SettingError("not there")

    monkeypatch.setattr(loading, "choose_device", choose)
    assert mapping.device_count() == 2
