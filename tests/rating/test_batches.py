"""Scorers on tables and arrays: the same columns as from dicts of lists, in the kind that came."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, Features, Json, List

import selectit_hf
from selectit_hf import SentenceScore, TokenScore
from selectit_hf.rating.batches import as_lists

TALK = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
TEXTS: dict[str, list[Any]] = {
    "instruction": ["Add 1 and 2.", None, "Sing.", "Say hello."],
    "output": ["3", "Blue", "", "Hello!"],
    "count": [1, None, 3, 4],
}
TALKS: dict[str, list[Any]] = {"messages": [TALK, None, TALK[:1], TALK], "count": [1, 2, None, 4]}


def scored(rows: Dataset, form: str | None) -> Dataset:
    """All three levels, the second from what the first left, in batches of which one is null."""
    token, sentence = TokenScore("tiny-rater"), SentenceScore("tiny-rater")
    rows = rows.with_format(form)
    rows = rows.map(token, batched=True, batch_size=1, features=token.features(rows))
    rows = rows.map(sentence, batched=True, batch_size=3, features=sentence.features(rows))
    return rows.map(selectit_hf.model_score, batched=True).with_format(None)


@pytest.mark.parametrize("columns", [TEXTS, TALKS])
def test_every_format_of_datasets_gives_the_same_rows(columns: dict[str, list[Any]]) -> None:
    rows = Dataset.from_dict(columns)
    expected = scored(rows, None).to_list()
    assert sum(row["model_score"] is not None for row in expected) == 2
    for form in ("numpy", "pandas", "arrow"):
        assert scored(rows, form).to_list() == expected, form


def test_a_table_comes_back_whole_with_exact_types() -> None:
    scorer = SentenceScore("tiny-rater")
    table = pa.table(TEXTS)
    found = scorer(table)
    assert found.column_names == [*TEXTS, *scorer.columns]
    assert found.select(list(TEXTS)).equals(table)
    wanted = scorer.features(Dataset(table)).arrow_schema
    assert found.schema.remove_metadata() == wanted.remove_metadata()
    again = scorer(found)  # what is replaced keeps its place
    assert again.equals(found)
    nothing = scorer(table.slice(1, 2))  # a batch without any score has the same types
    assert nothing.schema == found.schema
    assert nothing["sentence_score__tiny_rater"].null_count == 2


def test_a_frame_keeps_its_index() -> None:
    frame = pd.DataFrame(TEXTS, index=[7, 3, 5, 1])
    found = SentenceScore("tiny-rater")(frame)
    assert isinstance(found, pd.DataFrame)
    assert list(found.index) == [7, 3, 5, 1]
    expected = SentenceScore("tiny-rater")(TEXTS)["sentence_score__tiny_rater"]
    scores = [None if pd.isna(score) else score for score in found["sentence_score__tiny_rater"]]
    assert scores == expected
    assert [score is None for score in scores] == [False, True, True, False]


def test_missing_values_of_arrays_are_none() -> None:
    nested = np.empty(2, dtype=object)
    nested[:] = [np.array([1, 2]), float("nan")]
    batch = {"a": np.array(["x", None], dtype=object), "b": nested, "c": np.array([1, 2])}
    assert as_lists(batch) == {"a": ["x", None], "b": [[1, 2], None], "c": [1, 2]}
    lists = {"a": [float("nan")]}
    assert as_lists(lists) is lists


@pytest.mark.parametrize("kind", ["arrow", "pandas", "numpy"])
def test_values_that_are_stored_as_json_are_what_they_stand_for(kind: str) -> None:
    rows = [
        {"output": "text", "nested": [{"p": 1}, {"p": "z"}]},
        {"output": {"x": 1}, "nested": None},
        {"output": 7, "nested": []},
        {"output": None, "nested": [{"p": None}]},
    ]
    features = Features({"output": Json(), "nested": List({"p": Json()})})
    stored = Dataset.from_list(rows, features=features)
    assert as_lists(stored.with_format(kind)[:]) == stored[:]
    assert stored.to_list() == rows
