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

import json
import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from bench import K, paired, process_clock
from bench_steps import Bench, Timed
from lm_eval.models.huggingface import HFLM
from side_by_side import about, alternating, parser, prompts, speeds, typical
from transformers import AutoModelForCausalLM, AutoTokenizer

from selectit_hf.rating import reflection
from selectit_hf.rating.models.loading import default_budget

AGREE = 1e-4
"""How far normalised rating probabilities may differ in float32."""
OURS, LOOP = "engine", "released loop"


def main() -> int:
    given = parser(__doc__ or "", 40).parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    encoder, ids = prompts(given, tokenizer)
    bench = Bench(model, ids, encoder, default_budget("cpu"), process_clock(given))
    sides = {
        LOOP: partial(bench.run, "released", len(ids)),
        "lm-eval, batch 1": partial(by_lm_eval, bench, peer(model, tokenizer, 1)),
        "lm-eval, batch 8": partial(by_lm_eval, bench, peer(model, tokenizer, 8)),
        OURS: partial(bench.run, "last MLP", len(ids)),
    }
    runs = alternating(sides, given.repeats)
    shares = {n: reflection.normalised(one[-1].values.reshape(-1, K)) for n, one in runs.items()}
    gaps = {name: float(np.abs(one - shares[LOOP]).max()) for name, one in shares.items()}
    found = {
        name: {
            **typical(speeds(one)),
            "engine_is_faster_by": paired(speeds(runs[OURS]), speeds(one)),
            "max_share_difference": gaps[name],
        }
        for name, one in runs.items()
    }
    print(json.dumps(about(given, bench) | {"sides": found}))
    return int(max(gaps.values()) > AGREE)


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
