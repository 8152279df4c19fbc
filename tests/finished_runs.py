"""Finished runs for tests: ratings are made up, everything that follows from them is computed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from selectit_hf.checkpoints import slug
from selectit_hf.prompts import RELEASED_TEMPLATE, load_rating_prompts
from selectit_hf.runs import Reflection, Run
from selectit_hf.selection import Cut

K = 5
SHA = "0123456789abcdef0123456789abcdef01234567"
VERSIONS = {"datasets": "1.0", "torch": "2.0"}


def make_rows(count: int = 30, **extra: list[Any]) -> Dataset:
    """Instructions and responses of many lengths, some with digits; every tenth is empty."""
    words = ["word " * (1 + i % 17) + (f"{i}" if i % 3 else "") for i in range(count)]
    return Dataset.from_dict(
        {
            "instruction": [f"Question {i}?" for i in range(count)],
            "output": ["" if i % 10 == 9 else word for i, word in enumerate(words)],
            **extra,
        }
    )


def make_run(
    folder: Path,
    *,
    rows: Dataset | None = None,
    models: tuple[str, ...] = ("org/small", "org/large"),
    source: dict[str, Any] | None = None,
    rating: dict[str, Any] | None = None,
    how: Reflection | None = None,
    cut: Cut | None = None,
    seed: int = 0,
) -> Path:
    """A run folder as `selectit run` leaves it, without a model."""
    rows = make_rows() if rows is None else rows
    prompts = list(load_rating_prompts(None, K))
    plan = {
        "format": 1,
        "input": {
            "name": "org/source",
            "config": None,
            "split": "train",
            "revision": SHA,
            "rows": len(rows),
            "columns": rows.column_names,
            "fingerprint": "sha256:00",
            **(source or {}),
        },
        "rating": {
            "k": K,
            "rating_prompts": prompts,
            "template": RELEASED_TEMPLATE,
            "chat": False,
            "instruction_column": None,
            "response_column": None,
            "turns": None,
            "translation": None,
            "max_length": None,
            **(rating or {}),
        },
        "models": [
            {
                "name": slug(name),
                "model": name,
                "revision": SHA[::-1],
                "dtype": "bfloat16",
                "rating_key": f"key{i}",
            }
            for i, name in enumerate(models)
        ],
        "shard_size": len(rows),
        "token_budget": 4096,
        "threads": 1,
        "versions": VERSIONS,
    }
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    for i, model in enumerate(plan["models"]):
        _rate(folder / "ratings" / model["name"], rows, model, (i + 1) * 10**9, seed + i)
    Run.open(folder).finish(rows, how or Reflection(), cut or Cut())
    return folder


def _rate(folder: Path, rows: Dataset, model: dict[str, Any], size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(len(rows), K, K)) + random.normal(size=(len(rows), 1, K))
    logprobs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    empty = np.array([not text for text in rows[rows.column_names[1]]])
    logprobs[empty] = np.nan
    flat = pa.FixedSizeListArray.from_arrays(pa.array(logprobs.reshape(-1)), K * K)
    statuses = ["empty" if one else "ok" for one in empty]
    folder.mkdir(parents=True)
    path = folder / "00000.parquet"
    numbers = pa.array(range(len(rows)), pa.int64())
    pq.write_table(pa.table({"row": numbers, "status": statuses, "logprobs": flat}), path)
    facts = {
        "rows": [0, len(rows)],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rater": {
            "model": model["model"],
            "revision": model["revision"],
            "parameters": size,
            "rating_key": model["rating_key"],
        },
        "oom_splits": 0,
        "seconds": 1.0,
    }
    path.with_suffix(".json").write_text(json.dumps(facts))
