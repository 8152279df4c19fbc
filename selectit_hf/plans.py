"""The plan of a run: everything that can change a rating, written once.

``plan.json`` of format 2::

    input        where the rows come from, how many, their columns, a hash of all their values
    rating       the question: k, rating prompts, template, columns, turns, longest prompt
    method       versions of what is done with them: prompt hash, truncation, batches, formulas
    models       name, revision, dtype and rating key of each
    shard_size, token_budget, threads    the same for every worker, whoever starts it
    versions     of the libraries

With the same plan, machine and versions the ratings are the same to the bit. A run of format 1,
which had no ``method``, is still read, selected from and published.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from selectit_hf import storage
from selectit_hf.checkpoints import slug
from selectit_hf.errors import InputError, RunError, SettingError
from selectit_hf.prompts import Template
from selectit_hf.rows import RowReader
from selectit_hf.scorers import SentenceScore
from selectit_hf.shapes import misfit
from selectit_hf.sources import Source

__all__ = ["SHARD_SIZE", "check_plan", "compare", "make_plan", "read_plan", "write_plan"]

FORMAT = 2
LARGEST = 2**53
SHARD_SIZE = 8192
BATCH_PLAN = 1
"""Raised whenever the rows of a shard are batched in another way."""
TRUNCATION = "the response, then the instruction; rating prompt and suffix stay whole"
ATTENTION = "as transformers chooses for the architecture"
LIBRARIES = ("datasets", "huggingface_hub", "numpy", "tokenizers", "torch", "transformers")
OF_A_MODEL = ("model", "revision", "dtype", "name")
OF_A_REFLECTION = ("alpha", "variant", "versions")

TEXT_OR_NULL = (str, type(None))
SHAPE = {
    "format": int,
    "input": {
        "name": str,
        "config": TEXT_OR_NULL,
        "split": str,
        "revision": str,
        "rows": int,
        "columns": [str],
        "fingerprint": str,
    },
    "rating": {
        "k": int,
        "rating_prompts": [str],
        "template": str,
        "chat": bool,
        "instruction_column": TEXT_OR_NULL,
        "response_column": TEXT_OR_NULL,
        "turns": TEXT_OR_NULL,
        "translation": TEXT_OR_NULL,
        "max_length": (int, type(None)),
    },
    "models": [{"name": str, "model": str, "revision": str, "dtype": str, "rating_key": str}],
    "shard_size": int,
    "token_budget": int,
    "threads": int,
    "versions": dict,
}
METHOD = {
    "prompt_hash": str,
    "truncation": str,
    "attention": str,
    "batch_plan_version": int,
    "rating_version": int,
    "formula_version": int,
}


def make_plan(
    source: Source,
    columns: Sequence[str],
    rows: int,
    fingerprint: str,
    scorers: Sequence[SentenceScore],
    shard_size: int | None,
    old: dict[str, Any],
) -> dict[str, Any]:
    """The plan of a run.

    Settings that do not change which ratings are wanted (shard size, token budget, threads) come
    from the ``old`` plan where they are not given.

    Raises:
        InputError: two models have the same name in column names.
    """
    from selectit_hf import engine

    settings = [scorer.__getstate__() for scorer in scorers]
    names = [scorer.slug for scorer in scorers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"Two models are both called {twice[0]!r} in column names; rename one.")
    shared = {k: v for k, v in settings[0].items() if k not in (*OF_A_MODEL, *OF_A_REFLECTION)}
    given = [scorer.token_budget for scorer in scorers if scorer.token_budget is not None]
    return {
        "format": FORMAT,
        "input": {
            **asdict(source),
            "rows": rows,
            "columns": list(columns),
            "fingerprint": fingerprint,
        },
        "rating": json.loads(json.dumps(shared)),
        "method": _method(settings[0]),
        "models": [
            {
                "name": scorer.slug,
                "model": scorer.checkpoint.name,
                "revision": scorer.checkpoint.revision,
                "dtype": state["dtype"],
                "rating_key": scorer.rating_key(),
            }
            for scorer, state in zip(scorers, settings, strict=True)
        ],
        "shard_size": shard_size or old.get("shard_size", SHARD_SIZE),
        # All models of a run keep to one budget: that of the model which leaves least room.
        "token_budget": min(given, default=old.get("token_budget"))
        or min(scorer.default_token_budget() for scorer in scorers),
        "threads": old.get("threads") or engine.thread_count(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _method(settings: dict[str, Any]) -> dict[str, Any]:
    asked = [settings["template"], *settings["rating_prompts"]]
    rating_version, formula_version = settings["versions"]
    return {
        "prompt_hash": f"sha256:{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}",
        "truncation": TRUNCATION,
        "attention": ATTENTION,
        "batch_plan_version": BATCH_PLAN,
        "rating_version": rating_version,
        "formula_version": formula_version,
    }


def compare(old: dict[str, Any], new: dict[str, Any], name: str) -> None:
    """Refuse to go on with another plan.

    Raises:
        RunError: it names every key that differs, with both values.
    """
    before, after = _flattened(old), _flattened(new)
    changed = [key for key in before | after if before.get(key) != after.get(key)]
    if changed:
        lines = "; ".join(f"{key}: {before.get(key)!r}, now {after.get(key)!r}" for key in changed)
        raise RunError(
            f"The run folder {name!r} was planned differently. {lines}. Repeat the command "
            "it was started with, or name another folder with --out."
        )


def _flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    flat: dict[str, Any] = {}
    for key, inner in items:
        path = f"{prefix}.{key}" if prefix else str(key)
        flat |= _flattened(inner, path) if isinstance(inner, (dict, list)) else {path: inner}
    return flat


# Reading


def read_plan(path: Path) -> dict[str, Any]:
    """A plan that is there.

    Raises:
        RunError: it cannot be read, or is no plan; the message names the key.
    """
    plan = storage.read_json(path)
    written = plan.pop("plan_sha256", None)
    check_plan(plan)
    if written not in (None, _hash(plan)):
        raise RunError(
            "plan.json is not what was written: its hash does not fit. Restore it, or start "
            "another run."
        )
    return plan


def write_plan(path: Path, plan: dict[str, Any]) -> None:
    """Write a plan with its hash, unless another worker was quicker.

    Raises:
        OSError: the disk is full or failing.
    """
    storage.create_json(path, {**plan, "plan_sha256": _hash(plan)})


def _hash(plan: dict[str, Any]) -> str:
    return storage.sha256(json.dumps(plan, sort_keys=True).encode())


def check_plan(plan: dict[str, Any]) -> None:
    """Refuse what is no plan.

    Raises:
        RunError: the first key that is missing, of a wrong type or out of range, by name.
    """
    known = plan.get("format")
    if known not in (1, FORMAT) or isinstance(known, bool):
        raise _no_plan(f"its format is {known!r}, and this version reads 1 and {FORMAT}")
    shape = SHAPE if known == 1 else {**SHAPE, "method": METHOD}
    problem = misfit(plan, shape) or _out_of_range(plan)
    if problem:
        raise _no_plan(problem)


def _out_of_range(plan: dict[str, Any]) -> str | None:
    rating, models = plan["rating"], plan["models"]
    for name, value in (
        ("input.rows", plan["input"]["rows"]),
        *((name, plan[name]) for name in ("shard_size", "token_budget", "threads")),
    ):
        if not 1 <= value < LARGEST:
            return f"{name} is {value}, which is not from 1 to 2**53"
    if not 2 <= rating["k"] <= 9:
        return f"rating.k is {rating['k']}, not 2 to 9"
    if len(rating["rating_prompts"]) != rating["k"]:
        return f"rating.rating_prompts are {len(rating['rating_prompts'])}, not k={rating['k']}"
    if any(not prompt.strip() for prompt in rating["rating_prompts"]):
        return "rating.rating_prompts holds an empty one"
    if rating["max_length"] is not None and not 1 <= rating["max_length"] < LARGEST:
        return f"rating.max_length is {rating['max_length']}, which is not from 1 to 2**53"
    try:
        RowReader.of(rating)
        Template(rating["template"])
    except SettingError as error:
        return f"rating holds what is no setting: {error}"
    names = [model["name"] for model in models]
    if not names or len(set(names)) != len(names):
        return f"models are {names}; at least one, and none twice, can be"
    for name in names:  # it names a folder
        if slug(name) != name or not re.fullmatch(r"[0-9a-z_]{1,200}", name):
            return f"models has the name {name!r}, which is not snake case"
    return None


def _no_plan(problem: str) -> RunError:
    return RunError(f"plan.json is no plan of a run: {problem}. Restore it, or start another run.")
