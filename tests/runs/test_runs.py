"""A run folder: whole, resumable, and the same ratings reflected on in many ways."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from selectit_hf import SentenceScore, runs, select
from selectit_hf.errors import InputError, ModelError, RunError, SettingError
from selectit_hf.formats.fingerprints import survey
from selectit_hf.formats.sources import Source
from selectit_hf.rating.engine.engine import Engine
from selectit_hf.rating.reflection import Reflection
from selectit_hf.runs import Run
from selectit_hf.selection.selection import Cut

SOURCE = Source("rows.json", None, "train", "sha256:0")


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return Dataset.from_dict(
        {
            "instruction": [f"Say {i}." for i in range(11)],
            "output": ["" if i == 3 else f"{i} " * (i + 1) for i in range(11)],
            "note": list(range(11)),
        }
    )


@pytest.fixture(scope="module")
def second(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "second", seed=8, hidden_size=64)


@pytest.fixture
def scorers(checkpoint: Path, second: Path) -> list[SentenceScore]:
    return [SentenceScore(str(checkpoint)), SentenceScore(str(second))]


@pytest.fixture(scope="module")
def rated(
    rows: Dataset, checkpoint: Path, second: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run folder to copy."""
    scorers = [SentenceScore(str(checkpoint)), SentenceScore(str(second))]
    run = runs.plan(rows, SOURCE, scorers, tmp_path_factory.mktemp("rated") / "run", shard_size=4)
    runs.rate(run, rows, scorers)
    return Path(run.where)


@pytest.fixture
def run(rated: Path, tmp_path: Path) -> Run:
    return runs.open_run(Path(shutil.copytree(rated, tmp_path / "run")))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.parquet"))
        if not path.name.startswith(".bad-")
    }


def test_the_folder_holds_what_it_says(run: Run, rows: Dataset) -> None:
    runs.finish(run, rows, Reflection(), Cut(n=5))
    names = {str(p.relative_to(run.where)) for p in Path(run.where).rglob("*") if p.is_file()}
    shards = [
        f"ratings/{slug}/{facts['table']}"
        for slug in ("random_llama", "second")
        for facts in run.shards(slug).committed().values()
    ]
    assert names == {
        "plan.json",
        "scores.parquet",
        "selected.parquet",
        "selection.json",
        "summary.json",
        *shards,
        *(f"{shard.partition('.')[0]}.json" for shard in shards),
    }
    for shard in shards:
        data = (Path(run.where) / shard).read_bytes()
        assert shard.split(".")[1] == hashlib.sha256(data).hexdigest()[:12]


def test_shards_are_what_one_map_gives(
    run: Run, rows: Dataset, scorers: list[SentenceScore]
) -> None:
    for scorer in scorers:
        mapped = rows.map(scorer, batched=True, load_from_cache_file=False)
        ratings = runs.ratings_of(run, scorer.slug)
        assert ratings.statuses == mapped[f"status__{scorer.slug}"]
        assert ratings.statuses[3] == "empty"
        for row, expected in enumerate(mapped[f"rating_logprobs__{scorer.slug}"]):
            if expected is None:
                assert np.isnan(ratings.logprobs[row]).all()
            else:
                np.testing.assert_allclose(ratings.logprobs[row], expected, atol=1e-4)


def test_selected_rows_keep_their_columns(run: Run, rows: Dataset) -> None:
    summary = runs.finish(run, rows, Reflection(), Cut(n=5))
    selected = pq.read_table(Path(run.where) / "selected.parquet")
    assert selected.column_names[:3] == ["instruction", "output", "note"]
    assert selected.num_rows == summary["selected"] == 5
    original = rows.select(selected["note"].to_pylist())
    assert selected.select(["instruction", "output", "note"]).to_pylist() == original.to_list()
    scores = pq.read_table(Path(run.where) / "scores.parquet")
    assert scores["row"].to_pylist() == list(range(11))
    best = sorted(
        (row for row in scores.to_pylist() if row["model_score"] is not None),
        key=lambda row: -row["model_score"],
    )
    assert sorted(row["row"] for row in best[:5]) == selected["note"].to_pylist()
    assert summary["threshold"] == pytest.approx(best[4]["model_score"])
    facts = json.loads((Path(run.where) / "selection.json").read_text())
    assert facts["reasons"] == {"selected": 5, "below the threshold": 5, "empty": 1}


def test_a_second_run_asks_nothing_and_ends_the_same(
    run: Run, rows: Dataset, scorers: list[SentenceScore], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.finish(run, rows, Reflection(), Cut())
    before = contents(Path(run.where))

    def never(self: Engine, *args: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(Engine, "next_token_logprobs", never)
    again = runs.plan(rows, SOURCE, scorers, Path(run.where))
    runs.rate(again, rows, scorers)
    runs.finish(again, rows, Reflection(), Cut())
    assert contents(Path(run.where)) == before


def test_a_model_changed_after_planning_is_refused(
    tmp_path: Path, rows: Dataset, make_checkpoint: Callable[..., Path]
) -> None:
    folder = make_checkpoint(tmp_path / "model", seed=1)
    scorers = [SentenceScore(str(folder))]
    run = runs.plan(rows, SOURCE, scorers, tmp_path / "run")
    make_checkpoint(folder, seed=2)
    with pytest.raises(ModelError, match="holds sha256"):
        runs.rate(run, rows, scorers)
    assert not contents(Path(run.where))


def test_a_shard_of_another_rater_is_rated_again(
    run: Run, rows: Dataset, scorers: list[SentenceScore]
) -> None:
    before = contents(Path(run.where))
    sidecar = Path(run.where) / "ratings" / "second" / "00001.json"
    facts = json.loads(sidecar.read_text())
    del facts["facts_sha256"]
    facts["key"] = "another"
    facts["facts_sha256"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    sidecar.write_text(json.dumps(facts))
    with pytest.raises(RunError, match="rows 4 to 7"):
        runs.ratings_of(run, "second")
    assert runs.pending(run) == [("second", 1)]
    runs.rate(run, rows, scorers)
    assert contents(Path(run.where)) == before


def test_every_model_is_looked_at_before_any_is_asked(
    tmp_path: Path,
    rows: Dataset,
    checkpoint: Path,
    make_checkpoint: Callable[..., Path],
) -> None:
    mute = make_checkpoint(tmp_path / "no-digits")
    described = json.loads((mute / "tokenizer.json").read_text())
    described["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": "#"}
    (mute / "tokenizer.json").write_text(json.dumps(described))
    scorers = [SentenceScore(str(checkpoint)), SentenceScore(str(mute))]
    with pytest.raises(ModelError, match="cannot be told apart"):
        runs.plan(rows, SOURCE, scorers, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_columns_that_would_be_doubled_are_refused(
    tmp_path: Path, rows: Dataset, scorers: list[SentenceScore]
) -> None:
    taken = rows.add_column("model_score", ["mine"] * 11)
    with pytest.raises(InputError, match="would write: model_score"):
        runs.plan(taken, SOURCE, scorers, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    one = runs.plan(taken, SOURCE, scorers[:1], tmp_path / "run")
    runs.rate(one, taken, scorers[:1])
    summary = runs.finish(one, taken, Reflection(), Cut(n=2))
    assert summary["by"] == "sentence_score__random_llama"


def test_what_a_killed_start_leaves_is_no_obstacle(
    tmp_path: Path, rows: Dataset, scorers: list[SentenceScore]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".plan.json.partial").write_text("{")
    assert runs.plan(rows, SOURCE, scorers, tmp_path / "run").rows == 11


@pytest.mark.parametrize(
    "damage",
    ["parquet gone", "sidecar gone", "sidecar empty", "sidecar of nothing", "one bit", "cut short"],
)
def test_a_damaged_shard_is_rated_again(
    run: Run, rows: Dataset, scorers: list[SentenceScore], damage: str
) -> None:
    before = contents(Path(run.where))
    (shard,) = (Path(run.where) / "ratings" / "second").glob("00001.*.parquet")
    sidecar = shard.with_name("00001.json")
    if damage == "parquet gone":
        shard.unlink()
    elif damage == "sidecar gone":
        sidecar.unlink()
    elif damage == "sidecar empty":
        sidecar.write_text("")
    elif damage == "sidecar of nothing":
        sidecar.write_text("{}")
    elif damage == "cut short":
        shard.write_bytes(shard.read_bytes()[:-20])
    else:
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    with pytest.raises(RunError, match="rows 4 to 7 are not rated by 'second'"):
        runs.finish(run, rows, Reflection(), Cut())
    assert not (Path(run.where) / "selected.parquet").exists()
    runs.rate(run, rows, scorers)
    assert contents(Path(run.where)) == before


def test_stopped_in_the_middle_it_goes_on(
    tmp_path: Path,
    rows: Dataset,
    scorers: list[SentenceScore],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = 0
    original = Engine.next_token_logprobs

    def stops(self: Engine, *args: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 3:
            raise KeyboardInterrupt
        return original(self, *args)

    stopped = runs.plan(rows, SOURCE, scorers, tmp_path / "stopped", shard_size=4)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "next_token_logprobs", stops)
        with pytest.raises(KeyboardInterrupt):
            runs.rate(stopped, rows, scorers)
    assert len(contents(Path(stopped.where))) == 2
    assert len(runs.pending(stopped)) == 4
    again = runs.plan(rows, SOURCE, scorers, tmp_path / "stopped")
    runs.rate(again, rows, scorers)
    assert contents(Path(again.where)) == contents(Path(run.where))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_length": 150}, "rating.max_length: None, now 150"),
        ({"token_budget": 77}, "models.0.token_budget: 1024, now 77"),
        ({"turns": "all"}, "rating.turns: None, now 'all'"),
        ({"rating_prompts": ["1 to {k}?"] * 5}, "rating.rating_prompts.0"),
        ({"dtype": "bfloat16"}, "models.0.dtype: 'float32', now 'bfloat16'"),
    ],
)
def test_another_plan_is_refused_by_name(
    run: Run, rows: Dataset, scorers: list[SentenceScore], change: dict[str, Any], named: str
) -> None:
    changed = [replace(scorer, **change) for scorer in scorers]
    with pytest.raises(RunError, match="planned differently") as caught:
        runs.plan(rows, SOURCE, changed, Path(run.where))
    assert named in str(caught.value)


def test_other_rows_shards_or_models_are_refused(
    run: Run, rows: Dataset, scorers: list[SentenceScore]
) -> None:
    edited = rows.map(lambda row: {"output": row["output"] + "!"})
    with pytest.raises(RunError, match=r"input\.fingerprint"):
        runs.plan(edited, SOURCE, scorers, Path(run.where))
    with pytest.raises(RunError, match=r"shard_size: 4, now 5"):
        runs.plan(rows, SOURCE, scorers, Path(run.where), shard_size=5)
    with pytest.raises(RunError, match=r"models\.0\.model"):
        runs.plan(rows, SOURCE, scorers[::-1], Path(run.where))


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, rows: Dataset, scorers: list[SentenceScore]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(RunError, match=r"no plan\.json"):
        runs.plan(rows, SOURCE, scorers, tmp_path / "photos")
    with pytest.raises(RunError, match="not a run folder"):
        runs.open_run(tmp_path / "photos")


def test_nothing_of_this_machine_is_written(run: Run, rows: Dataset, tmp_path: Path) -> None:
    runs.finish(run, rows, Reflection(), Cut())
    for path in Path(run.where).rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path


def test_reflecting_again_is_what_scoring_anew_gives(
    run: Run, rows: Dataset, scorers: list[SentenceScore], tmp_path: Path
) -> None:
    how = Reflection(alpha=1.5, variant="released", by="sentence_score__second")
    out = tmp_path / "again"
    runs.finish(run, rows, replace(how, variant="paper"), Cut(proportion=0.5), out)
    fresh = rows.map(replace(scorers[1], alpha=1.5), batched=True)
    expected = select(fresh, by="sentence_score__second", proportion=0.5)
    kept = pq.read_table(out / "selected.parquet")["note"].to_pylist()
    assert kept == expected.selected["note"]
    np.testing.assert_allclose(
        pq.read_table(out / "scores.parquet")["sentence_score__second"].drop_null(),
        [score for score in fresh["sentence_score__second"] if score is not None],
        atol=1e-5,
    )
    with pytest.raises(SettingError, match="exactly three models"):
        runs.finish(run, rows, how, Cut(), out)


def test_several_turns_stop_before_a_model_is_loaded(scorers: list[SentenceScore]) -> None:
    turn = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    talk = Dataset.from_dict({"conversations": [turn, turn * 2, turn * 3]})
    with pytest.raises(InputError, match=r"2 of 3 rows.*--turns first.*--turns all"):
        survey(talk, scorers[0].reader)


def test_the_fingerprint_follows_the_rows(rows: Dataset, scorers: list[SentenceScore]) -> None:
    reader = scorers[0].reader
    assert survey(rows, reader) == survey(Dataset.from_list(rows.to_list()), reader)
    assert survey(rows, reader) != survey(rows.select(range(10)), reader)
    assert survey(rows, reader) != survey(rows.select([1, 0, *range(2, 11)]), reader)


def test_the_summary_counts_and_warns(run: Run, rows: Dataset) -> None:
    summary = runs.finish(run, rows, Reflection(), Cut(n=5))
    facts = summary["models"]["second"]
    assert facts["statuses"] == {"empty": 1, "ok": 10}
    logprobs = runs.ratings_of(run, "second").logprobs
    masses = [np.exp(one.astype(float)).sum(-1) for one in logprobs if not np.isnan(one).any()]
    assert facts["rating_mass"] == pytest.approx(float(np.mean(masses)))
    lengths = [len(text) for i, text in enumerate(rows["output"]) if i != 3]
    assert summary["mean_response_characters"]["all"] == round(sum(lengths) / 10, 1)
    assert len(summary["best"]) == len(summary["worst"]) == 3
