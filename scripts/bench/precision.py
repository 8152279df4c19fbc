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
from functools import partial
from typing import Any

import torch
from bench import differences, paired, process_clock
from bench_steps import Bench
from float8 import to_float8
from side_by_side import about, alternating, parser, prompts, speeds, typical
from transformers import AutoModelForCausalLM, AutoTokenizer

from selectit_hf.rating.models.loading import default_budget

FLOAT8 = "float8"


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    encoder, ids = prompts(given, AutoTokenizer.from_pretrained(given.model))
    names = given.dtypes.split(",")
    budget = given.token_budget or default_budget(given.device)
    benches = {
        name: Bench(model_in(name, given), ids, encoder, budget, process_clock(given))
        for name in names
    }
    sides = {name: partial(one.run, "last MLP", len(ids)) for name, one in benches.items()}
    alternating(sides, 1)  # kernels are chosen, and compiled, at their first use
    runs = alternating(sides, given.repeats)
    first = names[0]
    found = {
        name: {
            **typical(speeds(one)),
            "ratio": paired(speeds(one), speeds(runs[first])),
            **differences(runs[first][-1].values, one[-1].values),
        }
        for name, one in runs.items()
    }
    print(json.dumps(about(given, benches[first]) | {"dtypes": found}))


def model_in(name: str, given: argparse.Namespace) -> Any:
    dtype = torch.bfloat16 if name == FLOAT8 else getattr(torch, name)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype).to(given.device).eval()
    if name == FLOAT8:
        to_float8(model)
    return model


def parse() -> argparse.Namespace:
    flags = parser(__doc__ or "", 100)
    flags.add_argument("--dtypes", default="float32,bfloat16", help="the first is compared with")
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--token-budget", type=int)
    return flags.parse_args()


if __name__ == "__main__":
    main()
