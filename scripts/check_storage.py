"""Machines that meet in a bucket: is the run the same as one in a folder, whoever is killed?

The tests do this with fsspec's own file systems; here the real client of S3 talks to a local server
that speaks its protocol. Two processes, each with a copy of its own as two machines have, work at
one run by ``--out s3://bucket/run``; one is killed midway and started again. Then a third machine
asks for the status, selects again and writes the report, by the URL. Needs two packages more:

    pip install s3fs "moto[server]"
    python scripts/check_storage.py

The last line is JSON: whether the files in the bucket have the bytes of a run in one folder, how
many shards were there at the kill, how many objects and requests, and how long each part took.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import s3fs
from moto.server import ThreadedMotoServer
from selectit_hf.finishing import RESULTS

ROWS, SHARD_SIZE = 400, 10
URL = "s3://bucket/run"
SELECTIT = [sys.executable, "-m", "selectit_hf"]


def main() -> int:
    """Run all, and say what came out."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    requests: Counter[str] = Counter()
    server = counting(requests)
    with tempfile.TemporaryDirectory() as name:
        try:
            found = check(Path(name), server)
        finally:
            server.stop()
    print(json.dumps(found | {"requests": dict(requests)}))
    return int(not found["same"])


def counting(requests: Counter[str]) -> ThreadedMotoServer:
    """A server on the loopback interface that counts what it is asked."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    app = server._server.app

    def counted(environment: dict[str, Any], respond: Any) -> Any:
        requests[environment["REQUEST_METHOD"]] += 1
        return app(environment, respond)

    server._server.app = counted
    return server


def check(folder: Path, server: ThreadedMotoServer) -> dict[str, Any]:
    """A run by two machines of which one dies, against a run by one in a folder."""
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "OMP_NUM_THREADS": "1",
    }
    bucket = s3fs.S3FileSystem(use_listings_cache=False)
    bucket.mkdir("bucket")
    rows = [{"instruction": f"Say {i}.", "output": f"{i} " * (i % 9 + 1)} for i in range(ROWS)]
    (folder / "rows.json").write_text(json.dumps(rows))
    seconds = {}

    started = time.perf_counter()
    wait(run(folder, "alone", str(folder / "run")))
    seconds["in_a_folder"] = time.perf_counter() - started
    expected = {name: (folder / "run" / name).read_bytes() for name in RESULTS}
    expected |= {
        str(path.relative_to(folder / "run")): path.read_bytes()
        for path in (folder / "run").glob("ratings/*/*.parquet")
    }

    started = time.perf_counter()
    machines = [run(folder, "a", URL), run(folder, "b", URL)]
    killed_at = wait_for_shards(bucket, ROWS // SHARD_SIZE // 3)
    machines[0].kill()
    machines[0].wait()
    wait(run(folder, "a", URL))
    wait(machines[1])
    seconds["by_two_machines_in_the_bucket"] = time.perf_counter() - started
    there = objects(bucket)
    same = {name for name, data in expected.items() if there.get(name) == data}

    started = time.perf_counter()
    data = ("--data", str(folder / "rows.json"))
    wait(start(folder, "c", "status", URL))
    wait(start(folder, "c", "select", URL, "--out", "s3://bucket/other", "--n", "7", *data))
    wait(start(folder, "c", "report", URL, *data))
    seconds["status_select_report"] = time.perf_counter() - started
    assert bucket.exists("bucket/run/report/report.html")
    assert json.loads(bucket.cat_file("bucket/other/selection.json"))["selected"] == 7
    return {
        "same": len(same) == len(expected),
        "files_compared": len(expected),
        "killed_at_shards": killed_at,
        "shards": ROWS // SHARD_SIZE,
        "objects": len(there),
        "claims_left": sum(name.endswith(".claim") for name in there),
        "seconds": {name: round(took, 1) for name, took in seconds.items()},
    }


def run(folder: Path, machine: str, out: str) -> subprocess.Popen[bytes]:
    """The run command on a machine, which is a process with a cache of its own."""
    flags = ["--model", "tiny-rater", "--shard-size", str(SHARD_SIZE), "--out", out]
    return start(folder, machine, "run", str(folder / "rows.json"), *flags)


def start(folder: Path, machine: str, *command: str) -> subprocess.Popen[bytes]:
    """A command on a machine."""
    return subprocess.Popen(
        [*SELECTIT, *command],
        env={**os.environ, "HF_HOME": str(folder / machine)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait(process: subprocess.Popen[bytes]) -> None:
    """Until it ends; stop if that is not well."""
    _, words = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit(f"{process.args} ended with {process.returncode}: {words.decode()}")


def wait_for_shards(bucket: s3fs.S3FileSystem, count: int) -> int:
    """Until so many shards are committed in the bucket; how many there are."""
    deadline = time.monotonic() + 300
    while (found := len(bucket.glob("bucket/run/ratings/*/*.json"))) < count:
        assert time.monotonic() < deadline, "the machines do nothing"
        time.sleep(0.1)
    return found


def objects(bucket: s3fs.S3FileSystem) -> dict[str, bytes]:
    """All that lies in the run's folder of the bucket."""
    return {
        name.removeprefix("bucket/run/"): bucket.cat_file(name)
        for name in bucket.find("bucket/run")
    }


if __name__ == "__main__":
    sys.exit(main())
