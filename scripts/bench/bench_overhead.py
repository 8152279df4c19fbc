"""What does rating cost besides the model's forward passes?

Two questions. How long from the command to the first batch: a fresh process imports the command,
opens the model, loads its weights and rates one row, timed at each of these points. And what the
layers above the forward passes add, on the same rows in one process, alternating: the engine, which
compares a few prompts with plain passes; a scorer, which reads and tokenizes rows; `Dataset.map`;
and a run in shards with its results. The rating log-probabilities of all must agree, else the exit
code is 1. Process time. The last line is JSON.

    python scripts/bench/bench_overhead.py --rows rows.json --model FOLDER --n 64 --shard-size 32
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import K, chosen_rows, machine
from datasets import Dataset, disable_progress_bars
from numpy.typing import NDArray

from selectit_hf import SentenceScore, runs
from selectit_hf.formats.sources import Source
from selectit_hf.rating.engine import engine

AGREE = 1e-3
FIRST_BATCH = """
import json, time
said = {"python": time.process_time()}
import selectit_hf.cli.app
said["imports"] = time.process_time()
from selectit_hf import SentenceScore
scorer = SentenceScore(MODEL, dtype="float32", device="cpu")
scorer.prepare()
said["tokenizer, checks"] = time.process_time()
scorer.rater(None).engine()
said["weights"] = time.process_time()
scorer.rate({"instruction": ["Say hello."], "output": ["Hello."]})
said["first row"] = time.process_time()
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Sides:
    """The same rows, rated by more and more of the package."""

    rows: Dataset
    scorer: SentenceScore
    shard_size: int

    @cached_property
    def ids(self) -> list[list[int]]:
        """The prompts of all rows."""
        pairs = self.scorer.reader.pairs(self.rows[:])
        return [one for row in self.scorer.rater(None).encoder().encode(pairs) for one in row.ids]

    def forward_passes(self) -> NDArray[np.float32]:
        """The engine as it is, but for the comparison with plain passes."""
        compare = engine.Engine._compare
        engine.Engine._compare = _trusted  # type: ignore[method-assign]
        try:
            return self.engine()
        finally:
            engine.Engine._compare = compare  # type: ignore[method-assign]

    def engine(self) -> NDArray[np.float32]:
        """Prompts in, log-probabilities out."""
        rater = self.scorer.rater(None)
        encoder = rater.encoder()
        read = rater.engine().next_token_logprobs(
            self.ids, encoder.rating_token_ids, prefixes=encoder.prefixes
        )
        return read.values.reshape(len(self.rows), K, K)

    def rate(self) -> NDArray[np.float32]:
        """Rows in, ratings out."""
        return self.scorer.rate(self.rows[:]).logprobs

    def map(self) -> NDArray[np.float32]:
        """With score columns, written by `datasets`."""
        scored = self.rows.map(self.scorer, batched=True, load_from_cache_file=False)
        return np.array(scored[f"rating_logprobs__{self.scorer.slug}"], dtype=np.float32)

    def run(self) -> NDArray[np.float32]:
        """With plan, shards and results."""
        with tempfile.TemporaryDirectory() as folder:
            source = Source("rows.json", None, "train", "sha256:0")
            run = runs.plan(self.rows, source, [self.scorer], folder, self.shard_size)
            runs.rate(run, self.rows, [self.scorer])
            runs.finish(run, self.rows)
            return runs.ratings_of(run, self.scorer.slug).logprobs


def _trusted(self: Any, numbers: Any, task: Any, tally: Any) -> None:
    tally.compared += 1


def main() -> int:
    given = parse()
    torch.set_num_threads(1)
    disable_progress_bars()
    scorer = SentenceScore(given.model, dtype="float32", device="cpu")
    encoder = scorer.rater(None).encoder()
    pairs = chosen_rows(given, encoder)
    rows = Dataset.from_list([{"instruction": p.instruction, "output": p.response} for p in pairs])
    sides = Sides(rows, scorer, given.shard_size)
    layers: dict[str, Callable[[], NDArray[np.float32]]] = {
        "forward passes": sides.forward_passes,
        "engine": sides.engine,
        "scorer.rate": sides.rate,
        "map": sides.map,
        "run": sides.run,
    }
    sides.forward_passes()  # loads the weights
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    values: dict[str, NDArray[np.float32]] = {}
    for _ in range(given.repeats):
        for name, side in layers.items():
            started = time.process_time()
            values[name] = side()
            seconds[name].append(time.process_time() - started)
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    gaps = {name: float(np.abs(one - values["engine"]).max()) for name, one in values.items()}
    base = seconds["forward passes"]
    found = {
        name: {
            "seconds": round(statistics.median(spent), 3),
            "to_forward_passes": round(
                statistics.median(a / b for a, b in zip(spent, base, strict=True)), 4
            ),
            "max_difference": gaps[name],
        }
        for name, spent in seconds.items()
    }
    facts = {
        "machine": machine("cpu"),
        "rows": len(rows),
        "prompts": len(sides.ids),
        "mean_tokens": round(statistics.fmean(map(len, sides.ids)), 1),
        "shard_size": given.shard_size,
        "repeats": given.repeats,
        "to_first_row": first_batch(given.model, given.repeats),
        "layers": found,
    }
    print(json.dumps(facts))
    return int(max(gaps.values()) > AGREE)


def first_batch(model: str, repeats: int) -> dict[str, float]:
    """Process seconds from the start of a fresh process to each point, medians."""
    code = FIRST_BATCH.replace("MODEL", repr(str(Path(model).absolute())))
    said = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
            ).stdout.splitlines()[-1]
        )
        for _ in range(repeats)
    ]
    return {name: round(statistics.median(one[name] for one in said), 2) for name in said[0]}


def parse() -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--rows", help="Alpaca rows, json or jsonl; default: the bundled sample")
    flags.add_argument("--model", required=True, help="folder of a causal model")
    flags.add_argument("--n", type=int, default=64, help="rows to rate, spread over the file")
    flags.add_argument("--short", action="store_true", help="only rows with short prompts")
    flags.add_argument("--shard-size", type=int, default=32, help="of the run")
    flags.add_argument("--repeats", type=int, default=3)
    return flags.parse_args()


if __name__ == "__main__":
    sys.exit(main())
