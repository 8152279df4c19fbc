"""The plan of a run: everything that can change a rating, written once.

``plan.json`` of format 3::

    input        where the rows come from, how many, their columns, a hash of all their values
    segments     the rows it grew by: their range, a hash of their values, where shards end
    rating       the question: k, rating prompts, template, columns, turns, longest prompt
    method       versions of what is done with them: prompt hash, truncation, batches, formulas
    models       name, revision, dtype, rating key and token budget of each
    shard_size   rows of every shard; null where shards grow to a minute of work
    threads      the same for every worker, whoever starts it
    versions     of the libraries it was planned with; each shard says those that rated it

With the same plan, machine and versions the ratings are the same to the bit. Runs of formats 1 and
2 (0.1.0) are read as if they were of format 3.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from datasets import Dataset

from selectit_hf.checkpoints import slug
from selectit_hf.errors import InputError, RunError, SettingError
from selectit_hf.prompts import Template
from selectit_hf.rows import RowReader
from selectit_hf.runs import segments, store
from selectit_hf.runs.shapes import misfit
from selectit_hf.runs.store import Store
from selectit_hf.scorers import SentenceScore
from selectit_hf.sources import Source

__all__ = ["PLAN", "check_plan", "compare", "encoded", "make_plan", "read_plan"]

PLAN = "plan.json"
FORMAT = 3
LARGEST = 2**53
READER = ("instruction_column", "response_column", "turns", "translation")
BATCH_PLAN = 1
"""Raised whenever the rows of a shard are batched in another way."""
TRUNCATION = "the response, then the instruction; rating prompt and suffix stay whole"
ATTENTION = "as transformers chooses for the architecture"
LIBRARIES = ("datasets", "huggingface_hub", "numpy", "tokenizers", "torch", "transformers")
OF_A_MODEL = ("model", "revision", "dtype", "name")
OF_A_REFLECTION = ("alpha", "variant", "versions")

TEXT_OR_NULL = (str, type(None))
MODEL = {"name": str, "model": str, "revision": str, "dtype": str, "rating_key": str}
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
    "models": [MODEL],
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
SHAPES = {
    1: {**SHAPE, "shard_size": int, "token_budget": int},
    2: {**SHAPE, "shard_size": int, "token_budget": int, "method": METHOD},
    3: {
        **SHAPE,
        "method": METHOD,
        "segments": [{"rows": [int], "fingerprint": str, "shards": [int]}],
        "models": [{**MODEL, "token_budget": int}],
        "shard_size": (int, type(None)),
    },
}


def make_plan(
    dataset: Dataset,
    source: Source,
    scorers: Sequence[SentenceScore],
    shard_size: int | None,
    old: dict[str, Any],
) -> dict[str, Any]:
    """The plan of a run over a dataset.

    Settings that do not change which ratings are wanted (shard size, token budgets, threads) come
    from the ``old`` plan where they are not given.

    Raises:
        InputError: two models have the same name in column names; see also `fingerprint.survey`.
    """
    from selectit_hf import engine

    settings = [scorer.__getstate__() for scorer in scorers]
    names = [scorer.slug for scorer in scorers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"Two models are both called {twice[0]!r} in column names; rename one.")
    shared = {k: v for k, v in settings[0].items() if k not in (*OF_A_MODEL, *OF_A_REFLECTION)}
    size = shard_size or old.get("shard_size")
    minute = 0 if size else segments.minute_of_rows(scorers)
    cut = segments.grown(dataset, scorers[0].reader, old.get("segments", []), size, minute)
    budgets = {model["name"]: model["token_budget"] for model in old.get("models", [])}
    return {
        "format": FORMAT,
        "input": {
            **asdict(source),
            "rows": len(dataset),
            "columns": list(dataset.column_names),
            "fingerprint": segments.whole_fingerprint(cut),
        },
        "segments": cut,
        "rating": json.loads(json.dumps(shared)),
        "method": _method(settings[0]),
        "models": [
            {
                "name": scorer.slug,
                "model": scorer.checkpoint.name,
                "revision": scorer.checkpoint.revision,
                "dtype": state["dtype"],
                "rating_key": scorer.rating_key(),
                "token_budget": scorer.token_budget
                or budgets.get(scorer.slug)
                or scorer.default_token_budget(),
            }
            for scorer, state in zip(scorers, settings, strict=True)
        ],
        "shard_size": size,
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
    """Refuse to go on with another plan, unless it is the old one grown.

    More rows behind those of the old plan and more models behind its models are growth. Versions
    of libraries are compared shard by shard; see `rating.rate_shard`.

    Raises:
        RunError: it names every key that differs, with both values.
    """
    before, after = (_flattened(_settings(plan)) for plan in (old, new))
    if new["segments"][: len(old["segments"])] == old["segments"] != new["segments"]:
        for path in ("name", "config", "split", "revision", "rows", "fingerprint"):
            after[f"input.{path}"] = before[f"input.{path}"]
    for path in after.keys() - before.keys():
        if re.match(r"models\.\d+\.", path):
            del after[path]
    changed = [key for key in before | after if before.get(key) != after.get(key)]
    if changed:
        lines = "; ".join(f"{key}: {before.get(key)!r}, now {after.get(key)!r}" for key in changed)
        raise RunError(
            f"The run folder {name!r} was planned differently. {lines}. Repeat the command it was "
            "started with, or name another folder with --out. A run grows by more rows at the end "
            "of its input, and by more --model behind those it has."
        )


def _settings(plan: dict[str, Any]) -> dict[str, Any]:
    """What of a plan must stay."""
    return {name: plan[name] for name in plan if name not in ("format", "segments", "versions")}


def _flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    flat: dict[str, Any] = {}
    for key, inner in items:
        path = f"{prefix}.{key}" if prefix else str(key)
        flat |= _flattened(inner, path) if isinstance(inner, (dict, list)) else {path: inner}
    return flat


# The file


def read_plan(folder: Store) -> dict[str, Any]:
    """The plan of a run folder, as of format 3.

    Raises:
        RunError: it cannot be read, or is no plan; the message names the key.
    """
    plan = folder.read_json(PLAN)
    written = plan.pop("plan_sha256", None)
    check_plan(plan)
    if written not in (None, _hash(plan)):
        raise RunError(
            "plan.json is not what was written: its hash does not fit. Restore it, or start "
            "another run."
        )
    return plan if plan["format"] == FORMAT else _upgraded(plan)


def _upgraded(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan of an earlier format as this one says it. It is never written."""
    rows, size = plan["input"]["rows"], plan["shard_size"]
    segment = {
        "rows": [0, rows],
        "fingerprint": plan["input"]["fingerprint"],
        "shards": segments.ends(0, rows, size, 0),
    }
    models = [{**model, "token_budget": plan["token_budget"]} for model in plan["models"]]
    kept = {name: value for name, value in plan.items() if name != "token_budget"}
    return {**kept, "segments": [segment], "models": models}


def encoded(plan: dict[str, Any]) -> bytes:
    """The bytes of ``plan.json``: the plan and its hash."""
    return store.as_json({**plan, "plan_sha256": _hash(plan)})


def _hash(plan: dict[str, Any]) -> str:
    return store.sha256(json.dumps(plan, sort_keys=True).encode())


def check_plan(plan: dict[str, Any]) -> None:
    """Refuse what is no plan.

    Raises:
        RunError: the first key that is missing, of a wrong type or out of range, by name.
    """
    known = plan.get("format")
    if known not in SHAPES or isinstance(known, bool):
        raise _no_plan(f"its format is {known!r}, and this version reads 1 to {FORMAT}")
    problem = misfit(plan, SHAPES[known]) or _out_of_range(plan)
    if problem:
        raise _no_plan(problem)


def _out_of_range(plan: dict[str, Any]) -> str | None:
    rating, models = plan["rating"], plan["models"]
    numbers = [("input.rows", plan["input"]["rows"]), ("threads", plan["threads"])]
    numbers += [(name, plan[name]) for name in ("shard_size", "token_budget") if plan.get(name) is not None]
    numbers += [("models.token_budget", one.get("token_budget", 1)) for one in models]
    for name, value in numbers:
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
        RowReader(*(rating[name] for name in READER))
        Template(rating["template"])
    except SettingError as error:
        return f"rating holds what is no setting: {error}"
    return _wrong_names([model["name"] for model in models]) or _wrong_cuts(plan)


def _wrong_names(names: list[str]) -> str | None:
    if not names or len(set(names)) != len(names):
        return f"models are {names}; at least one, and none twice, can be"
    for name in names:  # it names a folder
        if slug(name) != name or not re.fullmatch(r"[0-9a-z_]{1,200}", name):
            return f"models has the name {name!r}, which is not snake case"
    return None


def _wrong_cuts(plan: dict[str, Any]) -> str | None:
    """Whether shards do not cover all rows once, in order."""
    if plan["format"] != FORMAT:
        return None
    at = 0
    for number, one in enumerate(plan["segments"]):
        cuts = [at, *one["shards"]]
        if one["rows"] != [at, cuts[-1]] or any(a >= b for a, b in pairwise(cuts)) or len(cuts) < 2:
            return f"segments.{number} does not cut its rows into shards, from row {at} on"
        at = cuts[-1]
    rows = plan["input"]["rows"]
    return None if at == rows else f"segments end at row {at}, and input.rows is {rows}"


def _no_plan(problem: str) -> RunError:
    return RunError(f"plan.json is no plan of a run: {problem}. Restore it, or start another run.")
