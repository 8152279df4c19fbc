"""Finished runs for tests: ratings are made up, everything that follows from them is computed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from selectit_hf.formats.fingerprints import fingerprint
from selectit_hf.rating.models.model_names import slug
from selectit_hf.rating.prompts.rating_prompts import RELEASED_TEMPLATE, load_rating_prompts
from selectit_hf.rating.ratings import Ratings
from selectit_hf.rating.reflection import Reflection
from selectit_hf.runs import Run, finish, open_run
from selectit_hf.runs.plans import encoded
from selectit_hf.runs.segments import ends
from selectit_hf.selection.selection import Cut

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


def make_plan(
    rows: Dataset,
    models: Iterable[str] = ("org/small", "org/large"),
    size: int | None = None,
    source: dict[str, Any] | None = None,
    rating: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A plan over some rows, without a model."""
    found = fingerprint(rows)
    return {
        "format": 3,
        "input": {
            "name": "org/source",
            "config": None,
            "split": "train",
            "revision": SHA,
            "rows": len(rows),
            "columns": rows.column_names,
            "fingerprint": found,
            **(source or {}),
        },
        "segments": [
            {
                "rows": [0, len(rows)],
                "fingerprint": found,
                "shards": ends(0, len(rows), size or len(rows)),
            }
        ],
        "rating": {
            "k": K,
            "rating_prompts": list(load_rating_prompts(None, K)),
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
                "token_budget": 4096,
            }
            for i, name in enumerate(models)
        ],
        "shard_size": size,
        "threads": 1,
        "versions": VERSIONS,
    }


def planned(folder: Path, plan: dict[str, Any]) -> Run:
    """A run folder that holds a plan only."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_bytes(encoded(plan))
    return open_run(folder)


def commit(run: Run, name: str, ratings: Ratings, order: Iterable[int] | None = None) -> None:
    """Commit the shards of one model, in some order."""
    for number in range(len(run.parts)) if order is None else order:
        rows = run.parts[number].rows
        some = slice(rows.start, rows.stop)
        flat = pa.array(ratings.logprobs[some].reshape(-1))
        table = pa.table(
            {
                "row": pa.array(np.asarray(rows), pa.int64()),
                "status": ratings.statuses[some],
                "logprobs": pa.FixedSizeListArray.from_arrays(flat, K * K),
            }
        )
        facts = {"rater": ratings.rater, "oom_splits": number % 2, "seconds": 1.0}
        run.shards(name).commit(number, table, facts)


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
    run = planned(folder, make_plan(rows, models, None, source, rating))
    for i, model in enumerate(run.plan["models"]):
        commit(run, model["name"], _ratings(rows, model, (i + 1) * 10**9, seed + i))
    finish(run, rows, how, cut)
    return folder


def _ratings(rows: Dataset, model: dict[str, Any], size: int, seed: int) -> Ratings:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(len(rows), K, K)) + random.normal(size=(len(rows), 1, K))
    logprobs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    empty = np.array([not text for text in rows[rows.column_names[1]]])
    logprobs[empty] = np.nan
    rater = {name: model[name] for name in ("model", "revision", "rating_key")}
    statuses = ["empty" if one else "ok" for one in empty]
    return Ratings(statuses, logprobs, {**rater, "parameters": size})
