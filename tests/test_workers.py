"""Many workers on one folder: claims, order, takeover, deaths; the same bytes from all of them."""

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
import pyarrow as pa
import pytest
from datasets import Dataset

from selectit_hf import SentenceScore, claims, finishing, mapping, storage, supervisor, workers
from selectit_hf.errors import ModelError, RunError, SettingError
from selectit_hf.finishing import RESULTS, Reflection
from selectit_hf.ratings import Ratings
from selectit_hf.runs import Run
from selectit_hf.selection import Cut
from selectit_hf.shards import Shards
from selectit_hf.sources import Source
from selectit_hf.status import status
from selectit_hf.workers import Job, Worker, work

ROWS, SIZE = 41, 4
SOURCE = Source("rows.json", None, "train", "sha256:0")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (workers, claims):
        monkeypatch.setattr(module, "POLL", 0.01)
    monkeypatch.setattr(supervisor, "LOOK", 0.05)


def job_in(folder: Path, make: Any = None, name: str = "slug") -> Job:
    shards = Shards(folder / name, ROWS, SIZE, "key")

    def values(number: int, halvings: int) -> tuple[pa.Table, dict[str, Any]]:
        rows = shards.rows_of(number)
        return pa.table({"row": list(rows), "value": np.sqrt(list(rows))}), {"halvings": halvings}

    def made(number: int, halvings: int) -> tuple[pa.Table, dict[str, Any]]:
        if make is not None:
            make(number)
        return values(number, halvings)

    return Job(name, shards, made)


def tables(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.parquet")
        if not path.name.startswith(".bad-")
    }


def in_child(do: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            do()
            code = 0
        finally:
            os._exit(code)
    return child


def ends_well(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("straight")
    work([job_in(folder)])
    return tables(folder)


# Who a worker is


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8, 3)),
        ({"RANK": "3"}, (0, 1, 0)),
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
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, (5, 8, 1)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_PROCID": "3",
                "SLURM_NTASKS": "4",
                "SLURM_LOCALID": "3",
            },
            (7, 8, 3),
        ),
    ],
)
def test_the_launcher_says_who_a_worker_is(
    environment: dict[str, str], expected: tuple[int, int, int]
) -> None:
    worker = Worker.from_environment(environment)
    assert (worker.rank, worker.world, worker.local_rank) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "8", "WORLD_SIZE": "8"}, "rank 8"),
        ({"RANK": "one", "WORLD_SIZE": "8"}, "RANK='one' must be a whole number"),
        ({"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4"}, "of 4 workers"),
    ],
)
def test_an_impossible_launcher_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Worker.from_environment(environment)


@pytest.mark.parametrize("world", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("count", [1, 2, 11])
def test_every_worker_would_do_all_and_its_own_first(world: int, count: int) -> None:
    for rank in range(world):
        worker = Worker(rank, world)
        order = list(worker.order(count))
        own = list(range(rank, count, world))
        assert sorted(order) == list(range(count))
        assert order[: len(own)] == own
        assert [number for number in range(count) if worker.owns(number)] == own


# Many of them


@pytest.mark.parametrize("counts", [(1,), (3,), (1, 3, 2)])
def test_any_number_of_workers_ends_in_the_same_bytes(
    tmp_path: Path, counts: tuple[int, ...], straight: dict[str, bytes]
) -> None:
    for turn, count in enumerate(counts):
        last = turn == len(counts) - 1

        def some(rank: int, count: int = count, last: bool = last) -> None:
            made = 0

            def stop(number: int) -> None:
                nonlocal made
                made += 1
                if made > 2 and not last:
                    raise KeyboardInterrupt

            work([job_in(tmp_path, stop)], Worker(rank, count))

        children = [in_child(lambda rank=rank: some(rank)) for rank in range(count)]  # type: ignore[misc]
        assert [ends_well(child) for child in children] == [last] * count
    assert tables(tmp_path) == straight
    assert not list(tmp_path.rglob("*.claim"))


def test_each_shard_is_made_once(tmp_path: Path, straight: dict[str, bytes]) -> None:
    def slowly(number: int) -> None:
        with (tmp_path / "log").open("a") as log:
            log.write(f"{number}\n")
        time.sleep(0.02)

    children = [
        in_child(lambda rank=rank: work([job_in(tmp_path, slowly)], Worker(rank, 2)))  # type: ignore[misc]
        for rank in (0, 1, 1, 0)  # a second driver has the same ranks
    ]
    assert all(map(ends_well, children))
    made = sorted(map(int, (tmp_path / "log").read_text().split()))
    assert made == list(range(11))
    assert tables(tmp_path) == straight


def test_a_killed_worker_loses_its_shard_only(tmp_path: Path, straight: dict[str, bytes]) -> None:
    def die(number: int) -> None:
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    child = in_child(lambda: work([job_in(tmp_path, die)], Worker(0, 2)))
    assert not ends_well(child)
    assert len(tables(tmp_path)) == 2
    assert [path.name for path in tmp_path.rglob("*.claim")] == ["00004.claim"]
    started = time.monotonic()
    work([job_in(tmp_path)], Worker(0, 2))
    assert time.monotonic() - started < claims.STALE
    assert tables(tmp_path) == straight


def test_workers_wait_for_what_others_are_at(tmp_path: Path, straight: dict[str, bytes]) -> None:
    child = in_child(lambda: work([job_in(tmp_path, lambda number: time.sleep(0.05))]))
    seen: list[int] = []
    while not list(tmp_path.rglob("*.claim")):
        time.sleep(0.001)
    work([job_in(tmp_path)], Worker(), lambda job, number: seen.append(number))
    assert ends_well(child)
    assert tables(tmp_path) == straight
    assert 0 in seen


def test_several_jobs_are_done_in_turn(tmp_path: Path) -> None:
    made: list[str] = []
    jobs = [job_in(tmp_path, lambda n, name=name: made.append(name), name) for name in "ab"]  # type: ignore[misc]
    work(jobs)
    assert made == ["a"] * 11 + ["b"] * 11


def test_an_error_stops_and_names_its_rows(tmp_path: Path) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise ModelError("no")

    with pytest.raises(ModelError) as caught:
        work([job_in(tmp_path, fail)])
    assert "the rows 8 to 11, by 'slug'" in caught.value.__notes__[0]
    assert len(tables(tmp_path)) == 2
    assert not list(tmp_path.rglob("*.claim"))


def test_a_bad_shard_of_its_own_is_made_again(tmp_path: Path, straight: dict[str, bytes]) -> None:
    work([job_in(tmp_path)])
    for number in (3, 4):
        (tmp_path / "slug" / f"0000{number}.parquet").write_bytes(b"x")
    (tmp_path / "slug" / "00099.json").write_text("{}")
    work([job_in(tmp_path)], Worker(1, 2))
    assert job_in(tmp_path).shards.missing() == [4]  # of rank 0; whoever finishes checks all
    work([job_in(tmp_path)])
    assert tables(tmp_path) == straight
    job_in(tmp_path).shards.check()


def test_a_second_death_halves_the_batches(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    for number, died in enumerate([1, 2, 3]):
        storage.write_json(make_folder(job.shards.beside(number, "retry")), {"deaths": died})
    work([job])
    halvings = [facts["halvings"] for n in range(11) if (facts := job.shards.facts(n))]
    assert halvings == [0, 1, 2, *[0] * 8]
    assert not list(tmp_path.rglob("*.retry"))
    (tmp_path / "slug" / "00001.json").unlink()
    job.shards.beside(1, "retry").write_text('{"deaths": "2"}')
    with pytest.raises(RunError, match=r"00001\.retry.*deaths is '2'.*delete"):
        work([job])


def make_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# Claims


def claim_of(path: Path, machine: str, pid: int, age: float) -> None:
    path.write_text(json.dumps({"machine": machine, "pid": pid, "claim": "x"}))
    then = time.time() - age
    os.utime(path, (then, then))


@pytest.mark.parametrize(
    ("elsewhere", "dead", "age", "free"),
    [
        (False, False, 0, False),
        (False, True, 0, True),
        (True, False, 0, False),
        (True, False, claims.STALE + 60, True),
        (False, False, claims.STALE + 60, True),
    ],
)
def test_who_is_gone_is_taken_over_from(
    tmp_path: Path, elsewhere: bool, dead: bool, age: float, free: bool
) -> None:
    pid = os.getpid()
    if dead:
        pid = in_child(lambda: None)
        os.waitpid(pid, 0)
    path = tmp_path / "a.claim"
    claim_of(path, "0" * 12 if elsewhere else storage.machine(), pid, age)
    assert claims.is_live(path) != free
    taken = claims.take(path)
    assert (taken is not None) == free
    if taken is not None:
        with taken:
            assert json.loads(path.read_bytes())["pid"] == os.getpid()
            assert claims.take(path) is None
        assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "1"}'])
def test_a_claim_that_says_nothing_holds_until_it_is_old(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.claim"
    path.write_text(text)
    assert claims.take(path) is None
    os.utime(path, (0, 0))
    assert claims.take(path) is not None


def test_a_claim_is_kept_fresh_and_another_s_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    path = tmp_path / "a.claim"
    claim = claims.take(path)
    assert claim is not None
    with claim:
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
        claim_of(path, "0" * 12, 1, 1000)
        time.sleep(0.1)
        assert path.stat().st_mtime < time.time() - 900
    assert path.exists()


# One machine: the supervisor. Workers are forked here, which is quick; once they are spawned.


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict({"instruction": ["Say."] * 11, "output": [f"{i}" for i in range(11)]})


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked workers without a model, whose ratings are made of the row's text."""
    monkeypatch.setattr(supervisor, "_CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setattr(SentenceScore, "prepare", lambda self: None)
    monkeypatch.setattr(SentenceScore, "rate", made_up)


def made_up(scorer: SentenceScore, batch: Any, rank: Any = None, progress: Any = None) -> Ratings:
    numbers = np.array([int(text) for text in batch["output"]], dtype=np.float32)
    logprobs = np.empty((len(numbers), 5, 5), dtype=np.float32)
    logprobs[:] = -1 - numbers[:, None, None] / 7 - np.arange(5) / 3
    rater = {"model": "m", "revision": "r", "parameters": 1, "rating_key": scorer.rating_key()}
    return Ratings(["ok"] * len(numbers), logprobs, rater)


@pytest.fixture
def run(tmp_path: Path, rows: Dataset, checkpoint: Path) -> tuple[Run, list[SentenceScore]]:
    scorers = [SentenceScore(str(checkpoint), token_budget=64)]
    return Run.start(tmp_path / "run", rows, SOURCE, scorers, shard_size=4), scorers


def dies_at(row: str, times: int, notes: Path, how: Callable[[], Any]) -> Any:
    """A `rate` that dies at a row so many times, counted in a file."""

    def rate(scorer: SentenceScore, batch: Any, rank: Any = None, progress: Any = None) -> Ratings:
        if row in batch["output"]:
            with notes.open("a") as file:
                file.write(f"{scorer.token_budget}\n")
            if len(notes.read_text().split()) <= times:
                how()
        return made_up(scorer, batch, rank, progress)

    return rate


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("times", "count", "budgets"),
    [(0, 2, [64]), (1, 2, [64, 64]), (3, 1, [64, 64, 32, 16])],
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
    supervisor.rate(one, rows, scorers, count, lambda slug, prompts: told.append(prompts))
    assert [int(line) for line in (tmp_path / "n").read_text().split()] == budgets
    assert sum(told) == 11 * 5
    facts = [one.shards("random_llama").facts(number) for number in range(3)]
    assert [f["token_budget"] for f in facts if f] == [64, budgets[-1], 64]
    logprobs = one.ratings("random_llama").logprobs
    np.testing.assert_array_equal(logprobs, made_up(scorers[0], rows[:]).logprobs)
    assert not [*one.folder.rglob("*.claim"), *one.folder.rglob("*.retry")]
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
        supervisor.rate(one, rows, scorers, 2)
    assert not multiprocessing.active_children()
    assert status(one.folder)["wrong"]
    monkeypatch.setattr(SentenceScore, "rate", made_up)
    one.rate(rows, scorers)
    assert status(one.folder)["wrong"] == []


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
        supervisor.rate(one, rows, scorers, 2)
    assert "the rows 8 to 10" in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


def test_spawned_workers_rate_what_one_does(
    run: tuple[Run, list[SentenceScore]], rows: Dataset, tmp_path: Path
) -> None:
    one, scorers = run
    supervisor.rate(one, rows, scorers, 2)
    alone = Run.start(tmp_path / "alone", rows, SOURCE, scorers, shard_size=4)
    alone.rate(rows, scorers)
    assert tables(one.folder) == tables(alone.folder)
    assert len(tables(one.folder)) == 3


class Pickling:
    """Forks, and gives workers what a pickle leaves of the scorers, as where they are spawned."""

    context = multiprocessing.get_context("fork")
    Pipe = context.Pipe

    def Process(self, target: Any, args: Any) -> Any:
        folder, dataset, scorers, *rest = args
        copied = pickle.loads(pickle.dumps(scorers))
        return self.context.Process(target=target, args=(folder, dataset, copied, *rest))


def test_workers_that_spread_a_model_see_their_own_gpus(
    run: tuple[Run, list[SentenceScore]],
    rows: Dataset,
    forked: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes = tmp_path / "seen"

    def rate(scorer: SentenceScore, batch: Any, rank: Any = None, progress: Any = None) -> Ratings:
        with notes.open("a") as file:
            seen = os.environ["CUDA_VISIBLE_DEVICES"]
            file.write(f"{seen} {rank} {scorer.place(rank).device_map}\n")
        begun = time.monotonic()  # so that the other one does not come too late
        while len({*notes.read_text().splitlines()}) < 2 and time.monotonic() < begun + 20:
            time.sleep(0.01)
        return made_up(scorer, batch, rank, progress)

    monkeypatch.setattr(supervisor, "_CONTEXT", Pickling())
    monkeypatch.setattr(SentenceScore, "rate", rate)
    monkeypatch.setattr(mapping, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    one, scorers = run
    supervisor.rate(one, rows, [replace(s, device_map="auto") for s in scorers], 2)
    assert {*notes.read_text().splitlines()} == {"4,5 0 auto", "6,7 0 auto"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


# Settling and status


def test_the_first_settles_and_the_others_see_it(
    run: tuple[Run, list[SentenceScore]],
    rows: Dataset,
    forked: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, scorers = run
    one.rate(rows, scorers)
    (one.folder / "ratings" / "random_llama" / "00001.parquet").write_bytes(b"bad")
    finished: list[Any] = []
    count_finishing(finished, monkeypatch)
    both = [one.settle(rows, scorers, Reflection(), Cut(n=3), Worker(r, 2)) for r in (1, 0)]
    assert len(finished) == 1
    assert both[0] == both[1]
    assert both[0]["selected"] == 3
    assert one.shards("random_llama").missing() == []
    one.settle(rows, scorers, Reflection(), Cut(n=4), Worker(1, 2))  # another cut
    one.settle(rows, scorers, Reflection(alpha=1.0), Cut(n=4), Worker(1, 2))
    assert len(finished) == 3
    one.settle(rows, scorers, Reflection(alpha=1.0), Cut(n=4))  # alone, it always does
    assert len(finished) == 4


def test_results_are_taken_for_settled_by_what_they_are_of(
    run: tuple[Run, list[SentenceScore]], rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, scorers = run
    one.rate(rows, scorers)
    finished: list[Any] = []
    count_finishing(finished, monkeypatch)

    def settle() -> int:
        one.settle(rows, scorers, Reflection(), Cut(n=3), Worker(0, 2))
        return len(finished)

    assert settle() == 1
    shards = one.shards("random_llama")
    facts, table = shards.facts(0), shards.table(0)
    assert facts is not None
    (shards.folder / "00000.json").unlink()
    one.rate(rows, scorers)  # newer than the results, and the same
    assert settle() == 1
    (shards.folder / "00000.json").unlink()
    statuses = pa.array(["oom", *table["status"].to_pylist()[1:]])
    said = {name: facts[name] for name in ("rater", "oom_splits")}
    shards.commit(0, table.set_column(1, "status", statuses), said)
    assert settle() == 2
    for i, name in enumerate(RESULTS):
        (one.folder / name).write_text("{}")
        assert settle() == 3 + i


def count_finishing(finished: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    original = finishing.finish

    def counted(*given: Any) -> Any:
        finished.append(given)
        return original(*given)

    monkeypatch.setattr(finishing, "finish", counted)


def test_status_tells_what_is_done_and_what_is_wrong(
    run: tuple[Run, list[SentenceScore]], rows: Dataset, forked: None
) -> None:
    one, scorers = run
    facts = status(one.folder)
    assert facts["rows"] == 11
    assert facts["models"]["random_llama"] == {
        "shards": 3,
        "done": 0,
        "in_progress": [],
        "bad": [],
        "rows_done": 0,
        "rows_per_second": None,
        "seconds_left": None,
    }
    assert not facts["finished"]
    one.rate(rows, scorers)
    one.finish(rows, Reflection(), Cut())
    assert status(one.folder) | {"models": {}} == {
        "rows": 11, "models": {}, "finished": True, "wrong": [],
    }  # fmt: skip
    shards = one.shards("random_llama")
    sidecar = shards.folder / "00002.json"
    facts = json.loads(sidecar.read_text())
    del facts["facts_sha256"]
    facts["seconds"] = 1.5
    digest = storage.sha256(json.dumps(facts, sort_keys=True).encode())
    sidecar.write_text(json.dumps({**facts, "facts_sha256": digest}))
    (shards.folder / "00000.parquet").write_bytes(b"bad")
    (shards.folder / "00001.json").unlink()
    (shards.folder / "00077.json").write_text("{}")
    claim_of(shards.folder / "00000.claim", "0" * 12, 1, claims.STALE + 60)
    with claims.take(shards.folder / "00001.claim") or pytest.fail("claimed"):
        facts = status(one.folder)
    model = facts["models"]["random_llama"]
    assert (model["done"], model["bad"], model["in_progress"]) == (1, [0], [1])
    assert model["rows_done"] == 3
    assert model["rows_per_second"] == 2.0
    assert model["seconds_left"] == 4.0
    for words in (
        "the shard of the rows 0 to 3, by 'random_llama', is not what was committed",
        "00077.json in 'random_llama' is no shard",
        "who was at the rows 0 to 3, by 'random_llama', is gone",
        "there are results, and not every row is rated",
    ):
        assert sum(words in line for line in facts["wrong"]) == 1, words
    assert len(facts["wrong"]) == 4
