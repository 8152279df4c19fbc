"""One planned run on every engine, killed midway: are ratings/ and results the same bytes?

It uses real engines on this machine: processes, torchrun and accelerate, Slurm (a plain array and
datatrove's executor), local datatrove, Ray (datatrove's executor on two nodes, and Ray Data with
the scorers themselves), and object storage. It runs on the CPU with the bundled model, and needs

    apt-get install slurm-wlm munge            # and root, for Slurm
    pip install datatrove "ray[data]" s3fs "moto[server]"
    python scripts/checks/check_engines.py            # about five minutes on two idle cores
    python scripts/checks/check_engines.py --long     # also accelerate, more kills, what hangs
    python scripts/checks/check_engines.py --only slurm-array --only ray

It prints a line for each check, then JSON. If an engine is not installed, its check fails; name the
others with --only. Hugging Face Jobs are not checked, since nothing local can stand in for them.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engines_services as services
import psutil
from engines_services import BIN, wait_until

from selectit_hf.runs import RESULTS

ROWS, SHARD_SIZE = 160, 10
SELECTIT = [sys.executable, "-m", "selectit_hf"]
URL = "s3://bucket/run"
Found = dict[str, Any]


class Checks:
    """A folder with the planned run, and what its files must be at the end."""

    def __init__(self, folder: Path, long: bool) -> None:
        self.folder, self.long = folder, long
        self.rows = folder / "rows.json"
        rows = [{"instruction": f"Say {i}.", "output": f"{i} " * (i % 9 + 1)} for i in range(ROWS)]
        self.rows.write_text(json.dumps(rows))
        self.given = ["--model", "tiny-rater", "--shard-size", str(SHARD_SIZE)]
        self.data = ["--data", str(self.rows)]
        well(self.start("plan", self.rows, "--out", folder / "planned", *self.given))
        alone = self.planned("alone")
        well(self.start("rate", alone, *self.data))
        well(self.start("finish", alone, *self.data))
        self.expected = contents(alone)
        assert len(self.expected) == ROWS // SHARD_SIZE + len(RESULTS)

    def planned(self, name: str) -> Path:
        """A copy of the planned run."""
        shutil.copytree(self.folder / "planned", self.folder / name)
        return self.folder / name

    def start(self, *command: Any, by: list[Any] = SELECTIT) -> subprocess.Popen[str]:
        """A command, maybe under a launcher."""
        return subprocess.Popen(
            [str(part) for part in (*by, *command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
        )

    def launch(self, run: Path, on: str, *flags: Any) -> subprocess.Popen[str]:
        """``selectit launch`` of three tasks."""
        return self.start("launch", run, "--on", on, "--tasks", 3, "--json", *self.data, *flags)

    # Processes

    def workers(self) -> Found:
        """``selectit run`` with three worker processes, one of them killed."""
        run = self.planned("workers")
        process = self.start("run", self.rows, "--out", run, *self.given, "--workers", 3)
        killed = wait_for_shards(run)
        spawned = [
            one
            for one in psutil.Process(process.pid).children(recursive=True)
            if "spawn_main" in " ".join(one.cmdline())
        ]
        spawned[-1].kill()
        well(process)
        return {"same": contents(run) == self.expected, "killed_at": killed}

    def torchrun(self) -> Found:
        """Two ranks under torchrun, one of which is killed; then the same command again."""
        return self._launcher("torchrun", [BIN / "torchrun", "--nproc-per-node", 2])

    def accelerate(self) -> Found:
        """The same under ``accelerate launch``."""
        command = [BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", 2]
        command += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
        return self._launcher("accelerate", command)

    def _launcher(self, name: str, command: list[Any]) -> Found:
        run, by = self.planned(name), [*command, "-m", "selectit_hf"]
        again = ["run", self.rows, "--out", run, *self.given]
        first = self.start(*again, by=by)
        killed = wait_for_shards(run)
        ranks = [
            one
            for one in psutil.Process(first.pid).children(recursive=True)
            if "selectit_hf" in " ".join(one.cmdline()) and one.environ().get("RANK") == "1"
        ]
        ranks[0].kill()
        first.communicate(timeout=600)
        assert first.returncode, "the launcher did not notice"
        well(self.start(*again, by=by))
        return {"same": contents(run) == self.expected, "killed_at": killed}

    # Slurm

    def slurm_array(self) -> Found:
        """A plain array: one task is killed, the array is submitted again, then an afterok job."""
        with services.slurm(self.folder / "slurm-a"):
            run = self.planned("slurm-array")
            script = self.folder / "array.sh"
            rate = " ".join(map(str, [*SELECTIT, "rate", run, *self.data]))
            log = self.folder / "array-%A_%a.out"
            script.write_text(f"#!/bin/bash\n#SBATCH --array=0-2\n#SBATCH --output={log}\n{rate}\n")
            job = services.words("sbatch", "--parsable", str(script)).strip()
            killed = wait_for_shards(run)
            services.words("scancel", "--signal=KILL", "--full", f"{job}_1")
            wait_until(lambda: not services.jobs(), "the array", 600)
            left = ROWS // SHARD_SIZE - len(shards(run))
            job = services.words("sbatch", "--parsable", str(script)).strip()
            last = " ".join(map(str, [*SELECTIT, "finish", run, *self.data]))
            then = ["--wait", f"--dependency=afterok:{job}", f"--output={self.folder}/finish.out"]
            done = subprocess.run(["sbatch", *then, f"--wrap={last}"], timeout=600, check=False)
            wait_until(lambda: not services.jobs(), "the array", 600)
        same = done.returncode == 0 and contents(run) == self.expected
        return {"same": same, "killed_at": killed, "left_by_the_killed_task": left}

    def slurm_datatrove(self) -> Found:
        """``launch --on slurm``: a task is killed, so nothing finishes; a second launch does."""
        with services.slurm(self.folder / "slurm-d"):
            run = self.planned("slurm-datatrove")
            options = ["partition=main", "time=1:00:00", "mem_per_cpu_gb=1"]
            flags = [part for option in options for part in ("--set", option)]
            done = said(self.launch(run, "slurm", *flags))
            killed = wait_for_shards(run)
            services.words("scancel", "--signal=KILL", "--full", f"{done['jobs'][0]}_1")
            wait_until(lambda: not services.jobs(), "Slurm", 600)
            early = (run / RESULTS[-1]).exists()
            said(self.launch(run, "slurm", *flags))
            wait_until(lambda: not services.jobs(), "Slurm", 600)
        same = not early and contents(run) == self.expected
        return {"same": same, "killed_at": killed, "finished_after_the_kill": early}

    # datatrove and Ray

    def datatrove_local(self) -> Found:
        """``launch --on local``; with --long, also with a killed task."""
        run = self.planned("datatrove-local")
        if not self.long:
            said(self.launch(run, "local"))
            return {"same": contents(run) == self.expected}
        first = self.launch(run, "local")
        killed = wait_for_shards(run)
        tasks = [
            one
            for one in psutil.Process(first.pid).children(recursive=True)
            if "forkserver" in " ".join((one.parent() or one).cmdline())
        ]
        tasks[0].kill()
        try:
            first.communicate(timeout=120)
            hangs = False
        except subprocess.TimeoutExpired:
            hangs = True
            for one in (*psutil.Process(first.pid).children(recursive=True), first):
                one.kill()
            first.communicate()
        said(self.launch(run, "local"))
        same = contents(run) == self.expected
        return {"same": same, "killed_at": killed, "hung_after_the_kill": hangs}

    def ray(self) -> Found:
        """``launch --on ray``: a worker is killed, then a node; the rest takes over both ranks."""
        run = self.planned("ray")
        with services.ray_cluster(
            Path(tempfile.mkdtemp(prefix="r", dir=self.folder)) / "c"
        ) as nodes:
            first = self.launch(run, "ray", "--set", "mem_per_cpu_gb=1")
            killed = wait_for_shards(run, 2)
            wait_until(lambda: services.ray_workers(nodes[0]), "a worker of Ray")[0].kill()
            wait_until(lambda: len(shards(run)) >= 5, "shards after the worker was killed")
            services.end(nodes[1], at_once=True)
            stopped = len(shards(run))
            if self.long:  # the one that launched is killed as well
                first.kill()
            first.communicate(timeout=600)
        found = {"worker_killed_at": killed, "node_stopped_at": stopped, "first": first.returncode}
        if first.returncode:
            with services.ray_cluster(Path(tempfile.mkdtemp(prefix="r", dir=self.folder)) / "c"):
                said(self.launch(run, "ray", "--set", "mem_per_cpu_gb=1"))
        return {"same": contents(run) == self.expected, **found}

    def ray_data(self) -> Found:
        """The scorers in ``map_batches``, in each batch format, against ``Dataset.map``."""
        code = Path(__file__).with_name("engines_ray_data.py")
        with services.ray_cluster(Path(tempfile.mkdtemp(prefix="r", dir=self.folder)) / "c"):
            formats = said(self.start(code, by=[sys.executable]))
        return {"same": all(formats.values()), **formats}

    # Object storage

    def s3(self) -> Found:
        """Two ranks on a bucket, one killed and started again; then finished."""
        with services.s3():
            well(self.start("plan", self.rows, "--out", URL, *self.given))

            def rank(number: int) -> subprocess.Popen[str]:
                flags = ["--rank", number, "--world", 2, *self.data]
                return self.start("rate", URL, *flags)

            ranks = [rank(0), rank(1)]
            pattern = "bucket/run/ratings/*/*.json"
            wait_until(lambda: len(services.bucket().glob(pattern)) >= 4, "shards in the bucket")
            killed = len(services.bucket().glob(pattern))
            ranks[0].kill()
            ranks[0].communicate()
            well(rank(0))
            well(ranks[1])
            well(self.start("finish", URL, *self.data))
            client = services.bucket()
            there = {
                name.removeprefix("bucket/run/"): client.cat_file(name)
                for name in client.find("bucket/run")
            }
        same = {name: there.get(name) for name in self.expected} == self.expected
        tables = sum(name.endswith(".parquet") and "ratings" in name for name in there)
        return {"same": same and tables == ROWS // SHARD_SIZE, "killed_at": killed}


def well(process: subprocess.Popen[str]) -> str:
    """The output of a command, which must succeed."""
    words, _ = process.communicate(timeout=900)
    if process.returncode:
        raise SystemExit(f"{process.args} ended with {process.returncode}: {words[-3000:]}")
    return words


def said(process: subprocess.Popen[str]) -> Found:
    """The JSON of a command's last line."""
    found: Found = json.loads(well(process).strip().rpartition("\n")[2])
    return found


def shards(run: Path) -> list[Path]:
    """The sidecars that are there."""
    return list(run.glob("ratings/*/*.json"))


def wait_for_shards(run: Path, count: int = 4) -> int:
    """Wait until ``count`` shards are committed; return how many are."""
    wait_until(lambda: len(shards(run)) >= count, f"{count} shards in {run.name}", 300)
    return len(shards(run))


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run that must be the same."""
    paths = [*run.glob("ratings/*/*.parquet"), *(run / name for name in RESULTS)]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths if path.exists()}


SHORT = (
    *("workers", "torchrun", "slurm-array", "slurm-datatrove"),
    *("datatrove-local", "ray", "ray-data", "s3"),
)


def main() -> int:
    """Run the checks and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--long", action="store_true", help="more kills, accelerate, what hangs")
    parser.add_argument("--only", action="append", choices=(*SHORT, "accelerate"))
    chosen = parser.parse_args()
    names = chosen.only or (*SHORT, "accelerate")[: None if chosen.long else len(SHORT)]
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the daemons too
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(prefix="e", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        checks = Checks(Path(name), chosen.long)
        for name in names:
            found[name] = timed(getattr(checks, name.replace("-", "_")))
            print(f"{name}: {found[name]}", flush=True)
    print(json.dumps(found))
    return int(not all(one["same"] for one in found.values()))


def timed(check: Callable[[], Found]) -> Found:
    """A check's findings and how long it took; an exception counts as different bytes."""
    started = time.monotonic()
    try:
        found = check()
    except (Exception, SystemExit) as error:
        found = {"same": False, "failed": f"{type(error).__name__}: {error}"[-2000:]}
    return found | {"seconds": round(time.monotonic() - started)}


if __name__ == "__main__":
    sys.exit(main())
