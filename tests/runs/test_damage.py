"""Damaged folders, failing disks, memory that runs out: found or survived, never believed."""

import errno
import json
import os
import random
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import chaos
import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM

from selectit_hf import SentenceScore, runs
from selectit_hf.errors import RunError, SelectItError
from selectit_hf.json_files import facts_hash
from selectit_hf.rating import rater
from selectit_hf.rating.engine import forward as engines_forward
from selectit_hf.rating.models import hardware
from selectit_hf.rating.rater import Rater
from selectit_hf.rating.ratings import Ratings
from selectit_hf.runs import Run, plans

MODEL = "small"
SHARDS = -(-chaos.ROWS // chaos.SHARD_SIZE)
RESULTS = ("scores.parquet", "selected.parquet", "selection.json", "summary.json")
OF_A_SHARD = [f"ratings/{MODEL}/00001.*.parquet", f"ratings/{MODEL}/00001.json"]


@pytest.fixture(scope="module", autouse=True)
def one_model() -> Iterator[None]:
    """A run of `chaos` in this process, by one model and at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chaos, "MODELS", (MODEL,))
        patch.setattr(chaos, "PAUSE", 0)
        patch.setattr(plans, "version", chaos.VERSIONS.__getitem__)
        patch.setattr(hardware, "version", chaos.VERSIONS.__getitem__)
        patch.setattr(chaos.Stub, "begun", lambda model, number: None, raising=False)
        yield


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=chaos.in_memory()) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return chaos.make_rows()


@pytest.fixture(scope="module")
def whole(rows: Dataset) -> Iterator[Path]:
    """A finished run."""
    with tempfile.TemporaryDirectory(dir=chaos.in_memory()) as name:
        chaos.drive(Path(name) / "run", rows)
        yield Path(name) / "run"


def select(folder: Path, rows: Dataset) -> dict[str, bytes]:
    """What 'selectit select' writes."""
    out = folder.with_name("out")
    chaos.finish(runs.open_run(folder), rows, out)
    return chaos.contents(out)


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def go_on(folder: Path, rows: Dataset) -> dict[str, bytes]:
    chaos.drive(folder, rows)
    return chaos.contents(folder)


def rate(folder: Path, rows: Dataset) -> dict[str, bytes]:
    """Go on up to the results."""
    run, scorers = chaos.start(folder, rows)
    runs.rate(run, rows, scorers)
    return chaos.contents(folder)


def said(do: Callable[[Path, Dataset], Any], folder: Path, rows: Dataset, expected: Any) -> str:
    """The right bytes, or an error, which is returned."""
    try:
        assert do(folder, rows) == expected
    except SelectItError as error:
        return str(error)
    return ""


def check_damage(folder: Path, name: str, rows: Dataset, whole: Path) -> None:
    """Select from a run with one damaged file, and go on with it."""
    refused = said(select, folder, rows, results(whole)) if name not in RESULTS else ""
    if name == "plan.json":
        resumed = said(go_on, folder, rows, chaos.contents(whole))
        assert resumed
    elif name in RESULTS:
        assert not said(go_on, folder, rows, chaos.contents(whole))
    else:
        assert "run the same 'selectit run' or 'selectit rate' command again" in refused
        assert not said(rate, folder, rows, chaos.contents(whole))


# Files


def test_a_bit_flipped_at_a_hundred_places(folder: Path, rows: Dataset, whole: Path) -> None:
    draw = random.Random(0)
    names = sorted(chaos.contents(whole))
    for number in range(100):
        run, name = folder / str(number), names[number % len(names)]
        shutil.copytree(whole, run)
        data = bytearray((run / name).read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (run / name).write_bytes(data)
        check_damage(run, name, rows, whole)


@pytest.mark.parametrize("name", [*OF_A_SHARD, "plan.json", *RESULTS])
def test_a_file_cut_off(name: str, folder: Path, rows: Dataset, whole: Path) -> None:
    (path,) = whole.glob(name)
    size = path.stat().st_size
    for length in (0, size // 2, size - 2):
        run = folder / str(length)
        shutil.copytree(whole, run)
        (path,) = run.glob(name)
        os.truncate(path, length)
        check_damage(run, name, rows, whole)


@pytest.mark.parametrize("key", ["shard_size", "threads"])
def test_a_number_of_the_plan_that_no_flag_repeats(
    key: str, folder: Path, rows: Dataset, whole: Path
) -> None:
    """Not given again, they are taken from the plan, so that nothing else tells what they were."""
    run = folder / "run"
    shutil.copytree(whole, run)
    plan = json.loads((run / "plan.json").read_text())
    plan[key] += 1
    (run / "plan.json").write_text(json.dumps(plan))
    scorers = [chaos.Stub("tiny-rater", name=MODEL)]
    with pytest.raises(RunError, match=r"plan\.json"):
        runs.plan(rows, chaos.SOURCE, scorers, run)
    with pytest.raises(RunError, match=r"plan\.json"):
        runs.open_run(run)


# Shards


def stretch(run: Path) -> None:
    """A shard that says, with the right hashes, that it has two rows of the next."""
    path = run / "ratings" / MODEL / "00001.json"
    facts = json.loads(path.read_text())
    del facts["facts_sha256"]
    facts["rows"] = [4, 10]
    path.write_text(json.dumps(facts | {"facts_sha256": facts_hash(facts)}))


def double(run: Path) -> None:
    shards = run / "ratings" / MODEL
    shutil.copy(shards / "00000.json", shards / "00001.json")


def swap(run: Path) -> None:
    """The tables of two shards, each under the name of the other."""
    first, second = (next((run / "ratings" / MODEL).glob(f"0000{n}.*.parquet")) for n in (0, 1))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def lose(*names: str) -> Callable[[Path], None]:
    def unlink(run: Path) -> None:
        for name in names:
            next((run / "ratings" / MODEL).glob(name)).unlink()

    return unlink


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose("00001.json"), "rows 4 to 7 are not rated"),
        (lose("00001.*.parquet"), "rows 4 to 7 are not rated"),
        (lose("00001.*.parquet", "00001.json"), "rows 4 to 7 are not rated"),
        (lose(*(f"{n:05d}.json" for n in range(SHARDS))), "rows 0 to 3, the rows 4 to 7, "),
        (stretch, "rows 4 to 7 are not rated"),
        (double, "rows 4 to 7 are not rated"),
        (swap, "rows 0 to 3, the rows 4 to 7 are not rated"),
    ],
    ids=["no sidecar", "no table", "neither", "no sidecars", "overlap", "doubled", "swapped"],
)
def test_shards_that_do_not_cover_the_rows_once(
    damage: Callable[[Path], None], words: str, folder: Path, rows: Dataset, whole: Path
) -> None:
    run = folder / "run"
    shutil.copytree(whole, run)
    damage(run)
    assert words in said(select, run, rows, None)
    assert go_on(run, rows) == chaos.contents(whole)


def test_files_of_no_shard_are_left_alone(folder: Path, rows: Dataset, whole: Path) -> None:
    run = folder / "run"
    shutil.copytree(whole, run)
    shards = run / "ratings" / MODEL
    for name in ("00006.json", "000001.json", "00001.0123456789ab.parquet"):
        shutil.copy(shards / "00000.json", shards / name)
    assert select(run, rows) == results(whole)


def test_a_foreign_plan_takes_no_shard(folder: Path, rows: Dataset, whole: Path) -> None:
    """A plan of other rows, put over that of a finished run."""
    run, other = folder / "run", folder / "other"
    shutil.copytree(whole, run)
    edited = rows.map(lambda row: {"output": f"{row['output']} edited"})
    chaos.start(other, edited)
    shutil.copy(other / "plan.json", run / "plan.json")
    with pytest.raises(RunError, match="rows 0 to 3"):
        chaos.finish(runs.open_run(run), edited)
    with pytest.raises(RunError, match=r"input\.fingerprint"):
        chaos.start(run, rows)


# Disks that fail


@pytest.fixture
def few(rows: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What a run of two shards leaves, which has fewer calls that can fail."""
    monkeypatch.setattr(chaos, "SHARD_SIZE", 11)
    return go_on(folder / "few", rows)


class Fault:
    """What comes once, at the ``at``-th call."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0
        self.code = errno.EIO if at % 2 else errno.ENOSPC

    def strike(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise OSError(self.code, os.strerror(self.code))


def failing_call(name: str, fault: Fault, patch: pytest.MonkeyPatch) -> None:
    original = getattr(os, name)

    def call(*args: Any) -> Any:
        fault.strike()
        return original(*args)

    patch.setattr(os, name, call)


def failing_write(fault: Fault, patch: pytest.MonkeyPatch) -> None:
    """Half of the bytes are written before the disk is full."""
    original = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file: Any = original(path, mode, *args, **kwargs)
        whole = file.write

        def write(data: bytes) -> Any:
            try:
                fault.strike()
            except OSError:
                whole(data[: len(data) // 2])
                raise
            return whole(data)

        if set(mode) & {"w", "x"}:
            file.write = write
        return file

    patch.setattr(Path, "open", opened)


FAULTS: dict[str, Callable[[Fault, pytest.MonkeyPatch], None]] = {
    "fsync": lambda fault, patch: failing_call("fsync", fault, patch),
    "replace": lambda fault, patch: failing_call("replace", fault, patch),
    "write": failing_write,
}


def stopped_by(do: Callable[[], None]) -> OSError | None:
    try:
        do()
    except OSError as error:
        return error
    return None


def check_failed(run: Path, error: OSError, few: dict[str, bytes]) -> None:
    """The error names a file, and nothing that bears a final name is half there."""
    words = " ".join([str(error), *getattr(error, "__notes__", ())])
    names = {Path(name).name for name in few}
    assert any(name in words for name in names) or ".json" in words, words
    assert chaos.contents(run).items() <= few.items()


@pytest.mark.parametrize("call", FAULTS)
def test_a_disk_that_fails_at_any_call(
    call: str,
    folder: Path,
    rows: Dataset,
    few: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault = Fault(1)
    while True:
        run = folder / f"run-{fault.at}"
        with monkeypatch.context() as patch:
            FAULTS[call](fault, patch)
            error = stopped_by(lambda run=run: chaos.drive(run, rows))  # type: ignore[misc]
        if error is None and fault.calls < fault.at:
            break  # there is no such call any more
        if error is not None:  # else it was a note for 'selectit status', which nobody needs
            assert os.strerror(fault.code) in str(error)
            check_failed(run, error, few)
        assert go_on(run, rows) == few
        assert not [*run.rglob(".*.partial")]
        fault = Fault(fault.at + 1)
    assert fault.at > 6


@pytest.mark.parametrize(
    "name", ["plan.json", "ratings/.*00000.*parquet", "scores.parquet", "selected.parquet"]
)
def test_a_file_that_becomes_too_large(
    name: str, folder: Path, rows: Dataset, few: dict[str, bytes]
) -> None:
    """A limit of the system's own, which Arrow's writers meet as well."""
    size = min(len(data) for path, data in few.items() if re.fullmatch(name, path)) - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            chaos.drive(folder / "run", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_failed(folder / "run", caught.value, few)
    assert go_on(folder / "run", rows) == few


# Memory that runs out, in the engine


TEXTS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]
Raises = Callable[[int, torch.Tensor], BaseException | None]


class Forward:
    """The model's forward passes, with how many sequences each has; some of them raise."""

    def __init__(self, patch: pytest.MonkeyPatch, shares: bool = False) -> None:
        self.sizes: list[int] = []
        self.widths: set[int] = set()
        self.plain: list[bool] = []  # whether a pass compares, or records a prefix
        comparing = False
        self.raises: Raises = lambda number, ids: None
        original = LlamaForCausalLM.forward

        def forward(model: Any, input_ids: torch.Tensor, **settings: Any) -> Any:
            self.sizes.append(len(input_ids))
            self.plain.append(comparing)
            self.widths.add(input_ids.shape[1])
            error = self.raises(len(self.sizes) - 1, input_ids)
            if error is not None:
                raise error
            return original(model, input_ids=input_ids, **settings)

        def beside(work: Callable[..., Any]) -> Callable[..., Any]:
            def marked(*asked: Any) -> Any:
                nonlocal comparing
                comparing = True
                try:
                    return work(*asked)
                finally:
                    comparing = False

            return marked

        for name in ("plain_logprobs", "record"):
            work = getattr(engines_forward.Forward, name)
            patch.setattr(engines_forward.Forward, name, beside(work))
        # As a wrapper it is seen to take positions, without which no prefix is shared.
        patch.setattr(LlamaForCausalLM, "forward", wraps(original)(forward) if shares else forward)

    def raise_at(self, at: int, error: BaseException) -> None:
        """From now on, in the pass number ``at``."""
        self.sizes = []
        self.raises = lambda number, ids: error if number == at else None


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> Forward:
    return Forward(monkeypatch)


class Rated:
    """Runs of a tiny random model, in folders of their own."""

    def __init__(self, folder: Path, rows: Dataset, checkpoint: Path) -> None:
        self.folder, self.rows = folder, rows.select(range(3, 9))
        self.scorers = [SentenceScore(str(checkpoint), token_budget=350)]
        self.runs = 0

    def rate(self, name: str = "") -> Run:
        self.runs += 1
        name = name or str(self.runs)
        run = runs.plan(self.rows, chaos.SOURCE, self.scorers, self.folder / name, shard_size=3)
        runs.rate(run, self.rows, self.scorers)
        return run


def splits(run: Run) -> list[int]:
    return [facts["oom_splits"] for facts in run.shards(run.slugs[0]).all_facts()]


@pytest.fixture
def rated(folder: Path, rows: Dataset, checkpoint: Path) -> Rated:
    return Rated(folder, rows, checkpoint)


def check_same(found: Ratings, expected: Ratings, ooms: int) -> None:
    """All rows but those that do not fit are rated as ever."""
    fit = np.array([status == "ok" for status in found.statuses])
    assert sorted(set(found.statuses) - {"ok"}) == ["empty", "oom"][: 1 + bool(ooms)]
    assert found.statuses.count("oom") == ooms
    np.testing.assert_allclose(found.logprobs[fit], expected.logprobs[fit], atol=1e-4)
    assert np.isnan(found.logprobs[~fit]).all()


def test_memory_that_runs_out_at_any_batch(rated: Rated, forward: Forward) -> None:
    """A batch is halved; a single sequence costs its row, which says so. No other row sees it."""
    rated.rate()  # loads the model and looks at its shortcuts
    forward.sizes, forward.plain = [], []
    expected = runs.ratings_of(rated.rate(), "random_llama")
    sizes, plain = forward.sizes, forward.plain
    assert len(sizes) >= len(TEXTS)
    assert {*sizes} == {1, 2}
    for at, size in enumerate(sizes):
        forward.raise_at(at, TEXTS[at % len(TEXTS)])
        run = rated.rate()
        lost = size == 1 and not plain[at]
        check_same(runs.ratings_of(run, "random_llama"), expected, ooms=int(lost))
        assert sorted(splits(run)) == [0, int(not lost)]


def test_memory_for_so_many_tokens_only(rated: Rated, forward: Forward) -> None:
    """What fits is rated, however often a batch is halved for it; the longest row never fits."""
    expected = runs.ratings_of(rated.rate(), "random_llama")
    longest = max(range(6), key=lambda row: len(rated.rows[row]["output"]))
    room = sorted(forward.widths)[-2]
    forward.raises = lambda number, ids: TEXTS[0] if ids.numel() > room else None
    run = rated.rate()
    found = runs.ratings_of(run, "random_llama")
    assert found.statuses[longest] == "oom"
    check_same(found, expected, found.statuses.count("oom"))
    assert sum(splits(run)) > 3


@pytest.mark.parametrize("error", TEXTS)
def test_memory_that_runs_out_while_a_shared_prefix_is_kept(
    error: BaseException, rated: Rated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are computed whole, and the sidecar says so."""
    monkeypatch.setattr(rater, "_ENGINE", rater._Slot())
    forward = Forward(monkeypatch, shares=True)
    expected = runs.ratings_of(rated.rate(), "random_llama")
    (scorer,) = rated.scorers
    encoder = Rater(scorer.checkpoint, scorer._question, scorer.place(None)).encoder()
    kept = [[[*prefix]] for prefix in encoder.prefixes]
    met: list[Any] = []

    def raises(number: int, ids: torch.Tensor) -> BaseException | None:
        return met.append(ids) or error if ids.tolist() in kept else None  # type: ignore[func-returns-value]

    forward.raises = raises
    run = rated.rate()
    check_same(runs.ratings_of(run, "random_llama"), expected, ooms=0)
    assert len(met) == sum(splits(run)) == 5 * 2  # rating prompts, shards


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("odd")]
)
def test_another_error_stops_the_run_with_its_rows(
    error: Exception, rated: Rated, forward: Forward
) -> None:
    whole = rated.rate()
    forward.sizes = []
    rated.rate()
    last = len(forward.sizes) - 1
    forward.sizes = []
    # Whatever one way of computing meets, a plainer one may not: the error has to stay.
    forward.raises = lambda number, ids: error if number >= last else None
    with pytest.raises(type(error), match=str(error)) as caught:
        rated.rate("stopped")
    assert "the rows 3 to 5, by 'random_llama'" in caught.value.__notes__[0]
    shards = runs.open_run(rated.folder / "stopped").shards("random_llama")
    assert shards.missing() == [1]
    forward.raise_at(-1, error)
    tables = [
        runs.ratings_of(run, "random_llama").logprobs for run in (whole, rated.rate("stopped"))
    ]
    np.testing.assert_array_equal(*tables)
