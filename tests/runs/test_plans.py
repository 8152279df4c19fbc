"""Plans: what they hold, that anything else is refused by name, and how a run grows."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from selectit_hf import SentenceScore, runs
from selectit_hf.analysis.finished_run import from_run
from selectit_hf.errors import InputError, RunError
from selectit_hf.formats import sources
from selectit_hf.formats.fingerprints import fingerprint
from selectit_hf.formats.sources import Source
from selectit_hf.rating.engine.engine import Engine
from selectit_hf.report.page import write_report
from selectit_hf.runs import plans, segments
from selectit_hf.runs.store import Store
from selectit_hf.selection.selection import Cut

SOURCE = Source("rows.json", None, "train", "sha256:0")
OLD_RUN = Path(__file__).parent.parent / "data" / "run_0_1_0"


def rows_to(count: int) -> Dataset:
    return Dataset.from_dict(
        {
            "instruction": [f"Say {i}." for i in range(count)],
            "output": [f"{i} " * (i % 4 + 1) for i in range(count)],
        }
    )


@pytest.fixture
def scorer(checkpoint: Path) -> SentenceScore:
    return SentenceScore(str(checkpoint), token_budget=512)


@pytest.fixture
def plan(scorer: SentenceScore) -> dict[str, Any]:
    return plans.make_plan(rows_to(11), SOURCE, [scorer], 4, {})


def test_a_plan_holds_all_that_can_change_a_rating(
    plan: dict[str, Any], scorer: SentenceScore, checkpoint: Path
) -> None:
    found = fingerprint(rows_to(11))
    assert plan["input"] == {
        "name": "rows.json",
        "config": None,
        "split": "train",
        "revision": "sha256:0",
        "rows": 11,
        "columns": ["instruction", "output"],
        "fingerprint": found,
    }
    assert plan["segments"] == [{"rows": [0, 11], "fingerprint": found, "shards": [4, 8, 11]}]
    state = scorer.resolved()
    assert plan["rating"]["rating_prompts"] == list(state.rating_prompts)
    assert plan["rating"]["template"] == state.template
    assert plan["models"] == [
        {
            "name": scorer.slug,
            "model": checkpoint.name,
            "revision": scorer.checkpoint.revision,
            "dtype": "float32",
            "rating_key": scorer.rating_key(),
            "prompt_end": [":", "Ġ", "Ċ"],
            "token_budget": 512,
        }
    ]
    assert {"torch", "transformers", "tokenizers", "numpy", "datasets"} <= set(plan["versions"])
    assert str(checkpoint.parent) not in json.dumps(plan)


def test_a_plan_survives_its_file_and_nothing_else_does(
    plan: dict[str, Any], tmp_path: Path
) -> None:
    path, folder = tmp_path / "plan.json", Store(tmp_path)
    path.write_bytes(plans.encoded(plan))
    assert plans.read_plan(folder) == plan
    written = path.read_bytes()
    for old, new in ((b'"rows": 11', b'"rows": 12'), (b'"threads": ', b'"threads": 9')):
        path.write_bytes(written.replace(old, new))
        with pytest.raises(RunError, match="was changed after it was written"):
            plans.read_plan(folder)
    path.write_bytes(plans.encoded(plan | {"models": []}))
    with pytest.raises(RunError, match="what this version reads at 'models'"):
        plans.read_plan(folder)
    for change in ({"chat": True, "chat_template_kwargs": "no JSON"}, {"k": 1}, {"template": ""}):
        path.write_bytes(plans.encoded(plan | {"rating": {**plan["rating"], **change}}))
        with pytest.raises(RunError, match="what this version reads at 'rating'"):
            plans.read_plan(folder)
    path.write_bytes(plans.encoded(plan | {"format": 9}))
    with pytest.raises(RunError, match="has format 9, but this version reads 2 and 3"):
        plans.read_plan(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("models.0.name", "../x"),
        ("models.0.token_budget", True),
        ("models", {}),
        ("rating.k", 5.5),
        ("rating.rating_prompts", "Rate it."),
        ("rating.trust_remote_code", True),
        ("input.rows", 10**18),
        ("input.rows", "11"),
        ("segments.0.rows", [0, 5]),
        ("segments.0.shards", [8, 4, 11]),
        ("segments", []),
        ("versions", {"torch": None}),
        ("threads", 1e999),
    ],
)
def test_a_plan_that_was_forged_is_named_with_its_place(
    plan: dict[str, Any], tmp_path: Path, path: str, value: Any
) -> None:
    """Its hash fits: whoever sends a run folder can make that."""
    forged = copy.deepcopy(plan)
    *outer, last = path.split(".")
    inner: Any = forged
    for key in outer:
        inner = inner[int(key) if key.isdigit() else key]
    inner[last] = value
    (tmp_path / "plan.json").write_bytes(plans.encoded(forged))
    with pytest.raises(RunError, match=r"plan\.json (does not hold|of the run is not a JSON)"):
        plans.read_plan(Store(tmp_path))


@given(data=st.binary(max_size=40) | st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(["format", "models", "plan_sha256"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_nothing_else_is_a_plan(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = Store(tmp_path_factory.getbasetemp() / "no-plan")
    folder.write("plan.json", data)
    with pytest.raises(RunError, match=r"plan\.json"):
        plans.read_plan(folder)


def test_two_models_of_one_name_are_refused(
    make_checkpoint: Callable[..., Path], checkpoint: Path, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / checkpoint.name, seed=3)
    scorers = [SentenceScore(str(checkpoint)), SentenceScore(str(other))]
    with pytest.raises(InputError, match="both called 'random_llama'"):
        plans.make_plan(rows_to(3), SOURCE, scorers, 4, {})
    scorers[1] = replace(scorers[1], name="other")
    assert len(plans.make_plan(rows_to(3), SOURCE, scorers, 4, {})["models"]) == 2


def test_every_key_that_differs_is_named(plan: dict[str, Any]) -> None:
    plans.compare(plan, copy.deepcopy(plan), "run")
    for path in (
        "input.revision", "input.columns.0", "rating.k", "rating.rating_prompts.3",
        "models.0.dtype", "models.0.rating_key", "shard_size", "threads",
    ):  # fmt: skip
        other = copy.deepcopy(plan)
        inner: Any = other
        *parents, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
        for key in parents:
            inner = inner[key]
        inner[last] = "another"
        with pytest.raises(RunError, match="planned differently") as caught:
            plans.compare(plan, other, "run")
        assert f" {path}: " in str(caught.value)
        assert "now 'another'" in str(caught.value)


# Shards


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 1000, 100_000])
@pytest.mark.parametrize(("size", "minute"), [(None, 32), (None, 700), (None, 8192), (7, 0)])
def test_shards_cover_every_row_once_and_begin_small(
    rows: int, size: int | None, minute: int
) -> None:
    cuts = segments.ends(0, rows, size, minute)
    parts = segments.parts([{"rows": [0, rows], "fingerprint": "f", "shards": cuts}])
    assert [row for part in parts for row in part.rows] == list(range(rows))
    sizes = [len(part.rows) for part in parts]
    if size is None:
        assert sizes[0] == min(max(32, minute // 16), rows)
        assert all(a <= b for a, b in pairwise(sizes[:-1]))
        assert max(sizes) <= minute
    else:
        assert set(sizes[:-1]) <= {size}


def test_a_larger_model_has_smaller_shards(
    make_checkpoint: Callable[..., Path], checkpoint: Path, tmp_path: Path
) -> None:
    large = make_checkpoint(tmp_path / "large", hidden_size=512, layers=12)
    small, both = SentenceScore(str(checkpoint)), SentenceScore(str(large))
    assert segments.minute_of_rows([small]) == segments.LARGEST
    assert segments.minute_of_rows([both]) == segments.minute_of_rows([small, both])
    assert segments.minute_of_rows([both]) < segments.LARGEST / 10


# Growth


@pytest.fixture
def rated(tmp_path: Path, scorer: SentenceScore) -> runs.Run:
    run = runs.plan(rows_to(11), SOURCE, [scorer], tmp_path / "run", 4)
    runs.rate(run, rows_to(11), [scorer])
    return run


def tables(run: runs.Run) -> dict[str, bytes]:
    folder = Path(run.where) / "ratings"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.parquet")}


def test_more_rows_at_the_end_are_a_new_segment(rated: runs.Run, scorer: SentenceScore) -> None:
    before = tables(rated)
    runs.finish(rated, rows_to(11), cut=Cut(n=3))
    longer = replace(SOURCE, name="more.json", revision="sha256:1")
    run = runs.plan(rows_to(18), longer, [scorer], rated.where)
    assert [one["rows"] for one in run.plan["segments"]] == [[0, 11], [11, 18]]
    assert run.plan["segments"][0] == rated.plan["segments"][0]
    assert run.plan["input"]["name"] == "more.json"
    assert runs.pending(run) == [(scorer.slug, 3), (scorer.slug, 4)]
    with pytest.raises(RunError, match="the rows 11 to 14, the rows 15 to 17 are not rated"):
        runs.finish(run, rows_to(18))
    runs.rate(run, rows_to(18), [scorer])
    assert tables(run).items() > before.items()
    found = runs.finish(run, rows_to(18), cut=Cut(n=3))
    anew = runs.plan(rows_to(18), longer, [scorer], Path(rated.where).with_name("anew"), 4)
    runs.rate(anew, rows_to(18), [scorer])
    assert found["best"] == runs.finish(anew, rows_to(18), cut=Cut(n=3))["best"]
    again = runs.plan(rows_to(18), longer, [scorer], rated.where)
    assert again.plan == run.plan
    again.check_rows(rows_to(18))
    with pytest.raises(RunError, match=r"input\.rows: 18, now 11"):
        runs.plan(rows_to(11), SOURCE, [scorer], rated.where)


def test_rows_that_changed_are_no_growth(rated: runs.Run, scorer: SentenceScore) -> None:
    edited = rows_to(18).to_list()
    edited[2]["output"] = "edited"
    with pytest.raises(RunError, match=r"planned differently.*input\.rows: 11, now 18"):
        runs.plan(Dataset.from_list(edited), SOURCE, [scorer], rated.where)


def test_one_more_model_is_rated_alone(
    rated: runs.Run,
    scorer: SentenceScore,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    before = tables(rated)
    other = SentenceScore(str(make_checkpoint(tmp_path / "other", seed=5)))
    run = runs.plan(rows_to(11), SOURCE, [scorer, other], rated.where)
    assert runs.pending(run) == [("other", number) for number in range(3)]
    assert run.plan["models"][0] == rated.plan["models"][0]
    runs.rate(run, rows_to(11), [scorer, other])
    assert tables(run).items() > before.items()
    assert runs.finish(run, rows_to(11))["by"] == "model_score"
    for models in ([scorer], [other], [other, scorer]):
        with pytest.raises(RunError, match=r"models\.\d\.model: "):
            runs.plan(rows_to(11), SOURCE, models, rated.where)


def test_a_plan_of_which_nothing_is_rated_is_replaced(
    tmp_path: Path, scorer: SentenceScore
) -> None:
    runs.plan(rows_to(11), SOURCE, [scorer], tmp_path, 4)
    other = runs.plan(rows_to(5), SOURCE, [replace(scorer, max_length=150)], tmp_path, 3)
    assert runs.open_run(tmp_path).plan == other.plan
    assert (other.rows, other.plan["shard_size"]) == (5, 3)
    ratings = tmp_path / "ratings" / scorer.slug
    ratings.mkdir(parents=True)
    (ratings / ".killed.partial").write_bytes(b"")
    last = runs.plan(rows_to(5), SOURCE, [scorer], tmp_path, 2)
    assert [part.rows.stop for part in last.parts] == [2, 4, 5]


def test_a_run_is_resumed_offline(rated: runs.Run, scorer: SentenceScore, tmp_path: Path) -> None:
    plan = json.loads((Path(rated.where) / "plan.json").read_text())
    del plan["plan_sha256"]
    offline = {**plan, "offline": [scorer.slug]}
    assert not plans.differ(plan, offline)
    assert not plans.differ(offline, plan)
    assert plans.differ(plan, {**offline, "threads": 99})


def test_other_rows_are_not_rated(rated: runs.Run, scorer: SentenceScore) -> None:
    (Path(rated.where) / "ratings" / scorer.slug / "00001.json").unlink()
    run = runs.open_run(rated.where)
    shuffled = rows_to(11).shuffle(seed=1)
    with pytest.raises(RunError, match="These 11 rows are not those"):
        runs.rate_shard(run, scorer.slug, 1, shuffled, scorer)
    assert runs.rate_shard(run, scorer.slug, 1, rows_to(11), scorer)


# What rated


def test_other_versions_or_hardware_are_not_mixed_in(
    rated: runs.Run, scorer: SentenceScore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_with = rated.shards(scorer.slug).any_facts()["made_with"]  # type: ignore[index]
    assert {"device", "torch", "transformers"} <= made_with.keys()
    (Path(rated.where) / "ratings" / scorer.slug / "00001.json").unlink()
    other = made_with | {"torch": "9.9"}
    monkeypatch.setattr("selectit_hf.rating.models.hardware.made_with", lambda device: other)
    run = runs.open_run(rated.where)
    with pytest.raises(RunError, match=r"torch: .* and 9\.9\).*--allow-mixed"):
        runs.rate(run, rows_to(11), [scorer])
    runs.rate(run, rows_to(11), [scorer], allow_mixed=True)
    assert runs.pending(run) == []
    with pytest.raises(RunError, match=r"several versions.*9\.9"):
        runs.finish(run, rows_to(11))
    found = runs.finish(run, rows_to(11), allow_mixed=True)
    assert found["models"][scorer.slug]["made_with"] == [made_with, other]


# From nothing but the run


def test_inputs_opens_rows_and_scorers_again(
    tmp_path: Path,
    checkpoint: Path,
    make_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)  # nothing is remembered
    data = tmp_path / "rows.jsonl"
    rows_to(11).to_json(data)
    rows, source = sources.load(str(data))
    scorers = [SentenceScore("tiny-rater"), SentenceScore(str(checkpoint), max_length=300)]
    scorers[0] = replace(scorers[0], max_length=300)
    run = runs.open_run(runs.plan(rows, source, scorers, tmp_path / "run", 4).where)
    found, again = runs.inputs(run, str(data), models=[str(checkpoint)])
    assert found.to_list() == rows.to_list()
    assert [one.rating_key() for one in again] == [one.rating_key() for one in scorers]
    assert list(runs.prepare(run, again)) == ["tiny_rater", "random_llama"]
    with pytest.raises(RunError, match=r"'random-llama' was a folder.*--model"):
        runs.inputs(run, str(data))
    other = make_checkpoint(tmp_path / "random-llama", seed=9)
    with pytest.raises(RunError, match="It must still hold sha256:"):
        runs.inputs(run, str(data), models=[str(other)])
    with pytest.raises(RunError, match="--data"):
        runs.inputs(run, models=[str(checkpoint)])
    data.write_text(data.read_text() + '{"instruction": "x", "output": "y"}\n')
    with pytest.raises(RunError, match="has changed since it was rated"):
        runs.inputs(run, str(data), models=[str(checkpoint)])


# Runs of 0.1.0


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUN, tmp_path / "old"))


@pytest.fixture
def old_rows(tmp_path: Path) -> Dataset:
    sample = files("selectit_hf").joinpath("data", "sample.jsonl").read_text("utf-8")
    data = tmp_path / "sample60.jsonl"
    data.write_text("".join(sample.splitlines(keepends=True)[:60]))
    return runs.rows_of(runs.open_run(OLD_RUN), str(data))


def test_a_run_of_0_1_0_is_selected_from_reported_and_pushed(
    old_run: Path, old_rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "next_token_logprobs", None)
    run = runs.open_run(old_run)
    run.check_rows(old_rows)
    assert runs.pending(run) == []
    status = runs.status(run)
    assert (status["finished"], status["wrong"]) == (True, [])
    assert status["models"]["tiny_rater"]["done"] == 3
    assert from_run(old_run).by == "sentence_score__tiny_rater"  # what a push publishes
    assert Path(write_report(old_run, old_rows)).stat().st_size > 100_000
    before = {name: pq.read_table(old_run / name) for name in runs.RESULTS[:2]}
    runs.finish(run, old_rows)
    for name, table in before.items():
        again = pq.read_table(old_run / name)
        (rater,) = (column for column in table.column_names if column.startswith("rater__"))
        assert again.drop([rater]).equals(table.drop([rater]))
        # Runs of 0.1.0 do not know which text their ratings belong to.
        told = [{**one, "pair": None} for one in table[rater].to_pylist()]
        assert again[rater].to_pylist() == told
    assert runs.finish(run, old_rows, cut=Cut(n=7), out=tmp_path / "out")["selected"] == 7
    (old_run / "ratings" / "tiny_rater" / "00001.parquet").write_bytes(b"bad")
    with pytest.raises(RunError, match="the rows 24 to 47 are not rated"):
        runs.finish(runs.open_run(old_run), old_rows)
