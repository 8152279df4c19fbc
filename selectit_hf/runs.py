"""A resumable run: what is planned, the raw ratings in shards, and what follows from them.

    RUN/plan.json                    what is rated, by whom, how; written once
    RUN/ratings/<slug>/NNNNN.parquet raw ratings of one shard of rows; NNNNN.json commits it
    RUN/scores.parquet               every row's ratings, scores and statuses
    RUN/selected.parquet             the kept rows with all their columns and scores
    RUN/selection.json               how they were chosen, and every count
    RUN/summary.json                 what a person wants to know about the run

Ratings cost hours and are never thrown away; all that follows from them is computed anew.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, concatenate_datasets
from numpy.typing import NDArray

from selectit_hf import engine, reflection, report
from selectit_hf.errors import InputError, RunError, SettingError
from selectit_hf.ratings import Ratings
from selectit_hf.reflection import Variant
from selectit_hf.rows import RowReader
from selectit_hf.scorers import ModelScore, SentenceScore
from selectit_hf.selection import Cut, Selection, score_column, select
from selectit_hf.sources import Source

__all__ = ["Reflection", "Run", "survey"]

SHARD_SIZE = 8192
SURVEY_ROWS = 1000
LIBRARIES = ("datasets", "huggingface_hub", "numpy", "tokenizers", "torch", "transformers")
OF_A_MODEL = ("model", "revision", "dtype", "name")
OF_A_REFLECTION = ("alpha", "variant", "versions")

Progress = Callable[[str, int], None]
"""Told a model's slug and how many more rating prompts are done, k for each row."""


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


def survey(dataset: Dataset, reader: RowReader) -> str:
    """Read every row once, before any model is loaded, and hash what was read.

    Returns:
        ``sha256:`` and the hash of all rows as canonical JSON, in order.

    Raises:
        InputError: the columns do not fit, or rows have several turns and no policy says which.
    """
    digest = hashlib.sha256()
    multi_turn = 0
    read = dataset.select_columns(list(reader.columns(dataset.column_names)))
    stored = dataset.with_format("arrow")  # images and the like as their bytes
    for start in range(0, len(dataset), SURVEY_ROWS):
        multi_turn += reader.pairs(read[start : start + SURVEY_ROWS]).count("multi_turn")
        for row in stored[start : start + SURVEY_ROWS].to_pylist():
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    if multi_turn:
        raise InputError(
            f"{multi_turn} of {len(dataset)} rows have several turns. Choose what to rate: "
            "--turns first for the first exchange, as the released code does, or --turns all for "
            "the last response with the earlier turns in its instruction."
        )
    return f"sha256:{digest.hexdigest()}"


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
        path = folder / "plan.json"
        old = _read_json(path) if path.exists() else None
        if folder.is_file():
            raise RunError(f"{folder.name!r} is a file; name a folder with --out.")
        if old is None and folder.exists() and any(not _is_partial(p) for p in folder.iterdir()):
            raise RunError(
                f"The folder {folder.name!r} is not empty and has no plan.json, so it is no run; "
                "name another with --out."
            )
        _check_columns(dataset, scorers)
        plan = _plan(dataset, source, scorers, shard_size, old or {})
        if old is None:
            folder.mkdir(parents=True, exist_ok=True)
            _write_json(path, plan)
        else:
            _compare(old, plan, folder)
        return cls(folder, plan)

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
        return cls(folder, _read_json(path))

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
        rating = self.plan["rating"]
        names = ("instruction_column", "response_column", "turns", "translation")
        return RowReader(*(rating[name] for name in names))

    def shards(self) -> list[range]:
        """The rows of each shard."""
        size = int(self.plan["shard_size"])
        return [range(i, min(i + size, self.rows)) for i in range(0, self.rows, size)]

    # Rating

    def rate(
        self, dataset: Dataset, scorers: Sequence[SentenceScore], progress: Progress | None = None
    ) -> None:
        """Rate every shard that is not there yet, one model after the other.

        Raises:
            ModelError: a model is not what it was when the run was planned, or cannot rate; each
                is looked at before any is asked.
        """
        engine.set_threads(self.plan["threads"])
        planned = [
            replace(scorer, revision=model["revision"], token_budget=self.plan["token_budget"])
            for scorer, model in zip(scorers, self.plan["models"], strict=True)
        ]
        for scorer in planned:
            scorer.prepare()
        for scorer in planned:
            for number, rows in enumerate(self.shards()):
                if self._sidecar(scorer.slug, number) is None:
                    self._rate_shard(dataset, scorer, number, progress)
                elif progress is not None:
                    progress(scorer.slug, len(rows) * scorer.k)

    def _rate_shard(
        self, dataset: Dataset, scorer: SentenceScore, number: int, progress: Progress | None
    ) -> None:
        rows = self.shards()[number]
        columns = scorer.reader.columns(dataset.column_names)
        batch = dataset.select_columns(list(columns))[rows.start : rows.stop]
        started = time.perf_counter()
        asked = 0

        def tell(prompts: int) -> None:
            nonlocal asked
            asked += prompts
            if progress is not None:
                progress(scorer.slug, prompts)

        ratings = scorer.rate(batch, progress=tell)
        tell(len(rows) * scorer.k - asked)  # rows that could not be asked about are done too
        path = self._shard_path(scorer.slug, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_parquet(path, _shard_table(ratings, rows))
        facts = {
            "rows": [rows.start, rows.stop],
            "sha256": _sha256(path),
            "rater": ratings.rater,
            "oom_splits": ratings.splits,
            "seconds": round(time.perf_counter() - started, 3),
        }
        _write_json(path.with_suffix(".json"), facts)

    def _shard_path(self, slug: str, number: int) -> Path:
        return self.folder / "ratings" / slug / f"{number:05d}.parquet"

    def _sidecar(self, slug: str, number: int) -> dict[str, Any] | None:
        """A finished shard's facts; ``None`` where the shard is to be rated (again)."""
        path, rows = self._shard_path(slug, number), self.shards()[number]
        try:
            facts = _read_json(path.with_suffix(".json"))
        except RunError:
            return None
        (key,) = (m["rating_key"] for m in self.plan["models"] if m["name"] == slug)
        whole = (
            facts.get("rows") == [rows.start, rows.stop]
            and facts.get("rater", {}).get("rating_key") == key
            and path.is_file()
            and facts.get("sha256") == _sha256(path)
        )
        return facts if whole else None

    # Reflecting and selecting

    def check(self, how: Reflection, columns: Sequence[str]) -> str:
        """The column that rows with ``columns`` will be ranked by, before anything is rated.

        Raises:
            InputError, SettingError: ``how`` does not fit this run's models and scale.
        """
        SentenceScore(k=self.plan["rating"]["k"], alpha=how.alpha, variant=how.variant)
        ours = self._score_columns()
        if len(self.slugs) > 1:
            reflection.model_weights([1] * len(self.slugs), how.variant, how.weights)
        elif how.weights is not None:
            raise SettingError("weights combine several models, and this run has one.")
        known = how.by is not None and how.by in columns
        return str(how.by) if known else score_column(ours, how.by)

    def _score_columns(self) -> list[str]:
        kinds = ("token_score", "sentence_score")
        combined = ["model_score"] if len(self.slugs) > 1 else []
        return [f"{kind}__{slug}" for slug in self.slugs for kind in kinds] + combined

    def ratings(self, slug: str) -> Ratings:
        """All ratings of one model, in row order.

        Raises:
            RunError: a shard is missing or damaged.
        """
        parts = [self._shard(slug, number) for number in range(len(self.shards()))]
        return Ratings(
            [status for part in parts for status in part.statuses],
            np.concatenate([part.logprobs for part in parts]),
            parts[0].rater,
            sum(part.splits for part in parts),
        )

    def _shard(self, slug: str, number: int) -> Ratings:
        facts = self._sidecar(slug, number)
        if facts is None:
            rows = self.shards()[number]
            raise RunError(
                f"The rows {rows.start} to {rows.stop - 1} are not rated by {slug!r}, or their "
                "shard is damaged; run the same 'selectit run' command again to rate them."
            )
        table = pq.read_table(self._shard_path(slug, number))
        k = self.plan["rating"]["k"]
        logprobs = _flat(table["logprobs"]).reshape(-1, k, k)
        return Ratings(table["status"].to_pylist(), logprobs, facts["rater"], facts["oom_splits"])

    def finish(
        self, dataset: Dataset, how: Reflection, cut: Cut, out: Path | None = None
    ) -> tuple[Selection, dict[str, Any]]:
        """Scores, selection and summary, written to ``out`` or the run folder.

        Raises:
            RunError: not every row is rated.
            InputError, SettingError: ``how`` or ``cut`` does not fit the scores.
        """
        by = self.check(how, dataset.column_names)
        out = out or self.folder
        out.mkdir(parents=True, exist_ok=True)
        ratings = {slug: self.ratings(slug) for slug in self.slugs}
        scores = self._scores(ratings, how)
        columns = Dataset(scores.drop_columns("row"))
        scored = concatenate_datasets([dataset, columns], axis=1)
        selection = select(scored, by=by, **asdict(cut))
        summary = report.summarise(scored, selection, ratings, self.reader)
        _write_parquet(out / "scores.parquet", scores)
        _replace(out / "selected.parquet", selection.selected.to_parquet)
        _write_json(out / "selection.json", self._selection_facts(selection, how))
        _write_json(out / "summary.json", summary)
        return selection, summary

    def _scores(self, ratings: dict[str, Ratings], how: Reflection) -> pa.Table:
        """Every row's number, ratings, scores and statuses."""
        table = pa.table({"row": pa.array(np.arange(self.rows), pa.int64())})
        for slug, rated in ratings.items():
            scorer = SentenceScore(
                k=self.plan["rating"]["k"], name=slug, alpha=how.alpha, variant=how.variant
            )
            table = _append(table, scorer.values(rated), scorer.columns)
        if len(ratings) > 1:
            combiner = ModelScore(weights=how.weights, alpha=how.alpha, variant=how.variant)
            table = _append(table, combiner.combine(ratings), combiner.columns)
        return table

    def _selection_facts(self, selection: Selection, how: Reflection) -> dict[str, Any]:
        return {
            "by": selection.by,
            "cut": asdict(selection.cut),
            "reflection": {k: v for k, v in asdict(how).items() if k != "by"},
            "threshold": selection.threshold,
            "rows": self.rows,
            "selected": len(selection.selected),
            "reasons": selection.reasons,
        }


# Plans


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


def _plan(
    dataset: Dataset,
    source: Source,
    scorers: Sequence[SentenceScore],
    shard_size: int | None,
    old: dict[str, Any],
) -> dict[str, Any]:
    settings = [scorer.__getstate__() for scorer in scorers]
    names = [scorer.slug for scorer in scorers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"Two models are both called {twice[0]!r} in column names; rename one.")
    shared = {k: v for k, v in settings[0].items() if k not in (*OF_A_MODEL, *OF_A_REFLECTION)}
    return {
        "format": 1,
        "input": {
            **asdict(source),
            "rows": len(dataset),
            "columns": dataset.column_names,
            "fingerprint": survey(dataset, scorers[0].reader),
        },
        "rating": json.loads(json.dumps(shared)),
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
        "token_budget": scorers[0].token_budget
        or old.get("token_budget")
        or scorers[0].default_token_budget(),
        "threads": old.get("threads") or engine.thread_count(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _compare(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    before, after = _flattened(old), _flattened(new)
    changed = [key for key in before | after if before.get(key) != after.get(key)]
    if changed:
        lines = "; ".join(f"{key}: {before.get(key)!r}, now {after.get(key)!r}" for key in changed)
        raise RunError(
            f"The run folder {folder.name!r} was planned differently. {lines}. Repeat the command "
            "it was started with, or name another folder with --out."
        )


def _flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    flat: dict[str, Any] = {}
    for key, inner in items:
        path = f"{prefix}.{key}" if prefix else str(key)
        flat |= _flattened(inner, path) if isinstance(inner, (dict, list)) else {path: inner}
    return flat


# Tables


def _shard_table(ratings: Ratings, rows: range) -> pa.Table:
    _, prompts, k = ratings.logprobs.shape
    flat = pa.FixedSizeListArray.from_arrays(
        pa.array(ratings.logprobs.reshape(-1), pa.float32()), prompts * k
    )
    return pa.table(
        {
            "row": pa.array(np.asarray(rows), pa.int64()),
            "status": pa.array(ratings.statuses, pa.string()),
            "logprobs": flat,
        }
    )


def _flat(column: pa.ChunkedArray) -> NDArray[np.float32]:
    return np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False))


def _append(table: pa.Table, values: dict[str, list[Any]], types: dict[str, Any]) -> pa.Table:
    schema = Features(types).arrow_schema
    for name in types:
        table = table.append_column(name, pa.array(values[name], schema.field(name).type))
    return table


# Files: whole or not there


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".partial")


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside ``path``, make it durable, and move it there in one step."""
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_parquet(path: Path, table: pa.Table) -> None:
    _replace(path, lambda partial: pq.write_table(table, partial))


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    _replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path.name} of the run cannot be read ({error}); restore it, or start another run."
        ) from error
    if not isinstance(facts, dict):
        raise RunError(f"{path.name} of the run is no JSON object; restore it.")
    return facts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
