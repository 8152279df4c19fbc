"""Kill a run again and again: does it always end in the results of a run that was left alone?

Forked workers take a small dataset through the real path (plan, shards, results). A stub replaces
the models and makes ratings from a row's text. Each worker is killed with SIGKILL, alternately at a
named point of the commit (`selectit_hf.runs.shards.POINTS`) and at a random instant, and restarted
until enough kills have happened. Runs have one worker or three; in every second run with three,
each rates every shard, so that every shard is made more than once. Sometimes all are killed at once
and one bit of a table is flipped, as by a failing disk. In every third run one worker is stopped in
the middle of a commit, with a table of other bytes (as after a split), and continues only when the
results are written.

After every kill, each file with its final name must be whole. At the end of every run, and again
after the late writer, the results and every table that they pin must have the bytes of the
undisturbed run, and a single worker may lose no more than one shard of work by a kill.

    python scripts/checks/chaos.py                               # 40 kills, a few seconds
    python scripts/checks/chaos.py --kills 1000
    python scripts/checks/chaos.py --kills 1000 --s3 # an hour; a local server that speaks S3 (moto)
    python scripts/checks/chaos.py --kills 30 --asleep 180  # late writers wait three minutes more
    python scripts/checks/chaos.py --mutant no-sidecar-check  # finds violations, and exits with 1
    python scripts/checks/chaos.py --mutant no-atomic-rename     # likewise

The mutants are the positive control: a protocol that trusts tables and sidecars unchecked, and one
that writes files directly to their final names. The last line of stdout is JSON.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from selectit_hf import runs, whole_files
from selectit_hf.errors import RunError
from selectit_hf.formats.rows import Pair
from selectit_hf.formats.sources import Source
from selectit_hf.json_files import json_object
from selectit_hf.rating.engine import engine
from selectit_hf.rating.models import hardware
from selectit_hf.rating.ratings import Ratings
from selectit_hf.rating.reflection import Reflection
from selectit_hf.rating.scorers import SentenceScore
from selectit_hf.runs import RESULTS, Run, plans, rate_shards
from selectit_hf.runs.run import PROGRESS
from selectit_hf.runs.shards import POINTS, Shards
from selectit_hf.selection.selection import Cut

ROWS, SHARD_SIZE, K = 22, 4, 5
SOURCE = Source("rows.json", None, "train", "sha256:0")
MODELS = ("small", "large")
KILLS_A_RUN = 10
DAMAGE_AFTER = 0.2
"""The share of kills after which all are killed and a bit is flipped."""
TOO_LONG = 240.0
"""Seconds after which a worker is taken to hang; its longest step is waiting for others."""
PAUSE = 0.0003
"""Seconds that a row takes."""
WAIT = 0.05
"""Seconds after which rank 0 takes over."""
INSTANT, FLIPPED, LATE = "any instant", "flipped", "late writer"
LATE_AT = ("shard rated", "table written", "looked again")
REMOTE_POINTS = ("shard rated", "table written", "looked again", "shard committed")
NOT_REPEATED = ("seconds", "facts_sha256")
"""The fields of a sidecar that differ between runs of the same shard."""
TABLE = re.compile(r"(\d{5})\.([0-9a-f]{12})\.parquet")
VERSIONS = {name: version(name) for name in {*plans.LIBRARIES, *hardware.LIBRARIES}}
FORK = multiprocessing.get_context("fork")
LOADED = (engine,)
"""Modules that a run loads when needed; loaded here, so that forked workers need not."""


def main() -> int:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--kills", type=int, default=40)
    flags.add_argument("--mutant", choices=sorted(MUTANTS), help="break the protocol so")
    flags.add_argument("--s3", action="store_true", help="in a bucket of a local server")
    flags.add_argument("--seed", type=int, default=0, help="of what is drawn; time is not")
    flags.add_argument("--folder", type=Path, help="for the runs; else in memory")
    flags.add_argument(
        "--asleep", type=float, default=0.0, help="seconds that late writers stay stopped"
    )
    given = flags.parse_args()
    with ExitStack() as stack:
        name = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="chaos-", dir=given.folder or in_memory())
        )
        place: Folders = (
            stack.enter_context(bucket(Path(name))) if given.s3 else Folders(Path(name))
        )
        found = chaos(place, given.kills, given.mutant, given.seed, given.asleep, tell=True)
    print(json.dumps(found))
    return int(bool(found["violations"]))


def in_memory() -> Path | None:
    """A folder in memory, if there is one: kills affect its files as on a disk, but faster."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


# Where runs are


class Folders:
    """Run folders of this machine."""

    points: tuple[str, ...] = POINTS

    def __init__(self, folder: Path) -> None:
        self.logs = folder

    def where(self, name: str) -> str:
        """What names a run."""
        return str(self.logs / name)

    def files(self, name: str) -> dict[str, bytes]:
        """All files of a run but hidden ones."""
        found, folder = {}, self.logs / name
        for path in folder.rglob("*"):
            if path.suffix in (".json", ".parquet") and not path.name.startswith("."):
                with suppress(FileNotFoundError):  # set aside meanwhile by another worker
                    found[str(path.relative_to(folder))] = path.read_bytes()
        return found

    def write(self, name: str, file: str, data: bytes) -> None:
        """Write a file in its place."""
        (self.logs / name / file).write_bytes(data)

    def drop(self, name: str) -> None:
        """Remove a run."""
        shutil.rmtree(self.logs / name)


class Bucket(Folders):
    """Run folders in a bucket of a server."""

    points = REMOTE_POINTS

    def __init__(self, folder: Path, client: Any) -> None:
        super().__init__(folder)
        self.client = client

    def where(self, name: str) -> str:
        """What names a run."""
        return f"s3://chaos/{name}"

    def files(self, name: str) -> dict[str, bytes]:
        """All files of a run but hidden ones."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="chaos", Prefix=name)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        found = {}
        for key in keys:
            file = key.partition("/")[2]
            if key.startswith(f"{name}/") and not file.rpartition("/")[2].startswith("."):
                with suppress(self.client.exceptions.NoSuchKey):
                    body = self.client.get_object(Bucket="chaos", Key=key)["Body"]
                    found[file] = body.read()
        return found

    def write(self, name: str, file: str, data: bytes) -> None:
        """Write a file in its place."""
        self.client.put_object(Bucket="chaos", Key=f"{name}/{file}", Body=data)

    def drop(self, name: str) -> None:
        """The bucket goes with the server."""


@contextmanager
def bucket(folder: Path) -> Iterator[Bucket]:
    """A server in a separate process that speaks S3, with an empty bucket."""
    import boto3
    import s3fs  # noqa: F401  (loaded here, so that forked workers need not)

    port = 5000 + os.getpid() % 20000
    url = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = boto3.client("s3")
        for _ in range(100):
            with suppress(Exception):
                client.create_bucket(Bucket="chaos")
                break
            time.sleep(0.2)
        yield Bucket(folder, client)
    finally:
        server.terminate()
        server.wait()


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
    """A scorer that reads the rows as usual, but asks no model."""

    begun: ClassVar[Callable[[str, int], None]]
    """Called with a model and the number of the shard that is rated."""
    shift: ClassVar[float] = 0.0
    """Added to each rating, as a split of a batch does."""

    def prepare(self) -> None:
        """There is nothing to check."""

    def rate(
        self, batch: Any, rank: int | None = None, progress: Any = None, then: Any = None
    ) -> Ratings:
        """Ratings made from the text."""
        first = int(batch["instruction"][0].removeprefix("Say ").removesuffix("."))
        Stub.begun(self.slug, first // SHARD_SIZE)
        pairs = self.reader.pairs(batch)
        logprobs = np.full((len(pairs), K, K), np.nan, np.float32)
        for i, pair in enumerate(pairs):
            time.sleep(PAUSE)
            if isinstance(pair, Pair):
                logprobs[i] = made_up(self.slug, pair) - Stub.shift
        statuses = ["ok" if isinstance(pair, Pair) else pair for pair in pairs]
        said = rater(self.slug) | {"rating_key": self.rating_key()}
        return Ratings(statuses, logprobs, said, int(Stub.shift > 0))


def rater(model: str) -> dict[str, Any]:
    """Who rates."""
    return {"model": model, "revision": "r", "parameters": (MODELS.index(model) + 1) * 10**9}


def start(where: str | Path, rows: Dataset) -> tuple[Run, list[Stub]]:
    """Plan a run, or continue it."""
    scorers = [Stub("tiny-rater", name=name, token_budget=64) for name in MODELS]
    return runs.plan(rows, SOURCE, scorers, where, SHARD_SIZE), scorers


def drive(where: str | Path, rows: Dataset, rank: int = 0, world: int = 1, again: int = 5) -> None:
    """One worker, from the plan to the results, which rank 0 writes.

    If there are several, one may set aside a damaged shard that another is about to read.
    """
    run, scorers = start(where, rows)
    runs.rate(run, rows, scorers, rank, world)
    if rank > 0:
        return
    runs.wait_and_take_over(run, rows, scorers, WAIT)
    try:
        finish(run, rows)
    except RunError:
        if not again:
            raise
        drive(where, rows, rank, world, again - 1)


def finish(run: Run, rows: Dataset, out: str | Path | None = None) -> dict[str, Any]:
    """The results."""
    return runs.finish(run, rows, Reflection(), Cut(proportion=0.4), out)


# A worker that is killed


@dataclass(frozen=True)
class Kill:
    """Where a worker dies: when it gets to ``point`` for the ``arrival``-th time, or ``after`` this
    many seconds; by default, nowhere.
    """

    point: str = ""
    arrival: int = 0
    after: float = TOO_LONG
    how: int = signal.SIGKILL


def serve(
    where: str, log: Path, rows: Dataset, serial: int, rank: int, world: int, kill: Kill,
    mutant: str,
) -> None:  # fmt: skip
    """What a forked worker does."""
    logging.disable(logging.WARNING)
    quicken()
    if mutant:
        MUTANTS[mutant]()
    if kill.point:
        patched: Any = whole_files
        patched.reached = dying(kill)
    begun = 0

    def tell(model: str, number: int) -> None:
        nonlocal begun
        begun += 1
        Stub.shift = 0.01 * (kill.how == signal.SIGSTOP and begun == kill.arrival)
        note(log, f"{serial} {model}/{number:05d}")

    Stub.begun = tell
    drive(where, rows, rank, world)


def quicken() -> None:
    """Poll faster, and do not look up library versions."""
    rate_shards.POLL = 0.005
    for module in (plans, hardware):
        patched: Any = module
        patched.version = VERSIONS.__getitem__


def dying(kill: Kill) -> Callable[[str], None]:
    """A `whole_files.reached` that ends the process as the kernel does."""
    arrivals = 0

    def reached(point: str) -> None:
        nonlocal arrivals
        if point == kill.point:
            arrivals += 1
            if arrivals == kill.arrival:
                os.kill(os.getpid(), kill.how)

    return reached


def note(log: Path, words: str) -> None:
    """Append a whole line, even if other processes append too."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{words}\n".encode())
    os.close(descriptor)


# Mutants: the positive control


def without_sidecar_check() -> None:
    """Trust a sidecar and its table unchecked."""

    def said(self: Shards, number: int, sidecar: bytes) -> dict[str, Any] | None:
        facts = json_object(sidecar)
        return facts and {"table": "", "oom_splits": 0, "rater": rater(self.name), **facts}

    def table(self: Shards, facts: dict[str, Any]) -> Any:
        import pyarrow.parquet as pq

        with suppress(FileNotFoundError):
            return pq.read_table(
                __import__("io").BytesIO(self.store.read(f"{self.folder}/{facts['table']}"))
            )

    patched: Any = Shards
    patched._said, patched.table = said, table


def without_atomic_rename() -> None:
    """Write every file in its place."""

    @contextmanager
    def replacing(path: Path, place: Any = None) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        yield path
        whole_files.reached("file placed")
        whole_files.reached("folder synced")

    patched: Any = whole_files
    patched.replacing = replacing


MUTANTS = {
    "no-sidecar-check": without_sidecar_check,
    "no-atomic-rename": without_atomic_rename,
}


# A run through kills


class Alone(NamedTuple):
    """The files of an undisturbed run, and the seconds it took."""

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

    def __init__(self, points: tuple[str, ...]) -> None:
        self.points = points
        self.runs = self.rated = self.lost = self.flipped = self.finishing = 0
        self.late = self.duplicates = 0
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
            "shards_in_duplicate": self.duplicates,
            "late_writers": self.late,
            "bits_flipped": self.flipped,
            "violations": self.violations,
        }

    def next_kill(self, draw: random.Random, seconds: float) -> Kill:
        """Half of the kills at a random instant, half at the point with the fewest so far."""
        times = Counter(self.kills)
        if times[INSTANT] * 2 <= len(self.kills):
            return Kill(after=draw.uniform(0, seconds))
        point = min(self.points, key=lambda point: (times[point], draw.random()))
        return Kill(point, draw.randint(1, 6))


@dataclass
class Struck:
    """One run, from nothing to its results, through a number of kills."""

    place: Folders
    name: str
    rows: Dataset
    world: int
    doubled: bool
    kills: int
    mutant: str
    asleep: float
    alone: Alone
    draw: random.Random
    seen: Seen

    def __post_init__(self) -> None:
        self.log = self.place.logs / f"{self.name}.log"
        self.serials = 0
        self.killed: set[int] = set()
        self.flipped: dict[str, bytes] = {}
        self.late: Slot | None = None

    def through(self, with_late: bool) -> None:
        """Start workers, kill and restart them until all have finished; then check the run."""
        if with_late:
            kill = Kill(self.draw.choice(LATE_AT), self.draw.randint(1, 4), how=signal.SIGSTOP)
            self.late = self._start(0, kill, world=1)
            self._until_stopped(self.late)
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
        if not self.seen.violations:
            self._finish_again()
        self._look()
        if self.late is not None:
            self._let_go_on(self.late)

    def _start(self, rank: int, kill: Kill | None = None, world: int = 0) -> Slot:
        if kill is None:
            armed = self.kills > 0
            kill = self.seen.next_kill(self.draw, self.alone.seconds) if armed else Kill()
        self.serials += 1
        mine = (0, 1) if self.doubled or world == 1 else (rank, self.world)
        where = self.place.where(self.name)
        given = (where, self.log, self.rows, self.serials, *mine, kill, self.mutant)
        process = FORK.Process(target=serve, args=given)
        process.start()
        return Slot(rank, self.serials, kill, process, time.monotonic())

    def _finish_again(self) -> None:
        """Finish again without kills, since a table may have been flipped after the last finish."""
        slot = self._start(0, Kill(), world=1)
        slot.process.join(TOO_LONG)
        if slot.process.exitcode != 0:
            self._violated(f"the last worker ended with {slot.process.exitcode}")

    def _bury(self, slot: Slot, point: str = "") -> bool:
        """Count a worker that has ended; return whether it was killed."""
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
        files = self.place.files(self.name)
        sidecars = sum(name.startswith("ratings/") and name.endswith(".json") for name in files)
        self.seen.finishing += sidecars == len(MODELS) * -(-ROWS // SHARD_SIZE)
        return True

    def _cut_power(self, others: list[Slot]) -> None:
        """Kill all others as well, and flip a bit of a table."""
        for slot in others:
            slot.process.kill()
            slot.process.join()
            self._bury(slot, INSTANT)
        files = self.place.files(self.name)
        tables = sorted(name for name in files if TABLE.fullmatch(name.rpartition("/")[2]))
        if tables:
            name = self.draw.choice(tables)
            data = bytearray(files[name])
            data[self.draw.randrange(len(data))] ^= 1 << self.draw.randrange(8)
            self.place.write(self.name, name, bytes(data))
            model, _, table = name.removeprefix("ratings/").partition("/")
            note(self.log, f"{FLIPPED} {model}/{table[:5]}")
            self.flipped[name] = bytes(data)
            self.seen.flipped += 1

    # The late writer

    def _until_stopped(self, slot: Slot) -> None:
        stat = Path(f"/proc/{slot.process.pid}/stat")
        for _ in range(int(TOO_LONG / 0.002)):
            if not slot.process.is_alive() or stat.read_text().rpartition(")")[2].split()[0] == "T":
                return
            time.sleep(0.002)
        self._violated("the late writer never got to its point")

    def _let_go_on(self, slot: Slot) -> None:
        """Let it write after the results, then select once more."""
        if not slot.process.is_alive():
            self._violated("the late writer ended before it was stopped")
            return
        time.sleep(self.asleep)
        os.kill(slot.process.pid or 0, signal.SIGCONT)
        slot.process.join(TOO_LONG)
        self.seen.late += 1
        if slot.process.exitcode != 0:
            self._violated(f"the late writer ended with {slot.process.exitcode}")
        self._look()

    # What must hold

    def _not_whole(self) -> None:
        """After every kill: report files with a final name that are not whole, to the last byte."""
        for name, data in self.place.files(self.name).items():
            if not self._is_whole(name, data) and data != self.flipped.get(name):
                self._violated(f"{name} is not whole")

    def _is_whole(self, name: str, data: bytes) -> bool:
        table = TABLE.fullmatch(name.rpartition("/")[2])
        if table:  # also of other bytes, which the late writer and a split leave
            return hashlib.sha256(data).hexdigest().startswith(table[2])
        if name.startswith(PROGRESS) or (name.startswith("ratings/") and self.late):
            return json_object(data) is not None
        if name in RESULTS and self.late:
            return True  # of whatever ratings stay; looked at when all is done
        return essence(name, data) == self.alone.files.get(name)

    def _look(self) -> None:
        """At the end: check the results, what they pin, and how much work was lost."""
        files = self.place.files(self.name)
        found = {name: essence(name, data) for name, data in files.items()}
        for name in {"plan.json", *RESULTS}:
            if found.get(name) != self.alone.files.get(name):
                self._violated(f"{name} is {'missing' if name not in found else 'not the same'}")
        for name in self.alone.files.keys() - found.keys():
            self._violated(f"{name} is missing")
        for name in self.alone.files.keys() & found.keys():
            if TABLE.fullmatch(name.rpartition("/")[2]) and found[name] != self.alone.files[name]:
                self._violated(f"{name} is not the same")
        for name in found.keys() - self.alone.files.keys():
            if not self.late and not self._is_whole(name, files[name]):
                self._violated(f"{name} is left")
        if self.world == 1:  # with several, rank 0 takes over from slow workers
            for serial, lost in self._lost().items():
                if serial not in self.killed or lost > 1:
                    self._violated(f"{lost} shards of worker {serial} were rated again")

    def _lost(self) -> Counter[int]:
        """For each worker, the started shards that were started again, without flipped ones."""
        begun: defaultdict[str, list[int]] = defaultdict(list)
        late = self.late.serial if self.late else 0
        rated = 0
        written = self.log.read_text() if self.log.exists() else ""  # all may die before they rate
        for line in written.splitlines():
            who, shard = line.split()
            if who == FLIPPED:
                begun[shard].clear()
            elif int(who) != late:
                begun[shard].append(int(who))
                rated += 1
        lost = Counter(serial for serials in begun.values() for serial in serials[:-1])
        self.seen.rated += rated
        self.seen.lost += lost.total()
        return lost

    def _violated(self, words: str) -> None:
        how = "each shard by all" if self.doubled else "each its own"
        self.seen.violations.append(f"{self.name}, {self.world} workers, {how}: {words}")


def wait(slots: list[Slot]) -> None:
    """Wait until a worker is dead; kill those that are due."""
    first = min(slot.started + slot.kill.after for slot in slots) - time.monotonic()
    connection.wait([slot.process.sentinel for slot in slots], timeout=max(0.0, first))
    for slot in slots:
        if time.monotonic() >= slot.started + slot.kill.after:
            slot.process.kill()
            slot.process.join()


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a local run except hidden ones, reduced to what is the same every time."""
    found = Folders(folder.parent).files(folder.name)
    return {name: essence(name, data) for name, data in found.items()}


def essence(name: str, data: bytes) -> bytes:
    """What must be the same in every run."""
    if not name.endswith(".json") or not name.startswith("ratings/"):
        return data
    said = json_object(data)
    if said is None:
        return data
    return json.dumps({key: said[key] for key in said if key not in NOT_REPEATED}).encode()


# All runs


def chaos(
    place: Folders,
    kills: int,
    mutant: str | None = None,
    seed: int = 0,
    asleep: float = 0.0,
    tell: bool = False,
) -> dict[str, Any]:
    """Kill a number of workers, run after run; return what was seen, as JSON-able facts.

    ``violations`` describe what must never happen; with one of `MUTANTS` some must be found.
    """
    started, draw, rows = time.perf_counter(), random.Random(seed), make_rows()
    seen = Seen(place.points)
    alone = leave_alone(place, rows)
    while len(seen.kills) < kills and not seen.violations:
        world = 1 + 2 * (seen.runs % 2)
        doubled = world > 1 and seen.runs % 4 == 3
        left = min(draw.randint(1, KILLS_A_RUN), kills - len(seen.kills))
        name = f"run-{seen.runs}"
        run = Struck(
            place, name, rows, world, doubled, left, mutant or "", asleep, alone, draw, seen
        )
        run.through(with_late=seen.runs % 3 == 2)
        place.drop(name)
        seen.duplicates += doubled
        seen.runs += 1
        if tell:
            print(f"{len(seen.kills)} kills in {seen.runs} runs", file=sys.stderr)
    return seen.facts() | {"seed": seed, "seconds": round(time.perf_counter() - started, 1)}


def leave_alone(place: Folders, rows: Dataset) -> Alone:
    """Let a run come to its end."""
    started, log = time.perf_counter(), place.logs / "alone.log"
    given = (place.where("alone"), log, rows, 0, 0, 1, Kill(), "")
    process = FORK.Process(target=serve, args=given)
    process.start()
    process.join()
    assert process.exitcode == 0, "a run that is left alone must end well"
    files = {name: essence(name, data) for name, data in place.files("alone").items()}
    return Alone(files, time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
