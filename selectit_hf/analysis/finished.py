"""A finished selection, from a run folder or from Python: what is published and told of it.

Both ways lead to the same `Finished`. Nothing is taken on trust: that the scores follow from the
stored ratings, the kept rows from the scores, and the settings from the raters' keys, is computed
again before anything is written.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value, concatenate_datasets
from numpy.typing import NDArray

from selectit_hf.analysis.trust.check_file import read_check
from selectit_hf.errors import InputError, RatingsError, RunError, SettingError
from selectit_hf.formats import FOREIGN, READING, RowReader, Source
from selectit_hf.hashes import file_sha256
from selectit_hf.json_files import facts_hash
from selectit_hf.rating import (
    TINY_RATER,
    ModelScore,
    Ratings,
    RatingScorer,
    SentenceScore,
    reflection,
    score_schema,
)
from selectit_hf.runs import RESULTS, Run, Store, is_url, open_run
from selectit_hf.selection import Cut, Selection, decide, summarise

__all__ = [
    "Finished",
    "Rows",
    "check_unchanged",
    "check_written",
    "from_run",
    "from_selection",
    "is_score",
]

BATCH = 1000
KINDS = ("rating_logprobs__", "token_score__", "sentence_score__", "status__", "rater__")
COMBINED = ("model_score", "selectit_status")
CHAT = "chat_template_kwargs"
ASKING = ("k", "rating_prompts", "template", "chat", CHAT, "max_length", *READING)
DTYPES = ("float32", "bfloat16", "float16")
UNREADABLE = (*FOREIGN, AttributeError, LookupError, RecursionError, AssertionError)
"""What the libraries raise of a table whose metadata anybody may have written."""
NUMBER = (float, None)
CHOSEN = {
    "by": str,
    "cut": {"proportion": NUMBER, "n": (int, None), "threshold": NUMBER, "variant": str},
    "reflection": {"alpha": float, "variant": str, "weights": ([float], None)},
    "threshold": NUMBER,
    "rows": int,
    "selected": int,
    "reasons": {str: int},
}
"""What ``selection.json`` holds beside hashes; see `selectit_hf.json_files.misfit`."""
HASHES = {"sha256?": {str: str}, "tables?": {str: [str]}}
GROUP = {
    "rows": int,
    "mean_instruction_characters?": float,
    "mean_response_characters?": float,
    "median_response_characters?": float,
    "numeric_share?": float,
    "mean_turns?": float,
}
CONTRAST = {
    "selected": GROUP,
    "rejected": GROUP,
    "response_characters?": {"edges": [float], "selected": [int], "rejected": [int]},
}
"""What `selectit_hf.selection.contrast.contrast` makes."""
EXAMPLE = {"row": int, "score": float, "instruction": str, "response": str}
SUMMARY = {
    "rows": int,
    "score_quantiles": [NUMBER],
    "contrast?": CONTRAST,
    "models": {
        str: {
            "parameters": int,
            "statuses": {str: int},
            "rating_mass": NUMBER,
            "made_with?": [{str: str}],
        }
    },
    "best": [EXAMPLE],
    "worst": [EXAMPLE],
}
"""What ``summary.json`` holds."""


@dataclass(frozen=True)
class Rows:
    """Rows that are read in pieces, as often as they are needed.

    Attributes:
        features: their columns.
        tables: the pieces, in order, of all columns or of those named.
    """

    features: Features
    tables: Callable[[list[str] | None], Iterator[pa.Table]]

    def column(self, name: str) -> pa.ChunkedArray:
        """One whole column."""
        chunks = [chunk for table in self.tables([name]) for chunk in table[name].chunks]
        return pa.chunked_array(chunks, self.features.arrow_schema.field(name).type)

    def scores(self, name: str) -> NDArray[np.float64]:
        """One whole column of scores, NaN for none."""
        values = self.column(name).cast(pa.float64()).to_numpy()
        return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True)
class Finished:
    """What is published of a selection.

    Attributes:
        facts: what the manifest holds and the card tells: ``input``, ``rating``, ``models``,
            ``selection``, ``contrast`` and ``versions``, as JSON-able values; ``check`` where there
            is a trust check.
        selected: the kept rows with all their columns.
        scores: every row's number, ratings, scores and statuses, and whether it was kept.
        examples: the best and the worst rows, shortened; only shown when asked for.
        written: the run's ``selection.json`` that all of it was checked against.
    """

    facts: dict[str, Any]
    selected: Rows
    scores: Rows
    examples: dict[str, list[dict[str, Any]]]
    written: dict[str, Any] = field(default_factory=dict)

    @property
    def by(self) -> str:
        """The score column the rows were ranked by."""
        return str(self.facts["selection"]["by"])


def is_score(column: str) -> bool:
    """Whether a column was written by this package."""
    return column.startswith(KINDS) or column in COMBINED


# From a run folder


def from_run(run: Run | str | Path) -> Finished:
    """A run that has been finished, or its folder or URL.

    Raises:
        RunError: it is not finished, or its files do not belong together.
    """
    run = run if isinstance(run, Run) else open_run(run)
    plan, store = run.plan, run.store
    chosen = check_written(run)
    summary = _facts(store, "summary.json", SUMMARY)
    if summary["models"].keys() != {*run.slugs}:
        raise _unfinished("summary.json is of other models than the plan")
    _check_contrast(summary.get("contrast"))
    facts = {
        "input": plan["input"],
        "rating": {key: plan["rating"].get(key) for key in ASKING},
        "models": [model | _model_facts(summary, model["name"]) for model in plan["models"]],
        "selection": {key: chosen[key] for key in CHOSEN},
        "score_quantiles": summary["score_quantiles"],
        "contrast": summary.get("contrast", {}),
        "versions": plan["versions"],
    }
    checked = read_check(run)
    facts |= {"check": checked} if checked else {}
    ours = score_schema(run.slugs, plan["rating"]["k"])
    columns = set(plan["input"]["columns"])
    kept = _parquet(store, "selected.parquet", chosen["selected"], ours.remove(0), columns)
    scores = _parquet(store, "scores.parquet", run.rows, ours)
    finished = _finished(facts, kept, scores, summary)
    _check_run(finished)
    return replace(finished, written=chosen)


def check_unchanged(run: Run, finished: Finished) -> None:
    """Compare again, when all has been read: rows are read in pieces, and meanwhile another may
    have selected anew.

    Raises:
        RunError: the files are no longer those of `from_run`.
    """
    if check_written(run) != finished.written:
        raise RunError(
            "Another selection was written into the run while its files were read, so nothing was "
            "made of them. Run the command again."
        )


def check_written(run: Run) -> dict[str, Any]:
    """Compare results and ratings with the hashes that were written down with them.

    Returns:
        What ``selection.json`` says of the selection, and the hashes in it.

    Raises:
        RunError: a file is not the one that was written; it is named. Runs of 0.1.0 hold fewer
            hashes, and what they hold is compared.
    """
    chosen = _facts(run.store, "selection.json", CHOSEN | HASHES)
    written = chosen.pop("manifest_sha256", None)
    if written is not None and written != facts_hash(chosen):
        raise _unfinished("selection.json is not what was written; its hash differs")
    for name in RESULTS[:-1]:
        said = chosen["sha256"].get(name)
        if said is not None and _hash(run.store, name) != said:
            raise _unfinished(f"{name} is not what was written; its hash differs")
    for slug in chosen["tables"]:
        try:
            run.shards(slug).check()
        except RunError as error:
            raise _unfinished(str(error).partition(";")[0]) from error
    hashes = {name: chosen[name] for name in ("sha256", "tables")}
    return hashes | {name: _known(chosen[name], schema) for name, schema in CHOSEN.items()}


def _hash(store: Store, name: str) -> str:
    with tempfile.TemporaryDirectory(prefix="selectit-") as folder:
        path = Path(folder) / "file"
        if not is_url(str(store)):
            path = store.path(name)
        else:
            store.fetch(name, path)
        try:
            return file_sha256(path)
        except OSError as error:
            raise _unfinished(f"{name} cannot be read") from error


def _facts(store: Store, name: str, schema: Any) -> dict[str, Any]:
    try:
        return {"sha256": {}, "tables": {}, **store.read_json(name, schema)}
    except RunError as error:
        raise _unfinished(str(error).partition(";")[0]) from error


def _known(value: Any, schema: Any) -> Any:
    """Of an object with named keys, these alone."""
    names = isinstance(schema, dict) and str not in schema
    return {name: value[name] for name in schema} if names else value


def _unfinished(problem: str) -> RunError:
    return RunError(
        f"The run is not finished, or its files do not belong together: {problem}. "
        "'selectit select RUN --out RUN' writes them anew from the stored ratings."
    )


def _check_contrast(contrast: dict[str, Any] | None) -> None:
    """A histogram has one edge more than bins, and a group with rows has means."""
    if contrast is None:
        return
    groups = [contrast["selected"], contrast["rejected"]]
    means = {name.removesuffix("?") for name in GROUP if name != "mean_turns?"}
    bins = contrast.get("response_characters")
    fits = all(not group["rows"] or means <= group.keys() for group in groups)
    if fits and all(group["rows"] for group in groups):
        edges = [] if bins is None else bins["edges"]
        rising = all(0 < low < high for low, high in pairwise(edges))
        lengths = {len(bins[name]) + 1 for name in ("selected", "rejected")} if bins else set()
        fits = rising and lengths == {len(edges)}
    if not fits:
        raise _unfinished("summary.json does not hold what it should at 'contrast'")


def _parquet(
    store: Store, name: str, rows: int, ours: pa.Schema, others: Set[str] = frozenset()
) -> Rows:
    """A file of the results, looked at before any of its rows is read.

    Args:
        store: the run folder.
        name: of the file.
        rows: how many it has.
        ours: the score columns.
        others: of the input's columns, those that the file has beside them.

    Raises:
        RunError: it cannot be read, or is another table.
    """
    try:
        with store.parquet(name) as file:
            found, schema = file.metadata.num_rows, file.schema_arrow
            features = Features.from_arrow_schema(schema)
            fits = schema.equals(features.arrow_schema) and len({*schema.names}) == len(schema)
    except UNREADABLE as error:
        raise _unfinished(f"{name} cannot be read") from error
    missing = {*others, *ours.names}.difference(schema.names)
    if not fits or missing or found != rows or not all(_is_ours(schema, one) for one in ours):
        raise _unfinished(f"{name} does not have the rows and columns of the run's results")

    def tables(columns: list[str] | None) -> Iterator[pa.Table]:
        with store.parquet(name) as file:
            for batch in file.iter_batches(BATCH, columns=columns):
                yield pa.Table.from_batches([batch])

    return Rows(features, tables)


def _is_ours(schema: pa.Schema, field: pa.Field) -> bool:
    """Whether a column has the type that this package writes; raters of 0.1.0 have fewer fields."""
    found = schema.field(field.name).type
    if pa.types.is_struct(found) and pa.types.is_struct(field.type):
        known = {inner.name: inner.type for inner in field.type}
        return all(known.get(inner.name) == inner.type for inner in found)
    return bool(found == field.type)


def _check_run(finished: Finished) -> None:
    """Compare what the files say with what follows from the scores."""
    facts, scores = finished.facts, finished.scores
    for model in facts["models"]:
        for rater in _distinct(scores.column(f"rater__{model['name']}")):
            if any(rater[key] != model[key] for key in ("model", "revision", "rating_key")):
                raise _unfinished(f"scores.parquet was not rated by the plan's {model['name']}")
    ranked, kept = scores.scores(finished.by), scores.column("selected").to_numpy(False)
    found = (len(ranked), int(kept.sum()))
    said = (facts["input"]["rows"], facts["selection"]["selected"])
    if found != said:
        raise _unfinished(f"{found} rows and kept rows, where {said} were written down")
    if not np.array_equal(finished.selected.scores(finished.by), ranked[kept]):
        raise _unfinished("selected.parquet does not hold the best rows of scores.parquet")


# From Python


def from_selection(
    selection: Selection, source: Source, scorers: Sequence[RatingScorer | ModelScore] = ()
) -> Finished:
    """A selection made with `selectit_hf.select`, checked against the rows' own raters.

    Args:
        selection: of a `Dataset` with the columns that the scorers wrote.
        source: where the rows came from.
        scorers: what scored them; those with default settings need not be given.

    Raises:
        SettingError: the selection is lazy, or was not made by a score of this package.
        RatingsError: the rows do not hold the ratings and scores that the scorers would write.
    """
    dataset = _all_rows(selection)
    ratings = _stored_ratings(dataset)
    raters = [_scorer(name, rated, scorers) for name, rated in ratings.items()]
    how = _reflection(raters, [one for one in scorers if isinstance(one, ModelScore)], selection)
    _check_scores(dataset, selection.by, ratings, how)
    asked = _common(raters)
    summary = summarise(dataset, selection, ratings, RowReader.of(asked))
    rows = {"rows": len(dataset), "columns": [c for c in dataset.column_names if not is_score(c)]}
    facts = {
        "input": asdict(source) | rows,
        "rating": asked,
        "models": [_rated_by(one, ratings[one.slug]) | _model_facts(summary, one.slug)
                   for one in raters],
        "selection": {
            "by": selection.by,
            "cut": asdict(selection.cut),
            "reflection": how,
            "threshold": selection.threshold,
            "rows": len(dataset),
            "selected": len(selection.selected),
            "reasons": selection.reasons,
        },
        "score_quantiles": summary["score_quantiles"],
        "contrast": summary["contrast"],
    }  # fmt: skip
    scores = dataset.select_columns([c for c in dataset.column_names if is_score(c)])
    return _finished(facts, _rows(selection.selected), _rows(scores), summary)


def _all_rows(selection: Selection) -> Dataset:
    if selection.decisions is None:
        raise SettingError(
            "A lazy selection cannot be published, since its rows are not counted; use "
            "'selectit run', or select from a Dataset."
        )
    kept = np.array(selection.decisions["reason"].to_pylist()) == "selected"
    order = np.argsort(np.concatenate([np.flatnonzero(kept), np.flatnonzero(~kept)]))
    parts = [part for part in (selection.selected, selection.rejected) if len(part)]
    return concatenate_datasets(parts).select(order)


def _stored_ratings(dataset: Dataset) -> dict[str, Ratings]:
    names = [c.removeprefix("rater__") for c in dataset.column_names if c.startswith("rater__")]
    if not names:
        raise RatingsError(
            "The rows have no rater__* column, so nothing tells who rated them; keep every column "
            "that the scorers wrote."
        )
    return {name: _one_rating(dataset, name) for name in names}


def _one_rating(dataset: Dataset, name: str) -> Ratings:
    columns = [f"{kind}__{name}" for kind in ("rating_logprobs", "status", "rater")]
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise RatingsError(
            f"The columns of {name!r} are not complete, {missing[0]!r} is missing; keep every "
            "column that the scorers wrote."
        )
    lists, statuses, raters = map(_rows(dataset).column, columns)
    found = _distinct(raters)
    valid = np.asarray(lists.is_valid())
    if len(found) != 1 or not valid.any():
        raise RatingsError(
            f"The ratings of {name!r} are by {len(found)} raters, not one; publish rows that one "
            "scorer rated."
        )
    flat = lists.combine_chunks().drop_null().flatten()
    values = flat.flatten().to_numpy(zero_copy_only=False)
    prompts = len(flat) // int(valid.sum())
    logprobs = np.full((len(valid), prompts, len(values) // len(flat)), np.nan, np.float32)
    logprobs[valid] = values.reshape(-1, *logprobs.shape[1:])
    return Ratings(statuses.to_pylist(), logprobs, found[0])


def _scorer(
    name: str, rated: Ratings, scorers: Sequence[RatingScorer | ModelScore]
) -> RatingScorer:
    """Who rated: the scorer that was given under this name, or one with default settings."""
    key = rated.rater["rating_key"]
    given = [one for one in scorers if isinstance(one, RatingScorer) and one.slug == name]
    for scorer in given or _defaults(name, rated):
        if scorer.rating_key() == key:
            return scorer
    if given:
        raise RatingsError(
            f"The rows were not rated by the scorer given for {name!r}: its rating key is "
            f"{given[0].rating_key()}, theirs {key}. Give the scorer that was mapped."
        )
    raise RatingsError(
        f"The rows were rated by {rated.rater['model']!r} with settings that are not the defaults; "
        "give the scorers that were mapped, as in publish(..., scorers=[scorer])."
    )


def _defaults(name: str, rated: Ratings) -> Iterator[RatingScorer]:
    rater = rated.rater
    if rater["revision"].startswith("sha256:") and rater["model"] != TINY_RATER:
        return  # a folder of this machine, which its name alone does not find
    for dtype in DTYPES:
        yield SentenceScore(
            rater["model"], rater["revision"], k=rated.logprobs.shape[2], dtype=dtype, name=name
        )


def _common(raters: Sequence[RatingScorer]) -> dict[str, Any]:
    """How all models were asked."""
    states = [one.__getstate__() for one in raters]
    asked = [json.loads(json.dumps({key: state[key] for key in ASKING})) for state in states]
    if any(one != asked[0] for one in asked):
        raise RatingsError(
            "The models were asked in different ways (k, rating prompts, template or columns), "
            "which one card cannot tell; rate with the same settings."
        )
    return dict(asked[0])


def _rated_by(scorer: RatingScorer, rated: Ratings) -> dict[str, Any]:
    rater = rated.rater
    return {
        "name": scorer.slug,
        "model": rater["model"],
        "revision": rater["revision"],
        "dtype": scorer.__getstate__()["dtype"],
        "rating_key": rater["rating_key"],
        **scorer.weights_facts(),
    }


def _reflection(
    raters: Sequence[RatingScorer], combiners: Sequence[ModelScore], selection: Selection
) -> dict[str, Any]:
    if selection.by == "model_score":
        combiner = combiners[0] if combiners else ModelScore()
        weights = list(combiner.weights) if combiner.weights is not None else None
        return {"alpha": combiner.alpha, "variant": combiner.variant, "weights": weights}
    scorer = next((one for one in raters if selection.by.endswith(f"__{one.slug}")), raters[0])
    return {"alpha": scorer.alpha, "variant": scorer.variant, "weights": None}


def _check_scores(
    dataset: Dataset, by: str, ratings: dict[str, Ratings], how: dict[str, Any]
) -> None:
    """Compute the score that ranked the rows again from their ratings."""
    level, _, name = by.partition("_score")
    tokens = {
        slug: reflection.token_score(rated.logprobs, how["variant"])
        for slug, rated in ratings.items()
    }
    sentences = {slug: reflection.sentence_score(t, how["alpha"]) for slug, t in tokens.items()}
    name = name.removeprefix("__")
    if by == "model_score":
        counts = [rated.rater["parameters"] for rated in ratings.values()]
        weights = reflection.model_weights(counts, how["variant"], how["weights"])
        expected = reflection.model_score(np.stack(list(sentences.values()), axis=-1), weights)
    elif level in ("token", "sentence") and name in ratings:
        expected = tokens[name][:, 0] if level == "token" else sentences[name]
    else:
        raise InputError(
            f"The rows were ranked by {by!r}, which is no score of this package with its ratings "
            "beside it; select by one that is."
        )
    if not np.allclose(_rows(dataset).scores(by), expected, rtol=0, atol=1e-4, equal_nan=True):
        raise RatingsError(
            f"The column {by!r} does not follow from the stored ratings with alpha={how['alpha']} "
            f"and variant={how['variant']!r}; give the scorers that were mapped, as in "
            "publish(..., scorers=[scorer])."
        )


# What both have in common


def _distinct(raters: pa.ChunkedArray) -> list[dict[str, Any]]:
    """The raters that occur, whatever texts they rated."""
    fields = raters.combine_chunks().drop_null().flatten()
    table = pa.table(fields, names=[field.name for field in raters.type])
    names = [name for name in table.column_names if name != "pair"]
    found = table.select(names).group_by(names).aggregate([])
    return list(found.to_pylist())


def _finished(
    facts: dict[str, Any], selected: Rows, scores: Rows, summary: dict[str, Any]
) -> Finished:
    by, cut = facts["selection"]["by"], Cut(**facts["selection"]["cut"])
    if by not in scores.features:
        raise InputError(
            f"The rows were ranked by {by!r}, which is no score of this package; select by one."
        )
    if not facts["selection"]["selected"]:
        raise InputError("No row was selected, so there is nothing to publish.")
    reasons = decide(scores.scores(by), cut)["reason"]
    kept = np.array(reasons.to_pylist()) == "selected"
    examples = {name: summary[name] for name in ("best", "worst")}
    return Finished(facts, selected, _numbered(scores, kept), examples)


def _numbered(scores: Rows, kept: NDArray[np.bool_]) -> Rows:
    """The scores with each row's number before, and whether it was kept behind."""
    inner = {name: kind for name, kind in scores.features.items() if name != "row"}
    features = Features({"row": Value("int64"), **inner, "selected": Value("bool")})

    def tables(columns: list[str] | None) -> Iterator[pa.Table]:
        wanted = list(features) if columns is None else columns
        start = 0
        for table in scores.tables([c for c in wanted if c in inner] or list(inner)[:1]):
            stop = start + len(table)
            numbers = pa.array(np.arange(start, stop), pa.int64())
            added = {"row": numbers, "selected": pa.array(kept[start:stop])}
            both = {c: table[c] if c in inner else added[c] for c in wanted}
            yield pa.table(both)
            start = stop

    return Rows(features, tables)


def _rows(dataset: Dataset) -> Rows:
    def tables(columns: list[str] | None) -> Iterator[pa.Table]:
        part = dataset if columns is None else dataset.select_columns(columns)
        yield from part.with_format("arrow").iter(BATCH)

    for name in dataset.column_names:
        if dataset.features[name] is None:
            raise InputError(f"The column {name!r} has no type; give map its features=.")
    return Rows(dataset.features, tables)


def _model_facts(summary: dict[str, Any], name: str) -> dict[str, Any]:
    found = summary["models"][name]
    facts = {key: found[key] for key in ("parameters", "statuses", "rating_mass")}
    made_with = found.get("made_with", [])
    return facts | ({"made_with": made_with} if len(made_with) > 1 else {})
