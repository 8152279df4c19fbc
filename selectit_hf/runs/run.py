"""A run folder and its plan: planned once, opened anywhere, extended by more rows or models.

    RUN/plan.json                           what is rated, by whom, how
    RUN/ratings/<slug>/NNNNN.<hash>.parquet raw ratings of one shard; NNNNN.json commits it
    RUN/rows/                               the rows themselves, with --streaming only
    RUN/scores.parquet                      every row's ratings, scores and statuses
    RUN/selected.parquet                    the kept rows with all their columns and scores
    RUN/summary.json                        what a person wants to know about the run
    RUN/selection.json                      how they were chosen, and the hashes of all that

Ratings cost hours and are never thrown away; everything else is computed from them again.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset

from selectit_hf.errors import RunError
from selectit_hf.formats import RowReader, Source
from selectit_hf.json_files import json_object, misfit
from selectit_hf.rating import Ratings, SentenceScore, Totals
from selectit_hf.runs import plans, segments
from selectit_hf.runs.plans import PLAN
from selectit_hf.runs.remembered import run_of_selection
from selectit_hf.runs.shards import HASH, RATINGS, Part, Shards
from selectit_hf.runs.store import Store, open_store
from selectit_hf.selection import cut_flags, ranking_flags

__all__ = [
    "CHECK",
    "LOCK",
    "PROGRESS",
    "RESULTS",
    "Run",
    "check_folder",
    "check_place",
    "open_results",
    "open_run",
    "plan",
]

RESULTS = ("scores.parquet", "selected.parquet", "summary.json", "selection.json")
"""In the order they are written; the last holds the hashes of the others and of their ratings."""
PROGRESS = "progress"
"""The folder of notes about shards that are being rated, which only `status` reads."""
CHECK = "check.json"
"""The trust check; it may exist before the plan."""
CHOSEN = {
    "by": str,
    "asked?": str,
    "cut": {str: (float, None, str)},
    "reflection": {"alpha": float, "variant": str, "weights": ([float], None)},
    "manifest_sha256": str,
}
"""What ``selection.json`` must hold to be made again; see `selectit_hf.json_files.misfit`."""
LOCK = ".lock"
"""The file that keeps a second ``run`` out of a local folder."""


@dataclass(frozen=True)
class Run:
    """A run folder and its plan, as it was when it was opened.

    Attributes:
        where: the folder's path or URL.
        plan: see `plans`.
        selection: the folder or URL of the results, if ``select RUN --out`` wrote them elsewhere.

    Example:
        >>> run = runs.plan(dataset, source, scorers, "s3://bucket/run")  # doctest: +SKIP
        >>> runs.rate(run, dataset, scorers)  # doctest: +SKIP
        >>> runs.finish(run, dataset)  # doctest: +SKIP
    """

    where: str
    plan: dict[str, Any]
    selection: str | None = None
    _shards: dict[str, Shards] = field(default_factory=dict, init=False, repr=False, compare=False)
    _seen: dict[str, Totals] = field(default_factory=dict, init=False, repr=False, compare=False)
    _views: list[Dataset] = field(default_factory=list, init=False, repr=False, compare=False)

    @cached_property
    def store(self) -> Store:
        """The folder's files."""
        return open_store(self.where)

    @cached_property
    def results(self) -> Store:
        """The folder of the files in `RESULTS`."""
        return self.store if self.selection is None else open_store(self.selection)

    @property
    def name(self) -> str:
        """The folder's own name, for messages."""
        return self.store.name

    @property
    def rows(self) -> int:
        """Number of input rows."""
        return int(self.plan["input"]["rows"])

    @property
    def slugs(self) -> list[str]:
        """The models, in the order they were named."""
        return [model["name"] for model in self.plan["models"]]

    @property
    def reader(self) -> RowReader:
        """How the rows were read."""
        return RowReader.of(self.plan["rating"])

    @cached_property
    def parts(self) -> list[Part]:
        """The rows of each shard, whoever rates it."""
        return segments.parts(self.plan["segments"])

    def model(self, slug: str) -> dict[str, Any]:
        """What the plan says about a model.

        Raises:
            RunError: there is no model of that name.
        """
        found = {model["name"]: model for model in self.plan["models"]}
        if slug not in found:
            raise RunError(f"The run {self.name!r} has no model {slug!r}, only {', '.join(found)}.")
        return dict(found[slug])

    def shards(self, slug: str) -> Shards:
        """The raw ratings of one model."""
        if slug not in self._shards:
            key, pinned = self.model(slug)["rating_key"], self._pinned.get(slug, [])
            found = Shards(self.store, f"ratings/{slug}", self.parts, key, pinned, RATINGS)
            self._shards[slug] = found
        return self._shards[slug]

    @cached_property
    def _pinned(self) -> dict[str, list[str]]:
        """The tables that the results are made from; later commits do not change the results."""
        said = self.results.read_many([RESULTS[-1]]).get(RESULTS[-1], b"")
        tables: Any = (json_object(said) or {}).get("tables")
        return tables if misfit(tables, {str: [HASH]}) is None else {}

    def read(self, dataset: Dataset, rows: range) -> dict[str, list[Any]]:
        """The columns that raters read, of some rows of ``dataset``, which is checked once.

        Raises:
            RunError: see `check_rows`.
        """
        if not self._views or self._views[0] is not dataset:
            self.check_rows(dataset)
            columns = dict.fromkeys(self.reader.columns(dataset.column_names))
            self._views[:] = [dataset, dataset.select_columns(list(columns))]
        return dict(self._views[1][rows.start : rows.stop])

    def saw(self, slug: str, ratings: Ratings) -> None:
        """Take note of ratings that this process made, for the two methods below."""
        self._seen.setdefault(slug, Totals()).add(ratings)

    def rating_mass(self, slug: str) -> float | None:
        """The mean rating mass of the shards that this process has rated; ``None`` before."""
        seen = self._seen.get(slug, Totals())
        return seen.mass / seen.count if seen.count else None

    def tokens_per_row(self, slug: str) -> float | None:
        """The mean number of prompt tokens of a row in those shards; ``None`` before."""
        seen = self._seen.get(slug, Totals())
        return seen.tokens / seen.rows if seen.rows else None

    def measures(self, folder: str, key: str, schema: Any) -> Shards:
        """The shards of another selector's measurements, cut like the ratings; see `Shards`."""
        return Shards(self.store, f"measures/{folder}", self.parts, key, schema=schema)

    def check_rows(self, dataset: Dataset) -> None:
        """Refuse rows that are not the run's; columns that were added later are ignored.

        Raises:
            RunError: another number of rows, or other values.
        """
        planned = self.plan["input"]["columns"]
        known = dataset.select_columns([c for c in planned if c in dataset.column_names])
        if len(dataset) != self.rows or not segments.holds(known, self.plan["segments"]):
            raise RunError(
                f"These {len(dataset)} rows are not those of the run {self.name!r}, which has "
                f"{self.rows}; give the dataset that its plan names, or start another run."
            )

    def check_plan(self) -> None:
        """Refuse to write into a folder that holds another plan now, unless it is this one grown.

        Raises:
            RunError: the plan has changed, or there is no longer a plan.
        """
        now = plans.read_plan(self.store)
        if now != self.plan:
            plans.compare(self.plan, now, self.name)


def plan(
    dataset: Dataset,
    source: Source,
    scorers: Sequence[SentenceScore],
    out: str | Path,
    shard_size: int | None = None,
    write: bool = True,
) -> Run:
    """Write a plan, or continue with the existing one, or extend it.

    If the dataset begins with the rows of the plan, further rows are a new segment; scorers after
    those of the plan are new models. Existing ratings stay as they are. A plan for which nothing
    is rated yet is replaced.

    Args:
        dataset: the rows to rate.
        source: where they come from.
        scorers: one for each model; all must ask in the same way.
        out: the run folder, or its URL.
        shard_size: rows of a shard; by default shards start small and grow up to a minute of work.
            Like token budget and threads, it comes from an existing plan if it is not given.
        write: write the plan; without it, the folder is only read.

    Raises:
        InputError: see `make_plan`.
        RunError: the folder holds another plan, or something that is not a run.
    """
    folder = open_store(out)
    check_folder(folder)
    if write:
        folder.sweep()
    old = plans.read_plan(folder) if folder.exists(PLAN) else {}
    rated = any(_sidecars(folder, model["name"]) for model in old.get("models", ()))
    kept = old if rated else {**old, "segments": []}
    new = plans.make_plan(dataset, source, scorers, shard_size, kept)
    run = Run(str(folder), new)
    if old and not plans.differ(old, new):
        return Run(str(folder), old)
    if rated:
        plans.compare(old, new, folder.name)
    if write:
        folder.write(PLAN, plans.encoded(new))
        run.check_plan()  # another process may have written a plan meanwhile
    return run


def _sidecars(folder: Store, slug: str) -> list[str]:
    return [name for name in folder.sizes(f"ratings/{slug}") if re.fullmatch(r"\d+\.json", name)]


def open_run(where: str | Path | Store) -> Run:
    """An existing run, by path or URL.

    Raises:
        RunError: there is none, or its plan is damaged.
    """
    folder = open_store(where)
    if folder.exists(PLAN):
        return Run(str(folder), plans.read_plan(folder))
    if chosen := _selection_in(folder):
        run = run_of_selection(chosen["manifest_sha256"])
        raise RunError(
            f"{folder.name!r} holds a selection from a run; give the run itself"
            + (f", {run}." if run else ".")
        )
    raise RunError(
        f"{folder.name!r} is not a run folder: it has no plan.json. 'selectit run' makes one."
    )


def open_results(where: str | Path | Store) -> Run:
    """An existing run with its results; or with those that ``select RUN --out`` wrote to a folder.

    Such a folder has no ratings of its own. It belongs to the run that is remembered on this
    machine for exactly its files.

    Raises:
        RunError: there is no run, its plan is damaged, or the folder's run is not known or gone.
    """
    folder = open_store(where)
    chosen = None if folder.exists(PLAN) else _selection_in(folder)
    if chosen is None:
        return open_run(folder)
    run = run_of_selection(chosen["manifest_sha256"])
    if run is None or not open_store(run).exists(PLAN):
        flags = shlex.join([*ranking_flags(chosen), *cut_flags(chosen["cut"])])
        lost = "that is not known on this machine" if run is None else f"that is no longer at {run}"
        raise RunError(
            f"{folder.name!r} holds a selection from a run {lost}. Give the run itself, after: "
            f"selectit select RUN --out RUN {flags}"
        )
    return replace(open_run(run), selection=str(folder))


def _selection_in(folder: Store) -> dict[str, Any] | None:
    """What ``selection.json`` says, if there is one."""
    facts = json_object(folder.read_many([RESULTS[-1]]).get(RESULTS[-1], b""))
    return facts if misfit(facts, CHOSEN) is None else None


def check_folder(folder: Store) -> None:
    """Refuse a folder that is not a run folder and holds something else.

    Raises:
        RunError: it is a file, or is not empty and has no plan.
    """
    if folder.is_local and folder.path().is_file():
        raise RunError(f"{folder.name!r} is a file; name a folder with --out.")
    before_a_plan = ("rows", LOCK, CHECK)
    others = {name for name in folder.sizes() if not name.endswith(".partial")}
    others.difference_update(before_a_plan)
    if others and not folder.exists(PLAN):
        what = "holds a selection by 'selectit select'" if _selection_in(folder) else "is not empty"
        raise RunError(
            f"The folder {folder.name!r} {what} and has no plan.json, so it is not a run; name "
            "another with --out."
        )


def check_place(run: Run, store: Store) -> None:
    """Refuse to write results into another run.

    Raises:
        RunError: it is one.
    """
    if store.exists(PLAN) and not store.is_same(run.store):
        raise RunError(
            f"{store.name!r} is another run, whose results would be replaced; name a new folder "
            "with --out."
        )
