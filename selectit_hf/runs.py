"""A resumable run: what is planned, the raw ratings in shards, and what follows from them.

    RUN/plan.json                    what is rated, by whom, how; written once
    RUN/ratings/<slug>/NNNNN.parquet raw ratings of one shard of rows; NNNNN.json commits it
    RUN/scores.parquet               every row's ratings, scores and statuses
    RUN/selected.parquet             the kept rows with all their columns and scores
    RUN/summary.json                 what a person wants to know about the run
    RUN/selection.json               how they were chosen, every count, and the hashes of all that

Ratings cost hours and are never thrown away; all that follows from them is computed anew.
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from selectit_hf import finishing, meeting, storage
from selectit_hf.errors import InputError, RunError
from selectit_hf.fingerprint import survey
from selectit_hf.finishing import RESULTS, Reflection
from selectit_hf.mirror import ORIGIN, Alone, mirror_of
from selectit_hf.plans import compare, make_plan, read_plan, write_plan
from selectit_hf.ratings import Ratings
from selectit_hf.rows import RowReader
from selectit_hf.scorers import ModelScore, SentenceScore
from selectit_hf.selection import Cut, Selection
from selectit_hf.shards import Shards
from selectit_hf.sources import Source
from selectit_hf.workers import Job, Worker, work

__all__ = ["Progress", "Run", "bring", "check_folder", "look_at"]

BEFORE_A_PLAN = ("rows", "rows.claim", ORIGIN)
"""What a run over a stream begins with, and a copy of one elsewhere."""
RATING_FACTS = {
    "rater": {"model": str, "revision": str, "parameters": int, "rating_key": str},
    "oom_splits": int,
}
"""What the sidecar of a shard of ratings says."""

Progress = Callable[[str, int], None]
"""Told a model's slug and how many more rating prompts are done, k for each row."""


@dataclass(frozen=True)
class Run:
    """A run folder and its plan.

    Example:
        >>> run = Run.start(Path("run"), dataset, source, scorers)  # doctest: +SKIP
        >>> run.rate(dataset, scorers)  # doctest: +SKIP
        >>> run.finish(dataset, Reflection(), Cut(proportion=0.2))  # doctest: +SKIP
    """

    folder: Path
    plan: dict[str, Any]

    @classmethod
    def start(
        cls,
        folder: Path,
        dataset: Dataset,
        source: Source,
        scorers: Sequence[SentenceScore],
        shard_size: int | None = None,
    ) -> "Run":
        """Write a plan, or go on with the one that is there.

        Settings that do not change which ratings are wanted (shard size, token budget, threads)
        come from the plan that is there, where they are not given.

        Raises:
            InputError: see `survey`.
            RunError: the folder holds another plan, or something that is no run.
        """
        path, mirror = folder / "plan.json", mirror_of(folder)
        check_folder(folder)
        _check_columns(dataset, scorers)
        there = meeting.take_plan(path, mirror)
        name = mirror.url or folder.name
        if mirror.url and not there:
            name = f"{folder} (a copy of {name}, where there is none now; remove it to begin anew)"
        old = read_plan(path) if path.exists() else None
        surveyed = survey(dataset, scorers[0].reader)

        def plan(old: dict[str, Any]) -> dict[str, Any]:
            columns, rows = dataset.column_names, len(dataset)
            return make_plan(source, columns, rows, surveyed, scorers, shard_size, old)

        if old is None:
            folder.mkdir(parents=True, exist_ok=True)
            write_plan(path, plan({}))
            old = read_plan(path)
        compare(old, plan(old), name)
        meeting.offer_plan(path, mirror)
        theirs = read_plan(path)
        if theirs != old:  # another machine was quicker
            compare(theirs, plan(theirs), name)
        storage.sweep(folder)
        return cls(folder, theirs)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run.

        Raises:
            RunError: there is none.
        """
        path = folder / "plan.json"
        if not path.is_file():
            raise RunError(
                f"{folder.name!r} is no run folder: it has no plan.json. 'selectit run' makes one."
            )
        return cls(folder, read_plan(path))

    @cached_property
    def mirror(self) -> Alone:
        """The storage that the folder is a copy of, or none."""
        return mirror_of(self.folder)

    @property
    def is_mirrored(self) -> bool:
        """Whether workers meet elsewhere than in the folder."""
        return bool(self.mirror.url)

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

    def shards(self, slug: str) -> Shards:
        """The raw ratings of one model, as they lie in the folder."""
        (key,) = (m["rating_key"] for m in self.plan["models"] if m["name"] == slug)
        folder = self.folder / "ratings" / slug
        size, of = self.plan["shard_size"], self.plan["input"]["fingerprint"]
        return Shards(folder, self.rows, size, key, RATING_FACTS, self.mirror, of)

    # Rating

    def rate(
        self,
        dataset: Dataset,
        scorers: Sequence[SentenceScore],
        progress: Progress | None = None,
        worker: Worker | None = None,
    ) -> None:
        """Rate every shard that is not there yet, one model after the other, with all who join.

        Raises:
            ModelError: a model is not what it was when the run was planned, or cannot rate; each
                is looked at before any is asked.
        """
        from selectit_hf import engine

        engine.set_threads(self.plan["threads"])
        worker = worker or Worker()
        planned = self._planned(scorers)
        for scorer in planned:
            scorer.prepare()
        jobs = [self._job(dataset, scorer, worker, progress) for scorer in planned]

        def seen(job: Job, number: int) -> None:
            if progress is not None:
                progress(job.name, len(job.shards.rows_of(number)) * self.plan["rating"]["k"])

        work(jobs, worker, seen)

    def _planned(self, scorers: Sequence[SentenceScore]) -> list[SentenceScore]:
        """The scorers as the plan has them, wherever this worker is."""
        return [
            replace(
                scorer,
                revision=model["revision"],
                dtype=model["dtype"],
                token_budget=self.plan["token_budget"],
            )
            for scorer, model in zip(scorers, self.plan["models"], strict=True)
        ]

    def _job(
        self,
        dataset: Dataset,
        scorer: SentenceScore,
        worker: Worker,
        progress: Progress | None,
    ) -> Job:
        shards = self.shards(scorer.slug)
        read = dataset.select_columns(list(scorer.reader.columns(dataset.column_names)))

        def make(number: int, halvings: int) -> tuple[pa.Table, dict[str, Any]]:
            rows = shards.rows_of(number)
            started = time.perf_counter()
            asked = 0

            def tell(prompts: int) -> None:
                nonlocal asked
                asked += prompts
                if progress is not None:
                    progress(scorer.slug, prompts)

            budget = max(1, self.plan["token_budget"] >> halvings)
            smaller = replace(scorer, token_budget=budget)
            ratings = smaller.rate(read[rows.start : rows.stop], worker.local_rank, tell)
            tell(len(rows) * scorer.k - asked)  # rows that could not be asked about are done too
            return _shard_table(ratings, rows), {
                "rater": ratings.rater,
                "oom_splits": ratings.splits,
                "token_budget": budget,
                "seconds": round(time.perf_counter() - started, 3),
            }

        return Job(scorer.slug, shards, make)

    # Reflecting and selecting

    def check(self, how: Reflection, columns: Sequence[str]) -> str:
        """The column that rows with ``columns`` will be ranked by, before anything is rated.

        Raises:
            InputError, SettingError: ``how`` does not fit this run's models and scale.
        """
        return finishing.ranking_column(self.plan, how, columns)

    def ratings(self, slug: str) -> Ratings:
        """All ratings of one model, in row order.

        Raises:
            RunError: a shard is missing or damaged.
        """
        shards = self.shards(slug)
        shards.check()
        return finishing.all_ratings(self.plan, shards)

    def finish(
        self, dataset: Dataset, how: Reflection, cut: Cut, out: Path | None = None
    ) -> tuple[Selection, dict[str, Any]]:
        """Scores, selection and summary, written to ``out`` or the run folder.

        Raises:
            RunError: not every row is rated.
            InputError, SettingError: ``how`` or ``cut`` does not fit the scores.
        """
        out = out or self.folder
        mirror = self.mirror if out == self.folder else mirror_of(out)
        with meeting.writing_results(out, mirror) if mirror.url else nullcontext():
            return self._finish(dataset, how, cut, out, mirror)

    def _finish(
        self, dataset: Dataset, how: Reflection, cut: Cut, out: Path, mirror: Alone
    ) -> tuple[Selection, dict[str, Any]]:
        shards = {slug: self.shards(slug) for slug in self.slugs}
        done = finishing.finish(self.plan, shards, dataset, how, cut, out)
        meeting.send_results(out, mirror)
        return done

    def settle(
        self,
        dataset: Dataset,
        scorers: Sequence[SentenceScore],
        how: Reflection,
        cut: Cut,
        worker: Worker | None = None,
    ) -> dict[str, Any]:
        """Scores, selection and summary once all is rated, by one worker for all.

        The first to get here checks every shard and rates bad ones again, whoever's they are; the
        others look at every shard too, wait for it, and do it themselves if it dies or a shard is
        bad by now. A worker alone always does it.

        Returns:
            The summary.
        """
        self.check(how, dataset.column_names)
        shards = {slug: self.shards(slug) for slug in self.slugs}
        together = worker is not None and worker.world > 1
        others = self.is_mirrored or (
            together and not any(one.missing() for one in shards.values())
        )
        with meeting.writing_results(self.folder, self.mirror):
            if others and self._is_settled(shards, dataset, how, cut):
                return storage.read_json(self.folder / "summary.json")
            self._complete(shards, dataset, scorers, worker)
            return self._finish(dataset, how, cut, self.folder, self.mirror)[1]

    def _complete(
        self,
        shards: Mapping[str, Shards],
        dataset: Dataset,
        scorers: Sequence[SentenceScore],
        worker: Worker | None,
    ) -> None:
        """Have every shard here, whole; those that are nowhere are rated."""
        here = worker.local_rank if worker is not None else 0
        meeting.take_plan(self.folder / "plan.json", self.mirror)
        for one in shards.values():
            one.fetch(repair=True)
        while any(one.missing() for one in shards.values()):
            self.rate(dataset, scorers, worker=Worker(local_rank=here))
            for one in shards.values():
                one.fetch(repair=True)

    def _is_settled(
        self, shards: Mapping[str, Shards], dataset: Dataset, how: Reflection, cut: Cut
    ) -> bool:
        """Whether the results are there, in these settings, of these ratings, as written."""
        by = self.check(how, dataset.column_names)
        if by in dataset.column_names and by not in self.plan["input"]["columns"]:
            return False  # it was measured, and nothing says how
        chosen = self._results()
        reflected = {name: value for name, value in asdict(how).items() if name != "by"}
        wanted = {"by": by, "cut": asdict(cut), "reflection": reflected}
        if {name: chosen.get(name) for name in wanted} != json.loads(json.dumps(wanted)):
            return False
        tables = {slug: self._tables(one) for slug, one in shards.items()}
        names = ("summary.json",) if self.is_mirrored else RESULTS[:-1]
        found = finishing.hashes(tables, [self.folder / name for name in names])
        said = chosen.get("sha256")
        return isinstance(said, dict) and {name: said.get(name) for name in found} == found

    def _results(self) -> dict[str, Any]:
        """What says how the results were chosen, if they are there; else nothing."""
        if self.is_mirrored:
            return meeting.read_results(self.folder, self.mirror) or {}
        path = self.folder / RESULTS[-1]
        return (storage.json_object(path.read_bytes()) if path.exists() else None) or {}

    def _tables(self, shards: Shards) -> list[str] | None:
        """The hashes of a model's shards: of the mirror, or of what is here."""
        return shards.hashes_there() if self.is_mirrored else shards.hashes()


def bring(folder: Path) -> None:
    """Bring a run that lies in object storage to this machine's copy of it; else do nothing.

    Raises:
        RunError: there is none, or the copy is of another.
    """
    if not mirror_of(folder).url:
        return
    run = look_at(folder)
    for slug in run.slugs:
        run.shards(slug).fetch()
    meeting.bring_results(folder, run.mirror)


def look_at(folder: Path) -> Run:
    """An existing run; of one in object storage only the plan is brought here.

    Raises:
        RunError: there is none, or the copy is of another.
    """
    mirror = mirror_of(folder)
    if mirror.url and not meeting.take_plan(folder / "plan.json", mirror):
        raise RunError(
            f"{mirror.url} is no run: it has no plan.json. 'selectit run' makes one. (This "
            f"machine's copy is {str(folder)!r}.)"
        )
    return Run.open(folder)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no run's and holds something else.

    Raises:
        RunError: it is a file or a URL, or is not empty and has no plan.
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)):
        raise RunError(
            f"{str(folder)!r} is a URL and was given as a path, which it is not; see "
            "'selectit_hf.mirror.copy_of'."
        )
    if folder.is_file():
        raise RunError(f"{folder.name!r} is a file; name a folder with --out.")
    there = list(folder.iterdir()) if folder.exists() else []
    others = [path for path in there if path.name not in BEFORE_A_PLAN]
    if not all(map(storage.is_partial, others)) and not (folder / "plan.json").exists():
        raise RunError(
            f"The folder {folder.name!r} is not empty and has no plan.json, so it is no run; "
            "name another with --out."
        )


def _check_columns(dataset: Dataset, scorers: Sequence[SentenceScore]) -> None:
    ours = {column for scorer in scorers for column in scorer.columns}
    if len(scorers) > 1:
        ours |= set(ModelScore.columns)
    taken = sorted(ours & set(dataset.column_names))
    if taken:
        raise InputError(
            f"The dataset has columns that the run would write: {', '.join(taken)}. Drop or rename "
            "them; a dataset scored with 'selectit score' is selected from with 'selectit select'."
        )


def _shard_table(ratings: Ratings, rows: range) -> pa.Table:
    _, prompts, k = ratings.logprobs.shape
    flat = pa.FixedSizeListArray.from_arrays(
        pa.array(ratings.logprobs.reshape(-1), pa.float32()), prompts * k
    )
    return pa.table(
        {
            "row": pa.array(np.asarray(rows), pa.int64()),
            "status": pa.array(ratings.statuses, pa.string()),
            "pair": pa.array(ratings.texts(), pa.string()),
            "logprobs": flat,
        }
    )
