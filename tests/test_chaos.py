"""Kills at every point of the protocol, and drivers that meet: always the bytes of a run alone."""

import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chaos
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from selectit_hf import claims, storage
from selectit_hf.status import status
from selectit_hf.workers import Worker

SHARDS = len(chaos.MODELS) * -(-chaos.ROWS // chaos.SHARD_SIZE)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=chaos.in_memory()) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return chaos.make_rows()


@pytest.fixture(scope="module")
def alone(rows: Dataset) -> Iterator[Path]:
    """A run that was left alone."""
    with tempfile.TemporaryDirectory(dir=chaos.in_memory()) as name:
        chaos.leave_alone(Path(name) / "run", rows)
        yield Path(name) / "run"


def start(folder: Path, rows: Dataset, kill: chaos.Kill | None = None, serial: int = 0) -> Any:
    given = (folder, folder.with_suffix(".log"), rows, serial, Worker(), kill or chaos.Kill(), "")
    process = chaos.FORK.Process(target=chaos.serve, args=given)
    process.start()
    return process


def ends(process: Any) -> int:
    process.join(chaos.TOO_LONG)
    return process.exitcode


# Kills


def test_forty_kills_lose_nothing(folder: Path) -> None:
    found = chaos.chaos(folder, 40)
    assert found["violations"] == []
    assert found["kills"] >= 40
    assert set(found["at"]) == {*storage.POINTS, chaos.INSTANT}
    assert set(found["workers"]) == {1, 2}
    assert found["shards_rated"] > found["shards_lost"] > 0
    assert not any(path.name.startswith("run-") for path in folder.iterdir() if path.is_dir())


def test_kills_of_machines_that_meet_in_storage_lose_nothing(folder: Path) -> None:
    found = chaos.chaos(folder, 25, mirrored=True)
    assert found["violations"] == []
    assert found["kills"] >= 25
    assert set(found["workers"]) == {1, 2}


@pytest.mark.parametrize("mutant", chaos.MUTANTS)
def test_a_broken_protocol_is_caught_by_the_same_loop(
    mutant: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked = ["chaos.py", "--mutant", mutant, "--kills", "40", "--folder", str(folder)]
    monkeypatch.setattr(sys, "argv", asked)
    assert chaos.main() == 1
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["violations"]
    assert found["kills"] <= 40


@pytest.mark.parametrize("mutant", ["", *chaos.MUTANTS])
def test_without_a_kill_no_protocol_is_caught(mutant: str, folder: Path, rows: Dataset) -> None:
    alone = chaos.leave_alone(folder / "alone", rows)
    struck = struck_in(folder / "run", rows)
    struck.alone, struck.mutant = alone, mutant
    struck.through()
    assert struck.seen.violations == []


def test_the_run_left_alone_is_right(alone: Path, rows: Dataset) -> None:
    """What all others are compared with, row by row, by the formulas in plain Python."""
    scores = pq.read_table(alone / "scores.parquet").to_pylist()
    assert [row["row"] for row in scores] == list(range(chaos.ROWS))
    for row, score in zip(rows, scores, strict=True):
        expected = None
        if row["output"]:
            pair = chaos.Pair(row["instruction"], row["output"])
            by_model = [model_score(chaos.made_up(model, pair).tolist()) for model in chaos.MODELS]
            expected = (by_model[0] * 1 + by_model[1] * 2) / 3
        assert score["model_score"] == pytest.approx(expected, abs=1e-5)
    order = [row for row in scores if row["model_score"] is not None]
    order.sort(key=lambda row: (-row["model_score"], row["row"]))
    kept = sorted(row["row"] for row in order[: int(chaos.ROWS * 0.4)])
    assert pq.read_table(alone / "selected.parquet")["note"].to_pylist() == kept


def model_score(logprobs: list[list[float]]) -> float:
    tokens = []
    for prompt in logprobs:
        shares = [math.exp(value) for value in prompt]
        shares = [share / sum(shares) for share in shares]
        best = shares.index(max(shares))
        spread = sum(abs(share - shares[best]) for share in shares) / (chaos.K - 1)
        tokens.append((best + 1) * spread)
    mean = sum(tokens) / chaos.K
    return mean / (1 + 0.2 * math.sqrt(sum((one - mean) ** 2 for one in tokens) / chaos.K))


def test_work_that_is_lost_is_told_from_work_that_is_not(
    folder: Path, rows: Dataset, alone: Path
) -> None:
    struck = struck_in(folder / "run", rows)
    for words in ("1 small/00000", "1 small/00001", "2 small/00001", "2 small/00002",
                  "flipped small/00000", "3 small/00000", "3 large/00002"):  # fmt: skip
        chaos.note(struck.log, words)
    assert struck._lost() == {1: 1}
    assert (struck.seen.rated, struck.seen.lost) == (6, 1)
    chaos.note(struck.log, "4 large/00002")
    struck.killed = {1}
    struck.alone = chaos.Alone({}, 0)
    struck._look()
    assert struck.seen.violations == ["run, 1 workers: 1 shards of worker 3 were rated again"]


def struck_in(folder: Path, rows: Dataset) -> chaos.Struck:
    nothing = chaos.Alone({}, 0)
    return chaos.Struck(folder, rows, 1, 0, "", nothing, chaos.random.Random(0), chaos.Seen())


# Two drivers


def rated(folder: Path) -> list[str]:
    lines = folder.with_suffix(".log").read_text().splitlines()
    return [line.split()[1] for line in lines]


def test_a_second_driver_joins(folder: Path, rows: Dataset, alone: Path) -> None:
    drivers = [start(folder / "run", rows, serial=serial) for serial in range(2)]
    assert [ends(driver) for driver in drivers] == [0, 0]
    assert chaos.contents(folder / "run") == chaos.contents(alone)
    assert len(rated(folder / "run")) == len(set(rated(folder / "run"))) == SHARDS


@pytest.mark.parametrize("arrival", [3, SHARDS + 1])
def test_the_lock_of_a_dead_driver_is_taken_over(
    folder: Path, rows: Dataset, alone: Path, arrival: int
) -> None:
    """The last claim but the shards' is that of the results."""
    dies = start(folder / "run", rows, chaos.Kill("claim taken", arrival))
    assert ends(dies) == -signal.SIGKILL
    left = [path.name for path in (folder / "run").rglob("*.claim")]
    assert left == ["results.claim" if arrival > SHARDS else "00002.claim"]
    assert ends(start(folder / "run", rows)) == 0  # long before a claim is stale
    assert chaos.contents(folder / "run") == chaos.contents(alone)
    assert not list((folder / "run").rglob("*.claim"))
    assert len(rated(folder / "run")) == SHARDS


@pytest.mark.parametrize("point", ["claim taken", "shard rated", "partial synced", "file renamed"])
def test_a_driver_that_sleeps_and_wakes_up_does_no_harm(
    folder: Path, rows: Dataset, alone: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim grows stale while it is stopped; another takes over; then it goes on."""
    sleeper = start(folder / "run", rows, chaos.Kill(point, 3, how=signal.SIGSTOP))
    assert os.WIFSTOPPED(os.waitpid(sleeper.pid, os.WUNTRACED)[1])
    (claim,) = (folder / "run").rglob("*.claim")
    assert status(folder / "run")["models"]["small"]["in_progress"] == [int(claim.stem)]
    os.utime(claim, (0, 0))
    assert not claims.is_live(claim)
    assert ends(start(folder / "run", rows)) == 0
    whole = {path: path.read_bytes() for path in (folder / "run").rglob("*.parquet")}
    os.kill(sleeper.pid, signal.SIGCONT)
    assert ends(sleeper) == 0
    assert chaos.contents(folder / "run") == chaos.contents(alone)
    assert {path: path.read_bytes() for path in whole} == whole
