"""What follows from a run's ratings: scores, selection and summary, in memory bounded by a shard.

One pass over the shards writes ``scores.parquet``, a row group for each, and keeps a score and a
status code of every row: nine bytes. They are ranked, and one pass over the rows writes
``selected.parquet`` and counts what the summary says. The same ratings make the same bytes, however
many workers made them and in whatever order.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from numpy.typing import NDArray

from selectit_hf import reflection, storage
from selectit_hf.errors import RunError, SettingError
from selectit_hf.ratings import Ratings, nested_lists
from selectit_hf.reflection import Variant
from selectit_hf.report import ModelFacts, summarise
from selectit_hf.rows import STATUSES, RowReader
from selectit_hf.scorers import ModelScore, SentenceScore
from selectit_hf.selected import write_selected
from selectit_hf.selection import (
    Cut,
    Selection,
    divide,
    score_column,
    status_column,
    stored_scores,
    stored_statuses,
)
from selectit_hf.shards import Shards

__all__ = ["RESULTS", "Reflection", "all_ratings", "finish", "hashes", "ranking_column"]

RESULTS = ("scores.parquet", "selected.parquet", "summary.json", "selection.json")
"""In the order they are written; the last one says of which ratings the others are, and vouches."""

Plan = Mapping[str, Any]


@dataclass(frozen=True)
class Reflection:
    """What is made of the ratings; changing it costs no forward pass.

    Attributes:
        alpha, variant: see `selectit_hf.scorers.RatingScorer`.
        weights: one for each model; see `selectit_hf.scorers.ModelScore`.
        by: a level or a column; see `selectit_hf.selection.select`.
    """

    alpha: float = 0.2
    variant: Variant = "paper"
    weights: tuple[float, ...] | None = None
    by: str | None = None


class _Ranked(NamedTuple):
    """What the pass over the shards leaves in memory.

    ``scores`` are (rows) float64, NaN for none; ``statuses`` (rows) int8, their place in
    `STATUSES`.
    """

    scores: NDArray[np.float64]
    statuses: NDArray[np.int8]
    models: dict[str, ModelFacts]


def ranking_column(plan: Plan, how: Reflection, columns: Sequence[str]) -> str:
    """The column that rows with ``columns`` will be ranked by, before anything is rated.

    Raises:
        InputError, SettingError: ``how`` does not fit the plan's models and scale.
    """
    _scorers(plan, how)
    if len(plan["models"]) > 1:
        reflection.model_weights([1] * len(plan["models"]), how.variant, how.weights)
    elif how.weights is not None:
        raise SettingError("weights combine several models, and this run has one.")
    known = how.by is not None and how.by in columns
    scores = [c for c in _schema(plan).names if c.partition("__")[0].endswith("_score")]
    return str(how.by) if known else score_column(scores, how.by)


def finish(
    plan: Plan,
    shards: Mapping[str, Shards],
    dataset: Dataset,
    how: Reflection,
    cut: Cut,
    out: Path,
) -> tuple[Selection, dict[str, Any]]:
    """Write scores, selection and summary into a folder; if anything fails, none of them.

    Args:
        plan: of the run.
        shards: the ratings of each model, by slug.
        dataset: the rows that were rated.
        how: what is made of the ratings.
        cut: how much is kept.
        out: a folder; it is made.

    Returns:
        The selection, its rows as ``dataset`` has them, and the summary. The kept rows with their
        scores are in ``out / "selected.parquet"``.

    Raises:
        RunError: the shards do not cover all rows exactly once.
        InputError, SettingError: ``how`` or ``cut`` does not fit the scores.
    """
    by = ranking_column(plan, how, dataset.column_names)
    if len(dataset) != plan["input"]["rows"]:
        raise RunError(
            f"The dataset has {len(dataset)} rows and the run {plan['input']['rows']}; give the "
            "rows that the run was made from."
        )
    for one in shards.values():
        one.check()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        selected, scores = (  # the scores take their place first: the last in is the first out
            files.enter_context(storage.replacing(out / f"{name}.parquet"))
            for name in ("selected", "scores")
        )
        ranked = _write_scores(scores, plan, shards, how, by)
        selection = _select(dataset, by, cut, ranked, _schema(plan).names)
        write_selected(selected, scores, dataset, selection.kept, _ranges(shards))
        summary = summarise(dataset, selection, ranked.models, _reader(plan))
    storage.write_json(out / "summary.json", summary)
    tables = {slug: one.hashes() for slug, one in shards.items()}
    written = hashes(tables, [out / name for name in RESULTS[:-1]])
    facts = _selection_facts(selection, how) | {"sha256": written}
    storage.write_json(out / "selection.json", facts)
    return selection, summary


def hashes(tables: Mapping[str, list[str] | None], files: Sequence[Path]) -> dict[str, str]:
    """By what results are known: the SHA-256 of all ratings' tables, and of each file."""
    found = {"ratings": storage.sha256(json.dumps(dict(tables)).encode())}
    return found | {path.name: storage.file_sha256(path) for path in files if path.exists()}


def all_ratings(plan: Plan, shards: Shards) -> Ratings:
    """All ratings of one model, in row order and in memory.

    Raises:
        RunError: a shard is missing or damaged.
    """
    k = plan["rating"]["k"]
    parts = [_ratings(shards, number, k) for number in range(len(shards.ranges()))]
    return Ratings(
        [status for part in parts for status in part.statuses],
        np.concatenate([part.logprobs for part in parts]),
        parts[0].rater,
        sum(part.splits for part in parts),
    )


# Scores: a pass over the shards


def _write_scores(
    path: Path, plan: Plan, shards: Mapping[str, Shards], how: Reflection, by: str
) -> _Ranked:
    rows = plan["input"]["rows"]
    ranked = _Ranked(
        np.full(rows, np.nan), np.zeros(rows, np.int8), {slug: ModelFacts() for slug in shards}
    )
    with pq.ParquetWriter(path, _schema(plan)) as writer:
        for number, part in enumerate(_ranges(shards)):
            ratings = {
                slug: _ratings(one, number, plan["rating"]["k"]) for slug, one in shards.items()
            }
            for slug, rated in ratings.items():
                ranked.models[slug].add(rated)
            table = _score_table(part, ratings, _scorers(plan, how), how)
            writer.write_table(table.cast(_schema(plan)), row_group_size=len(part))
            _note(ranked, table, part, by)
    return ranked


def _note(ranked: _Ranked, table: pa.Table, part: range, by: str) -> None:
    """Keep what the rows of one shard are ranked by."""
    if by in table.column_names:
        scores = table[by].cast(pa.float64()).to_numpy()
        ranked.scores[part.start : part.stop] = scores
    if status_column(by) in table.column_names:
        places = pc.index_in(table[status_column(by)], pa.array(STATUSES))
        ranked.statuses[part.start : part.stop] = places.to_numpy()


def _ratings(shards: Shards, number: int, k: int) -> Ratings:
    table, facts, rows = shards.table(number), shards.facts(number), shards.ranges()[number]
    if facts is None or not np.array_equal(table["row"].to_numpy(), np.asarray(rows)):
        raise RunError(
            f"The shard of the rows {rows.start} to {rows.stop - 1} of {shards.folder.name!r} "
            "holds other rows; remove it, and run the same 'selectit run' command again."
        )
    flat = table["logprobs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    splits = facts.get("oom_splits", 0)
    pairs = tuple(table["pair"].to_pylist()) if "pair" in table.column_names else ()
    logprobs = flat.reshape(-1, k, k)
    return Ratings(table["status"].to_pylist(), logprobs, facts["rater"], splits, pairs)


def _score_table(
    rows: range,
    ratings: Mapping[str, Ratings],
    scorers: Sequence[SentenceScore],
    how: Reflection,
) -> pa.Table:
    """The rows' numbers, ratings, scores and statuses."""
    columns: dict[str, Any] = {"row": np.asarray(rows)}
    for scorer, rated in zip(scorers, ratings.values(), strict=True):
        columns |= _columns(scorer, rated)
    if len(ratings) > 1:
        combine = ModelScore(weights=how.weights, alpha=how.alpha, variant=how.variant)
        types = Features(combine.columns).arrow_schema
        values = combine.combine(ratings)
        columns |= {name: pa.array(values[name], types.field(name).type) for name in values}
    return pa.table(columns)


def _columns(scorer: SentenceScore, ratings: Ratings) -> dict[str, pa.Array]:
    """What `SentenceScore.values` gives, without an object for each row."""
    tokens = reflection.token_score(ratings.logprobs, scorer.variant)
    sentences = reflection.sentence_score(tokens, scorer.alpha)
    missing = ~ratings.rated
    type_ = Features(scorer.columns).arrow_schema.field(-1).type
    raters = pa.array([{**ratings.rater, "pair": pair} for pair in ratings.texts()], type_)
    return {
        f"rating_logprobs__{scorer.slug}": nested_lists(ratings.logprobs, ratings.rated),
        f"token_score__{scorer.slug}": pa.array(tokens[:, 0].astype(np.float32), mask=missing),
        f"sentence_score__{scorer.slug}": pa.array(sentences.astype(np.float32), mask=missing),
        f"status__{scorer.slug}": pa.array(ratings.statuses, pa.string()),
        f"rater__{scorer.slug}": raters,
    }


# Selection: a pass over the rows


def _select(
    dataset: Dataset, by: str, cut: Cut, ranked: _Ranked, columns: Sequence[str]
) -> Selection:
    ours = by in columns
    scores = ranked.scores if ours else stored_scores(dataset, by)
    if status_column(by) in columns:
        words = pa.array(STATUSES)
        statuses = pa.DictionaryArray.from_arrays(pa.array(ranked.statuses), words)
    else:
        statuses = stored_statuses(dataset, by)
    return divide(dataset, by, scores, statuses, cut)


def _selection_facts(selection: Selection, how: Reflection) -> dict[str, Any]:
    return {
        "by": selection.by,
        "cut": asdict(selection.cut),
        "reflection": {name: value for name, value in asdict(how).items() if name != "by"},
        "threshold": selection.threshold,
        "rows": len(selection.kept),
        "selected": len(selection.selected),
        "reasons": selection.reasons,
    }


# What the plan says


def _scorers(plan: Plan, how: Reflection) -> list[SentenceScore]:
    k = plan["rating"]["k"]
    return [
        SentenceScore(k=k, name=model["name"], alpha=how.alpha, variant=how.variant)
        for model in plan["models"]
    ]


def _schema(plan: Plan) -> pa.Schema:
    """The columns of ``scores.parquet``."""
    types: dict[str, Any] = {"row": Value("int64")}
    for scorer in _scorers(plan, Reflection()):
        types |= scorer.columns
    if len(plan["models"]) > 1:
        types |= ModelScore.columns
    return Features(types).arrow_schema.remove_metadata()


def _ranges(shards: Mapping[str, Shards]) -> list[range]:
    return next(iter(shards.values())).ranges()


def _reader(plan: Plan) -> RowReader:
    return RowReader.of(plan["rating"])
