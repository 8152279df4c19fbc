"""How fast is rating, step by step, against the released procedure on the same rows and model?

Every step of the ladder alternates with the others in one process on one model instance: the
released loop (one prompt at a time, logits of every position), the same with the last position's
logits only, batches in row order, batches of neighbours in length, the rating prompts' beginnings
computed once, and the last MLP for one position. The answers of all steps are compared, since a
fast wrong answer is worthless. Loading and tokenizing are timed separately. The last line is JSON.

    python scripts/bench/bench.py --n 40
    python scripts/bench/bench.py --rows rows.json --tokenizer FOLDER --size 8x512 --n 80
    python scripts/bench/bench.py --rows rows.json --tokenizer FOLDER --size 8x512 --n 80 --short
    python scripts/bench/bench.py --scaling
    python scripts/bench/bench.py --rows rows.json --tokenizer FOLDER --device cuda \
        --size 0.5B,7B,13B --n 250 --released-n 40

Without ``--tokenizer`` the bundled tiny-rater is measured on the bundled sample; with it, Llamas
with random weights, which are as fast as trained ones. With one CPU thread, process time is
measured, otherwise wall time. Only PyTorch, transformers and accelerate are needed.
"""

import argparse
import gc
import json
import platform
import random
import statistics
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import bench_steps
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from selectit_hf.formats.rows import Pair, RowReader
from selectit_hf.rating import reflection
from selectit_hf.rating.models.loading import default_budget
from selectit_hf.rating.prompts.prompt_encoder import PromptEncoder
from selectit_hf.rating.prompts.rating_prompts import Template, load_rating_prompts

SIZES = {  # layers, width, width of the MLP, heads
    "0.5B": (20, 1280, 3456, 20),
    "7B": (32, 4096, 11008, 32),
    "13B": (40, 5120, 13824, 40),
}
K = 5
SHARD_ROWS = 8192
SHORT_TOKENS = 145


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    facts = {
        "machine": machine(arguments.device),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "repeats": arguments.repeats,
        "clock": "process" if process_clock(arguments) else "wall",
    }
    measure = scaling if arguments.scaling else ladder
    results = []
    for size in arguments.size.split(","):
        results.append(measure(arguments, size))
        gc.collect()
    found = {**facts, "results": results}
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help="Alpaca rows, json or jsonl; default: the bundled sample")
    parser.add_argument("--tokenizer", help="folder of a tokenizer, for random Llamas with it")
    parser.add_argument("--size", default="8x512", help="layers x width, or 0.5B, 7B, 13B; several")
    parser.add_argument("--n", type=int, default=40, help="rows to rate, spread over the file")
    parser.add_argument("--released-n", type=int, help="rows for the loops; default: all of them")
    parser.add_argument("--short", action="store_true", help=f"rows under {SHORT_TOKENS} tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="default: float32 on the CPU, bfloat16 on CUDA")
    parser.add_argument("--token-budget", type=int)
    parser.add_argument("--steps", help="a comma-separated part of the ladder")
    parser.add_argument("--float8", action="store_true", help="a step with 8-bit products; CUDA")
    parser.add_argument("--compile", action="store_true", help="a step with compiled layers")
    parser.add_argument("--scaling", action="store_true", help="time and memory in N and budget")
    parser.add_argument("--sizes", default="250,500,1000,2000", help="N for --scaling")
    parser.add_argument("--out", help="write the JSON here as well")
    return parser.parse_args()


def process_clock(arguments: argparse.Namespace) -> bool:
    return bool(arguments.device == "cpu" and arguments.threads == 1)


def machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {platform.machine()}"


# What is measured


def ladder(arguments: argparse.Namespace, size: str) -> dict[str, Any]:
    started = time.perf_counter()
    model, tokenizer = make_model(arguments, size)
    load_seconds = time.perf_counter() - started
    encoder = PromptEncoder(tokenizer, Template(), load_rating_prompts(None, K), K, None)
    pairs = chosen_rows(arguments, encoder)
    started = time.perf_counter()
    ids = [one for encoded in encoder.encode(pairs) for one in encoded.ids]
    encode_seconds = time.perf_counter() - started
    budget = arguments.token_budget or default_budget(arguments.device)
    bench = bench_steps.Bench(model, ids, encoder, budget, process_clock(arguments))
    few = K * (arguments.released_n or arguments.n)
    names = arguments.steps.split(",") if arguments.steps else list(bench_steps.STEPS)
    runs: dict[str, list[bench_steps.Timed]] = {name: [] for name in names}
    for repeat in range(arguments.repeats):
        for name in names:
            runs[name].append(bench.run(name, few))
            print(f"{size} {repeat + 1}: {runs[name][-1].line}", file=sys.stderr, flush=True)
    if arguments.compile:
        runs["compile"] = bench.compiled(arguments.repeats)
    if arguments.float8:
        runs["8-bit products"] = bench.in_float8(arguments.repeats)
    return {
        "size": size if arguments.tokenizer else "tiny-rater",
        "parameters": bench.parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts": len(ids),
        "mean_tokens": round(statistics.fmean(map(len, ids)), 1),
        "token_budget": budget,
        "load_seconds": round(load_seconds, 2),
        "tokenize_seconds": round(encode_seconds, 2),
        **bench.peak(),
        "steps": steps(runs, bench),
    }


def steps(
    runs: dict[str, list[bench_steps.Timed]], bench: bench_steps.Bench
) -> dict[str, dict[str, Any]]:
    """Medians of each step, and how its answers differ from the released loop's."""
    base = next(iter(runs))
    speed = {
        name: [timed.prompts / timed.seconds for timed in timeds] for name, timeds in runs.items()
    }
    medians = {name: statistics.median(values) for name, values in speed.items()}
    found = {}
    for name, timeds in runs.items():
        last = timeds[-1]
        found[name] = {
            "prompts_per_second": round(medians[name], 2),
            "spread": [round(min(speed[name]), 2), round(max(speed[name]), 2)],
            "samples_per_second": round(medians[name] / K, 2),
            "ratio": paired(speed[name], speed[base]),
            "ratio_to_last_position": paired(speed[name], speed.get("last position", [])),
            "executed_over_released_tokens": round(last.executed / last.released, 4),
            "padding": round(1 - last.needed / last.executed, 4),
            "peak_megabytes": last.peak_megabytes,
            **bench.utilisation(last, medians[name]),
            **differences(runs[base][-1].values, last.values),
        }
    return found


def paired(speeds: list[float], others: list[float]) -> float | None:
    """The median over repeats of the ratio within a repeat: a slowdown of both cancels out."""
    ratios = [a / b for a, b in zip(speeds, others, strict=False)]
    return round(statistics.median(ratios), 3) if ratios else None


def differences(literal: Any, values: Any) -> dict[str, Any]:
    """How two sets of log-probabilities differ in probabilities, ratings and selected rows."""
    n = min(len(literal), len(values)) // K
    shares = [reflection.normalised(one[: n * K]) for one in (literal, values)]
    scores = [
        reflection.sentence_score(
            reflection.token_score(one[: n * K].reshape(n, K, K), "paper"), 0.2
        )
        for one in (literal, values)
    ]
    top = [set(np.argsort(-one, kind="stable")[: max(n // 5, 1)]) for one in scores]
    ranks = [np.argsort(np.argsort(one, kind="stable"), kind="stable") for one in scores]
    gap = float(np.abs(literal[: n * K] - values[: n * K]).max())
    flips = int((shares[0].argmax(-1) != shares[1].argmax(-1)).sum())
    return {
        "max_share_difference": float(np.abs(shares[0] - shares[1]).max()),
        "max_logprob_difference": gap,
        "argmax_flips": flips,
        "spearman": round(float(np.corrcoef(*ranks)[0, 1]), 6) if n > 1 else 1.0,
        "top_fifth_overlap": len(top[0] & top[1]) / len(top[0]),
    }


def scaling(arguments: argparse.Namespace, size: str) -> dict[str, Any]:
    """Only the engine, shard by shard: time and memory by number of rows and by budget."""
    model, tokenizer = make_model(arguments, size)
    encoder = PromptEncoder(tokenizer, Template(), load_rating_prompts(None, K), K, None)
    pairs = chosen_rows(argparse.Namespace(**{**vars(arguments), "n": 10**9}), encoder)
    many = [one for encoded in encoder.encode(pairs) for one in encoded.ids]
    default = arguments.token_budget or default_budget(arguments.device)
    numbers = random.Random(0)

    def measured(n: int, budget: int) -> dict[str, Any]:
        parts = []
        for start in range(0, n, SHARD_ROWS):  # as in a run, to bound memory
            picked = [numbers.randrange(len(pairs)) for _ in range(min(SHARD_ROWS, n - start))]
            ids = [many[i * K + j] for i in picked for j in range(K)]
            bench = bench_steps.Bench(model, ids, encoder, budget, process_clock(arguments))
            parts.append(bench.run("last MLP", len(ids)))
        seconds, executed = sum(p.seconds for p in parts), sum(p.executed for p in parts)
        print(f"{size} n={n} budget={budget}: {seconds:.2f} s", file=sys.stderr, flush=True)
        return {
            "rows": n,
            "token_budget": budget,
            "seconds": round(seconds, 2),
            "tokens_per_second": round(executed / seconds),
            "padding": round(1 - sum(p.needed for p in parts) / executed, 4),
            "peak_megabytes": max(p.peak_megabytes for p in parts),
        }

    sizes = [int(n) for n in arguments.sizes.split(",")]
    return {
        "size": size if arguments.tokenizer else "tiny-rater",
        "by_rows": [measured(n, default) for n in sizes],
        "by_budget": [measured(sizes[0], 1024 * 2**i) for i in range(7)],
    }


# Models and rows


def make_model(arguments: argparse.Namespace, size: str) -> tuple[Any, Any]:
    if arguments.tokenizer is None:
        folder = str(files("selectit_hf") / "data" / "tiny-rater")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    if size in SIZES:
        layers, width, inner, heads = SIZES[size]
    else:
        layers, width = map(int, size.split("x"))
        inner, heads = width * 11 // 4, max(width // 64, 1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
    )
    default = "float32" if arguments.device == "cpu" else "bfloat16"
    torch.manual_seed(0)
    # Created in its dtype on its device: a later cast would also round the rotary frequencies.
    torch.set_default_dtype(getattr(torch, arguments.dtype or default))
    with torch.device(arguments.device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model, tokenizer


def chosen_rows(arguments: argparse.Namespace, encoder: PromptEncoder) -> list[Pair]:
    """``n`` pairs, evenly spread over the file."""
    path = arguments.rows or str(files("selectit_hf") / "data" / "sample.jsonl")
    text = Path(path).read_text("utf-8")
    rows = json.loads(text) if text.startswith("[") else list(map(json.loads, text.splitlines()))
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    pairs = [pair for pair in RowReader().pairs(batch) if isinstance(pair, Pair)]
    if arguments.short:
        lengths = [len(encoded.ids[0]) for encoded in encoder.encode(pairs)]
        pairs = [p for p, n in zip(pairs, lengths, strict=True) if n < SHORT_TOKENS]
    n = min(arguments.n, len(pairs))
    return [pairs[i * len(pairs) // n] for i in range(n)]


if __name__ == "__main__":
    main()
