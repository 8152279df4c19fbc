"""Where does the time go, operation by operation, and what bounds it?

Profiles the engine, which reads the ratings of prompts, and the released loop on the same prompts,
and the engine that reads spans, as perplexity and IFD do. For each: the share of every kind of
operation in the time, and how fast the matrix products are, in GFLOP/s. As the bound, the
same products of the model's layers are run alone, with as many rows as the token budget. Rating
faster than that needs fewer products or fewer bits. The last line is JSON.

    python scripts/bench/operations.py --rows rows.json --model FOLDER --n 10
"""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from bench import process_clock
from bench_steps import Bench
from side_by_side import about, parser, prompts
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoTokenizer

from selectit_hf.rating.models.loading import default_budget

KINDS = {
    "matrix products": ("addmm", "mm", "bmm", "matmul", "linear", "mkldnn"),
    "attention": ("scaled_dot_product",),
    "activation": ("silu", "gelu"),
    "copies": ("copy_", "cat", "clone", "contiguous", "index", "gather", "slice", "expand"),
}
SPAN = 2
"""A span begins at this part of a prompt: in its middle."""


def main() -> None:
    given = parser(__doc__ or "", 10).parse_args()
    torch.set_num_threads(given.threads)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    encoder, ids = prompts(given, AutoTokenizer.from_pretrained(given.model))
    budget = default_budget("cpu")
    bench = Bench(model, ids, encoder, budget, process_clock(given))
    starts = [len(one) // SPAN for one in ids]
    works: dict[str, Callable[[], Any]] = {
        "released loop": lambda: bench.run("released", len(ids)),
        "engine": lambda: bench.run("last MLP", len(ids)),
        "engine, spans": lambda: bench.full.span_logprobs(ids, starts),
    }
    found = {name: profiled(work) for name, work in works.items()}
    bound = products_alone(model, budget)
    facts = about(given, bench) | {"clock": "profiler", "repeats": 1}
    print(json.dumps(facts | {"products_alone_gflops": bound, "sides": found}))


def profiled(work: Callable[[], Any]) -> dict[str, Any]:
    work()
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as seen:
        work()
    spent: dict[str, float] = defaultdict(float)
    flops = 0.0
    for one in seen.key_averages():
        kind = kind_of(one.key)
        spent[kind] += one.self_cpu_time_total / 1e6
        flops += one.flops if kind == "matrix products" else 0
    total = sum(spent.values())
    ranked = sorted(spent.items(), key=lambda item: -item[1])
    return {
        "seconds": round(total, 2),
        "shares": {kind: round(each / total, 3) for kind, each in ranked},
        "products_gflops": round(flops / spent["matrix products"] / 1e9, 1),
    }


def kind_of(operation: str) -> str:
    name = operation.removeprefix("aten::").lstrip("_")
    return next((kind for kind, begins in KINDS.items() if name.startswith(begins)), "other")


def products_alone(model: Any, rows: int, repeats: int = 5) -> float:
    """GFLOP/s of the weights of a layer by ``rows`` positions each, the median of some repeats."""
    shapes = [p.shape for p in model.model.layers[0].parameters() if p.ndim == 2]
    pairs = [(torch.randn(rows, inner), torch.randn(outer, inner)) for outer, inner in shapes]
    work = sum(2 * rows * outer * inner for outer, inner in shapes)
    rates = []
    for _ in range(repeats):
        started = time.process_time()
        for _ in range(20):
            for x, weight in pairs:
                torch.nn.functional.linear(x, weight)
        rates.append(20 * work / (time.process_time() - started) / 1e9)
    return round(statistics.median(rates), 1)


if __name__ == "__main__":
    main()
