"""Who rates which shard: launchers' variables, and the processes of one machine."""

import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from selectit_hf import SentenceScore, runs
from selectit_hf.errors import RunError, SettingError
from selectit_hf.formats.sources import Source
from selectit_hf.rating import mapping
from selectit_hf.rating.ratings import Ratings
from selectit_hf.runs import Run, rate_shards
from selectit_hf.runs.engines import local, workers
from selectit_hf.runs.engines.launcher_rank import Rank

SOURCE = Source("rows.json", None, "train", "sha256:0")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8, 3)),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}, (2, 4, 0)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (2, 3, 0),
        ),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}, (5, 8, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, (0, 1, 0)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_PROCID": "3",
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_LOCALID": "3",
            },
            (7, 8, 3),
        ),
    ],
)
def test_the_launcher_says_which_part_is_whose(
    environment: dict[str, str], expected: tuple[int, int, int]
) -> None:
    rank = Rank.from_environment(environment)
    assert (rank.rank, rank.world, rank.local_rank) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "8", "WORLD_SIZE": "8"}, "rank 8"),
        ({"RANK": "3"}, "only one is set"),
        ({"WORLD_SIZE": "3", "LOCAL_RANK": "1"}, "only one is set"),
        ({"RANK": "one", "WORLD_SIZE": "8"}, "RANK='one' must be a whole number"),
        ({"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4"}, "of 4 processes"),
    ],
)
def test_an_impossible_launcher_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Rank.from_environment(environment)


# One machine. Workers are forked here, which is quick; once they are spawned.


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict({"instruction": ["Say."] * 11, "output": [f"{i}" for i in range(11)]})


def made_up(
    scorer: SentenceScore, batch: Any, rank: Any = None, progress: Any = None, then: Any = None
) -> Ratings:
    """Ratings made of the row's text, without a model."""
    numbers = np.array([int(text) for text in batch["output"]], dtype=np.float32)
    logprobs = np.empty((len(numbers), 5, 5), dtype=np.float32)
    logprobs[:] = -1 - numbers[:, None, None] / 7 - np.arange(5) / 3
    rater = {"model": "m", "revision": "r", "parameters": 1, "rating_key": scorer.rating_key()}
    if progress is not None:
        progress(2)
    return Ratings(["ok"] * len(numbers), logprobs, rater)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setattr(SentenceScore, "prepare", lambda self: None)
    monkeypatch.setattr(SentenceScore, "rate", made_up)


@pytest.fixture
def run(tmp_path: Path, rows: Dataset, checkpoint: Path) -> tuple[Run, list[SentenceScore]]:
    scorers = [SentenceScore(str(checkpoint), token_budget=64)]
    return runs.plan(rows, SOURCE, scorers, tmp_path / "run", shard_size=4), scorers


def tables(run: Run) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(run.where).rglob("*.parquet")}


def dies_at(row: str, times: int, notes: Path, how: Callable[[], Any]) -> Any:
    """A `rate` that dies at a row so many times, counted in a file."""

    def rate(
        scorer: SentenceScore, batch: Any, rank: Any = None, progress: Any = None, then: Any = None
    ) -> Ratings:
        if row in batch["output"]:
            with notes.open("a") as file:
                file.write(f"{scorer.token_budget}\n")
            if len(notes.read_text().split()) <= times:
                progress(3)
                how()
        return made_up(scorer, batch, rank, progress)

    return rate


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("times", "count", "budgets"),
    [(0, 3, [64]), (1, 2, [64, 64]), (3, 1, [64, 64, 32, 16])],
)
def test_a_killed_worker_is_started_again_with_smaller_batches_if_it_must(
    run: tuple[Run, list[SentenceScore]],
    rows: Dataset,
    forked: None,
    tmp_path: Path,
    times: int,
    count: int,
    budgets: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, scorers = run
    monkeypatch.setattr(SentenceScore, "rate", dies_at("5", times, tmp_path / "n", kill))
    told: list[int] = []
    progress = lambda slug, prompts: told.append(prompts)  # noqa: E731
    local.rate(one, rows, scorers, count, progress=progress)
    assert [int(line) for line in (tmp_path / "n").read_text().split()] == budgets
    assert sum(told) == 11 * 5
    facts = one.shards("random_llama").all_facts()
    assert [said["token_budget"] for said in facts] == [64, budgets[-1], 64]
    assert [said["oom_splits"] for said in facts] == [0, max(0, times - 1), 0]
    logprobs = runs.ratings_of(one, "random_llama").logprobs
    np.testing.assert_array_equal(logprobs, made_up(scorers[0], rows[:]).logprobs)
    assert not multiprocessing.active_children()


def test_workers_that_die_again_and_again_stop_the_run(
    run: tuple[Run, list[SentenceScore]],
    rows: Dataset,
    forked: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, scorers = run
    monkeypatch.setattr(SentenceScore, "rate", dies_at("5", 99, tmp_path / "n", kill))
    with pytest.raises(RunError, match=r"5 workers died \(signal 9\) at the rows 4 to 7"):
        local.rate(one, rows, scorers, 2)
    assert not multiprocessing.active_children()
    monkeypatch.setattr(SentenceScore, "rate", made_up)
    runs.rate(one, rows, scorers)
    assert runs.pending(one) == []


def fail() -> None:
    raise ValueError("odd")


def test_an_error_in_a_worker_stops_the_run_with_its_rows(
    run: tuple[Run, list[SentenceScore]],
    rows: Dataset,
    forked: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, scorers = run
    monkeypatch.setattr(SentenceScore, "rate", dies_at("9", 99, tmp_path / "n", fail))
    with pytest.raises(RuntimeError, match="ValueError: odd") as caught:
        local.rate(one, rows, scorers, 2)
    assert "the rows 8 to 10" in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


def test_spawned_workers_rate_what_one_does(
    run: tuple[Run, list[SentenceScore]], rows: Dataset, tmp_path: Path
) -> None:
    one, scorers = run
    local.rate(one, rows, scorers, 2)
    alone = runs.plan(rows, SOURCE, scorers, tmp_path / "alone", shard_size=4)
    runs.rate(alone, rows, scorers)
    assert tables(one) == tables(alone)
    assert len(tables(one)) == 3


class Pickling:
    """Forks, and gives workers what a pickle leaves of the scorers, as where they are spawned."""

    context = multiprocessing.get_context("fork")
    Pipe = context.Pipe

    def Process(self, target: Any, args: Any) -> Any:
        work, *rest = args
        copied = pickle.loads(pickle.dumps(replace(work, dataset=None)))
        copied = replace(copied, dataset=work.dataset)
        return self.context.Process(target=target, args=(copied, *rest))


def test_workers_that_spread_a_model_see_their_own_gpus(
    run: tuple[Run, list[SentenceScore]],
    rows: Dataset,
    forked: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes = tmp_path / "seen"

    def rate(
        scorer: SentenceScore, batch: Any, rank: Any = None, progress: Any = None, then: Any = None
    ) -> Ratings:
        with notes.open("a") as file:
            seen = os.environ["CUDA_VISIBLE_DEVICES"]
            file.write(f"{seen} {rank} {scorer.place(rank).device_map}\n")
        return made_up(scorer, batch, rank, progress)

    monkeypatch.setattr(workers, "_CONTEXT", Pickling())
    monkeypatch.setattr(SentenceScore, "rate", rate)
    monkeypatch.setattr(mapping, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    one, scorers = run
    local.rate(one, rows, [replace(s, device_map="auto") for s in scorers], 2)
    assert {*notes.read_text().splitlines()} == {"4,5 0 auto", "6,7 0 auto"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


# Status


def test_status_tells_what_is_done_and_what_is_wrong(
    run: tuple[Run, list[SentenceScore]],
    rows: Dataset,
    forked: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, scorers = run
    assert runs.status(one)["models"]["random_llama"] == {
        "shards": 3,
        "done": 0,
        "in_progress": [],
        "bad": [],
        "rows_done": 0,
        "rows_per_second": None,
        "seconds_left": None,
    }
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(rate_shards, "NOTE_EVERY", 0.0)

    def look(slug: str, prompts: int) -> None:
        seen.append(runs.status(one.where)["models"]["random_llama"])

    def rate(
        scorer: SentenceScore, batch: Any, rank: Any = None, progress: Any = None, then: Any = None
    ) -> Ratings:
        progress(5 * 3)
        return made_up(scorer, batch, rank)

    monkeypatch.setattr(SentenceScore, "rate", rate)
    runs.rate_shard(one, "random_llama", 1, rows, scorers[0], progress=look)
    assert (seen[0]["in_progress"], seen[0]["rows_done"]) == ([1], 3)
    assert runs.status(one)["models"]["random_llama"]["in_progress"] == []
    runs.rate(one, rows, scorers)
    runs.finish(one, rows)
    assert runs.status(one) | {"models": {}} == {
        "rows": 11, "models": {}, "finished": True, "wrong": [],
    }  # fmt: skip
    folder = Path(one.where) / "ratings" / "random_llama"
    (folder / "00001.json").unlink()
    next(folder.glob("00000.*.parquet")).write_bytes(b"bad")
    note = {"rows": 2, "at": time.time()}
    (Path(one.where) / "progress").mkdir(exist_ok=True)
    (Path(one.where) / "progress" / "random_llama.00001.json").write_text(json.dumps(note))
    note["at"] = time.time() - 999  # of a worker that was killed
    (Path(one.where) / "progress" / "random_llama.00000.json").write_text(json.dumps(note))
    facts = runs.status(one.where)
    model = facts["models"]["random_llama"]
    assert (model["done"], model["bad"], model["in_progress"]) == (1, [0], [1])
    assert model["rows_done"] == 3 + 2
    assert len(facts["wrong"]) == 2
    assert "the rows 0 to 3, by 'random_llama', differ from what was" in facts["wrong"][0]
    assert "there are results, but not every row is rated" in facts["wrong"][1]
