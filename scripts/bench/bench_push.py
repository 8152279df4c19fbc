"""How much memory and time does a large push take?

A finished run with made-up rows and ratings is written in pieces, and pushed by
``scripts/push_selected.py`` in a separate process to the local Hub server of the tests. Every row
is kept, so a million rows are about 1 GB of text. The last line of stdout is JSON with the peak
memory of the push.

    python scripts/bench/bench_push.py
    python scripts/bench/bench_push.py --rows 1000000
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value

from selectit_hf.rating.prompts.rating_prompts import RELEASED_TEMPLATE, load_rating_prompts
from selectit_hf.rating.ratings import Ratings
from selectit_hf.rating.scorers import SentenceScore

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from hub_server import HubServer  # noqa: E402

K, PIECE = 5, 5000
SHA = "0123456789abcdef0123456789abcdef01234567"
RATER = {"model": "org/model", "revision": SHA, "parameters": 7 * 10**9, "rating_key": "key"}
SCORER = SentenceScore("org/model", SHA, name="model")


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--rows", type=int, default=20_000)
    flags.add_argument("--characters", type=int, default=1000, help="of a row's text")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-push-") as folder, HubServer() as server:
        run = Path(folder) / "RUN"
        make_run(run, given.rows, given.characters)
        size = sum(path.stat().st_size for path in run.iterdir())
        started = time.perf_counter()
        command = [ROOT / "scripts" / "push_selected.py", run, "user/large", "--yes"]
        environment = server.environment(Path(folder) / "home")
        subprocess.run([sys.executable, *command], env=environment, check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - started
        pushed = server.repo("dataset", "user/large").at().tree
        facts = {
            "rows": given.rows,
            "run_megabytes": round(size / 1e6),
            "pushed_megabytes": round(sum(blob.size for blob in pushed.values()) / 1e6),
            "files": len(pushed),
            "seconds": round(seconds, 1),
            "peak_megabytes": round(
                resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
            ),
        }
    print(json.dumps(facts))


def make_run(folder: Path, rows: int, characters: int) -> None:
    """A run that kept every row, written in pieces."""
    random = np.random.default_rng(0)
    texts = {"instruction": Value("string"), "output": Value("string")}
    features = {"selected": Features({**texts, **SCORER.columns})}
    features["scores"] = Features({"row": Value("int64"), **SCORER.columns})
    schemas = {name: one.arrow_schema for name, one in features.items()}
    folder.mkdir()
    writers = {
        name: pq.ParquetWriter(folder / f"{name}.parquet", schemas[name]) for name in schemas
    }
    lowest = np.inf
    for start in range(0, rows, PIECE):
        count = min(PIECE, rows - start)
        columns = scores(random, count)
        lowest = min(lowest, float(min(columns["sentence_score__model"])))
        columns["row"] = range(start, start + count)
        columns["instruction"] = [f"Instruction {i}" for i in range(start, start + count)]
        columns["output"] = [random.bytes(characters // 2).hex() for _ in range(count)]
        for name, writer in writers.items():
            schema = schemas[name]
            arrays = [pa.array(columns[field.name], field.type) for field in schema]
            writer.write_table(pa.table(arrays, schema=schema))
    for writer in writers.values():
        writer.close()
    for name, facts in all_facts(rows, lowest).items():
        (folder / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")


def scores(random: np.random.Generator, count: int) -> dict[str, Any]:
    logits = random.normal(size=(count, K, K))
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return dict(SCORER.values(Ratings(["ok"] * count, logprobs.astype(np.float32), RATER)))


def all_facts(rows: int, threshold: float) -> dict[str, dict[str, Any]]:
    source = {"name": "rows.jsonl", "config": None, "split": "train", "revision": "sha256:0"}
    nothing = dict.fromkeys(
        ("instruction_column", "response_column", "turns", "translation", "max_length")
    )
    model = {"name": "model", "model": RATER["model"], "revision": SHA, "dtype": "bfloat16"}
    told = {"parameters": RATER["parameters"], "statuses": {"ok": rows}, "rating_mass": 1.0}
    selection = {
        "by": "sentence_score__model",
        "cut": {"proportion": 1.0, "n": None, "threshold": None, "variant": "paper"},
        "reflection": {"alpha": 0.2, "variant": "paper", "weights": None},
        "threshold": threshold,
        "rows": rows,
        "selected": rows,
        "reasons": {"selected": rows},
    }
    rating = {
        "k": K,
        "rating_prompts": load_rating_prompts(None, K),
        "template": RELEASED_TEMPLATE,
        "chat": False,
        **nothing,
    }
    plan = {
        "input": source | {"rows": rows, "columns": ["instruction", "output"]},
        "rating": rating,
        "models": [model | {"rating_key": RATER["rating_key"]}],
        "versions": {},
    }
    summary = {"score_quantiles": [], "models": {"model": told}, "best": [], "worst": []}
    return {"plan": plan, "selection": selection, "summary": summary}


if __name__ == "__main__":
    main()
