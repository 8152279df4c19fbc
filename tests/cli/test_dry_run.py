"""A dry run says what a run would take, and writes nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import ROWS, Outcome

from selectit_hf.analysis.speed import duration
from selectit_hf.errors import ModelError
from selectit_hf.rating import SentenceScore
from selectit_hf.rating.rater import Rater

MODEL = ("--model", "tiny-rater")


def test_tokens_and_rows_are_those_of_the_run_and_nothing_is_written(
    selectit: Callable[..., Outcome], data: Path
) -> None:
    data.write_text(json.dumps([*ROWS, {"instruction": "Say.", "input": "", "output": ""}]))
    flags = ("--n", 4, "--shard-size", 10)
    done = selectit("run", data, *MODEL, "--out", "run", "--dry-run", "--json", *flags)
    assert done.code == 0, done.err
    assert not Path("run").exists()
    found = json.loads(done.out)
    (model,) = found["models"]
    encoder = SentenceScore("tiny-rater").rater(None).encoder()
    pairs = SentenceScore().reader.pairs({name: [row[name] for row in ROWS] for name in ROWS[0]})
    lengths = [len(ids) for one in encoder.encode(pairs) for ids in one.ids]
    assert model["tokens_per_prompt"] == round(sum(lengths) / len(lengths), 1)
    assert model["longest_prompt"] == max(lengths)
    assert model["tokens"] == pytest.approx(sum(lengths), abs=1)
    assert (model["rows_left"], model["prompts"], model["sample"]) == (31, 150, 30)
    assert (found["input"]["rows"], found["input"]["cannot_be_rated"]) == (31, 1)
    assert (found["shards"], found["selected"]["rows"], found["out"]) == (4, 4, "run")
    assert model["seconds"] > 0
    assert found["seconds"] == model["seconds"]
    assert model["rating_mass"] > 0.9
    assert found["bytes"] > 0

    whole = selectit("run", data, *MODEL, "--out", "run", *flags, "--json")
    summary = json.loads(whole.out)
    assert (summary["rows"], summary["selected"], summary["by"]) == (31, 4, found["selected"]["by"])


def test_only_what_is_left_is_estimated_and_another_plan_is_refused(
    selectit: Callable[..., Outcome], data: Path
) -> None:
    assert selectit("run", data, *MODEL, "--out", "run", "--limit", 12).code == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    grown = selectit("run", data, *MODEL, "--out", "run", "--dry-run", "--json")
    assert json.loads(grown.out)["models"][0]["rows_left"] == 18
    rated = selectit("run", data, *MODEL, "--out", "run", "--dry-run", "--limit", 12)
    assert "0 rows to rate" in rated.out
    assert "Nothing was written" in rated.err
    other = selectit("run", data, *MODEL, "--out", "run", "--dry-run", "--k", 4)
    assert other.code == 1
    assert "was planned differently" in other.err
    now = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert now == before


def test_where_the_model_does_not_load_the_time_is_unknown_and_the_rest_is_said(
    selectit: Callable[..., Outcome], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(rater: Rater) -> None:
        raise ModelError("It needs 140 GB of memory.")

    monkeypatch.setattr(Rater, "_load_engine", refuse)
    place = ("--model", "tiny-rater", "--token-budget", 4321)  # another engine than is kept
    done = selectit("run", data, *place, "--out", "run", "--dry-run")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "unknown: the model cannot be measured here: It needs 140 GB of memory." in said
    assert "30 rows to rate, 150 prompts" in said
    assert "6 rows, by sentence_score__tiny_rater" in said


def test_a_stream_has_no_place_in_a_dry_run(selectit: Callable[..., Outcome], data: Path) -> None:
    done = selectit("run", data, *MODEL, "--out", "run", "--dry-run", "--streaming")
    assert done.code == 1
    assert "--dry-run writes nothing" in done.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "1 s"), (89, "89 s"), (150, "2 min"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_model_that_hardly_understands_is_named_before_the_hours(
    selectit: Callable[..., Outcome], data: Path, checkpoint: Path
) -> None:
    done = selectit("run", data, "--model", checkpoint, "--out", "run", "--dry-run")
    assert done.code == 0, done.err
    assert "it hardly understood the question" in done.err
    assert "hardly" not in selectit("run", data, *MODEL, "--out", "run", "--dry-run").err
