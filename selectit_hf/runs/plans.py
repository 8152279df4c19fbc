"""The plan of a run: everything that can change a rating, written once.

``plan.json`` of format 3::

    input        where the rows come from, how many, their columns, a hash of all their values
    segments     the rows it grew by: their range, a hash of their values, where shards end
    rating       the question: k, rating prompts, template, columns, turns, longest prompt
    models       name, revision, dtype, rating key and token budget of each, and the tokens that
                 its prompts end in; where set, an adapter's base, quantization and attention
    shard_size   rows of every shard; null where shards grow to a minute of work
    threads      the same for every worker, whoever starts it
    versions     of the libraries it was planned with; each shard names those that rated it
    offline      models pinned to the local cache's commit, since HF_HUB_OFFLINE was set; if any
    plan_sha256  the hash of all that: a plan with another hash is not read

With the same plan, machine and versions the ratings are the same to the bit. A run of format 2
(0.1.0) is read as if it were of format 3.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from typing import Any

from datasets import Dataset

from selectit_hf.errors import InputError, RunError, SelectItError
from selectit_hf.formats import Source, check_media
from selectit_hf.json_files import as_json, facts_hash, misfit
from selectit_hf.rating import OF_THE_WEIGHTS, ModelScore, SentenceScore
from selectit_hf.runs import segments
from selectit_hf.runs.store import Store

__all__ = ["PLAN", "compare", "differ", "encoded", "make_plan", "read_plan"]

PLAN = "plan.json"
FORMAT = 3
LIBRARIES = ("datasets", "huggingface_hub", "numpy", "tokenizers", "torch", "transformers")
NOT_SHARED = (
    *("model", "revision", "base_model", "dtype", "name", *OF_THE_WEIGHTS),
    *("alpha", "variant", "versions"),
)
"""The scorer settings that are specific to a model, or not part of the question."""
GROWS = ("name", "config", "split", "revision", "rows", "fingerprint")
"""The fields of the input that may change when rows are added at its end."""
OLD = {"token_budget": int, "shard_size": int}
SCHEMA = {
    "input": {
        "name": str,
        "config": (str, None),
        "split": str,
        "revision": str,
        "rows": int,
        "columns": [str],
        "fingerprint": str,
    },
    "segments": [{"rows": [int], "fingerprint": str, "shards": [int]}],
    "rating": {"k": int, "rating_prompts": [str], "template": str},
    "models": [
        {
            "name": re.compile(r"[0-9a-z_]{1,200}"),  # also the name of a folder
            "model": str,
            "revision": str,
            "dtype": str,
            "rating_key": str,
            "token_budget": int,
        }
    ],
    "shard_size": (int, None),
    "threads": int,
    "versions": {str: str},
}
"""The schema of format 3; see `selectit_hf.json_files.misfit`."""


def make_plan(
    dataset: Dataset,
    source: Source,
    scorers: Sequence[SentenceScore],
    shard_size: int | None,
    old: dict[str, Any],
) -> dict[str, Any]:
    """The plan of a run over a dataset.

    Settings that do not affect the ratings (shard size, token budgets, threads) come from the
    ``old`` plan if they are not given.

    Raises:
        InputError: two models have the same name in column names, the dataset has columns that
            the run would write, or media are only paths; see also `fingerprint.survey`.
    """
    from selectit_hf.rating import thread_count

    check_media(dataset)
    _check_columns(dataset, scorers)
    settings = [scorer.__getstate__() for scorer in scorers]
    for scorer in scorers:
        scorer.check_place()
    names = [scorer.slug for scorer in scorers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"Two models are both called {twice[0]!r} in column names; rename one.")
    size = shard_size or old.get("shard_size")
    minute = 0 if size else segments.minute_of_rows(scorers)
    cut = segments.grown(dataset, scorers[0].reader, old.get("segments", []), size, minute)
    budgets = {model["name"]: model["token_budget"] for model in old.get("models", [])}
    offline = [scorer.slug for scorer in scorers if scorer.checkpoint.offline]
    asked = {name: value for name, value in settings[0].items() if name not in NOT_SHARED}
    return {
        "format": FORMAT,
        "input": {
            **asdict(source),
            "rows": len(dataset),
            "columns": list(dataset.column_names),
            "fingerprint": segments.whole_fingerprint(cut),
        },
        "segments": cut,
        "rating": json.loads(json.dumps(asked)),
        "models": [
            {
                "name": scorer.slug,
                "model": scorer.checkpoint.name,
                "revision": scorer.checkpoint.revision,
                "dtype": state["dtype"],
                "rating_key": scorer.rating_key(),
                "prompt_end": scorer.prompt_end(),
                **scorer.weights_facts(),
                "token_budget": scorer.token_budget
                or budgets.get(scorer.slug)
                or scorer.default_token_budget(),
            }
            for scorer, state in zip(scorers, settings, strict=True)
        ],
        "shard_size": size,
        "threads": old.get("threads") or thread_count(),
        "versions": {name: version(name) for name in LIBRARIES},
        **({"offline": offline} if offline else {}),
    }


def _check_columns(dataset: Dataset, scorers: Sequence[SentenceScore]) -> None:
    ours = {column for scorer in scorers for column in scorer.columns}
    ours |= set(ModelScore.columns) if len(scorers) > 1 else set()
    taken = sorted(ours & set(dataset.column_names))
    if taken:
        raise InputError(
            f"The dataset has columns that the run would write: {', '.join(taken)}. Drop or rename "
            "them; a dataset scored with 'selectit score' is selected from with 'selectit select'."
        )


def differ(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two plans differ in more than what wrote them, and where."""
    aside = ("format", "offline", "versions")
    return any(old[key] != new[key] for key in new if key not in aside)


def compare(old: dict[str, Any], new: dict[str, Any], name: str) -> None:
    """Refuse to continue with another plan, unless it is the old one grown.

    More rows after those of the old plan, and more models after its models, are growth. Versions
    of libraries are compared shard by shard; see `rating.rate_shard`.

    Raises:
        RunError: the message names every key that differs, with both values.
    """
    aside = ("format", "offline", "segments", "versions")
    before, after = (
        _flattened({key: plan[key] for key in plan if key not in aside}) for plan in (old, new)
    )
    if len(old["segments"]) < len(new["segments"]) and new["segments"][0] == old["segments"][0]:
        after |= {f"input.{key}": before[f"input.{key}"] for key in GROWS}
    more = {key for key in after.keys() - before.keys() if re.match(r"models\.\d+\.", key)}
    changed = [
        key for key in before | after if key not in more and before.get(key) != after.get(key)
    ]
    if changed:
        lines = "; ".join(f"{key}: {before.get(key)!r}, now {after.get(key)!r}" for key in changed)
        if new["input"]["rows"] < old["input"]["rows"]:
            limit = re.search(r"\[:(\d+)\]$", old["input"]["split"])
            then = f"give --limit {limit[1]}" if limit else "omit --limit"
            lines += f". It has more rows than are given now: {then}"
        raise RunError(
            f"The run folder {name!r} was planned differently. {lines}. Repeat the command it was "
            "started with, or name another folder with --out. A run grows by more rows at the end "
            "of its input, and by more --model after those it has."
        )


def _flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    flat: dict[str, Any] = {}
    for key, inner in items:
        path = f"{prefix}.{key}" if prefix else str(key)
        flat |= _flattened(inner, path) if isinstance(inner, (dict, list)) else {path: inner}
    return flat


# The file


def read_plan(folder: Store) -> dict[str, Any]:
    """The plan of a run folder, converted to format 3.

    Raises:
        RunError: it cannot be read, is not what was written, or is of another format.
    """
    plan = folder.read_json(PLAN, {"format": int, "plan_sha256": str})
    if plan.pop("plan_sha256") != facts_hash(plan):
        raise RunError(
            "plan.json was changed after it was written: its hash differs. Restore it, or start "
            "another run."
        )
    if plan["format"] not in (2, FORMAT):
        raise RunError(
            f"plan.json has format {plan['format']}, but this version reads 2 and {FORMAT}."
        )
    plan = plan if plan["format"] == FORMAT else _upgraded(plan)
    place = misfit(plan, SCHEMA) or segments.gap(plan) or _refused(plan["rating"])
    place = place or (None if plan["models"] else "models")
    if place is not None:
        raise RunError(
            f"plan.json does not hold what this version reads at {place!r}. Restore it, or rate "
            "with the version that planned it."
        )
    return plan


def _refused(rating: dict[str, Any]) -> str | None:
    """The settings, or one of them, that a scorer does not take."""
    known = {field.name for field in fields(SentenceScore)}.difference(NOT_SHARED)
    unknown = next((f"rating.{name}" for name in rating if name not in known), None)
    if unknown is not None:
        return unknown
    try:
        SentenceScore(**rating)
    except (SelectItError, TypeError, ValueError, AttributeError, LookupError):
        return "rating"
    return None


def _upgraded(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan of format 2, converted to format 3. It is never written."""
    place = misfit(plan, {"input": {"rows": int, "fingerprint": str}, "models": [dict], **OLD})
    if place is not None:
        raise RunError(f"plan.json of format 2 does not hold what it should at {place!r}.")
    rows, budget = plan["input"]["rows"], plan["token_budget"]
    cuts = segments.ends(0, rows, plan["shard_size"])
    segment = {"rows": [0, rows], "fingerprint": plan["input"]["fingerprint"], "shards": cuts}
    models = [{**model, "token_budget": budget} for model in plan["models"]]
    kept = {key: value for key, value in plan.items() if key != "token_budget"}
    return {**kept, "segments": [segment], "models": models}


def encoded(plan: dict[str, Any]) -> bytes:
    """The bytes of ``plan.json``: the plan and its hash."""
    return as_json({**plan, "plan_sha256": facts_hash(plan)})
