"""Does rating hold on a CUDA GPU? What no test without one can show.

Rates the same rows on the CPU and on the GPU in float32; with the default dtype by `Dataset.map`,
by `selectit_hf.score` and by `selectit run`; with so little memory that batches must be halved; and
with so little that the longest rows do not fit, which must get the status oom while the others are
rated. A run killed after its first shard and repeated must end with the bytes of one that was not.
Prints a line for each; the last line is JSON. The exit code is 1 if anything does not hold.

    python scripts/checks/check_gpu.py --rows rows.json --model FOLDER --n 200
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

import selectit_hf

MEGABYTE = 2**20
LONG = 7000
"""Words of the rows that must not fit in memory, but in the model's context."""


def main() -> int:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--rows", required=True, help="Alpaca rows, json")
    flags.add_argument("--model", required=True, help="folder of a causal model")
    flags.add_argument("--n", type=int, default=200)
    given = flags.parse_args()
    rows = json.loads(Path(given.rows).read_text("utf-8"))[: given.n]
    checks = (devices, ways, halved, too_long, killed)
    facts, held = {}, True
    for check in checks:
        started = time.perf_counter()
        holds, found = check(rows, given.model)
        facts[check.__name__] = found | {"holds": holds}
        held = held and holds
        seconds = time.perf_counter() - started
        print(f"{check.__name__}: {'holds' if holds else 'FAILS'} ({seconds:.0f} s) {found}")
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__} | facts))
    return int(not held)


# What must hold


def devices(rows: list[dict[str, str]], model: str) -> tuple[bool, dict[str, Any]]:
    """The GPU gives the log-probabilities of the CPU."""
    few = rows[:20]
    there, here = (read(few, model, device=d, dtype="float32") for d in ("cuda:0", "cpu"))
    gap = float(np.abs(there - here).max())
    return gap < 1e-3, {"rows": len(few), "largest difference in nats": gap}


def ways(rows: list[dict[str, str]], model: str) -> tuple[bool, dict[str, Any]]:
    """Map and score agree; so do two batch sizes, but for the rounding of bfloat16."""
    mapped = read(rows, model, batch_size=37)
    scorer = selectit_hf.SentenceScore(model)
    scored = selectit_hf.score(Dataset.from_list(rows), scorer)
    other = np.array(scored[column(scored)])
    gap = float(np.abs(mapped - other).max())
    return gap < 1.0, {"rows": len(rows), "largest difference in nats": gap}


def halved(rows: list[dict[str, str]], model: str) -> tuple[bool, dict[str, Any]]:
    """With little memory, batches are halved, and every row is still rated alike."""
    whole, _ = rated(rows, model)
    with_room(120)
    said = Said()
    less, statuses = rated(rows, model)
    with_room(None)
    gap = float(np.abs(whole - less).max())
    fine = said.count("halving") > 0 and set(statuses) == {"ok"} and gap < 1.0
    return fine, {"halvings": said.count("halving"), "largest difference in nats": gap}


def too_long(rows: list[dict[str, str]], model: str) -> tuple[bool, dict[str, Any]]:
    """Rows that do not fit even alone get the status oom; the others are rated."""
    long = [{"instruction": "Count.", "input": "", "output": "one two " * (LONG // 2)}] * 2
    rated(rows[:20], model)
    with_room(70)
    said = Said()
    _, statuses = rated(rows[:20] + long, model)
    with_room(None)
    fine = set(statuses[:20]) == {"ok"} and set(statuses[20:]) == {"oom"}
    return fine, {"statuses": dict(Counter(statuses)), "halvings": said.count("halving")}


def killed(rows: list[dict[str, str]], model: str) -> tuple[bool, dict[str, Any]]:
    """The same bytes after a kill as without one."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "rows.json"
        file.write_text(json.dumps(rows))
        words = [sys.executable, "-m", "selectit_hf", "run", str(file), "--model", model]
        words += ["--shard-size", str(max(len(rows) // 8, 1)), "--out"]
        subprocess.run([*words, f"{place}/whole"], check=True, capture_output=True)
        work = subprocess.Popen(
            [*words, f"{place}/killed"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while work.poll() is None and not tables(f"{place}/killed"):
            time.sleep(0.01)
        early = work.poll() is None
        if early:
            os.killpg(work.pid, signal.SIGKILL)
        work.wait()
        before = len(tables(f"{place}/killed"))
        subprocess.run([*words, f"{place}/killed"], check=True, capture_output=True)
        same = tables(f"{place}/whole") == tables(f"{place}/killed")
        plan = json.loads((Path(place) / "whole/plan.json").read_text())
    said = {key: plan["models"][0][key] for key in ("dtype", "device", "token_budget")}
    return same and early, {"tables at the kill": before, "same bytes": same} | said


# Helpers


class Said(logging.Handler):
    """What the engine warns of from now on."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        logging.getLogger("selectit_hf").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text."""
        self.texts.append(record.getMessage())

    def count(self, word: str) -> int:
        """How many texts hold the word."""
        return sum(word in text for text in self.texts)


def rated(
    rows: list[dict[str, str]], model: str, batch_size: int | None = None, **settings: Any
) -> tuple[Any, list[str]]:
    """(n, K, k) log-probabilities, and the status of each row."""
    scorer = selectit_hf.SentenceScore(model, **settings)
    done = Dataset.from_list(rows).map(
        scorer, batched=True, batch_size=batch_size or len(rows), load_from_cache_file=False
    )
    status = next(name for name in done.column_names if name.startswith("status__"))
    values = [one for one in done[column(done)] if one is not None]
    return np.array(values), list(done[status])


def read(rows: list[dict[str, str]], model: str, **settings: Any) -> Any:
    return rated(rows, model, **settings)[0]


def column(scored: Dataset) -> str:
    return next(name for name in scored.column_names if name.startswith("rating_logprobs__"))


def with_room(megabytes: int | None) -> None:
    """Leave so much GPU memory beside what is in use, the model; ``None`` for all."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    share = 1.0
    if megabytes is not None:
        share = (torch.cuda.memory_allocated() + megabytes * MEGABYTE) / total
    torch.cuda.set_per_process_memory_fraction(share)


def tables(run: str) -> dict[str, bytes]:
    """The rating tables of a run by their place in it."""
    places = sorted(Path(run).glob("ratings/*/*.parquet"))
    return {str(path.relative_to(run)): path.read_bytes() for path in places}


if __name__ == "__main__":
    sys.exit(main())
