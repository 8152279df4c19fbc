"""What do fewer bits bring, and what do they change in the ranking?

The engine rates the same rows with one model in several dtypes, alternating in one process. For
each dtype: prompts a second, the ratio to the first dtype, and how far probabilities, ratings and
the best 20 % differ from the first dtype's. ``float8`` is bfloat16 with 8-bit matrix products (CUDA
of capability 8.9 or more). The last line is JSON.

    python scripts/bench/precision.py --rows rows.json --model FOLDER --n 100 --threads 2
    python scripts/bench/precision.py --rows rows.json --model FOLDER --n 999 --device cuda \
        --dtypes float32,bfloat16,float16,float8
"""

import argparse
import json
import statistics
import sys
from typing import Any

import torch
import transformers
from bench import K, chosen_rows, differences, machine, paired, process_clock
from bench_steps import Bench, Timed
from float8 import to_float8
from transformers import AutoModelForCausalLM, AutoTokenizer

from selectit_hf.rating.models.loading import default_budget
from selectit_hf.rating.prompts.prompt_encoder import PromptEncoder
from selectit_hf.rating.prompts.rating_prompts import Template, load_rating_prompts

FLOAT8 = "float8"


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    encoder = PromptEncoder(tokenizer, Template(), load_rating_prompts(None, K), K, None)
    ids = [one for row in encoder.encode(chosen_rows(given, encoder)) for one in row.ids]
    names = given.dtypes.split(",")
    budget = given.token_budget or default_budget(given.device)
    benches = {
        name: Bench(model_in(name, given), ids, encoder, budget, process_clock(given))
        for name in names
    }
    runs: dict[str, list[Timed]] = {name: [] for name in names}
    for bench in benches.values():  # kernels are chosen, and compiled, at their first use
        bench.run("last MLP", len(ids))
    for repeat in range(given.repeats):
        for name, bench in benches.items():
            runs[name].append(bench.run("last MLP", len(ids)))
            print(f"{repeat + 1} {name}: {runs[name][-1].line}", file=sys.stderr, flush=True)
    print(json.dumps(facts(given, runs, benches[names[0]])))


def facts(given: argparse.Namespace, runs: dict[str, list[Timed]], bench: Bench) -> dict[str, Any]:
    first = next(iter(runs))
    speeds = {name: [one.prompts / one.seconds for one in runs[name]] for name in runs}
    return {
        "machine": machine(given.device),
        "threads": given.threads,
        "clock": "process" if process_clock(given) else "wall",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": type(bench.model).__name__,
        "parameters": bench.parameters,
        "prompts": len(bench.ids),
        "mean_tokens": round(statistics.fmean(map(len, bench.ids)), 1),
        "repeats": given.repeats,
        "dtypes": {
            name: {
                "prompts_per_second": round(statistics.median(speeds[name]), 2),
                "spread": [round(min(speeds[name]), 2), round(max(speeds[name]), 2)],
                "ratio": paired(speeds[name], speeds[first]),
                **differences(runs[first][-1].values, runs[name][-1].values),
            }
            for name in runs
        },
    }


def model_in(name: str, given: argparse.Namespace) -> Any:
    dtype = torch.bfloat16 if name == FLOAT8 else getattr(torch, name)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype).to(given.device).eval()
    if name == FLOAT8:
        to_float8(model)
    return model


def parse() -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--rows", required=True, help="Alpaca rows, json or jsonl")
    flags.add_argument("--model", required=True, help="folder of a causal model")
    flags.add_argument("--n", type=int, default=100, help="rows to rate, spread over the file")
    flags.add_argument("--short", action="store_true", help="only rows with short prompts")
    flags.add_argument("--dtypes", default="float32,bfloat16", help="the first is compared with")
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--token-budget", type=int)
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--threads", type=int, default=1)
    return flags.parse_args()


if __name__ == "__main__":
    main()
