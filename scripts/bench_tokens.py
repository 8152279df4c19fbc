"""What does it save to tokenize each row once, and not once for every rating prompt?

The same rows are encoded both ways in turn, in one process on one core: as k whole texts, and as
one text whose ids get each rating prompt's own put before them. The ids of both must be the same.
The clock is process time, the figures are medians over the repeats. The last line is JSON.

    python scripts/bench_tokens.py
    python scripts/bench_tokens.py --rows rows.json --tokenizer FOLDER --n 999

Without ``--rows`` the bundled sample is encoded, without ``--tokenizer`` by tiny-rater's.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers
import transformers
from bench import K, chosen_rows, machine
from transformers import AutoTokenizer

from selectit_hf.prompts import Template, load_rating_prompts
from selectit_hf.rows import Pair
from selectit_hf.tokens import Encoded, PromptEncoder


def main() -> None:
    given = parse()
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    once, whole = (
        PromptEncoder(tokenizer, Template(), load_rating_prompts(None, K), K, None)
        for _ in range(2)
    )
    if once._joint is None:
        sys.exit("It is not shown that this tokenizer's ids can be joined; all texts stay whole.")
    whole.__dict__["_joint"] = None
    pairs = chosen_rows(given, once)
    seconds: dict[str, list[float]] = {"whole": [], "once": []}
    for repeat in range(given.repeats):
        ids = {}
        for name, encoder in (("whole", whole), ("once", once)):
            ids[name], taken = encoded(encoder, pairs)
            seconds[name].append(taken)
            print(f"{repeat + 1}: {name}: {taken:.3f} s", file=sys.stderr, flush=True)
        assert ids["whole"] == ids["once"], "the ids differ"
    print(json.dumps({**facts(given), **measured(ids["once"], seconds)}))


def parse() -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--rows", help="Alpaca rows, json or jsonl; default: the bundled sample")
    flags.add_argument("--tokenizer", default=str(files("selectit_hf") / "data" / "tiny-rater"))
    flags.add_argument("--n", type=int, default=1000, help="rows, spread over the file")
    flags.add_argument("--repeats", type=int, default=5)
    flags.set_defaults(short=False)
    return flags.parse_args()


def encoded(encoder: PromptEncoder, pairs: Sequence[Pair]) -> tuple[list[Encoded], float]:
    gc.collect()  # what the other way left behind
    started = time.process_time()
    found = encoder.encode(pairs)
    return found, time.process_time() - started


def measured(ids: Sequence[Encoded], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Prompts a second both ways, and the ratio within a repeat: what slows both cancels."""
    lengths = [len(row) for one in ids for row in one.ids]
    ratios = [a / b for a, b in zip(seconds["whole"], seconds["once"], strict=True)]
    speeds = {
        f"{name}_prompts_per_second": round(len(lengths) / statistics.median(taken))
        for name, taken in seconds.items()
    }
    return {
        "prompts": len(lengths),
        "mean_tokens": round(statistics.fmean(lengths), 1),
        **speeds,
        "ratio": round(statistics.median(ratios), 2),
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def facts(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": machine("cpu"),
        "tokenizers": tokenizers.__version__,
        "transformers": transformers.__version__,
        "clock": "process",
        "repeats": given.repeats,
    }


if __name__ == "__main__":
    main()
