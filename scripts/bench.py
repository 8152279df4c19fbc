"""How fast is rating, against the released procedure, on the same rows and the same model?

Both sides alternate in one process on one model instance: the released loop (one prompt at a time,
logits of the whole sequence over the whole vocabulary) and this package's engine (longest first
under a token budget, one position through the model's head). Tokenization is timed on its own.
Their log-probabilities are compared, since a faster wrong answer is none. The last line of stdout
is JSON with medians and the ratio.

    python scripts/bench.py --n 40
    python scripts/bench.py --rows rows.json --tokenizer TOKENIZER --layers 8 --hidden 512 --n 40

Without ``--tokenizer`` the bundled tiny-rater is measured on the bundled sample; with it, a Llama
of the given size with random weights, which measures speed as well as trained ones.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import released_loop
import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from selectit_hf import sources
from selectit_hf.checkpoints import TINY_RATER, resolve
from selectit_hf.engine import Engine, load_model
from selectit_hf.prompts import Template, load_rating_prompts
from selectit_hf.rows import Pair, RowReader
from selectit_hf.tokens import PromptEncoder


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = make_model(arguments)
    rows = load_rows(arguments)
    prompts = load_rating_prompts(None, arguments.k)
    encoder = PromptEncoder(tokenizer, Template(), prompts, arguments.k, None)
    engine = Engine(model, arguments.token_budget)
    encode_seconds, ids = timed(lambda: ours_ids(encoder, rows))
    released_ids = [
        released_loop.encode(tokenizer, text)
        for row in rows
        for text in released_loop.prompt_texts(row, prompts)
    ]
    sides: dict[str, Callable[[], Any]] = {
        "released": lambda: [
            released_loop.rating_probabilities(model, one, encoder.rating_token_ids)
            for one in released_ids
        ],
        "selectit_hf": lambda: engine.next_token_logprobs(ids, encoder.rating_token_ids).values,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, Any] = {}
    for repeat in range(arguments.repeats):
        for name, side in sides.items():
            spent, answers[name] = timed(side)
            seconds[name].append(spent)
            print(f"repeat {repeat + 1}: {name} {spent:.2f} s", file=sys.stderr, flush=True)
    print(json.dumps(result(arguments, model, ids, encode_seconds, seconds, answers)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help="Alpaca rows, json or jsonl; default: the bundled sample")
    parser.add_argument("--tokenizer", help="folder of a tokenizer, for a random Llama with it")
    parser.add_argument("--layers", type=int, default=8, help="of the random Llama")
    parser.add_argument("--hidden", type=int, default=512, help="width of the random Llama")
    parser.add_argument("--n", type=int, default=40, help="rows to rate")
    parser.add_argument("--k", type=int, default=5, help="rating prompts per row")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--token-budget", type=int, default=None)
    return parser.parse_args()


def make_model(arguments: argparse.Namespace) -> tuple[Any, Any]:
    if arguments.tokenizer is None:
        checkpoint = resolve(TINY_RATER)
        return load_model(checkpoint.path, "float32", "cpu"), checkpoint.tokenizer()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 11 // 4,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        max_position_embeddings=4096,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def load_rows(arguments: argparse.Namespace) -> list[dict[str, str]]:
    sample = Path(sources.__file__).with_name("data") / "sample.jsonl"
    rows, _ = sources.load(arguments.rows or str(sample))
    return list(rows.select(range(min(arguments.n, len(rows)))))


def ours_ids(encoder: PromptEncoder, rows: list[dict[str, str]]) -> list[list[int]]:
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    pairs = [pair for pair in RowReader().pairs(batch) if isinstance(pair, Pair)]
    return [ids for one in encoder.encode(pairs) for ids in one.ids]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = work()
    return time.perf_counter() - started, answer


def result(
    arguments: argparse.Namespace,
    model: Any,
    ids: list[list[int]],
    encode_seconds: float,
    seconds: dict[str, list[float]],
    answers: dict[str, Any],
) -> dict[str, Any]:
    literal = np.log(np.array(answers["released"]))
    gap = float(np.abs(literal - answers["selectit_hf"]).max())
    if not gap < 1e-3:
        raise SystemExit(f"The two sides disagree by {gap} in a log-probability.")
    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    return {
        "median_seconds": {name: round(value, 3) for name, value in medians.items()},
        "prompts_per_second": {name: round(len(ids) / value, 2) for name, value in medians.items()},
        "ratio": round(medians["released"] / medians["selectit_hf"], 3),
        "max_logprob_difference": gap,
        "argmax_flips": int(
            (literal.argmax(axis=1) != answers["selectit_hf"].argmax(axis=1)).sum()
        ),
        "prompts": len(ids),
        "mean_tokens": round(math.fsum(map(len, ids)) / len(ids), 1),
        "tokenize_seconds": round(encode_seconds, 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "machine": f"{platform.machine()}, {platform.system()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
