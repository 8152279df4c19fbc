"""Kill a run again and again: does it always end in the bytes of a run that was left alone?

Forked workers take a small dataset through the real path (plan, shards, claims, commits, results)
with a stub in place of the models, whose ratings are made of a row's text. Each is killed with
SIGKILL, in turn at a named point of the shard protocol (`selectit_hf.storage.POINTS`) and at a
random instant, by one worker or two, and started again until so many kills have happened. Now and
then all of them are killed at once and one bit of a rated shard is flipped, as a failing disk does.

After every kill: each file that bears its final name is whole. At the end of every run: all its
files have the bytes of the run left alone, every shard fits its sidecar, nothing of the killed is
left, and no worker lost more than one shard of work by a kill, or anything without one. With
``--mirror`` each worker is on a machine of its own and they meet in storage that only creates files
exclusively, as object storage does; what is sent there can be torn.

    python scripts/chaos.py                               # 40 kills, a few seconds
    python scripts/chaos.py --kills 1000
    python scripts/chaos.py --mirror                      # each worker in a copy of its own
    python scripts/chaos.py --mutant no-sidecar-check     # must find violations, and exits with 1
    python scripts/chaos.py --mutant no-atomic-rename     # likewise

The mutants are the positive control: a protocol that takes a table for a shard whatever its sidecar
says, and one that writes files in their place. The last line of stdout is JSON.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from datasets import Dataset
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from selectit_hf import claims, engine, mirror, plans, shards, storage, workers
from selectit_hf.errors import RunError
from selectit_hf.finishing import Reflection
from selectit_hf.ratings import Ratings
from selectit_hf.rows import Pair
from selectit_hf.runs import Run
from selectit_hf.scorers import SentenceScore
from selectit_hf.selection import Cut
from selectit_hf.shards import Shards
from selectit_hf.sources import Source
from selectit_hf.workers import Worker

ROWS, SHARD_SIZE, K = 22, 4, 5
SOURCE = Source("rows.json", None, "train", "sha256:0")
MODELS = ("small", "large")
KILLS_A_RUN = 10
DAMAGE_AFTER = 0.2
"""The share of kills after which all are killed and a bit is flipped."""
TOO_LONG = 60.0
"""Seconds after which a worker hangs; waiting for others is the longest it does."""
PAUSE = 0.0003
"""Seconds that a row takes."""
THERE = "there"
"""The folder that stands for object storage."""
INSTANT, FLIPPED = "any instant", "flipped"
NOT_REPEATED = ("seconds", "facts_sha256")
"""What a sidecar says that another run of the same shard does not."""
VERSIONS = {name: version(name) for name in plans.LIBRARIES}
FORK = multiprocessing.get_context("fork")
LOADED = (engine,)
"""What a run loads when it must; loaded here, so that no worker that is forked does."""


def main() -> int:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--kills", type=int, default=40)
    flags.add_argument("--mutant", choices=sorted(MUTANTS), help="break the protocol so")
    flags.add_argument("--mirror", action="store_true", help="each worker in a copy of its own")
    flags.add_argument("--seed", type=int, default=0, help="of what is drawn; time is not")
    flags.add_argument("--folder", type=Path, help="for the runs; else in memory")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=given.folder or in_memory()) as name:
        found = chaos(Path(name), given.kills, given.mutant, given.seed, given.mirror, tell=True)
    print(json.dumps(found))
    return int(bool(found["violations"]))


def in_memory() -> Path | None:
    """A folder of files in memory, if there is one: kills leave its files as a disk's, sooner."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


# The run: rows, and a stub in place of the models


def make_rows() -> Dataset:
    """Questions with answers of many lengths; every seventh has none."""
    answers = ["" if i % 7 == 6 else f"{i} " * (i % 5 + 1) for i in range(ROWS)]
    asked = [f"Say {i}." for i in range(ROWS)]
    return Dataset.from_dict({"instruction": asked, "output": answers, "note": list(range(ROWS))})


def made_up(model: str, pair: Pair) -> NDArray[np.float32]:
    """(K, K) log-probabilities that follow from a model's name and a pair's text."""
    text = f"{model}\0{pair.instruction}\0{pair.response}"
    drawn = np.frombuffer(hashlib.shake_128(text.encode()).digest(K * K), np.uint8) / 64
    logits = drawn.reshape(K, K)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True)) + 0.1
    return logits.astype(np.float32)


@dataclass(frozen=True)
class Stub(SentenceScore):
    """A scorer that reads the rows as ever, and asks no model."""

    begun: ClassVar[Callable[[str, int], None]]
    """Told a model and the number of the shard that is rated."""

    def prepare(self) -> None:
        """There is nothing to look at."""

    def rate(self, batch: Any, rank: int | None = None, progress: Any = None) -> Ratings:
        """Ratings made of the text."""
        first = int(batch["instruction"][0].removeprefix("Say ").removesuffix("."))
        Stub.begun(self.slug, first // SHARD_SIZE)
        pairs = self.reader.pairs(batch)
        logprobs = np.full((len(pairs), K, K), np.nan, np.float32)
        for i, pair in enumerate(pairs):
            time.sleep(PAUSE)
            if isinstance(pair, Pair):
                logprobs[i] = made_up(self.slug, pair)
        statuses = ["ok" if isinstance(pair, Pair) else pair for pair in pairs]
        return Ratings(statuses, logprobs, rater(self.slug) | {"rating_key": self.rating_key()})


def rater(model: str) -> dict[str, Any]:
    """Who rates."""
    return {"model": model, "revision": "r", "parameters": (MODELS.index(model) + 1) * 10**9}


def start(folder: Path, rows: Dataset) -> tuple[Run, list[Stub]]:
    """Plan a run, or go on with it."""
    scorers = [Stub("tiny-rater", name=name, token_budget=64) for name in MODELS]
    return Run.start(folder, rows, SOURCE, scorers, SHARD_SIZE), scorers


def drive(folder: Path, rows: Dataset, worker: Worker) -> None:
    """One worker, from the plan to the results."""
    run, scorers = start(folder, rows)
    run.rate(rows, scorers, worker=worker)
    run.settle(rows, scorers, Reflection(), Cut(proportion=0.4), worker)


# A worker that is killed


@dataclass(frozen=True)
class Kill:
    """Where a worker dies: when it gets to ``point`` for the ``arrival``-th time, or ``after`` so
    many seconds; nowhere by default.
    """

    point: str = ""
    arrival: int = 0
    after: float = TOO_LONG
    how: int = signal.SIGKILL


def serve(
    folder: Path, log: Path, rows: Dataset, serial: int, worker: Worker, kill: Kill, mutant: str
) -> None:
    """What a forked worker does."""
    logging.disable(logging.WARNING)
    workers.POLL = claims.POLL = 0.005
    mirror.Mirror.poll = 0.05
    mirror.FRESH = workers.FRESH = shards.FRESH = 0.0
    LocalFileSystem.pipe_file = pipe_file
    patched: Any = plans
    patched.version = VERSIONS.__getitem__  # to look them up takes longer than all else
    if mutant:
        MUTANTS[mutant]()
    if kill.point:
        patched = storage
        patched.reached = dying(kill)
    Stub.begun = lambda model, number: note(log, f"{serial} {model}/{number:05d}")
    drive(folder, rows, worker)


def pipe_file(self: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
    """Write a small file at once, exclusively if it is to be created, as object storage does."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(path.partition(THERE)[0]) / f"{os.getpid()}.piece"
    partial.write_bytes(value)
    if mode != "create":
        partial.replace(place)
        return
    try:
        os.link(partial, place)
    finally:
        partial.unlink()


def dying(kill: Kill) -> Callable[[str], None]:
    """A `storage.reached` that ends the process as the kernel does."""
    arrivals = 0

    def reached(point: str) -> None:
        nonlocal arrivals
        if point == kill.point:
            arrivals += 1
            if arrivals == kill.arrival:
                os.kill(os.getpid(), kill.how)

    return reached


def note(log: Path, words: str) -> None:
    """Add a line, whole, whoever else does."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{words}\n".encode())
    os.close(descriptor)


# Mutants: the positive control


def without_sidecar_check() -> None:
    """Take a table for a shard whatever its sidecar says, or if there is none."""

    def read(self: Shards, number: int) -> tuple[dict[str, Any] | None, bytes]:
        facts = {"rater": rater(self.folder.name) | {"rating_key": self.key}, "oom_splits": 0}
        with suppress(RunError):
            facts = storage.read_json(self._path(number, "json"))
        try:
            return facts, self._path(number, "parquet").read_bytes()
        except FileNotFoundError:
            return None, b""

    def version_of(self: Shards, number: int) -> Any:
        path = self._path(number, "parquet")
        return ((0, 0, path.stat().st_mtime_ns),) if path.exists() else None

    patched: Any = Shards
    patched._read, patched.version = read, version_of
    patched.is_committed = lambda self, number: self._path(number, "parquet").exists()


def without_atomic_rename() -> None:
    """Write every file in its place."""

    @contextmanager
    def replacing(path: Path) -> Iterator[Path]:
        path.unlink(missing_ok=True)
        yield path
        storage.reached("file renamed")
        storage.reached("folder synced")

    patched: Any = storage
    patched.replacing = replacing


MUTANTS = {
    "no-sidecar-check": without_sidecar_check,
    "no-atomic-rename": without_atomic_rename,
}


# A run through kills


class Alone(NamedTuple):
    """What a run that was left alone left, and in how many seconds."""

    files: dict[str, bytes]
    seconds: float


class Slot(NamedTuple):
    """A worker at work. Each that is started has a ``serial`` of its own."""

    rank: int
    serial: int
    kill: Kill
    process: ForkProcess
    started: float


class Seen:
    """What happened in all runs."""

    def __init__(self) -> None:
        self.runs = self.rated = self.lost = self.flipped = self.finishing = 0
        self.kills: list[str] = []
        self.workers: Counter[int] = Counter()
        self.violations: list[str] = []

    def facts(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "kills": len(self.kills),
            "at": dict(Counter(self.kills)),
            "workers": dict(sorted(self.workers.items())),
            "while_finishing": self.finishing,
            "runs": self.runs,
            "shards_rated": self.rated,
            "shards_lost": self.lost,
            "bits_flipped": self.flipped,
            "violations": self.violations,
        }

    def next_kill(self, draw: random.Random, seconds: float) -> Kill:
        """Half of them at any instant, half at the point that has seen the fewest."""
        times = Counter(self.kills)
        if times[INSTANT] * 2 <= len(self.kills):
            return Kill(after=draw.uniform(0, seconds))
        point = min(storage.POINTS, key=lambda point: (times[point], draw.random()))
        return Kill(point, draw.randint(1, 6))


@dataclass
class Struck:
    """One run folder, from nothing to its results, through so many kills."""

    folder: Path
    rows: Dataset
    world: int
    kills: int
    mutant: str
    alone: Alone
    draw: random.Random
    seen: Seen
    mirrored: bool = False

    def __post_init__(self) -> None:
        self.log = self.folder.with_suffix(".log")
        self.there = self.folder / THERE if self.mirrored else self.folder
        self.copies = [self.folder / str(rank) for rank in range(self.world * self.mirrored)]
        for copy in self.copies:
            mirror.begin_copy(copy, f"file://{self.there}")
        self.serials = 0
        self.killed: set[int] = set()
        self.flipped: dict[str, bytes] = {}

    def through(self) -> None:
        """Start workers, kill them, start them again, until all have come to the end; then look."""
        slots = [self._start(rank) for rank in range(self.world)]
        while slots:
            wait(slots)
            dead = [slot for slot in slots if not slot.process.is_alive()]
            struck = [self._bury(slot) for slot in dead]
            if any(struck) and self.kills > 0 and self.draw.random() < DAMAGE_AFTER:
                self._cut_power([slot for slot in slots if slot not in dead])
                dead = slots
            self._not_whole()
            slots = [slot for slot in slots if slot not in dead]
            slots += [self._start(slot.rank) for slot in dead if slot.serial in self.killed]
        self._look()

    def _start(self, rank: int) -> Slot:
        armed = self.kills > 0
        kill = self.seen.next_kill(self.draw, self.alone.seconds) if armed else Kill()
        self.serials += 1
        worker = Worker(rank, self.world, rank)
        folder = self.copies[rank] if self.mirrored else self.folder
        given = (folder, self.log, self.rows, self.serials, worker, kill, self.mutant)
        process = FORK.Process(target=serve, args=given)
        process.start()
        return Slot(rank, self.serials, kill, process, time.monotonic())

    def _bury(self, slot: Slot, point: str = "") -> bool:
        """Count a worker that has ended; whether it was killed."""
        code = slot.process.exitcode
        if code == 0:
            return False
        if code != -signal.SIGKILL or time.monotonic() > slot.started + TOO_LONG:
            self._violated(
                f"a worker {'hung' if code == -signal.SIGKILL else f'ended with {code}'}"
            )
            return False
        self.killed.add(slot.serial)
        self.kills -= 1
        self.seen.kills.append(point or slot.kill.point or INSTANT)
        self.seen.workers[self.world] += 1
        sidecars = len(list(self.there.glob("ratings/*/[0-9]*.json")))
        self.seen.finishing += sidecars == len(MODELS) * -(-ROWS // SHARD_SIZE)
        return True

    def _cut_power(self, others: list[Slot]) -> None:
        """Kill all others as well, and flip a bit of a table."""
        for slot in others:
            slot.process.kill()
            slot.process.join()
            self._bury(slot, INSTANT)
        folders = self.copies or [self.folder]
        tables = sorted(one for f in folders for one in f.glob("ratings/*/[0-9]*.parquet"))
        if tables:
            path = self.draw.choice(tables)
            data = bytearray(path.read_bytes())
            data[self.draw.randrange(len(data))] ^= 1 << self.draw.randrange(8)
            path.write_bytes(data)
            note(self.log, f"{FLIPPED} {path.parent.name}/{path.stem}")
            self.flipped["/".join(path.parts[-3:])] = bytes(data)
            self.seen.flipped += 1

    # What must hold

    def _not_whole(self) -> None:
        """After every kill: what bears its final name is what it must be, to the last byte."""
        for folder in self.copies or [self.folder]:
            for name, data in contents(folder).items():
                if self.alone.files.get(name) != data != self.flipped.get(name):
                    self._violated(f"{name} is not whole")

    def _look(self) -> None:
        """At the end: all files, nothing else, and no more work lost than was killed."""
        found = contents(self.there)
        for name in self.alone.files.keys() | found.keys():
            if found.get(name) != self.alone.files.get(name):
                self._violated(f"{name} is {'missing' if name not in found else 'not the same'}")
        for path in self.folder.rglob("*"):
            if path.suffix in (".partial", ".claim", ".retry"):
                self._violated(f"{path.name} is left")
        for serial, lost in self._lost().items():
            if serial not in self.killed or lost > 1:
                self._violated(f"{lost} shards of worker {serial} were rated again")

    def _lost(self) -> Counter[int]:
        """For each worker, the shards it began that were begun again; flipped ones do not count."""
        begun: defaultdict[str, list[int]] = defaultdict(list)
        for line in self.log.read_text().splitlines():
            who, shard = line.split()
            if who == FLIPPED:
                begun[shard].clear()
            else:
                begun[shard].append(int(who))
                self.seen.rated += 1
        lost = Counter(serial for serials in begun.values() for serial in serials[:-1])
        self.seen.lost += lost.total()
        return lost

    def _violated(self, words: str) -> None:
        self.seen.violations.append(f"{self.folder.name}, {self.world} workers: {words}")


def wait(slots: list[Slot]) -> None:
    """Until a worker is dead; those whose time has come are killed."""
    first = min(slot.started + slot.kill.after for slot in slots) - time.monotonic()
    connection.wait([slot.process.sentinel for slot in slots], timeout=max(0.0, first))
    for slot in slots:
        if time.monotonic() >= slot.started + slot.kill.after:
            slot.process.kill()
            slot.process.join()


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run but hidden ones and claims; of sidecars, what another run says again."""
    found = {}
    for path in folder.rglob("*"):
        if path.name == mirror.ORIGIN:
            continue
        if path.suffix in (".json", ".parquet") and not path.name.startswith("."):
            with suppress(FileNotFoundError):  # set aside meanwhile, by a worker that is alive
                found[str(path.relative_to(folder))] = essence(path, path.read_bytes())
    return found


def essence(path: Path, data: bytes) -> bytes:
    """What must be the same in every run."""
    if path.suffix != ".json" or "ratings" not in path.parts:
        return data
    try:
        said = json.loads(data)
    except ValueError:
        return data
    return json.dumps({name: said[name] for name in said if name not in NOT_REPEATED}).encode()


# All runs


def chaos(
    folder: Path,
    kills: int,
    mutant: str | None = None,
    seed: int = 0,
    mirrored: bool = False,
    tell: bool = False,
) -> dict[str, Any]:
    """Kill so many workers, run after run; what was seen, as JSON-able facts.

    ``violations`` are what must never happen, in words; with one of `MUTANTS` some must be found.
    """
    started, draw, seen, rows = time.perf_counter(), random.Random(seed), Seen(), make_rows()
    alone = leave_alone(folder / "alone", rows)
    while len(seen.kills) < kills and not seen.violations:
        world = 1 + seen.runs % 2
        left = min(draw.randint(1, KILLS_A_RUN), kills - len(seen.kills))
        name = folder / f"run-{seen.runs}"
        Struck(name, rows, world, left, mutant or "", alone, draw, seen, mirrored).through()
        shutil.rmtree(name)
        seen.runs += 1
        if tell:
            print(f"{len(seen.kills)} kills in {seen.runs} runs", file=sys.stderr)
    return seen.facts() | {"seed": seed, "seconds": round(time.perf_counter() - started, 1)}


def leave_alone(folder: Path, rows: Dataset) -> Alone:
    """Let a run come to its end."""
    started, log = time.perf_counter(), folder.with_suffix(".log")
    process = FORK.Process(target=serve, args=(folder, log, rows, 0, Worker(), Kill(), ""))
    process.start()
    process.join()
    assert process.exitcode == 0, "a run that is left alone must end well"
    return Alone(contents(folder), time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
