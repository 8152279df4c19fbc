"""The score columns of many rows at once, as an Arrow table with the scorers' columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, Value

from selectit_hf.rating import reflection
from selectit_hf.rating.model_level import ModelScore
from selectit_hf.rating.ratings import Ratings, nested_lists
from selectit_hf.rating.reflection import Reflection
from selectit_hf.rating.scorers import SentenceScore

__all__ = ["score_schema", "score_table", "scorers_of"]


def scorers_of(models: Sequence[str], k: int, how: Reflection) -> list[SentenceScore]:
    """Scorers that name and compute the columns of some models; they rate nothing.

    Args:
        models: their slugs in the column names.
        k: the rating scale.
        how: how scores are computed from the ratings.
    """
    return [SentenceScore(k=k, name=one, alpha=how.alpha, variant=how.variant) for one in models]


def score_schema(models: Sequence[str], k: int) -> pa.Schema:
    """The row's number, and the columns of each model and of their combination, if several."""
    types: dict[str, Any] = {"row": Value("int64")}
    for scorer in scorers_of(models, k, Reflection()):
        types |= scorer.columns
    if len(models) > 1:
        types |= ModelScore.columns
    return Features(types).arrow_schema.remove_metadata()


def score_table(rows: range, ratings: Mapping[str, Ratings], how: Reflection) -> pa.Table:
    """The rows' numbers, ratings, scores and statuses, as `score_schema` has them.

    Args:
        rows: their numbers.
        ratings: the ratings of these rows by each model, by its slug.
        how: how scores are computed from them.
    """
    k = next(iter(ratings.values())).logprobs.shape[2]
    columns: dict[str, Any] = {"row": np.asarray(rows)}
    for scorer, rated in zip(scorers_of([*ratings], k, how), ratings.values(), strict=True):
        columns |= _columns(scorer, rated)
    if len(ratings) > 1:
        combine = ModelScore(weights=how.weights, alpha=how.alpha, variant=how.variant)
        columns |= combine.combine(ratings)
    schema = score_schema([*ratings], k)
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.table(arrays, schema=schema)


def _columns(scorer: SentenceScore, ratings: Ratings) -> dict[str, pa.Array]:
    """The columns of `SentenceScore.values`, without an object for each row."""
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
