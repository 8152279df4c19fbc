"""Start one run under every launcher, kill a process midway, start it again, compare the bytes.

The quick form of this is in the tests, with forked processes; here torchrun, accelerate, an array
of processes with Slurm's variables and ``--workers`` themselves start them. On the CPU, with the
bundled tiny model; up to eight minutes on two cores.

    python scripts/check_launchers.py

The last line is JSON: for each launcher, whether the run ended in the bytes of a run by one process
and how many shards were there when a process was killed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from selectit_hf.runs import RESULTS

ROWS, SHARD_SIZE = 400, 10
LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node", "2"],
    "accelerate": [
        *["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
        *["--mixed_precision", "no", "--dynamo_backend", "no"],
    ],
    "workers": [sys.executable],
}


def main() -> None:
    """Run all, and say what came out."""
    argparse.ArgumentParser(description=__doc__.split("\n", 1)[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [{"instruction": f"Say {i}.", "output": f"{i} " * (i % 9 + 1)} for i in range(ROWS)]
        (folder / "rows.json").write_text(json.dumps(rows))
        finish([start(folder, [sys.executable], "alone")])
        expected = contents(folder / "alone")
        found = {}
        for launcher, command in LAUNCHERS.items():
            shards = check(folder, launcher, command)
            found[launcher] = {"same": contents(folder / launcher) == expected, "killed_at": shards}
        shards = check_array(folder)
        found["slurm"] = {"same": contents(folder / "slurm") == expected, "killed_at": shards}
    print(json.dumps(found))
    sys.exit(not all(one["same"] for one in found.values()))


def start(
    folder: Path, launcher: list[str], out: str, *flags: str, **environment: str
) -> subprocess.Popen[bytes]:
    """The run command under a launcher."""
    command = [*launcher, "-m", "selectit_hf", "run", str(folder / "rows.json"), *flags]
    command += [
        "--model",
        "tiny-rater",
        "--shard-size",
        str(SHARD_SIZE),
        "--out",
        str(folder / out),
    ]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait; raise if one fails."""
    for process in processes:
        _, words = process.communicate(timeout=900)
        if process.returncode:
            raise SystemExit(f"{process.args} ended with {process.returncode}: {words.decode()}")


def check(folder: Path, launcher: str, command: list[str]) -> int:
    """Kill one worker of a launcher midway; start again what the launcher then ends."""
    flags = ("--workers", "2") if launcher == "workers" else ()
    first = start(folder, command, launcher, *flags)
    shards = wait_for_shards(folder / launcher, 8)
    os.kill(a_worker(first.pid), signal.SIGKILL)
    first.communicate(timeout=900)
    if launcher != "workers":  # whose supervisor starts the killed one again
        assert first.returncode != 0
        finish([start(folder, command, launcher, *flags)])
    return shards


def check_array(folder: Path) -> int:
    """Three tasks of an array, of which one is killed and requeued."""

    def task(number: int) -> subprocess.Popen[bytes]:
        variables = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "3"}
        return start(folder, [sys.executable], "slurm", **variables)

    tasks = [task(number) for number in range(3)]
    shards = wait_for_shards(folder / "slurm", 8)
    tasks[1].kill()
    tasks[1].communicate(timeout=900)
    finish([tasks[0], task(1), tasks[2]])
    return shards


def wait_for_shards(run: Path, count: int) -> int:
    """Wait until so many shards are committed; how many are."""
    while len(there := list(run.glob("ratings/*/*.json"))) < count:
        time.sleep(0.01)
    return len(there)


def a_worker(launcher: int) -> int:
    """The second process that a launcher, or the run itself, has started."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    below = {launcher}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    for pid in sorted(below - {launcher}):
        with suppress(OSError):
            asked = Path(f"/proc/{pid}/cmdline").read_bytes()
            rank = b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if rank or b"spawn_main" in asked:
                return pid
    raise SystemExit("there is no worker to kill")


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run that must be the same."""
    paths = [*run.glob("ratings/*/*.parquet"), *(run / name for name in RESULTS)]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


if __name__ == "__main__":
    main()
