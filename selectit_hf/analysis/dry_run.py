"""What a run would do and take, without writing any of it: rows, tokens, batches, time, disk."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from datasets import Dataset

from selectit_hf.analysis.choices import is_selector
from selectit_hf.analysis.speed import Speed, measure
from selectit_hf.errors import ModelError
from selectit_hf.formats import Pair, Survey, space_needed
from selectit_hf.rating import Batch, Reflection, SentenceScore, rating_mass
from selectit_hf.runs import Run, pending, prepare, ranking_column
from selectit_hf.selection import Cut

__all__ = ["dry_run"]

SAMPLE = 64
"""Rows whose prompts are counted in tokens."""


def dry_run(
    run: Run,
    dataset: Dataset,
    scorers: Sequence[SentenceScore],
    survey: Survey,
    how: Reflection,
    cut: Cut,
    workers: int = 1,
) -> dict[str, Any]:
    """What rating the pending shards of a plan would take, measured on a few rows.

    Args:
        run: the plan, which need not be written.
        dataset: its rows.
        scorers: one for each model.
        survey: what was found in the rows.
        how, cut: how they would be selected.
        workers: processes, each of which has a GPU of its own where there are GPUs.

    Returns:
        JSON-able facts: ``input``; ``models``, each with ``rows_left``, ``prompts``, ``tokens`` and
        ``tokens_per_prompt`` (estimated from a sample), ``batches``, ``rating_mass`` and
        ``seconds`` (null with the reason in ``unknown`` where the model does not load);
        ``seconds`` of all models; ``bytes``; ``selected``; ``out``.

    Raises:
        ModelError: a tokenizer cannot be loaded, or cannot rate.
        RunError, SettingError: what the run itself would refuse.
    """
    of, left = prepare(run, scorers), pending(run)
    batch, pairs = _sample(run, dataset)
    models = []
    for slug in run.slugs:
        parts = [run.parts[number].rows for one, number in left if one == slug]
        share = 1 - survey.unrated / max(survey.rows, 1)
        models.append(_of_model(run, of[slug], batch, pairs, [len(part) for part in parts], share))
    seconds = [model["seconds"] for model in models]
    on_gpus = workers > 1 and all(model["device"].startswith("cuda") for model in models)
    rows, k = len(dataset), run.plan["rating"]["k"]
    kept = None if cut.threshold is not None else min(cut.count(rows), survey.rows - survey.unrated)
    return {
        "dry_run": True,
        "input": {**run.plan["input"], "cannot_be_rated": survey.unrated},
        "models": models,
        "shards": len(run.parts),
        "workers": workers,
        "seconds": None if None in seconds else sum(seconds) / (workers if on_gpus else 1),
        "bytes": space_needed(dataset, len(models), k, 1.0 if kept is None else kept / rows),
        "selected": {**asdict(cut), "rows": kept, "by": _ranked_by(run, dataset, how)},
        "out": run.where,
    }


def _ranked_by(run: Run, dataset: Dataset, how: Reflection) -> str:
    if how.by is not None and is_selector(dataset, how.by):
        ranking_column(run.plan, replace(how, by=None), dataset.column_names)
        return how.by
    return str(ranking_column(run.plan, how, dataset.column_names))


def _sample(run: Run, dataset: Dataset) -> tuple[Batch, list[Pair]]:
    """Rows at equal distances that can be rated: their columns, and their pairs."""
    numbers = np.unique(np.linspace(0, len(dataset) - 1, SAMPLE).round().astype(int)).tolist()
    read = dataset.with_format(None).select_columns(list(run.reader.columns(dataset.column_names)))
    batch = read[numbers]
    found = run.reader.pairs(batch)
    good = [i for i, pair in enumerate(found) if isinstance(pair, Pair)]
    whole = {name: [values[i] for i in good] for name, values in batch.items()}
    return whole, [pair for pair in found if isinstance(pair, Pair)]


def _of_model(
    run: Run,
    scorer: SentenceScore,
    batch: Batch,
    pairs: Sequence[Pair],
    shards: Sequence[int],
    share: float,
) -> dict[str, Any]:
    encoded = scorer.rater(None).encoder().encode(pairs)
    read = [i for i, one in enumerate(encoded) if one.ids]
    sizes = np.array([sum(map(len, encoded[i].ids)) for i in read], np.float64)
    rows = sum(shards)
    facts = run.model(scorer.slug)
    found: dict[str, Any] = {name: facts[name] for name in ("name", "model", "revision", "dtype")}
    found |= {"device": scorer.place(None).device, "rows_left": rows}
    found |= {"prompts": round(rows * share) * scorer.k, "sample": len(read)}
    found |= {"tokens_per_prompt": None, "tokens": None, "longest_prompt": None, "truncated": None}
    found |= {"token_budget": scorer.token_budget, "batches": None, "rating_mass": None}
    found |= {"seconds": 0.0 if not rows else None, "unknown": None}
    if not read:
        return {**found, "unknown": "no row of the sample can be rated"}
    tokens = float(sizes.mean()) * rows * share
    found["tokens_per_prompt"] = round(float(sizes.mean()) / scorer.k, 1)
    found["tokens"] = round(tokens)
    found["longest_prompt"] = max(len(ids) for i in read for ids in encoded[i].ids)
    found["truncated"] = sum(encoded[i].status == "truncated" for i in read)
    found["batches"] = max(len(shards), math.ceil(tokens / (scorer.token_budget or tokens or 1)))
    if rows:
        here = {name: [values[i] for i in read] for name, values in batch.items()}
        found |= _timed(scorer, here, sizes, tokens, len(shards))
    return found


def _timed(
    scorer: SentenceScore, batch: Batch, sizes: Any, tokens: float, shards: int
) -> Mapping[str, Any]:
    """The measured facts, or why there are none."""
    try:
        speed: Speed = measure(scorer, batch, sizes)
    except (ModelError, RuntimeError, OSError, MemoryError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        return {"unknown": f"the model cannot be measured here: {said[:400]}"}
    logprobs = speed.ratings.logprobs[speed.ratings.rated]
    mass = float(rating_mass(logprobs).mean()) if len(logprobs) else None
    return {"seconds": round(speed.seconds(tokens, shards), 1), "rating_mass": mass}
