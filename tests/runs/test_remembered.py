"""Where local rows and models were: remembered for this user, checked, and never in the run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi

Command = Callable[..., Any]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def rated(selectit: Command, data: Path, checkpoint: Path, state: Path, tmp_path: Path) -> Path:
    """A run over a local file by a model in a folder, both named from where the command ran."""
    shutil.copytree(checkpoint, tmp_path / "model")
    done = selectit("run", data.name, "--model", "./model", "--k", 2, "--out", "run")
    assert done.code == 0, done.err
    return tmp_path / "run"


def test_a_run_needs_no_data_and_no_model_again(
    selectit: Command, rated: Path, state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (kept,) = (state / "selectit" / "runs").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text())["data"] == str(tmp_path / "rows.json")
    done = selectit("select", rated, "--by", "length", "--out", "long")
    assert done.code == 0, done.err
    done = selectit("compare", rated, "--by", "length", "--by", "sentence")
    assert done.code == 0, done.err
    for path in rated.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path

    (tmp_path / "rows.json").unlink()
    gone = selectit("select", rated, "--out", "again")
    assert (gone.code, "give it again with --data" in gone.err) == (1, True)


def test_a_changed_file_or_model_is_not_used(
    selectit: Command, rated: Path, tmp_path: Path
) -> None:
    rows = json.loads((tmp_path / "rows.json").read_text())
    (tmp_path / "rows.json").write_text(json.dumps([{**rows[0], "output": "x"}, *rows[1:]]))
    changed = selectit("select", rated, "--out", "again")
    assert changed.code == 1
    assert "has changed since it was rated" in changed.err
    assert "with --data" in changed.err
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text() + "\n")
    refused = selectit("select", rated, "--by", "length", "--out", "again")
    assert (refused.code, "give it again" in refused.err) == (1, True)
    config.write_text(config.read_text().removesuffix("\n"))
    assert selectit("select", rated, "--by", "length", "--out", "again").code == 0


def test_given_by_hand_overrides_and_is_remembered(
    selectit: Command, rated: Path, tmp_path: Path
) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "rows.json").rename(tmp_path / "moved" / "rows.json")
    assert selectit("select", rated, "--out", "again").code == 1
    assert selectit("select", rated, "--out", "again", "--data", "moved/rows.json").code == 0
    assert selectit("select", rated, "--out", "again").code == 0


def test_a_state_folder_that_cannot_be_written_is_no_error(
    selectit: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    done = selectit("run", data, "--model", "tiny-rater", "--k", 2, "--out", "run")
    assert done.code == 0, done.err
    assert "give it again with --data" in selectit("select", "run", "--out", "again").err


@pytest.fixture
def apart(selectit: Command, rated: Path, tmp_path: Path) -> Path:
    """A selection of half the rows, beside a run whose own keeps fewer."""
    done = selectit("select", rated, "--proportion", 0.5, "--out", "other")
    assert done.code == 0, done.err
    return tmp_path / "other"


def test_a_selection_apart_is_exported_reported_and_compared(
    selectit: Command, rated: Path, apart: Path, tmp_path: Path
) -> None:
    kept = pq.read_table(apart / "selected.parquet")
    assert len(kept) > len(pq.read_table(rated / "selected.parquet"))
    done = selectit("export", apart, "--format", "alpaca", "--out", "kept.jsonl")
    assert done.code == 0, done.err
    lines = (tmp_path / "kept.jsonl").read_text().splitlines()
    assert [json.loads(line)["output"] for line in lines] == kept["output"].to_pylist()
    done = selectit("report", apart)
    assert done.code == 0, done.err
    assert "--proportion 0.5" in (apart / "report" / "report.html").read_text()
    assert not (rated / "report").exists()
    done = selectit("compare", apart, "--by", "sentence")
    assert done.code == 0, done.err
    done = selectit("select", apart, "--n", 2, "--out", "two")
    assert done.code == 0, done.err
    assert len(pq.read_table(tmp_path / "two" / "selected.parquet")) == 2


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_selection_apart_is_pushed_with_its_own_rows(
    selectit: Command, apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer() as server:
        client = HfApi(endpoint=server.url, token=TOKEN)
        monkeypatch.setattr("selectit_hf.hub.publishing._client", lambda: client)
        done = selectit("push", apart, "user/x", "--yes")
        assert done.code == 0, done.err
        files = server.repo("dataset", "user/x").files()
    pushed = pq.read_table(pa.BufferReader(files["data/train-00000-of-00001.parquet"]))
    assert pushed["output"] == pq.read_table(apart / "selected.parquet")["output"]
    assert "proportion: 0.5" in files["recipe.yaml"].decode()


@pytest.mark.parametrize("name", ["selected.parquet", "scores.parquet", "summary.json"])
def test_a_changed_file_of_a_selection_apart_is_refused(
    selectit: Command, apart: Path, name: str
) -> None:
    (apart / name).write_bytes((apart / name).read_bytes() + b" ")
    refused = selectit("export", apart, "--format", "alpaca", "--out", "kept.jsonl")
    assert (refused.code, f"{name} was changed" in refused.err) == (1, True)


def test_a_selection_of_other_ratings_is_refused(
    selectit: Command, rated: Path, apart: Path, tmp_path: Path
) -> None:
    shutil.rmtree(rated)
    gone = selectit("push", apart, "user/x")
    assert gone.code == 1
    assert f"no longer at {rated}" in gone.err
    assert "selectit select RUN --out RUN --by sentence_score__model --proportion 0.5" in gone.err
    again = ["--model", "./model", "--k", 3, "--out", "run"]
    assert selectit("run", "rows.json", *again).code == 0
    other = selectit("push", apart, "user/x")
    assert (other.code, "do not belong together" in other.err) == (1, True)


def test_a_selection_that_is_not_remembered_names_the_command(
    selectit: Command, apart: Path, state: Path
) -> None:
    shutil.rmtree(state)
    for command in (
        ["push", apart, "user/x"],
        ["report", apart],
        ["compare", apart, "--by", "ifd"],
    ):
        refused = selectit(*command)
        assert refused.code == 1
        assert "not known on this machine" in refused.err
        assert "--proportion 0.5" in refused.err


def test_ratings_are_not_finished_through_a_selection(
    selectit: Command, rated: Path, apart: Path
) -> None:
    refused = selectit("finish", apart)
    assert (refused.code, f"give the run itself, {rated}" in refused.err) == (1, True)
    refused = selectit("run", "rows.json", "--model", "./model", "--out", apart)
    assert (refused.code, "holds a selection" in refused.err) == (1, True)
