"""Machines that meet in object storage: each has a copy of the run folder, none sees another's."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chaos
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from selectit_hf import claims, finishing, mirror, storage, workers
from selectit_hf.errors import RunError
from selectit_hf.fingerprint import fingerprint
from selectit_hf.finishing import RESULTS, Reflection
from selectit_hf.measures import Measures
from selectit_hf.mirror import Mirror, copy_of, is_url, mirror_of
from selectit_hf.runs import Run, bring
from selectit_hf.selection import Cut
from selectit_hf.selectors import Measured
from selectit_hf.status import status
from selectit_hf.workers import Worker

SHARDS = -(-chaos.ROWS // chaos.SHARD_SIZE)
FOLDERS = [f"ratings/{model}" for model in chaos.MODELS]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (workers, claims):
        monkeypatch.setattr(module, "POLL", 0.01)
    for name in ("poll", "FRESH"):
        monkeypatch.setattr(Mirror if name == "poll" else mirror, name, 0.01)
    monkeypatch.setattr(workers, "FRESH", 0.01)
    monkeypatch.setattr(chaos.Stub, "begun", lambda model, number: None, raising=False)
    monkeypatch.setattr(chaos, "PAUSE", 0.0)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place of two kinds: objects by name, and folders."""
    if request.param == "file":
        yield f"file://{tmp_path}/there/run"
        return
    yield f"memory://{tmp_path.name}/run"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def at(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Go to a machine; what it has as its copy of the run folder."""

    def go(name: str) -> Path:
        monkeypatch.setattr(mirror, "HF_HOME", str(tmp_path / name))
        monkeypatch.setattr(storage, "machine", lambda: f"{name:0>12}")
        return copy_of(url)

    return go


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return chaos.make_rows()


@pytest.fixture(scope="module")
def alone(rows: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run in one folder that was left alone."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chaos.Stub, "begun", lambda model, number: None, raising=False)
        chaos.drive(folder, rows, Worker())
    return chaos.contents(folder)


def there(url: str) -> dict[str, bytes]:
    """What lies at a URL."""
    files, root = fsspec.core.url_to_fs(url)
    found = {name.removeprefix(root).strip("/"): name for name in files.find(root)}
    return {name: files.cat_file(path) for name, path in found.items()}


def same(url: str) -> dict[str, bytes]:
    """What lies at a URL and must be the same in every run."""
    return {name: chaos.essence(Path(name), data) for name, data in there(url).items()}


def rated_by(machine: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are rated from now on."""
    rated: list[str] = []
    monkeypatch.setattr(chaos.Stub, "begun", lambda model, n: rated.append(f"{model}/{n}"))
    return rated


def drive_to_the_second_model(folder: Path, rows: Dataset) -> None:
    """All shards of the first model and one of the second; then Ctrl-C."""

    def stop(model: str, number: int) -> None:
        if (model, number) == (chaos.MODELS[1], 1):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chaos.Stub, "begun", stop)
        with pytest.raises(KeyboardInterrupt):
            chaos.drive(folder, rows, Worker())


# One machine, then another


def test_a_run_ends_there_in_the_bytes_of_a_run_in_a_folder(
    at: Callable[[str], Path], url: str, rows: Dataset, alone: dict[str, bytes]
) -> None:
    copy = at("a")
    chaos.drive(copy, rows, Worker())
    assert same(url) == alone
    assert chaos.contents(copy) == alone


def test_another_machine_rates_nothing_twice_and_has_the_same_results(
    at: Callable[[str], Path],
    url: str,
    rows: Dataset,
    alone: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chaos.drive(at("a"), rows, Worker())
    rated = rated_by("b", monkeypatch)
    monkeypatch.setattr(finishing, "finish", lambda *given: pytest.fail("finished again"))
    copy = at("b")
    chaos.drive(copy, rows, Worker())
    assert rated == []
    bring(copy)
    assert status(copy)["finished"]
    assert chaos.contents(copy) == alone


def test_another_machine_goes_on_where_the_first_was_stopped(
    at: Callable[[str], Path],
    url: str,
    rows: Dataset,
    alone: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drive_to_the_second_model(at("a"), rows)
    assert not [name for name in there(url) if name.endswith(".claim")]
    rated = rated_by("b", monkeypatch)
    chaos.drive(at("b"), rows, Worker())
    assert rated == [f"large/{number}" for number in range(1, SHARDS)]
    assert same(url) == alone
    rated.clear()
    chaos.drive(at("a"), rows, Worker())
    assert rated == []
    assert same(url) == alone


def test_what_was_not_sent_is_sent_by_the_same_command(
    at: Callable[[str], Path],
    url: str,
    rows: Dataset,
    alone: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = at("a")
    original = Mirror.send

    def fails(self: Mirror, path: Path) -> None:
        if path.name == "00002.json":
            raise RunError("the storage is away")
        original(self, path)

    monkeypatch.setattr(Mirror, "send", fails)
    with pytest.raises(RunError, match="away"):
        chaos.drive(copy, rows, Worker())
    monkeypatch.setattr(Mirror, "send", original)
    rated = rated_by("a", monkeypatch)
    chaos.drive(copy, rows, Worker())
    assert rated[0] == "small/3"
    assert same(url) == alone


@pytest.mark.parametrize("world", [2, 3])
def test_machines_at_work_at_once_share_it(
    world: int, tmp_path: Path, rows: Dataset, alone: dict[str, bytes]
) -> None:
    url, log = f"file://{tmp_path}/there", tmp_path / "log"
    copies = [tmp_path / str(rank) for rank in range(world)]
    machines = []
    for rank, copy in enumerate(copies):
        mirror.begin_copy(copy, url)
        given = (copy, log, rows, rank, Worker(rank, world), chaos.Kill(), "")
        machines.append(chaos.FORK.Process(target=chaos.serve, args=given))
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join(chaos.TOO_LONG)
        assert machine.exitcode == 0
    assert same(url) == alone
    begun = [line.split()[1] for line in log.read_text().splitlines()]
    assert len(begun) == len(set(begun)) == SHARDS * len(chaos.MODELS)


# What is wrong there


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("ratings/small/00001.parquet", flipped),  # which only who reads it can see
        ("ratings/small/00001.parquet", lambda data: data[:-9]),
        ("ratings/small/00001.parquet", lambda data: None),
        ("ratings/large/00000.json", lambda data: data[: len(data) // 2]),
        ("ratings/large/00000.json", lambda data: data.replace(b'"rows"', b'"sorw"')),
        ("ratings/large/00000.json", lambda data: None),
    ],
)
@pytest.mark.parametrize("machine", ["a", "b"])
def test_a_bad_shard_there_is_sent_anew_or_made_again(
    machine: str,
    name: str,
    damage: Callable[[bytes], bytes | None],
    at: Callable[[str], Path],
    url: str,
    rows: Dataset,
    alone: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chaos.drive(at("a"), rows, Worker())
    files, root = fsspec.core.url_to_fs(url)
    path = f"{root}/{name}"
    bad = damage(files.cat_file(path))
    files.rm_file(path) if bad is None else files.pipe_file(path, bad)
    files.rm_file(f"{root}/selection.json")
    rated = rated_by(machine, monkeypatch)
    chaos.drive(at(machine), rows, Worker())
    if damage is not flipped or machine == "b":
        assert same(url) == alone
    assert len(rated) == (machine == "b")


def test_a_sidecar_that_is_on_its_way_is_not_taken_for_bad(
    at: Callable[[str], Path], url: str, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    chaos.drive(at("a"), rows, Worker())
    before = there(url)
    whole = Mirror.sidecars
    monkeypatch.setattr(
        Mirror, "sidecars", lambda *given: {p: d[:50] for p, d in whole(*given).items()}
    )
    run = Run.open(at("a"))
    shards = Run(at("b"), run.plan).shards("small")
    shards.fetch(repair=True)
    assert there(url) == before
    assert shards.missing() == []


def test_a_copy_that_is_bad_is_taken_again(
    at: Callable[[str], Path],
    url: str,
    rows: Dataset,
    alone: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = at("a")
    chaos.drive(copy, rows, Worker())
    path = copy / "ratings" / "small" / "00002.parquet"
    path.write_bytes(flipped(path.read_bytes()))
    rated = rated_by("a", monkeypatch)
    chaos.drive(copy, rows, Worker())
    bring(copy)
    assert rated == []
    assert path.read_bytes() == alone["ratings/small/00002.parquet"]


# Copies of what is there no more


def empty(url: str) -> None:
    files, root = fsspec.core.url_to_fs(url)
    files.rm(root, recursive=True)


def others() -> Dataset:
    return chaos.make_rows().map(lambda row: {"output": row["output"] + "!" * bool(row["output"])})


def test_an_old_copy_gives_nothing_to_the_new_run_at_its_url(
    at: Callable[[str], Path], url: str, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = at("a")
    chaos.drive(old, rows, Worker())
    empty(url)
    chaos.start(at("b"), others())
    at("a")
    for again in (lambda: bring(old), lambda: chaos.drive(old, others(), Worker())):
        with pytest.raises(RunError, match=r"another plan.*remove the copy"):
            again()
    assert set(there(url)) == {"plan.json"}


def test_a_machine_that_was_forgotten_cannot_rate_for_the_new_run(
    at: Callable[[str], Path], url: str, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, changed = chaos.start(at("a"), rows), others()
    empty(url)
    chaos.start(at("b"), changed)
    at("a")
    begun[0].rate(rows, begun[1])
    rated = rated_by("b", monkeypatch)
    chaos.drive(at("b"), changed, Worker())
    assert len(rated) == SHARDS * len(chaos.MODELS)


def test_an_old_copy_does_not_bring_its_plan_back_where_another_run_is_wanted(
    at: Callable[[str], Path], url: str, rows: Dataset
) -> None:
    copy = at("a")
    chaos.drive(copy, rows, Worker())
    empty(url)
    with pytest.raises(RunError, match=r"(?s)remove it to begin anew.*input\.fingerprint"):
        chaos.start(copy, others())
    with pytest.raises(RunError, match=r"no run: it has no plan.json"):
        bring(copy)
    assert there(url) == {}
    chaos.start(at("b"), others())


def test_a_copy_deleted_midway_sends_its_results_all_the_same(
    at: Callable[[str], Path],
    url: str,
    rows: Dataset,
    alone: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = at("a")

    def lose(model: str, number: int) -> None:
        if (model, number) == ("large", 2):
            shutil.rmtree(copy)

    monkeypatch.setattr(chaos.Stub, "begun", lose)
    chaos.drive(copy, rows, Worker())
    assert same(url) == alone


def test_a_copy_that_was_copied_is_a_folder_of_its_own(
    at: Callable[[str], Path], url: str, rows: Dataset, tmp_path: Path
) -> None:
    copy = at("a")
    chaos.drive(copy, rows, Worker())
    before = there(url)
    shutil.copytree(copy, tmp_path / "mine")
    run = Run.open(tmp_path / "mine")
    run.finish(rows, Reflection(), Cut(n=2))
    assert there(url) == before


# Results


def settle(copy: Path, rows: Dataset, n: int) -> dict[str, Any]:
    run, scorers = chaos.start(copy, rows)
    return run.settle(rows, scorers, Reflection(), Cut(n=n))


@pytest.mark.parametrize("stop", range(len(RESULTS)))
def test_results_of_two_settings_are_never_mixed(
    stop: int,
    at: Callable[[str], Path],
    url: str,
    rows: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = at("a")
    chaos.drive(copy, rows, Worker())
    settle(copy, rows, 5)
    expected = same(url)
    original, count = Mirror.send, 0

    def dies(self: Mirror, path: Path) -> None:
        nonlocal count
        count += path.name in RESULTS
        if count > stop:
            raise KeyboardInterrupt
        original(self, path)

    monkeypatch.setattr(Mirror, "send", dies)
    with pytest.raises(KeyboardInterrupt):
        settle(copy, rows, 7)
    monkeypatch.setattr(Mirror, "send", original)
    assert settle(at("b"), rows, 5)["selected"] == 5
    assert same(url) == expected


def test_a_result_that_is_gone_there_is_written_again(
    at: Callable[[str], Path], url: str, rows: Dataset, alone: dict[str, bytes]
) -> None:
    chaos.drive(at("a"), rows, Worker())
    files, root = fsspec.core.url_to_fs(url)
    for name in RESULTS:
        files.rm_file(f"{root}/{name}")
        chaos.drive(at("b"), rows, Worker())
        assert same(url) == alone
    files.pipe_file(f"{root}/selection.json", b'{"by": "mo')
    chaos.drive(at("c"), rows, Worker())
    assert same(url) == alone


def test_results_that_are_being_written_here_are_left_alone(
    at: Callable[[str], Path], rows: Dataset
) -> None:
    copy = at("a")
    chaos.drive(copy, rows, Worker())
    (copy / "selected.parquet").write_bytes(b"new")
    claim = claims.take(copy / "results.claim")
    assert claim is not None
    with claim:
        bring(copy)
        assert (copy / "selected.parquet").read_bytes() == b"new"
    bring(copy)
    assert (copy / "selected.parquet").read_bytes() != b"new"


def test_what_is_measured_is_not_taken_for_what_was_measured_otherwise(
    at: Callable[[str], Path], rows: Dataset
) -> None:
    copy = at("a")
    chaos.drive(copy, rows, Worker())
    run, scorers = chaos.start(copy, rows)
    for seed in (1, 2):
        drawn = rows.add_column("score__x", [seed * i % 23 / seed for i in range(len(rows))])
        run.settle(drawn, scorers, Reflection(by="score__x"), Cut(n=3))
        kept = pq.read_table(copy / "selected.parquet")["score__x"].to_pylist()
        assert sorted(kept) == sorted(drawn["score__x"])[-3:]


def test_many_machines_look_at_sidecars_only(
    at: Callable[[str], Path], rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    chaos.drive(at("a"), rows, Worker())
    copy = at("b")
    chaos.drive(copy, rows, Worker())
    assert not list(copy.rglob("*.parquet"))


# Plans


def test_the_first_plan_there_is_everyones(
    at: Callable[[str], Path], rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selectit_hf.engine.thread_count", lambda: 7)
    first, _ = chaos.start(at("a"), rows)
    monkeypatch.setattr("selectit_hf.engine.thread_count", lambda: 3)
    second, _ = chaos.start(at("b"), rows)
    assert first.plan == second.plan
    assert second.plan["threads"] == 7


def test_a_machine_that_was_a_moment_late_takes_the_plan_that_is_there(
    at: Callable[[str], Path], rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Mirror.create

    def another_is_quicker(self: Mirror, path: Path, data: bytes) -> bool:
        monkeypatch.setattr(Mirror, "create", create)
        create(self, path, data.replace(b'"threads": 3', b'"threads": 3 '))
        return create(self, path, data)

    monkeypatch.setattr("selectit_hf.engine.thread_count", lambda: 3)
    monkeypatch.setattr(Mirror, "create", another_is_quicker)
    copy = at("a")
    chaos.start(copy, rows)
    assert b'"threads": 3 ' in (copy / "plan.json").read_bytes()


def test_other_settings_are_refused_by_name(at: Callable[[str], Path], rows: Dataset) -> None:
    chaos.start(at("a"), rows)
    scorers = [chaos.Stub("tiny-rater", name=name, k=4) for name in chaos.MODELS]
    with pytest.raises(RunError, match=r"rating\.k: 5, now 4"):
        Run.start(at("b"), rows, chaos.SOURCE, scorers, chaos.SHARD_SIZE)


def test_a_copy_of_a_run_that_was_replaced_there_is_refused(
    at: Callable[[str], Path], url: str, rows: Dataset
) -> None:
    copy = at("a")
    chaos.drive(copy, rows, Worker())
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/plan.json", files.cat_file(f"{root}/plan.json") + b"\n")
    with pytest.raises(RunError, match=r"another plan.*remove the copy"):
        chaos.drive(copy, rows, Worker())


def test_machines_that_start_at_once_do_not_refuse_each_other(
    at: Callable[[str], Path], url: str, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Mirror.read

    def just_before_another_begins(self: Mirror, path: Path) -> bytes | None:
        monkeypatch.setattr(Mirror, "read", read)
        found = read(self, path)
        chaos.start(at("b"), rows)
        return found

    copy = at("a")
    monkeypatch.setattr(Mirror, "read", just_before_another_begins)
    chaos.start(copy, rows)


def test_a_plan_that_is_on_its_way_is_waited_for(
    at: Callable[[str], Path], url: str, rows: Dataset
) -> None:
    chaos.start(at("a"), rows)
    files, root = fsspec.core.url_to_fs(url)
    whole = files.cat_file(f"{root}/plan.json")
    files.pipe_file(f"{root}/plan.json", whole[:40])
    with pytest.raises(RunError, match=r"cannot be read; restore it"):
        bring(at("b"))
    assert not (at("b") / "plan.json").exists()


def test_a_place_with_something_else_is_refused(
    at: Callable[[str], Path], url: str, rows: Dataset
) -> None:
    files, root = fsspec.core.url_to_fs(url)
    files.makedirs(root, exist_ok=True)
    files.pipe_file(f"{root}/thesis.txt", b"mine")
    for begin in (lambda: chaos.start(at("a"), rows), lambda: bring(at("a"))):
        with pytest.raises(RunError, match="is no run"):
            begin()
    assert [path.name for path in at("a").iterdir()] == [mirror.ORIGIN]
    assert there(url) == {"thesis.txt": b"mine"}


# What lies beside


def test_a_journal_loses_no_line_of_any_machine(at: Callable[[str], Path], url: str) -> None:
    name = "measures/answers.jsonl"
    for machine, lines in (("a", "1\n2\n"), ("b", "2\n3\ntor")):
        path = at(machine) / name
        path.parent.mkdir()
        path.write_text(lines)
        mirror_of(at(machine)).send_rest()
    assert there(url) == {name: b"2\n3\ntor\n1\n"}
    mirror_of(at("a")).merge(at("a") / name)
    assert (at("a") / name).read_text() == "1\n2\n3\ntor\n"
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/{name}", b"4\n5")
    mirror_of(at("c")).merge(at("c") / name)
    assert (at("c") / name).read_bytes() == b"4\n"


@dataclass
class Counted:
    """A measurement of nothing, which one time leaves the first rows unanswered."""

    column: str = "count"
    unanswered: int = 0

    def key(self) -> str:
        return "k" * 64

    def missing(self, batch: Any) -> int:
        return self.unanswered if "Say 0." in batch["instruction"] else 0

    def measure(self, batch: Any, progress: Any = None) -> Measured:
        count = len(batch["output"])
        measured.append(count)
        missing = self.missing(batch)
        if progress is not None:
            progress(count)
        statuses = ["unanswered"] * missing + ["ok"] * (count - missing)
        return Measured(pa.table({"status": statuses}), count)


measured: list[int] = []


def test_what_one_machine_measured_no_other_pays_for(at: Callable[[str], Path]) -> None:
    rows = chaos.make_rows()

    def measure(machine: str, unanswered: int = 0) -> int:
        measured.clear()
        run, _ = chaos.start(at(machine), rows)
        run.plan["input"]["fingerprint"] = fingerprint(rows)
        Measures(run, rows).measure(Counted(unanswered=unanswered))
        return len(measured)

    assert measure("a", unanswered=2) == SHARDS
    assert measure("b", unanswered=1) == 1
    assert measure("a") == 1
    assert measure("b") == 0


def measuring(folder: Path, rows: Dataset) -> Measures:
    run, _ = chaos.start(folder, rows)
    run.plan["input"]["fingerprint"] = fingerprint(rows)
    return Measures(run, rows)


@pytest.mark.parametrize("again", [False, True])
def test_what_another_machine_measured_meanwhile_is_taken(
    at: Callable[[str], Path], rows: Dataset, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All shards, or all anew that were asked about in vain."""
    one = Counted(unanswered=1)
    theirs = pa.table({"status": ["theirs"] * chaos.SHARD_SIZE})
    answered = {"seconds": 1.0, "sequences": 4, "tokens": 0, "unanswered": 0}
    a = measuring(at("a"), rows)
    if again:
        monkeypatch.setattr(Counted, "missing", lambda *given: 1)
        a.measure(one)
        monkeypatch.undo()
    at("b")
    b = measuring(at("b"), rows)
    measured.clear()

    def others(self: Counted, batch: Any) -> int:
        if len(measured) == 1:
            machine = at("a")
            a._shards(one).commit(2, theirs, answered, replace=True)
            assert machine != at("b")
        return 0

    monkeypatch.setattr(Counted, "missing", others)
    told: list[int] = []
    paid = b.measure(one, told.append)
    assert len(measured) == SHARDS - 1
    assert paid.sequences == chaos.ROWS - chaos.SHARD_SIZE
    statuses = b.table(one)["status"].to_pylist()
    assert statuses == ["ok"] * 8 + ["theirs"] * 4 + ["ok"] * (chaos.ROWS - 12)
    assert b.run.mirror.sizes(b._shards(one).folder).keys() == {
        f"{number:05d}.{ending}" for number in range(SHARDS) for ending in ("json", "parquet")
    }


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b""])
def test_a_measure_that_is_bad_there_is_measured_again(
    at: Callable[[str], Path], rows: Dataset, url: str, damage: Callable[[bytes], bytes]
) -> None:
    one = Counted()
    measuring(at("a"), rows).measure(one)
    files, _ = fsspec.core.url_to_fs(url)
    (table,) = (name for name in there(url) if re.search(r"count.*/00003.parquet", name))
    path = fsspec.core.url_to_fs(f"{url}/{table}")[1]
    files.pipe_file(path, damage(files.cat_file(path)))
    b = measuring(at("b"), rows)
    measured.clear()
    b.measure(one)
    assert measured == [chaos.SHARD_SIZE]
    assert b.table(one).num_rows == chaos.ROWS


def test_what_is_of_one_machine_stays_there(at: Callable[[str], Path], url: str) -> None:
    copy = at("a")
    for name in ("rows/rows.arrow", "report/page.html", "report/.x.partial", "ratings/s/0.retry"):
        (copy / name).parent.mkdir(exist_ok=True, parents=True)
        (copy / name).touch()
    mirror_of(copy).send_rest()
    assert list(there(url)) == ["report/page.html"]


# Claims


def test_a_claim_is_watched_by_itself(
    at: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    folder = at("a") / "ratings"
    one = mirror_of(at("a"))
    live = json.dumps({"machine": "0" * 12, "pid": 1, "claim": "c"}).encode()
    dead = json.dumps({"machine": storage.machine(), "pid": child, "claim": "c"}).encode()
    one.create(folder / "x" / "00000.claim", live)
    one.create(folder / "y" / "00000.claim", dead)
    assert one.take(folder / "x" / "00000.claim") is None
    assert one.take(folder / "y" / "00000.claim") is not None


def test_a_claim_of_another_machine_holds_until_it_says_nothing_new(
    at: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(mirror, "time", SimpleNamespace(monotonic=lambda: now))
    path = at("a") / "ratings" / "x" / "00000.claim"
    theirs = mirror_of(at("a"))
    held = theirs.take(path)
    assert isinstance(held, claims.Claim)
    path = at("b") / "ratings" / "x" / "00000.claim"
    ours = mirror_of(at("b"))
    for _ in range(5):
        assert ours.take(path) is None
        now += 0.9 * claims.STALE
        held._touch()
    now += 2 * mirror.LOOK
    assert ours.take(path) is None  # seen to have changed
    now += claims.STALE + 1
    taken = ours.take(path)
    assert isinstance(taken, claims.Claim)
    with held:
        pass  # it gives back nothing that is not its own
    assert ours.read(path)
    with taken:
        pass
    assert ours.read(path) is None


def test_a_claim_outlives_a_beat_that_failed(
    at: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = at("a") / "ratings" / "x" / "00000.claim"
    one = mirror_of(at("a"))
    claim = one.take(path)
    assert isinstance(claim, claims.Claim)
    write = Mirror.write
    monkeypatch.setattr(Mirror, "write", lambda *_: (_ for _ in ()).throw(RunError("503")))
    with pytest.raises(RunError):
        claim._touch()
    monkeypatch.setattr(Mirror, "write", write)
    before = one.read(path)
    claim._touch()
    assert one.read(path) != before
    with claim:
        pass
    assert one.read(path) is None


def test_a_claim_of_a_dead_process_of_this_machine_is_free_at_once(
    at: Callable[[str], Path],
) -> None:
    path = at("a") / "ratings" / "x" / "00000.claim"
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    one = mirror_of(at("a"))
    said = {"machine": storage.machine(), "pid": child, "claim": "c"}
    one.create(path, json.dumps(said).encode())
    assert one.take(path) is not None


def test_a_shard_that_another_machine_is_at_is_left_to_it(
    at: Callable[[str], Path],
    rows: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    alone: dict[str, bytes],
) -> None:
    copy_a, copy_b = at("a"), at("b")
    at("a")
    run, _ = chaos.start(copy_a, rows)
    claim = mirror_of(copy_a).take(copy_a / "ratings" / "small" / "00001.claim")
    assert claim is not None
    at("b")
    rated = rated_by("b", monkeypatch)
    run_b, scorers = chaos.start(copy_b, rows)
    shown: list[list[int]] = []

    def give_back(seconds: float) -> None:
        shown.append(status(copy_b)["models"]["small"]["in_progress"])
        assert len(rated) == 2 * SHARDS - 1
        held.close()

    with ExitStack() as held:
        held.enter_context(claim)
        monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=give_back))
        run_b.rate(rows, scorers)
    assert shown[0] == [1]
    assert rated[-1] == "small/1"
    assert run.slugs == run_b.slugs


# Status


def test_how_far_a_run_is_can_be_asked_from_anywhere_without_its_ratings(
    at: Callable[[str], Path], rows: Dataset, url: str
) -> None:
    copy = at("a")
    drive_to_the_second_model(copy, rows)
    here = status(copy)
    assert [model["done"] for model in here["models"].values()] == [SHARDS, 1]
    before = there(url)
    assert status(at("b")) == here
    assert {path.name for path in at("b").rglob("*") if path.is_file()} == {
        "origin.json",
        "plan.json",
    }
    chaos.drive(at("a"), rows, Worker())
    with mirror_of(at("a")).wait(at("a") / "ratings" / "small" / "00001.claim"):
        done = status(at("b"))  # its sidecar is there, and its claim not yet given back
    assert done["finished"]
    assert [model["rows_done"] for model in done["models"].values()] == [chaos.ROWS] * 2
    assert not done["wrong"]
    assert before.items() <= there(url).items()
    files, root = fsspec.core.url_to_fs(url)
    sidecar = f"{root}/ratings/small/00001.json"
    files.pipe_file(sidecar, files.cat_file(sidecar).replace(b'"sha256": "', b'"sha256": "f'))
    files.rm_file(f"{root}/selection.json")
    damaged = status(at("b"))
    assert (damaged["models"]["small"]["bad"], damaged["finished"]) == ([1], False)
    assert "is not what was committed" in damaged["wrong"][0]


def test_who_claimed_a_shard_and_is_gone_is_not_at_work(
    at: Callable[[str], Path], rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = at("a")
    chaos.start(copy, rows)
    claim = mirror_of(copy).take(copy / "ratings" / "small" / "00001.claim")
    assert claim is not None
    asked = status(at("b"))
    assert (asked["models"]["small"]["in_progress"], asked["wrong"]) == ([1], [])
    monkeypatch.setattr(claims, "STALE", -1.0)
    asked = status(at("b"))
    assert asked["models"]["small"]["in_progress"] == []
    assert asked["wrong"] == [
        "who was at the rows 4 to 7, by 'small', is gone; any worker takes over"
    ]


# What cannot be


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/run", "pip install s3fs|install s3fs|Install s3fs"),
        ("nothing://bucket/run", "Protocol not known: nothing"),
    ],
)
def test_a_protocol_without_its_package_is_refused_with_the_remedy(
    url: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "HF_HOME", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(RunError, match=words):
        mirror_of(copy_of(url))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hf://datasets/user/run", "'selectit push' publishes"),
        ("sftp://user:s3cr3t@host/run", "holds a password"),
        ("S3://key:s3cr3t@bucket", "holds a password"),
        ("s3://", "names no folder"),
        ("s3://bucket/run[1]", "without brackets"),
    ],
)
def test_a_url_where_nobody_can_meet_is_refused(
    url: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "HF_HOME", str(tmp_path / "home"))
    with pytest.raises(RunError, match=words) as caught:
        copy_of(url)
    assert "s3cr3t" not in str(caught.value)
    assert not (tmp_path / "home").exists()


def test_a_bucket_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Dataset
) -> None:
    monkeypatch.setattr(mirror, "HF_HOME", str(tmp_path / "home"))
    copy = copy_of("memory://nowhere/run")

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("no such bucket")

    files = fsspec.filesystem("memory")
    monkeypatch.setattr(type(files), "pipe_file", missing)
    monkeypatch.setattr(type(files), "exists", lambda *_: False)
    with pytest.raises(RunError, match="There is no '/' for memory://nowhere/run; make it"):
        chaos.start(copy, rows)


def test_what_the_storage_says_is_told(
    at: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, url: str, rows: Dataset
) -> None:
    copy = at("a")
    files, _ = fsspec.core.url_to_fs(url)

    def denied(*given: Any, **named: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(files), "put_file", denied)
    with pytest.raises(RunError, match=r"failed at '00000.parquet' \(PermissionError: Access Den"):
        chaos.drive(copy, rows, Worker())
    assert (copy / "ratings" / "small" / "00000.json").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/run", True),
        ("memory://x", True),
        ("S3://bucket/run", True),
        ("run", False),
        ("/tmp/run", False),
        ("C:\\run", False),
        ("a/b://c", False),
    ],
)
def test_what_a_url_is(text: str, expected: bool) -> None:
    assert is_url(text) is expected
