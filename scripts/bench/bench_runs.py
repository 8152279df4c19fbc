"""What does a run cost besides the model? Seconds and memory of everything around it.

A parquet file of made-up rows goes through the real path: it is streamed onto the disk, surveyed
and planned, rated shard by shard by a stub that answers from the row's number, committed, and
selected from. Each number of rows gets its own process, so that peak memory is measured separately.
Processor seconds are reported next to wall seconds, which other programs on the machine may
lengthen. The last line of stdout is JSON.

    python scripts/bench/bench_runs.py                              # 100,000 rows, half a minute
    python scripts/bench/bench_runs.py --rows 1000000 10000000
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

K = 5
PIECE, SMALL = 100_000, 1000
MB = 2**20
RESPONSE = "The answer is made of words, and it takes as many of them as the question needs. " * 8


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--rows", type=int, nargs="+", default=[100_000])
    flags.add_argument("--shard-size", type=int, default=8192)
    flags.add_argument("--folder", type=Path, help="for the files; else a temporary one")
    flags.add_argument("--here", action="store_true", help="one number of rows, in this process")
    given = flags.parse_args()
    if given.here:
        bench(SMALL, given.shard_size, given.folder)  # loads the libraries, which is not measured
        print(json.dumps(bench(given.rows[0], given.shard_size, given.folder)))
        return
    found = []
    for rows in given.rows:
        own = ["--here", "--rows", str(rows), "--shard-size", str(given.shard_size)]
        where = ["--folder", str(given.folder)] if given.folder else []
        done = subprocess.run(
            [sys.executable, __file__, *own, *where], check=True, stdout=subprocess.PIPE, text=True
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(found[-1]), file=sys.stderr)
    print(json.dumps(found))


def bench(rows: int, shard_size: int, parent: Path | None) -> dict[str, Any]:
    """Everything a run does around a model, timed."""
    from selectit_hf import runs
    from selectit_hf.formats import sources

    steps: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-runs-", dir=parent) as name, peaks() as memory:
        folder = Path(name)
        write_rows(folder / "rows.parquet", rows)
        out = folder / "RUN"
        with timed(steps, "spool"):
            stream, source = sources.stream(str(folder / "rows.parquet"))
            dataset, source = runs.spool(stream, out, source)
        scorer = stub()
        with timed(steps, "plan"):
            run = runs.plan(dataset, source, [scorer], out, shard_size)
        with timed(steps, "shard"):
            runs.rate(run, dataset, [scorer])
        with timed(steps, "select"):
            summary = runs.finish(run, dataset)
        sizes = {
            path.name: round(sum(p.stat().st_size for p in path.rglob("*")) / MB, 1)
            if path.is_dir()
            else round(path.stat().st_size / MB, 1)
            for path in (out / "ratings", out / "scores.parquet", out / "selected.parquet")
        }
        assert summary["selected"] == rows // 5
    return {
        "rows": rows,
        "shard_size": shard_size,
        "steps": steps,
        "cpu_microseconds_a_row": {
            step: round(1e6 * taken["cpu_seconds"] / rows, 2) for step, taken in steps.items()
        },
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_anonymous_mb": memory["RssAnon"],
        "start_anonymous_mb": memory["start"],
        "mb": sizes,
    }


def write_rows(path: Path, rows: int) -> None:
    """Questions by number, with answers of 20 to 600 characters."""
    lengths = pa.array(np.arange(PIECE) * 7919 % 580 + 20)
    response = pa.array([RESPONSE[:length] for length in lengths.to_pylist()])
    with pq.ParquetWriter(path, pa.schema({"instruction": "string", "output": "string"})) as file:
        for start in range(0, rows, PIECE):
            count = min(PIECE, rows - start)
            numbers = pa.array(np.arange(start, start + count)).cast(pa.string())
            asked = pc.binary_join_element_wise("Answer question number", numbers, " ")
            file.write_table(pa.table({"instruction": asked, "output": response[:count]}))


def stub() -> Any:
    """A scorer that reads the rows as usual, but asks no model."""
    from selectit_hf import SentenceScore
    from selectit_hf.formats.rows import Pair
    from selectit_hf.rating.ratings import Ratings

    random = np.random.default_rng(0)
    logits = random.normal(size=(PIECE + 7, K, K))
    answers = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)) - 0.1).astype(np.float32)

    @dataclass(frozen=True)
    class Stub(SentenceScore):
        def prepare(self) -> None:
            pass

        def rate(
            self, batch: Any, rank: int | None = None, progress: Any = None, then: Any = None
        ) -> Ratings:
            pairs = self.reader.pairs(batch)
            first = int(re.findall(r"\d+", batch["instruction"][0])[0])
            logprobs = answers[np.arange(first, first + len(pairs)) % len(answers)]
            statuses = ["ok" if isinstance(pair, Pair) else pair for pair in pairs]
            facts = {"model": self.checkpoint.name, "revision": self.checkpoint.revision}
            rater = {**facts, "parameters": 10**9, "rating_key": self.rating_key()}
            return Ratings(statuses, logprobs, rater)

    return Stub("tiny-rater")


@contextmanager
def timed(found: dict[str, dict[str, float]], step: str) -> Iterator[None]:
    started = time.perf_counter(), time.process_time()
    yield
    found[step] = {
        "seconds": round(time.perf_counter() - started[0], 2),
        "cpu_seconds": round(time.process_time() - started[1], 2),
    }
    print(step, found[step], file=sys.stderr)


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """MB of anonymous memory; mapped files can be dropped and do not count."""
    found = {"start": anonymous(), "RssAnon": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            found["RssAnon"] = max(found["RssAnon"], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) // 1024


if __name__ == "__main__":
    main()
