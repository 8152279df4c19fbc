"""How fast is rating beside lm-eval on the same prompts, model and cores?

lm-eval's `HFLM` scores continuations by their log-likelihood, as most people would who want rating
probabilities without this package. It gets the token ids of the same prompts with the k rating
tokens as continuations; it reads all continuations of a prompt from one forward pass. The released
loop, lm-eval with batches of 1 and of 8, and the engine alternate in one process on one model. The
normalised rating probabilities of all must agree, else the exit code is 1.

    pip install lm_eval
    python scripts/bench/peers.py --rows rows.json --model FOLDER --n 40

With one CPU thread, process time is measured, otherwise wall time. The last line is JSON.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from bench import K, chosen_rows, machine, paired
from bench_steps import Bench, Timed
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from selectit_hf.rating import reflection
from selectit_hf.rating.models.loading import default_budget
from selectit_hf.rating.prompts.prompt_encoder import PromptEncoder
from selectit_hf.rating.prompts.rating_prompts import Template, load_rating_prompts

AGREE = 1e-4
"""How far normalised rating probabilities may differ in float32."""
OURS, LOOP = "engine", "released loop"


def main() -> int:
    given = parse()
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    encoder = PromptEncoder(tokenizer, Template(), load_rating_prompts(None, K), K, None)
    ids = [one for row in encoder.encode(chosen_rows(given, encoder)) for one in row.ids]
    bench = Bench(model, ids, encoder, default_budget("cpu"), given.threads == 1)
    sides: dict[str, Callable[[], Timed]] = {
        LOOP: partial(bench.run, "released", len(ids)),
        "lm-eval, batch 1": partial(by_lm_eval, bench, peer(model, tokenizer, 1)),
        "lm-eval, batch 8": partial(by_lm_eval, bench, peer(model, tokenizer, 8)),
        OURS: partial(bench.run, "last MLP", len(ids)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    shares = {}
    for repeat in range(given.repeats):
        for name, side in sides.items():
            found = side()
            speeds[name].append(found.prompts / found.seconds)
            shares[name] = reflection.normalised(found.values.reshape(-1, K))
            print(f"{repeat + 1} {name}: {found.seconds:.1f} s", file=sys.stderr, flush=True)
    gaps = {name: float(np.abs(one - shares[LOOP]).max()) for name, one in shares.items()}
    facts = {
        "machine": machine("cpu"),
        "threads": given.threads,
        "clock": "process" if given.threads == 1 else "wall",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "prompts": len(ids),
        "mean_tokens": round(statistics.fmean(map(len, ids)), 1),
        "repeats": given.repeats,
        "sides": {
            name: {
                "prompts_per_second": round(statistics.median(speed), 2),
                "spread": [round(min(speed), 2), round(max(speed), 2)],
                "engine_is_faster_by": paired(speeds[OURS], speed),
                "max_share_difference": gaps[name],
            }
            for name, speed in speeds.items()
        },
    }
    print(json.dumps(facts))
    return int(max(gaps.values()) > AGREE)


def parse() -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--rows", required=True, help="Alpaca rows, json or jsonl")
    flags.add_argument("--model", required=True, help="folder of a causal model")
    flags.add_argument("--n", type=int, default=40, help="rows to rate, spread over the file")
    flags.add_argument("--short", action="store_true", help="only rows with short prompts")
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--threads", type=int, default=1)
    return flags.parse_args()


def peer(model: Any, tokenizer: Any, batch: int) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, backend="causal")


def by_lm_eval(bench: Bench, harness: HFLM) -> Timed:
    requests = [(("", ""), one, [token]) for one in bench.ids for token in bench.chosen]
    needed = sum(map(len, bench.ids))

    def ask() -> list[float]:
        return [one for one, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)]

    return bench.timed("lm-eval", bench.ids, needed, ask)


if __name__ == "__main__":
    sys.exit(main())
