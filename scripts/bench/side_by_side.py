"""What benches share that put several sides beside each other on the same prompts."""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from bench import K, chosen_rows, machine, process_clock
from bench_steps import Bench, Timed

from selectit_hf.rating.prompts.prompt_encoder import PromptEncoder
from selectit_hf.rating.prompts.rating_prompts import Template, load_rating_prompts

Runs = dict[str, list[Timed]]


def parser(description: str, n: int) -> argparse.ArgumentParser:
    """The flags of all of them; ``device`` is the CPU unless a bench adds a flag for it."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rows", required=True, help="Alpaca rows, json or jsonl")
    made.add_argument("--model", required=True, help="folder of a causal model")
    made.add_argument("--n", type=int, default=n, help="rows to rate, spread over the file")
    made.add_argument("--short", action="store_true", help="only rows with short prompts")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--threads", type=int, default=1)
    made.set_defaults(device="cpu")
    return made


def prompts(given: argparse.Namespace, tokenizer: Any) -> tuple[PromptEncoder, list[list[int]]]:
    """The encoder, and the token ids of K prompts for each row."""
    encoder = PromptEncoder(tokenizer, Template(), load_rating_prompts(None, K), K, None)
    return encoder, [one for row in encoder.encode(chosen_rows(given, encoder)) for one in row.ids]


def alternating(sides: Mapping[str, Callable[[], Timed]], repeats: int) -> Runs:
    """Every side once in each repeat."""
    runs: Runs = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, side in sides.items():
            runs[name].append(side())
            print(
                f"{repeat + 1} {name}: {runs[name][-1].seconds:.1f} s", file=sys.stderr, flush=True
            )
    return runs


def about(given: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """What the figures were measured with."""
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
    }


def speeds(runs: Sequence[Timed]) -> list[float]:
    """Prompts a second in each repeat."""
    return [one.prompts / one.seconds for one in runs]


def typical(speed: Sequence[float]) -> dict[str, Any]:
    """The median and the spread of prompts a second."""
    return {
        "prompts_per_second": round(statistics.median(speed), 2),
        "spread": [round(min(speed), 2), round(max(speed), 2)],
    }
