"""The results of a run: scores, selection and summary, with about one shard in memory.

One pass over the shards writes ``scores.parquet``, with a row group for each shard, and keeps a
score and a status code for every row: nine bytes. The rows are ranked, and one pass over them
writes ``selected.parquet`` and counts the facts of the summary. The same ratings give the same
bytes, however many workers made them and in whatever order.

The four files are one unit. ``selection.json``, the manifest, is removed first and written last. It
holds the hashes of the other files and of the tables that they are made from. So a run without it
is not finished, and a run with it is checked against it before anything is reported or published.
Shards that a late worker commits afterwards change nothing.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from numpy.typing import NDArray

from selectit_hf.errors import SettingError
from selectit_hf.formats import STATUSES, not_floats
from selectit_hf.hashes import file_sha256, sha256
from selectit_hf.json_files import as_json, facts_hash
from selectit_hf.rating import (
    Ratings,
    Reflection,
    reflection,
    score_schema,
    score_table,
    scorers_of,
)
from selectit_hf.runs.remembered import remember_selection
from selectit_hf.runs.run import PROGRESS, RESULTS, Run, check_place
from selectit_hf.runs.shards import Facts, Shards, refuse_mixed
from selectit_hf.runs.store import open_store
from selectit_hf.selection import (
    Cut,
    ModelFacts,
    Selection,
    divide,
    score_column,
    status_column,
    stored_scores,
    stored_statuses,
    summarise,
    write_selected,
)

__all__ = ["finish", "ranking_column", "ratings_of"]

SCORES, SELECTED, SUMMARY, MANIFEST = RESULTS


class _Ranked(NamedTuple):
    """What the pass over the shards keeps in memory.

    ``scores`` are (rows) float64, NaN for none; ``statuses`` (rows) int8, their place in
    `STATUSES`.
    """

    scores: NDArray[np.float64]
    statuses: NDArray[np.int8]
    models: dict[str, ModelFacts]


class _Rated(NamedTuple):
    """One model's shards, with the sidecars as they were when `finish` started."""

    shards: Shards
    facts: list[Facts]
    k: int

    @classmethod
    def of(cls, run: Run, slug: str) -> "_Rated":
        """The shards of a model.

        Raises:
            RunError: some are missing; the message names them.
        """
        return cls(run.shards(slug), run.shards(slug).all_facts(), run.plan["rating"]["k"])

    @property
    def made_with(self) -> list[dict[str, str]]:
        """The different versions and devices that rated; shards of 0.1.0 do not say."""
        found = {
            tuple(sorted(one["made_with"].items())): 0 for one in self.facts if "made_with" in one
        }
        return [dict(one) for one in found]

    @property
    def others(self) -> list[str]:
        """The sidecars of shards that were rated otherwise than the first one."""
        return [
            f"{self.shards.folder}/{number:05d}.json"
            for number, facts in enumerate(self.facts)
            if facts.get("made_with") not in (None, *self.made_with[:1])
        ]

    def ratings(self, number: int) -> Ratings:
        """The ratings of one shard.

        Raises:
            RunError: tables differ from what their sidecars say. They are set aside, which makes
                their shards pending, and the message names all of them.
        """
        table = self._table(number)
        if table is None:
            bad = [n for n in range(len(self.facts)) if self._table(n) is None]
            with suppress(OSError):  # a read-only folder
                for one in bad:
                    self.shards.set_aside(one)
            self.shards.refuse(bad or [number])  # another process may just have repaired it
        assert table is not None
        return Ratings.from_table(table, self.k, self.facts[number])

    def _table(self, number: int) -> pa.Table | None:
        table, rows = self.shards.table(self.facts[number]), self.shards.parts[number].rows
        return table if table is not None and Ratings.is_table(table, self.k, rows) else None


def ranking_column(plan: Mapping[str, Any], how: Reflection, columns: Sequence[str]) -> str:
    """The column that rows with ``columns`` will be ranked by, before anything is rated.

    Raises:
        InputError, SettingError: ``how`` does not fit the plan's models and scale.
    """
    models, k = [model["name"] for model in plan["models"]], plan["rating"]["k"]
    scorers_of(models, k, how)
    if len(models) > 1:
        reflection.model_weights([1] * len(models), how.variant, how.weights)
    elif how.weights is not None:
        raise SettingError("weights combine several models, but this run has only one; omit them.")
    known = how.by is not None and how.by in columns
    names = score_schema(models, k).names
    scores = [name for name in names if name.partition("__")[0].endswith("_score")]
    return str(how.by) if known else score_column(scores, how.by)


def ratings_of(run: Run, slug: str) -> Ratings:
    """All ratings of one model, in row order and in memory.

    Raises:
        RunError: a shard is missing or damaged.
    """
    rated = _Rated.of(run, slug)
    parts = [rated.ratings(number) for number in range(len(rated.facts))]
    statuses = [status for part in parts for status in part.statuses]
    logprobs = np.concatenate([part.logprobs for part in parts])
    return Ratings(statuses, logprobs, parts[0].rater, sum(part.splits for part in parts))


def finish(
    run: Run,
    dataset: Dataset,
    how: Reflection | None = None,
    cut: Cut | None = None,
    out: str | Path | None = None,
    *,
    allow_mixed: bool = False,
    asked: str | None = None,
) -> dict[str, Any]:
    """Write scores, selection and summary; if anything fails, none of them.

    Args:
        run: the run.
        dataset: the rows that were rated.
        how: how scores are computed from the ratings.
        cut: how much is kept.
        out: a folder or its URL; by default the run's.
        allow_mixed: accept shards of one model that were rated by several versions of the
            libraries, or on several kinds of hardware. The summary says which.
        asked: what was asked for, if ``how.by`` is a column made for it.

    Returns:
        The summary. The kept rows with their scores are in ``selected.parquet``.

    Raises:
        RunError: shards are missing or damaged (the message names all of them) or mixed; the rows
            are not those that were planned; the run folder now holds another plan; ``out`` holds
            something else; another command is writing results there.
        InputError, SettingError: ``how`` or ``cut`` does not fit the scores.
    """
    how, cut = how or Reflection(), cut or Cut()
    run = replace(run)  # with the pins of results that another process wrote meanwhile
    by = ranking_column(run.plan, how, dataset.column_names)
    run.check_rows(dataset)
    rated = {slug: _Rated.of(run, slug) for slug in run.slugs}
    for slug, one in rated.items():
        if not allow_mixed:
            refuse_mixed(slug, one.made_with, one.others)
    store = run.store if out is None else open_store(out)
    check_place(run, store)
    ranges = [part.rows for part in run.parts]
    schema = score_schema(run.slugs, run.plan["rating"]["k"])
    with ExitStack() as alone, ExitStack() as files:
        selected, scores = (files.enter_context(store.replacing(n)) for n in (SELECTED, SCORES))
        ranked = _write_scores(scores, schema, rated, ranges, how, by)
        selection = _select(dataset, by, cut, ranked, schema.names)
        write_selected(selected, scores, dataset, selection.kept, ranges)
        summary = summarise(dataset, selection, ranked.models, run.reader)
        for slug, one in rated.items():
            summary["models"][slug]["made_with"] = one.made_with
        said = as_json(summary)
        manifest = _manifest(selection, how, rated) | ({"asked": asked} if asked else {})
        manifest["sha256"] = {SCORES: file_sha256(scores), SELECTED: file_sha256(selected)}
        manifest["sha256"][SUMMARY] = sha256(said)
        alone.enter_context(store.writing_results())
        run.check_plan()
        store.remove(MANIFEST)
        files.close()  # moves both into place
        store.write(SUMMARY, said)
        store.write_json(MANIFEST, manifest | {"manifest_sha256": facts_hash(manifest)})
    if out is not None:
        remember_selection(facts_hash(manifest), str(run.store))
    for name in run.store.sizes(PROGRESS) if out is None else ():
        run.store.remove(f"{PROGRESS}/{name}")
    return summary


def _write_scores(
    path: Path,
    schema: pa.Schema,
    rated: Mapping[str, _Rated],
    ranges: Sequence[range],
    how: Reflection,
    by: str,
) -> _Ranked:
    """A pass over the shards."""
    rows, models = ranges[-1].stop, {slug: ModelFacts() for slug in rated}
    ranked = _Ranked(np.full(rows, np.nan), np.zeros(rows, np.int8), models)
    with pq.ParquetWriter(path, schema, use_dictionary=not_floats(schema)) as writer:
        for number, part in enumerate(ranges):
            ratings = {slug: one.ratings(number) for slug, one in rated.items()}
            for slug, found in ratings.items():
                models[slug].add(found)
            table = score_table(part, ratings, how)
            writer.write_table(table, row_group_size=len(part))
            if by in table.column_names:
                scores = table[by].cast(pa.float64()).to_numpy()
                ranked.scores[part.start : part.stop] = scores
            if status_column(by) in table.column_names:
                places = pc.index_in(table[status_column(by)], pa.array(STATUSES))
                ranked.statuses[part.start : part.stop] = places.to_numpy()
    return ranked


def _select(
    dataset: Dataset, by: str, cut: Cut, ranked: _Ranked, columns: Sequence[str]
) -> Selection:
    """A pass over the rows."""
    scores = ranked.scores if by in columns else stored_scores(dataset, by)
    if status_column(by) in columns:
        words = pa.array(STATUSES)
        statuses = pa.DictionaryArray.from_arrays(pa.array(ranked.statuses), words)
    else:
        statuses = stored_statuses(dataset, by)
    return divide(dataset, by, scores, statuses, cut)


def _manifest(selection: Selection, how: Reflection, rated: Mapping[str, _Rated]) -> dict[str, Any]:
    """How the rows were chosen, and from which tables."""
    return {
        "by": selection.by,
        "cut": asdict(selection.cut),
        "reflection": {name: value for name, value in asdict(how).items() if name != "by"},
        "threshold": selection.threshold,
        "rows": len(selection.kept),
        "selected": len(selection.selected),
        "reasons": selection.reasons,
        "tables": {slug: [facts["sha256"] for facts in one.facts] for slug, one in rated.items()},
    }
