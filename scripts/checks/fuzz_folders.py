"""Odd run folders from other people: can they make selectit read, write or run anything outside?

Small finished runs (two models, streamed rows, measures, one of 0.1.0) are copied and changed as an
attacker might change them: see `folder_mutations`. Each copy goes through the commands ``status``,
``push`` (without ``--yes``, against a small Hub on this machine), ``report`` and ``select``, into
the run and into another folder. After each command:

- the exit code is 0, 1 or 2: no bug, no hang, no crash, no unbounded memory;
- the outside folder, which links and names point to, was not accessed (seen by inotify), and no
  file was opened for writing, made or renamed except in the run, in ``--out`` and in caches;
- none of that folder's text is in the output or in the written files;
- the output has no control characters;
- a changed file whose hashes were not recomputed is not published.

    python scripts/checks/fuzz_folders.py                              # 150 folders, a minute
    python scripts/checks/fuzz_folders.py --count 10000 --seed 0 --workers 2
    python scripts/checks/fuzz_folders.py --mutant follow-links  # must find violations, and exits 1

The last line of stdout is JSON.
"""

import argparse
import ctypes
import faulthandler
import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]
TOO_LONG = 120.0
"""Time limit of one command in seconds."""
MEMORY = 3 << 30
"""Bytes of memory that a command may use in addition to the loaded libraries."""
MARK = b"canary 5f1d8a"
COMMANDS = ("status", "push", "report", "select", "select into the run")
BY = {
    "two models": ["model", "token_score__small", "random", "stars"],
    "measured": ["token", "length", "length"],
}
"""What rows are ranked by."""
AT_ONCE = 1000
"""Folders of one process; after thousands, what libraries keep of each reaches the memory limit."""
WHOLE = 8
"""The plots of one folder in this many are drawn to the end."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
MAKING = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.symlink")
MUTANTS = ("follow-links", "any-type")


def main() -> int:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--count", type=int, default=150)
    flags.add_argument("--first", type=int, default=0, help="number of the first folder")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--workers", type=int, default=1)
    flags.add_argument("--mutant", choices=MUTANTS, help="break the checks so")
    flags.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = vars(flags.parse_args())
    place = given.pop("work")
    if place is not None:
        work(place)
    with tempfile.TemporaryDirectory(prefix="fuzz-folders-", dir=memory()) as name:
        found = fuzz(Path(name), **given)
    print(json.dumps(found))
    return int(bool(found["violations"]))


def memory() -> Path | None:
    """A folder of files in memory, if there is one."""
    there = Path("/dev/shm")
    return there if os.access(there, os.W_OK) else None


def fuzz(
    place: Path,
    count: int = 150,
    first: int = 0,
    seed: int = 0,
    workers: int = 1,
    mutant: str | None = None,
) -> dict[str, Any]:
    """Make the runs, change copies of them, and run the commands; return counts, JSON-able."""
    started = time.monotonic()
    bases = make_bases(place / "bases")
    jobs = [
        Job(place / f"worker-{i}", bases, range(first + i, first + count, workers), seed, mutant)
        for i in range(workers)
    ]
    while sum(job.running() for job in jobs):  # each call also restarts dead workers
        time.sleep(0.05)
    found: Counter[str] = Counter()
    violations = []
    for job in jobs:
        for line in job.lines():
            found.update(line["counts"])
            violations += line["violations"]
    return {
        "seed": seed,
        "mutant": mutant,
        **dict(sorted(found.items())),
        "violations": len(violations),
        "seconds": round(time.monotonic() - started),
        "examples": violations[:40],
    }


# The runs


def make_bases(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Finished runs and the rows that each was made of."""
    import pyarrow as pa
    from finished_runs import SHA, commit, make_plan, make_rows, make_run, planned
    from finished_runs import _ratings as ratings

    from selectit_hf import runs
    from selectit_hf.formats import sources
    from selectit_hf.formats.sources import Source
    from selectit_hf.report.page import write_report
    from selectit_hf.runs.plans import encoded

    del pa, planned, encoded
    folder.mkdir(parents=True)
    bases: dict[str, tuple[Path, Path]] = {}
    rows = make_rows(24, stars=[i % 5 for i in range(24)])
    data = folder / "rows"
    rows.save_to_disk(str(data))
    loaded, source = sources.load(str(data))
    said = {"name": source.name, "config": None, "split": "train", "revision": source.revision}
    run = make_run(folder / "two models", rows=loaded, source=said)
    write_report(run, loaded)
    bases["two models"] = (run, data)

    where = folder / "streamed"
    named = Source("org/source", None, "train", SHA)
    spooled, _ = runs.spool(rows.to_iterable_dataset(), where, named)
    plan = make_plan(spooled, ("org/small",), 8)
    (where / "plan.json").write_bytes(plans_encoded(plan))
    opened = runs.open_run(where)
    commit(opened, "small", ratings(spooled, plan["models"][0], 10**9, 1))
    runs.finish(opened, spooled)
    bases["streamed"] = (where, data)

    sample = files("selectit_hf").joinpath("data", "sample.jsonl").read_text("utf-8")
    lines = sample.splitlines(keepends=True)
    few = folder / "sample20.jsonl"
    few.write_text("".join(lines[:20]))
    measured = folder / "measured"
    command("run", few, "--model", "tiny-rater", "--out", measured, "--shard-size", 10)
    command("compare", measured, "--data", few, "--by", "length", "--by", "token")
    bases["measured"] = (measured, few)

    old = folder / "sample60.jsonl"
    old.write_text("".join(lines[:60]))
    shutil.copytree(ROOT / "tests" / "data" / "run_0_1_0", folder / "0.1.0")
    bases["0.1.0"] = (folder / "0.1.0", old)
    return bases


def plans_encoded(plan: dict[str, Any]) -> bytes:
    from selectit_hf.runs.plans import encoded

    return encoded(plan)


def command(*words: Any) -> None:
    """Run a command that has to succeed."""
    from selectit_hf.cli import app

    code, said = 1, ""
    with captured() as output:
        code = called(app, [str(word) for word in words])
        said = output()
    assert code == 0, said


# One command in this process


@contextmanager
def captured() -> Iterator[Any]:
    """Send everything written to the standard streams to a file."""
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(1), os.dup(2)]
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

        def output() -> str:
            sys.stdout.flush()
            sys.stderr.flush()
            file.seek(0)
            return file.read().decode("utf-8", "surrogateescape")

        try:
            yield output
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for old, number in zip(kept, (1, 2), strict=True):
                os.dup2(old, number)
                os.close(old)


def called(cli: Any, words: list[str]) -> int:
    """The exit code of a command."""
    sys.argv = ["selectit", *words]
    try:
        cli.main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


# Observers


class Watch:
    """What the system saw of some folders, by inotify."""

    EVERYTHING = 0xFFF
    CHANGES = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._names: dict[int, str] = {}

    def add(self, folder: Path, mask: int) -> None:
        """Watch the entries of a folder."""
        found = self._libc.inotify_add_watch(self._file, os.fsencode(folder), mask)
        if found < 0:
            raise OSError(ctypes.get_errno(), "inotify", str(folder))
        self._names[found] = folder.name

    def events(self) -> list[str]:
        """The events since the last call."""
        found = []
        with suppress(BlockingIOError):
            while data := os.read(self._file, 1 << 16):
                at = 0
                while at < len(data):
                    watch, mask, _, length = struct.unpack_from("iIII", data, at)
                    name = data[at + 16 : at + 16 + length].rstrip(b"\0").decode(errors="replace")
                    at += 16 + length
                    found.append(f"{self._names.get(watch)}/{name}: {mask:#x}")
        return found


class Writes:
    """Files that Python opens for writing, makes, renames or removes outside allowed places."""

    def __init__(self, allowed: list[Path]) -> None:
        self._allowed = [os.path.realpath(one) for one in allowed] + ["/dev/null", "/dev/shm/sem."]
        self._on = False
        self._found: list[str] = []
        sys.addaudithook(self._hear)

    def start(self) -> None:
        """Listen from now on."""
        self._found, self._on = [], True

    def stop(self) -> list[str]:
        """Stop listening, and return the findings."""
        self._on = False
        return self._found

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open" and isinstance(args[0], (str, bytes)):
            flags = args[2] if isinstance(args[2], int) else 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                self._check(event, os.path.realpath(os.fsdecode(args[0])))
        elif event in MAKING and args[-1] == -1:  # not within a folder that is open already
            for one in [one for one in args[:2] if isinstance(one, (str, bytes, os.PathLike))]:
                path = os.fsdecode(one)
                folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
                self._check(event, os.path.join(folder, os.path.basename(path)))
        elif event == "socket.connect" and isinstance(args[1], tuple):
            at_home = args[1][0] in ("127.0.0.1", "::1", "localhost")
            if not at_home:
                self._found.append(f"connects to {args[1]}")

    def _check(self, event: str, path: str) -> None:
        if not path.startswith(tuple(self._allowed)):
            self._found.append(f"{event} {path}")


# A worker


class Job:
    """A process that works through some folders, and is restarted if it dies."""

    def __init__(
        self,
        place: Path,
        bases: dict[str, tuple[Path, Path]],
        numbers: range,
        seed: int,
        mutant: str | None,
    ) -> None:
        self.place, self.bases, self.seed, self.mutant = place, bases, seed, mutant
        self.left = list(numbers)
        place.mkdir()
        self.log, self.at = place / "log.jsonl", place / "at"
        self.log.touch()
        self.process: Any = None

    def running(self) -> bool:
        """Restart the process if it died; return whether there is work left."""
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return True
            if code == 0:
                self.left = self.left[AT_ONCE:]
            else:
                self._died()
            if not self.left:
                return False
        self.process = self._start()
        return True

    def _start(self) -> Any:
        work = {
            "place": str(self.place),
            "bases": {name: [str(one) for one in paths] for name, paths in self.bases.items()},
            "left": self.left[:AT_ONCE],
            "seed": self.seed,
            "mutant": self.mutant,
        }
        (self.place / "work.json").write_text(json.dumps(work))
        return subprocess.Popen([sys.executable, __file__, "--work", str(self.place)])

    def _died(self) -> None:
        """Record why it died; the next process continues after that folder."""
        at = json.loads(self.at.read_text())
        words = self.at.with_name("died").read_text(errors="replace")[-3000:]
        what = "hangs" if "Timeout" in words else f"dies with {self.process.returncode}"
        print(f"worker died: {at} {words}", file=sys.stderr)
        line = {"counts": {"folders": 1}, "violations": [{**at, "what": what, "where": words}]}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.left = [number for number in self.left if number > at["folder"]]

    def lines(self) -> list[dict[str, Any]]:
        """What was found in each folder."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def work(place: Path) -> None:
    """What a worker does."""
    told = json.loads((place / "work.json").read_text())
    bases = {name: (Path(run), Path(data)) for name, (run, data) in told["bases"].items()}
    warnings.simplefilter("ignore")
    room = Room(place, bases, told["mutant"])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = 1
    try:
        with (place / "died").open("w") as dead, (place / "log.jsonl").open("a") as log:
            faulthandler.enable(dead)
            for number in told["left"]:
                line = room.try_folder(number, told["seed"], place / "at", dead)
                log.write(json.dumps(line) + "\n")
                log.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # the small Hub's threads need not be waited for


class Room:
    """Tries one folder after the other, in this process."""

    def __init__(
        self, place: Path, bases: dict[str, tuple[Path, Path]], mutant: str | None
    ) -> None:
        from hub_server import HubServer

        self.place, self.bases = place, bases
        again = f"{time.time_ns()}"
        self.here, self.home, self.temp = (
            place / f"{name}-{again}" for name in ("here", "home", "temp")
        )
        for folder in (self.here, self.home, self.temp):
            folder.mkdir()
        self.run, self.out, self.canary = place / "run", place / "out", place / "canary"
        self.server = HubServer().__enter__()
        self.server.add_repo("dataset", "org/source", {"README.md": b"---\nlicense: mit\n---\n"})
        os.environ.update(HOME=str(self.home), TMPDIR=str(self.temp))
        os.environ["XDG_STATE_HOME"] = str(self.home / "state")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.temp)
        tempfile.tempdir = str(self.temp)
        os.chdir(self.here)
        self._load(mutant)
        for name in bases:
            self._canary(name)
        self.writes = Writes([self.run, self.out, self.home, self.temp])

    def _load(self, mutant: str | None) -> None:
        """Load everything that commands need, and direct it to the small Hub."""
        import datasets
        import huggingface_hub.constants as constants
        import typer

        from selectit_hf.cli import app
        from selectit_hf.hub import publishing
        from selectit_hf.report import page, plots

        datasets.disable_progress_bars()
        datasets.config.HF_DATASETS_CACHE = self.home / "datasets"
        constants.ENDPOINT = self.server.url
        url = self.server.url

        def client() -> Any:
            from hub_server import TOKEN
            from huggingface_hub import HfApi

            return HfApi(endpoint=url, token=TOKEN)

        publishing._client = client
        self.cli, shown = app, typer.main.get_command(app.app)
        app.app = shown  # type: ignore[assignment]  # made once
        self._drawing = [(plots, "image_of", b"PNG"), (page, "on_page", {})]
        self._drawn = [getattr(module, name) for module, name, _ in self._drawing]
        if mutant is not None:
            break_checks(mutant)

    def draw(self, whole: bool) -> None:
        """Set whether plots are drawn to the end, which takes most of the time."""
        for (module, name, instead), original in zip(self._drawing, self._drawn, strict=True):
            setattr(module, name, original if whole else lambda *_, given=instead: given)

    def _canary(self, name: str) -> None:
        folder = self.canary / name
        if not folder.exists():
            shutil.copytree(self.bases[name][0], folder / "run")
            (folder / "run" / "report" / "images").mkdir(parents=True, exist_ok=True)
            (folder / "run" / "report" / "images" / "scores.png").write_bytes(MARK)
            (folder / "run" / "report" / "report.html").write_bytes(MARK)
            (folder / "note.txt").write_bytes(MARK)

    def watch(self, canary: Path) -> Watch:
        """Watch the outside folder, this folder and the folder that holds the run."""
        found = Watch()
        for folder in [canary, *(p for p in canary.rglob("*") if p.is_dir())]:
            found.add(folder, Watch.EVERYTHING)
        found.add(self.here, Watch.CHANGES)
        return found

    def try_folder(self, number: int, seed: int, at: Path, dead: Any) -> dict[str, Any]:
        """Change a copy of a run, and give it to every command."""
        from folder_mutations import mutate

        chooser = random.Random(f"{seed} {number}")
        name = chooser.choice(list(self.bases))
        base, data = self.bases[name]
        for folder in (self.run, self.out):
            shutil.rmtree(folder, ignore_errors=True)
            if os.path.islink(folder):
                os.unlink(folder)
        shutil.copytree(base, self.run)
        canary = self.canary / name
        kinds, said = mutate(self.run, canary, chooser)
        counts: Counter[str] = Counter({"folders": 1, **{f"with {kind}": 1 for kind in kinds}})
        violations = []
        facts = {"folder": number, "seed": seed, "base": name, "mutations": said}
        state = state_of(self.run, self.bases[name][0]) if name != "0.1.0" else []
        watch = self.watch(canary)
        by = chooser.choice(BY.get(name, ["token", "sentence", "random"]))
        self.draw(number % WHOLE == 0)
        for command in (*COMMANDS[:3], chooser.choice(COMMANDS[3:])):
            words = self._words(command, data, by, chooser)
            at.write_text(json.dumps({**facts, "command": command}))
            code, problems = self._try(words, watch, dead)
            counts[f"{command}: exit {code}"] += 1
            if command == "push" and code == 0 and "not sealed" in said and state:
                problems.append(f"publishes what was changed: {state}")
            for problem in problems:
                violations.append({**facts, "command": " ".join(words[:1]), "what": problem})
        os.close(watch._file)
        return {"counts": dict(counts), "violations": violations}

    def _words(self, command: str, data: Path, by: str, chooser: random.Random) -> list[str]:
        run, out = str(self.run), str(self.out)
        as_json = ["--json"] if chooser.random() < 0.5 else []
        select = ["select", run, "--data", str(data), "--by", by]
        return {
            "status": ["status", run],
            "push": ["push", run, "user/picked"],
            "report": ["report", run, "--data", str(data)],
            "select": [*select, "--out", out],
            "select into the run": [*select, "--out", run],
        }[command] + as_json

    def _try(self, words: list[str], watch: Watch, dead: Any) -> tuple[int, list[str]]:
        faulthandler.dump_traceback_later(TOO_LONG, exit=True, file=dead)
        with captured() as output:
            self.writes.start()
            code = called(self.cli, words)
            written = self.writes.stop()
            said = output()
        faulthandler.cancel_dump_traceback_later()
        problems = [f"outside was touched: {one}" for one in watch.events()[:3]]
        problems += [f"outside was written: {one}" for one in written[:3]]
        if code not in (0, 1, 2):
            lines = said.strip().splitlines()
            problems.append(f"exit {code}: {' | '.join(lines[-3:])[:600]}")
        found = CONTROL.search(said)
        if found:
            problems.append(f"control character {found[0]!r} in {said[:300]!r}")
        if "Traceback" in said:
            problems.append(f"a traceback: {said[-600:]}")
        if MARK.decode() in said or self._holds_mark():
            problems.append("text of the folder outside was taken over")
        return code, problems

    def _holds_mark(self) -> bool:
        for top in (self.run, self.out):
            for folder, _, names in os.walk(top):
                for name in names:
                    path = os.path.join(folder, name)
                    mode = os.lstat(path)
                    if mode.st_mode & 0o170000 == 0o100000 and mode.st_size < 1 << 22:
                        with open(path, "rb") as file:
                            if MARK in file.read():
                                return True
        return False


def state_of(run: Path, base: Path) -> list[str]:
    """The files that are covered by hashes and differ from those of the original run."""
    found = []
    for path in [p for p in base.rglob("*") if p.is_file()]:
        name = path.relative_to(base)
        checked = name.parts[0] == "ratings" or (
            len(name.parts) == 1 and not name.name.startswith(".")
        )
        here = run / name
        if checked and not (here.is_file() and not here.is_symlink() and is_same(here, path)):
            found.append(str(name))
    return found


def is_same(one: Path, other: Path) -> bool:
    """Whether two files say the same: the same bytes, or JSON that differs in its spaces only."""
    texts = one.read_bytes(), other.read_bytes()
    if other.suffix != ".json":
        return texts[0] == texts[1]
    try:
        return len({json.dumps(json.loads(text), sort_keys=True) for text in texts}) == 1
    except (ValueError, RecursionError):
        return False


def break_checks(mutant: str) -> None:
    """The positive control: disable the checks."""
    from selectit_hf import json_files
    from selectit_hf.runs.store import Store

    if mutant == "follow-links":
        Store.path = lambda self, name="": Path(self._root) / name  # type: ignore[method-assign]
        return
    original = json_files.misfit
    for module in [m for n, m in sys.modules.items() if n.startswith("selectit_hf")]:
        if getattr(module, "misfit", None) is original:
            module.misfit = lambda value, schema, at="": None


if __name__ == "__main__":
    # Before any import of Hugging Face libraries, which read it then.
    os.environ |= {
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    sys.exit(main())
