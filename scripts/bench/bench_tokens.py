"""What does tokenizing cost, and does the model wait for it?

Tokenizes every rating prompt of the rows in full, on one core, and prints prompts a second. Then
it rates some rows in batches, once as they come and once with the next batch tokenized in a thread,
alternating in one process, and prints the share of the time that the model waited for tokens. The
ratings of both must be the same. Figures are medians over the repeats. The last line is JSON.

    python scripts/bench/bench_tokens.py
    python scripts/bench/bench_tokens.py --rows rows.json --model FOLDER --n 999

Without ``--rows`` the bundled sample is rated, without ``--model`` tiny-rater rates.
"""

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import tokenizers
import transformers
from bench import chosen_rows, machine
from datasets import Dataset

from selectit_hf import SentenceScore
from selectit_hf.formats.rows import Pair
from selectit_hf.rating import rater as raters


class Clock:
    """Adds up the seconds in which the model has no tokens to work on."""

    def __init__(self) -> None:
        self.waited = 0.0
        self._encode = raters._AHEAD.encode
        raters._AHEAD.encode = self.encode  # type: ignore[method-assign]

    def encode(self, *asked: Any) -> Any:
        """What `Ahead.encode` gives, timed."""
        started = time.perf_counter()
        try:
            return self._encode(*asked)
        finally:
            self.waited += time.perf_counter() - started


def main() -> None:
    given = parse()
    scorer = SentenceScore(given.model, name="bench")
    rater = raters.Rater(scorer.checkpoint, scorer._question, scorer.place(None))
    encoder = rater.encoder()
    pairs = chosen_rows(given, encoder)
    speeds, lengths = [], []
    for _ in range(given.repeats):
        started = time.process_time()
        encoded = encoder.encode(pairs)
        lengths = [len(ids) for one in encoded for ids in one.ids]
        speeds.append(len(lengths) / (time.process_time() - started))
    rater.engine()
    clock = Clock()
    shares: dict[str, list[float]] = {"as they come": [], "ahead": []}
    for _ in range(given.repeats):
        found = {}
        for way, taken in shares.items():
            clock.waited, started = 0.0, time.perf_counter()
            found[way] = rated(scorer, pairs[: given.rate], given.batch, way == "ahead")
            taken.append(clock.waited / (time.perf_counter() - started))
            print(f"{way}: the model waited {taken[-1]:.2%} of the time", file=sys.stderr)
        np.testing.assert_array_equal(*found.values())
    print(json.dumps({**facts(given), **measured(lengths, speeds, shares)}))


def parse() -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--rows", help="Alpaca rows, json or jsonl; default: the bundled sample")
    flags.add_argument("--model", default="tiny-rater", help="who rates; default: tiny-rater")
    flags.add_argument("--n", type=int, default=600, help="rows, spread over the file")
    flags.add_argument("--rate", type=int, default=60, help="rows that are rated as well")
    flags.add_argument("--batch", type=int, default=20, help="rows rated at once")
    flags.add_argument("--repeats", type=int, default=3)
    flags.set_defaults(short=False)
    return flags.parse_args()


def rated(scorer: SentenceScore, pairs: list[Pair], size: int, ahead: bool) -> np.ndarray:
    rows = Dataset.from_list([{"instruction": a, "output": b} for a, b in pairs])
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    following = [*batches[1:], None] if ahead else [None] * len(batches)
    both = zip(batches, following, strict=True)
    return np.concatenate([scorer.rate(now, then=then).logprobs for now, then in both])


def measured(
    lengths: list[int], speeds: list[float], shares: dict[str, list[float]]
) -> dict[str, Any]:
    return {
        "prompts": len(lengths),
        "mean_tokens": round(statistics.fmean(lengths), 1),
        "tokenized_prompts_per_second_of_one_core": round(statistics.median(speeds)),
        "model_waits": {way: round(statistics.median(taken), 5) for way, taken in shares.items()},
    }


def facts(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": machine("cpu"),
        "model": os.path.basename(given.model),
        "tokenizers": tokenizers.__version__,
        "transformers": transformers.__version__,
        "repeats": given.repeats,
    }


if __name__ == "__main__":
    main()
