"""Where local rows and models were: remembered for this user, checked, and never in the run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize("command", ["push", "report", "compare"])
def test_a_selection_apart_names_its_run(
    selectit: Command, rated: Path, command: str, tmp_path: Path
) -> None:
    done = selectit("select", rated, "--proportion", 0.1, "--out", "other")
    assert done.code == 0, done.err
    arguments = {"push": ["user/x"], "report": [], "compare": ["--by", "sentence"]}[command]
    refused = selectit(command, "other", *arguments)
    assert refused.code == 1
    assert f"selectit select {rated} --out {rated} --by" in refused.err
    assert "--proportion 0.1" in refused.err
