"""What follows from a run's ratings: scores, selection and summary, in memory bounded by a shard.

One pass over the shards writes ``scores.parquet``, a row group for each, and keeps a score and a
status code of every row: nine bytes. They are ranked, and one pass over the rows writes
``selected.parquet`` and counts what the summary says. The same ratings make the same bytes, however
many workers made them and in whatever order. ``selection.json``, written last, pins the tables that
the results are made of; what a late worker commits afterwards changes nothing.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from numpy.typing import NDArray

from selectit_hf import reflection
from selectit_hf.content import file_sha256
from selectit_hf.errors import RunError, SettingError
from selectit_hf.ratings import Ratings, nested_lists
from selectit_hf.reflection import Variant
from selectit_hf.report import ModelFacts, summarise
from selectit_hf.rows import STATUSES
from selectit_hf.runs.rating import PROGRESS
from selectit_hf.runs.run import RESULTS, Run
from selectit_hf.runs.selected import write_selected
from selectit_hf.runs.shards import Facts, Shards, not_floats
from selectit_hf.runs.store import as_json, open_store, sha256
from selectit_hf.scorers import ModelScore, SentenceScore
from selectit_hf.selection import (
    Cut,
    Selection,
    divide,
    score_column,
    status_column,
    stored_scores,
    stored_statuses,
)

__all__ = ["Reflection", "finish", "ranking_column", "ratings_of"]

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


class _Rated(NamedTuple):
    """One model's shards, with the sidecars as they were when the results were begun."""

    shards: Shards
    facts: list[Facts]

    @classmethod
    def of(cls, run: Run, slug: str) -> "_Rated":
        """Those of a model.

        Raises:
            RunError: some are missing; they are named.
        """
        return cls(run.shards(slug), run.shards(slug).all_facts())

    def ratings(self, number: int, k: int) -> Ratings:
        """Those of one shard.

        Raises:
            RunError: tables are not what their sidecars say. They are set aside, so that their
                shards are pending, and all of them are named.
        """
        table, facts = self._table(number), self.facts[number]
        if table is None:
            bad = [n for n in range(len(self.facts)) if self._table(n) is None]
            with suppress(OSError):  # a folder that may only be read
                for one in bad:
                    self.shards.set_aside(one)
            self.shards.refuse(bad or [number])  # another may just have repaired it
        assert table is not None
        flat = table["logprobs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        logprobs = flat.reshape(-1, k, k)
        pairs = table["pair"] if "pair" in table.column_names else ()
        statuses, splits = table["status"].to_pylist(), facts["oom_splits"]
        return Ratings(statuses, logprobs, facts["rater"], splits, pairs=pairs)

    def _table(self, number: int) -> pa.Table | None:
        table, rows = self.shards.table(self.facts[number]), self.shards.parts[number].rows
        fits = table is not None and np.array_equal(table["row"].to_numpy(), np.asarray(rows))
        return table if fits else None


def finish(
    run: Run,
    dataset: Dataset,
    how: Reflection | None = None,
    cut: Cut | None = None,
    out: str | Path | None = None,
    *,
    allow_mixed: bool = False,
) -> dict[str, Any]:
    """Write scores, selection and summary; if anything fails, none of them.

    Args:
        run: the run.
        dataset: the rows that were rated.
        how: what is made of the ratings.
        cut: how much is kept.
        out: a folder or its URL; by default the run's.
        allow_mixed: go on where a model's shards were rated by several versions of the libraries,
            or on several kinds of hardware. The summary says which.

    Returns:
        The summary. The kept rows with their scores are in ``selected.parquet``.

    Raises:
        RunError: shards are missing or damaged, all of which are named, or mixed.
        InputError, SettingError: ``how`` or ``cut`` does not fit the scores.
    """
    how, cut = how or Reflection(), cut or Cut()
    by = ranking_column(run.plan, how, dataset.column_names)
    if len(dataset) != run.rows:
        raise RunError(
            f"The dataset has {len(dataset)} rows and the run {run.rows}; give the rows that the "
            "run was made from."
        )
    rated = {slug: _Rated.of(run, slug) for slug in run.slugs}
    made_with = {slug: _made_with(one.facts) for slug, one in rated.items()}
    for slug, found in made_with.items():
        if len(found) > 1 and not allow_mixed:
            raise _mixed(slug, found)
    store = run.store if out is None else open_store(out)
    ranges = [part.rows for part in run.parts]
    with ExitStack() as files:
        selected, scores = (  # the scores take their place first: the last in is the first out
            files.enter_context(store.replacing(name)) for name in (RESULTS[1], RESULTS[0])
        )
        ranked = _write_scores(scores, run.plan, rated, ranges, how, by)
        selection = _select(dataset, by, cut, ranked, _schema(run.plan).names)
        write_selected(selected, scores, dataset, selection.kept, ranges)
        summary = summarise(dataset, selection, ranked.models, run.reader)
        written = {RESULTS[0]: file_sha256(scores), RESULTS[1]: file_sha256(selected)}
    for slug, found in made_with.items():
        summary["models"][slug]["made_with"] = found
    said = as_json(summary)
    store.write(RESULTS[2], said)
    facts = _selection_facts(selection, how) | {
        "sha256": {**written, RESULTS[2]: sha256(said)},
        "tables": {slug: [facts["sha256"] for facts in one.facts] for slug, one in rated.items()},
    }
    store.write_json(RESULTS[3], facts)
    for name in run.store.sizes(PROGRESS) if out is None else ():
        run.store.remove(f"{PROGRESS}/{name}")
    return summary


def _made_with(facts: Sequence[Facts]) -> list[dict[str, str]]:
    """The different versions and devices that rated; shards of 0.1.0 do not say."""
    found = {tuple(sorted(one["made_with"].items())): 0 for one in facts if "made_with" in one}
    return [dict(one) for one in found]


def _mixed(slug: str, found: list[dict[str, str]]) -> RunError:
    names = [name for name in found[0] if len({one.get(name) for one in found}) > 1]
    words = "; ".join(f"{n}: {', '.join(sorted({one.get(n, '') for one in found}))}" for n in names)
    return RunError(
        f"The shards by {slug!r} were rated by several versions or on several kinds of hardware "
        f"({words}), so that ratings differ in their last digits. Add --allow-mixed, which summary "
        "and card then say, or rate anew in another folder."
    )


def ratings_of(run: Run, slug: str) -> Ratings:
    """All ratings of one model, in row order and in memory.

    Raises:
        RunError: a shard is missing or damaged.
    """
    rated, k = _Rated.of(run, slug), run.plan["rating"]["k"]
    parts = [rated.ratings(number, k) for number in range(len(rated.facts))]
    return Ratings(
        [status for part in parts for status in part.statuses],
        np.concatenate([part.logprobs for part in parts]),
        parts[0].rater,
        sum(part.splits for part in parts),
    )


# Scores: a pass over the shards


def _write_scores(
    path: Path,
    plan: Plan,
    rated: Mapping[str, _Rated],
    ranges: Sequence[range],
    how: Reflection,
    by: str,
) -> _Ranked:
    rows = plan["input"]["rows"]
    ranked = _Ranked(
        np.full(rows, np.nan), np.zeros(rows, np.int8), {slug: ModelFacts() for slug in rated}
    )
    schema, scorers = _schema(plan), _scorers(plan, how)
    with pq.ParquetWriter(path, schema, use_dictionary=not_floats(schema)) as writer:
        for number, part in enumerate(ranges):
            ratings = {
                slug: one.ratings(number, plan["rating"]["k"]) for slug, one in rated.items()
            }
            for slug, found in ratings.items():
                ranked.models[slug].add(found)
            table = _score_table(part, ratings, scorers, how)
            writer.write_table(table.cast(schema), row_group_size=len(part))
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
    return {
        f"rating_logprobs__{scorer.slug}": nested_lists(ratings.logprobs, ratings.rated),
        f"token_score__{scorer.slug}": pa.array(tokens[:, 0].astype(np.float32), mask=missing),
        f"sentence_score__{scorer.slug}": pa.array(sentences.astype(np.float32), mask=missing),
        f"status__{scorer.slug}": pa.array(ratings.statuses, pa.string()),
        f"rater__{scorer.slug}": _raters(scorer, ratings),
    }


def _raters(scorer: SentenceScore, ratings: Ratings) -> pa.Array:
    type_ = Features(scorer.columns).arrow_schema.field(-1).type
    of = {
        field.name: pa.repeat(
            pa.scalar(ratings.rater.get(field.name), field.type), len(ratings.statuses)
        )
        for field in type_
    }
    pairs = ratings.texts()
    of["pair"] = (
        pairs.combine_chunks()
        if isinstance(pairs, pa.ChunkedArray)
        else pa.array(pairs, pa.string())
    )
    return pa.StructArray.from_arrays(list(of.values()), fields=list(type_))


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
