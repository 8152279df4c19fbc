"""Compare, report and other selectors from the command, on a run made by it."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import ROWS, Outcome
from datasets import Dataset
from transformers import AutoTokenizer

from selectit_hf import SentenceScore, runs
from selectit_hf.analysis.choices import Reader, rank_by
from selectit_hf.cli import flag_groups
from selectit_hf.errors import SettingError
from selectit_hf.formats.sources import Source
from selectit_hf.rating import rater, scorer_settings
from selectit_hf.rating.engine.engine import Engine
from selectit_hf.rating.models import loading
from selectit_hf.rating.models.checkpoints import Checkpoint
from selectit_hf.rating.reflection import Reflection
from selectit_hf.selection.selection import Cut
from selectit_hf.selectors.baselines import Length

COUNT = 6


@pytest.fixture
def run(selectit: Callable[..., Outcome], data: Path, checkpoint: Path) -> Path:
    done = selectit("run", data, "--model", checkpoint, "--out", "run")
    assert done.code == 0, done.err
    return Path("run")


def longest(checkpoint: Path) -> list[int]:
    """The rows with the longest responses, in tokens, earlier ones first; by hand."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    lengths = [len(tokenizer(row["output"], add_special_tokens=False).input_ids) for row in ROWS]
    return sorted(range(len(ROWS)), key=lambda i: (-lengths[i], i))[:COUNT]


def test_select_by_another_selector(
    run: Path,
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
) -> None:
    flags = ("--data", data, "--by", "length", "--model", checkpoint, "--out", "long")
    done = selectit("select", run, *flags)
    assert done.code == 0, done.err
    kept = pq.read_table("long/selected.parquet")["instruction"].to_pylist()
    assert kept == [ROWS[i]["instruction"] for i in sorted(longest(checkpoint))]
    assert "by score__length" in done.out


def test_run_by_another_selector(
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
) -> None:
    done = selectit("run", data, "--model", checkpoint, "--out", "run", "--by", "length")
    assert done.code == 0, done.err
    kept = pq.read_table("run/selected.parquet")["instruction"].to_pylist()
    assert kept == [ROWS[i]["instruction"] for i in sorted(longest(checkpoint))]


@pytest.mark.parametrize("by", ["ifd", "perplexity"])
@pytest.mark.parametrize(("flag", "value"), [("--device", "cpu"), ("--device-map", "auto")])
@pytest.mark.parametrize("command", ["run", "select", "compare"])
def test_what_reads_responses_runs_where_it_is_told(
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
    command: str,
    by: str,
    flag: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[tuple[Any, ...]] = []
    load = loading.load_model
    given = {
        "run": (data, "--out", "run"),
        "select": ("run", "--data", data, "--out", "other"),
        "compare": ("run", "--data", data),
    }
    model = ("--model", checkpoint)
    if command != "run":
        assert selectit("run", *given["run"], *model).code == 0
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: loaded.append(a) or load(*a, **k))
    monkeypatch.setattr(rater._ENGINE, "_held", None)
    if flag == "--device":
        monkeypatch.setenv("SELECTIT_DEVICE", "cuda:7")  # which is not there
    done = selectit(command, *given[command], *model, "--by", by, flag, value)
    assert done.code == 0, done.err
    assert [place[2:] for place in loaded] == [("cpu", value if flag == "--device-map" else None)]


def test_a_scheduler_that_stops_a_comparison_is_heeded(
    selectit: Callable[..., Outcome], data: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert selectit("run", data, "--model", checkpoint, "--out", "run").code == 0
    held: list[int] = []

    def stopped(self: Length, *given: Any, **named: Any) -> None:
        held.append(1)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Length, "measure", stopped)
    compare = ("compare", "run", "--data", data, "--model", checkpoint, "--by", "length")
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert selectit(*compare).code == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert held == [1]


def test_a_revision_without_a_model_is_refused() -> None:
    with pytest.raises(SettingError, match="names no model"):
        flag_groups.reader("@v1")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, (None, None)),
        ("user/model", ("user/model", None)),
        ("user/model@v1", ("user/model", "v1")),
        ("folder@home", ("folder@home", None)),
    ],
)
def test_a_models_revision_stands_behind_its_name(
    name: str | None,
    expected: tuple[str | None, str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder@home").mkdir()
    read = flag_groups.reader(name)
    assert (read.model, read.revision) == expected
    (rated,) = flag_groups.scorers(None if name is None else [name])
    assert (rated.model, rated.revision) == expected


@pytest.mark.parametrize("by", ["ifd", "perplexity", "length"])
def test_what_reads_responses_is_the_model_that_rated(
    tmp_path: Path, checkpoint: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hub model at the commit that the scorer's branch was at."""
    asked: list[tuple[Any, ...]] = []

    def found(name: str, revision: str | None, base: str | None = None) -> Checkpoint:
        asked.append((name, revision))
        return Checkpoint("user/model", str(checkpoint), "c0ffee")

    monkeypatch.setattr(scorer_settings, "resolve", found)
    monkeypatch.setattr(Checkpoint, "folder", lambda *_, **__: str(checkpoint))
    rows = Dataset.from_list(ROWS)
    scorer = SentenceScore("user/model", revision="branch", k=2)
    source = Source("rows", None, "train", "sha256:0")
    run = runs.plan(rows, source, [scorer], tmp_path / "run")
    runs.rate(run, rows, [scorer])
    asked.clear()
    rank_by(run, rows, Reflection(by=by), Cut(), Reader.of(scorer))
    assert set(asked) == {("user/model", "c0ffee")}


def test_every_group_keeps_its_share(
    selectit: Callable[..., Outcome], tmp_path: Path, checkpoint: Path
) -> None:
    rows = [{**row, "topic": "abb"[i % 3], "stars": i % 7} for i, row in enumerate(ROWS)]
    path = tmp_path / "topics.json"
    path.write_text(json.dumps(rows))
    done = selectit("run", path, "--model", checkpoint, "--out", "run", "--per", "topic")
    assert done.code == 0, done.err
    scores = pq.read_table("run/scores.parquet")["sentence_score__random_llama"].to_pylist()
    best: set[str] = set()
    for topic, count in (("a", 2), ("b", 4)):  # a fifth of 10 and of 20
        group = [i for i, row in enumerate(rows) if row["topic"] == topic]
        group.sort(key=lambda i: (-scores[i], i))
        best |= {rows[i]["instruction"] for i in group[:count]}
    kept = pq.read_table("run/selected.parquet")["instruction"].to_pylist()
    assert set(kept) == best
    done = selectit(
        "select", "run", "--data", path, "--per", "topic", "--by", "stars", "--out", "by-stars"
    )
    assert done.code == 0, done.err
    assert set(pq.read_table("by-stars/selected.parquet")["stars"].to_pylist()) <= {5, 6}


def test_compare_asks_no_model_twice(
    run: Path,
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("sentence", "expected", "ifd", "perplexity", "length", "random")
    flags = [flag for name in names for flag in ("--by", name)]
    ask = ("compare", run, "--data", data, "--model", checkpoint, *flags)
    first = selectit(*ask, "--json")
    assert first.code == 0, first.err
    found = json.loads(first.out)
    assert [one["name"] for one in found["selectors"]] == list(names)
    by_name = {one["name"]: one for one in found["selectors"]}
    assert by_name["ifd"]["paid"]["sequences"] == 2 * len(ROWS)
    assert by_name["perplexity"]["paid"]["sequences"] == 0
    sentence = set(pq.read_table("run/selected.parquet")["instruction"].to_pylist())
    long = {ROWS[i]["instruction"] for i in longest(checkpoint)}
    at = names.index("sentence"), names.index("length")
    assert found["jaccard"][at[0]][at[1]] == len(sentence & long) / len(sentence | long)

    def never(*arguments: object) -> None:
        raise AssertionError("a model was asked again")

    monkeypatch.setattr(Engine, "next_token_logprobs", never)
    monkeypatch.setattr(Engine, "span_logprobs", never)
    again = selectit(*ask)
    assert again.code == 0, again.err
    for word in (*names, "all rows", "rank correlation"):
        assert word in again.out


def test_a_judge_is_paid_only_when_told(
    run: Path,
    selectit: Callable[..., Outcome],
    data: Path,
) -> None:
    url = ("--judge-model", "m", "--judge-url", "http://127.0.0.1:9/v1", "--judge-prices", "1,2")
    done = selectit("compare", run, "--data", data, "--by", "judge", *url)
    assert done.code == 1
    assert "asked 30 times" in done.err
    assert "in the unit of the prices" in done.err
    assert "--yes" in done.err


def test_an_unknown_selector_is_named(
    run: Path,
    selectit: Callable[..., Outcome],
    data: Path,
) -> None:
    done = selectit("compare", run, "--data", data, "--by", "stars")
    assert done.code == 1
    assert "'stars' is neither a selector nor a column" in done.err


def test_the_report_holds_the_ablations(
    run: Path,
    selectit: Callable[..., Outcome],
    data: Path,
) -> None:
    done = selectit("report", run, "--data", data)
    assert done.code == 0, done.err
    page = Path("run/report/report.html").read_text("utf-8")
    assert "Ablations" in page
    assert (Path("run/report/images") / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_a_local_run_needs_its_file_again(
    run: Path,
    selectit: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)  # nothing is remembered
    done = selectit("report", run)
    assert done.code == 1
    assert "--data" in done.err
