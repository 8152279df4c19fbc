"""A finished selection from a `Selection` made in Python.

Nothing is taken on trust: the scores are recomputed from the stored ratings, and the settings are
checked against the raters' keys.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from selectit_hf.analysis.finished import (
    ASKING,
    Finished,
    Rows,
    assemble,
    is_read_alike,
    is_score,
    model_facts,
    raters_of,
)
from selectit_hf.errors import InputError, RatingsError, SettingError
from selectit_hf.formats import RowReader, Source, fingerprint
from selectit_hf.rating import (
    ModelScore,
    Ratings,
    RatingScorer,
    SentenceScore,
    reflection,
    was_folder,
)
from selectit_hf.selection import Selection, summarise

__all__ = ["from_selection"]

DTYPES = ("float32", "bfloat16", "float16")


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
    columns = [c for c in dataset.column_names if not is_score(c)]
    rated = dataset.select_columns(columns)
    rows = {"rows": len(dataset), "columns": columns, "fingerprint": fingerprint(rated)}
    facts = {
        "input": asdict(source) | rows,
        "rating": asked,
        "models": [_rated_by(one, ratings[one.slug]) | model_facts(summary, one.slug)
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
    finished = assemble(facts, Rows.of(selection.selected), Rows.of(scores), summary)
    return replace(finished, are_rows_of=partial(_are_rows_of, rated, RowReader.of(asked)))


def _are_rows_of(rated: Dataset, reader: RowReader, dataset: Dataset) -> bool:
    """Columns that only one of the two has, and that are not read, do not matter."""
    if not is_read_alike(reader, rated.column_names, dataset.column_names):
        return False
    both = [name for name in rated.column_names if name in dataset.column_names]
    found = (fingerprint(rows.select_columns(both)) for rows in (rated, dataset))
    return len(rated) == len(dataset) and len({*found}) == 1


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
            "The rows have no rater__* column, so it is unknown who rated them; keep every column "
            "that the scorers wrote."
        )
    return {name: _one_rating(dataset, name) for name in names}


def _one_rating(dataset: Dataset, name: str) -> Ratings:
    columns = [f"{kind}__{name}" for kind in ("rating_logprobs", "status", "rater")]
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise RatingsError(
            f"The columns of {name!r} are incomplete: {missing[0]!r} is missing; keep every "
            "column that the scorers wrote."
        )
    lists, statuses, raters = map(Rows.of(dataset).column, columns)
    found = raters_of(raters)
    valid = np.asarray(lists.is_valid())
    if len(found) != 1 or not valid.any():
        raise RatingsError(
            f"The ratings of {name!r} come from {len(found)} raters; publish rows that one "
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
    """The scorer that rated: the one given under this name, or one with default settings."""
    key = rated.rater["rating_key"]
    given = [one for one in scorers if isinstance(one, RatingScorer) and one.slug == name]
    for scorer in given or _defaults(name, rated):
        if scorer.rating_key() == key:
            return scorer
    if given:
        raise RatingsError(
            f"The rows were not rated by the scorer given for {name!r}: its rating key is "
            f"{given[0].rating_key()}, but the rows have {key}. Give the scorer that was mapped."
        )
    raise RatingsError(
        f"The rows were rated by {rated.rater['model']!r} with settings that are not the defaults; "
        "give the scorers that were mapped, as in publish(..., scorers=[scorer])."
    )


def _defaults(name: str, rated: Ratings) -> Iterator[RatingScorer]:
    rater = rated.rater
    if was_folder(rater["model"], rater["revision"]):
        return  # a folder of this machine, which cannot be found by its name
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
            "which one card cannot describe; rate with the same settings."
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
    """Recompute the score that ranked the rows from their ratings."""
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
            f"The rows were ranked by {by!r}, which is not a score of this package with its "
            "ratings in the dataset; select by one that is."
        )
    if not np.allclose(Rows.of(dataset).scores(by), expected, rtol=0, atol=1e-4, equal_nan=True):
        raise RatingsError(
            f"The column {by!r} does not follow from the stored ratings with alpha={how['alpha']} "
            f"and variant={how['variant']!r}; give the scorers that were mapped, as in "
            "publish(..., scorers=[scorer])."
        )
