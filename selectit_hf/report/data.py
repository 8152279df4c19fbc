"""The numbers that a report page shows: small enough to embed in it, and exact if possible.

Counts and thresholds are those of all rows. Charts use at most 100,000 rows, points 10,000 and
texts 2,000; if a run has more, a seeded sample is used, and the page says so.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from selectit_hf.analysis import Finished, is_score
from selectit_hf.errors import InputError
from selectit_hf.formats import Pair, RowReader
from selectit_hf.rating import Variant, model_weights, reflection
from selectit_hf.report.map import RowMap, embedding_column, map_rows, word_embeddings
from selectit_hf.report.plots import rank_correlations
from selectit_hf.report.rows import STEPS, Ranking, pairs_of, sample, texts, worth_reading
from selectit_hf.selection import Cut

__all__ = ["Agreement", "PageData", "gather", "packed"]

DRAWN_ROWS = 100_000
POINTS = 10_000
CATEGORIES = 30
CATEGORY_COLUMNS = 4
LOOKED_AT = 100
"""Columns beside the text that may be categories; each costs a pass over the drawn rows."""
SEED = 0
NO_RANK = 2**32 - 1

CODE = re.compile(
    r"```|^\s*(?:def \w|class \w+[(:{]|import \w|from [\w.]+ import |function\b.*\(|#include\b|"
    r"public |SELECT .+ FROM |(?:var|let|const) \w+ ?=|<[a-z]+[^>]*>|</[a-z]+>)",
    re.MULTILINE,
)
"""A fenced block, or a line that begins as code does."""


@dataclass(frozen=True)
class Agreement:
    """How similarly models or prompts rank the rows: Spearman's correlation of each pair.

    Attributes:
        name: the model whose prompts are compared, or ``""`` if models are compared.
        names: (m) the names of the models or prompts.
        correlations: (m, m).
    """

    name: str
    names: list[str]
    correlations: NDArray[np.float64]

    @property
    def lowest(self) -> float:
        """The correlation of the pair that agrees least."""
        return float(self.correlations.min())

    @property
    def mean(self) -> float:
        """The mean correlation of all pairs."""
        pairs = self.correlations[np.triu_indices(len(self.names), 1)]
        return float(pairs.mean()) if pairs.size else 1.0


@dataclass(frozen=True)
class PageData:
    """What a page shows.

    Attributes:
        ranking: the ranking of all rows.
        numbers: the values that the page's script reads, JSON-able.
        models, prompts: how far the models agree, and each model's rating prompts.
        embeddings: what the map's embeddings are made from; ``""`` without a map.
        explained: share of the embeddings' variance along each axis of the map, if there is one.
        favourites: for each model the rating that is most often its likeliest, and the share of
            all ratings in which it is.
        categories: the columns whose values divide the rows into groups.
    """

    ranking: Ranking
    numbers: dict[str, Any]
    models: Agreement | None
    prompts: list[Agreement]
    embeddings: str
    explained: tuple[float, float] | None
    favourites: dict[str, tuple[int, float]]
    categories: list[str]


def gather(finished: Finished, dataset: Dataset, embeddings: str | None = None) -> PageData:
    """Everything a page shows of a finished selection.

    Args:
        finished: see `selectit_hf.analysis.finished_run.from_run`.
        dataset: the rows that were rated.
        embeddings: a column of the dataset with embeddings, instead of those made of words.

    Raises:
        InputError: ``dataset`` is not what was rated, or ``embeddings`` is not such a column.
        SettingError: embeddings must be made, but scikit-learn is not installed.
    """
    reader = _reader(finished)
    _check_rows(finished, dataset, reader)
    random = np.random.default_rng(SEED)
    how = finished.facts["selection"]["reflection"]
    ranking = Ranking.of(finished.scores.scores(finished.by), _variant(finished))
    drawn = sample(random, np.arange(len(dataset)), DRAWN_ROWS)
    points = sample(random, drawn[ranking.ranks[drawn] >= 0], POINTS)
    read = worth_reading(random, ranking, finished.facts["selection"]["selected"])
    names = [model["name"] for model in finished.facts["models"]]
    rated = {name: _token_scores(finished, name, how["variant"]) for name in names}
    tokens = {name: scores[drawn] for name, (scores, _) in rated.items()}
    spread = _spread(finished, list(tokens.values()))
    groups = _categories(dataset, reader, drawn)
    placed = _placed(dataset, reader, points, embeddings)
    numbers = {
        **_cuts(finished, ranking),
        **_drawn(dataset, reader, ranking, drawn),
        "categories": groups,
        "points": _points(points, np.searchsorted(drawn, points), spread, placed),
        "texts": texts(dataset, reader, read, ranking),
    }
    return PageData(
        ranking=ranking,
        numbers=numbers,
        models=_between_models(finished, drawn),
        prompts=[_between_prompts(name, scores) for name, scores in tokens.items()],
        embeddings="" if placed is None else _embedding_words(embeddings),
        explained=None if placed is None else placed.explained,
        favourites={name: favourite for name, (_, favourite) in rated.items()},
        categories=[group["column"] for group in groups],
    )


def packed(values: NDArray[Any], dtype: str) -> dict[str, str]:
    """An array for JSON: little-endian bytes in base64."""
    data = np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<"))
    return {"dtype": dtype, "base64": base64.b64encode(data.tobytes()).decode("ascii")}


# The rows


def _reader(finished: Finished) -> RowReader:
    return RowReader.of(finished.facts["rating"])


def _variant(finished: Finished) -> Variant:
    return Cut(**finished.facts["selection"]["cut"]).variant


def _check_rows(finished: Finished, dataset: Dataset, reader: RowReader) -> None:
    """Compare the kept rows with the dataset's."""
    said = finished.facts["input"]
    if len(dataset) != said["rows"]:
        raise InputError(
            f"The dataset has {len(dataset)} rows, but {said['rows']} of {said['name']!r} were "
            "rated; give the rows that the run was made from."
        )
    columns = list(reader.columns(dataset.column_names))
    kept = np.flatnonzero(finished.scores.column("selected").to_numpy())
    rows = dataset.select_columns(columns).with_format("arrow")
    start = 0
    for table in finished.selected.tables(columns):
        numbers = kept[start : start + len(table)]
        if rows[numbers].to_pylist() != table.to_pylist():
            raise InputError(
                f"The rows {numbers[0]} to {numbers[-1]} of the dataset are not those that were "
                f"selected from {said['name']!r}; give the rows that the run was made from."
            )
        start += len(table)


# What the script reads


def _cuts(finished: Finished, ranking: Ranking) -> dict[str, Any]:
    """What the run kept, and what each position of the slider would keep."""
    chosen, rows = finished.facts["selection"], len(ranking.scores)
    share = float(chosen["cut"]["proportion"] or chosen["selected"] / rows)
    return {
        "rows": rows,
        "rated": len(ranking.order),
        "selected": chosen["selected"],
        "threshold": chosen["threshold"],
        "step": min(max(round(share * STEPS), 1), STEPS),
        "counts": ranking.counts.tolist(),
        "thresholds": ranking.thresholds(),
    }


def _drawn(
    dataset: Dataset, reader: RowReader, ranking: Ranking, drawn: NDArray[np.int64]
) -> dict[str, Any]:
    """Rank, score, characters of the response (0 for none), and whether it has a digit or code."""
    length = np.zeros(len(drawn), dtype=np.uint32)
    numeric, code = np.zeros((2, len(drawn)), dtype=np.uint8)
    for i, pair in enumerate(pairs_of(dataset, reader, drawn)):
        if isinstance(pair, Pair):
            length[i] = len(pair.response)
            numeric[i] = any(character.isdigit() for character in pair.response)
            code[i] = CODE.search(pair.response) is not None
    return {
        "drawn": len(drawn),
        "rank": packed(np.where(ranking.ranks < 0, NO_RANK, ranking.ranks)[drawn], "uint32"),
        "score": packed(ranking.scores[drawn], "float32"),
        "length": packed(length, "uint32"),
        "numeric": packed(numeric, "uint8"),
        "code": packed(code, "uint8"),
    }


def _points(
    points: NDArray[np.int64],
    at: NDArray[np.int64],
    spread: NDArray[np.float64],
    placed: RowMap | None,
) -> dict[str, Any]:
    """The rows that are drawn as points, and their positions among the drawn rows."""
    columns = {} if placed is None else {"x": placed.xy[:, 0], "y": placed.xy[:, 1]}
    columns |= {} if placed is None else {"distance": placed.distance}
    return {
        "count": len(points),
        "row": packed(points, "uint32"),
        "at": packed(at, "uint32"),
        "spread": packed(spread[at], "float32"),
        "map": {name: packed(values, "float32") for name, values in columns.items()},
    }


# Scores and ratings


def _token_scores(
    finished: Finished, name: str, variant: Variant
) -> tuple[NDArray[np.float64], tuple[int, float]]:
    """(n, prompts) scores, NaN in the rows without a rating; the favourite rating and its share."""
    lists = finished.scores.column(f"rating_logprobs__{name}").combine_chunks()
    valid = np.asarray(lists.is_valid())
    prompts = lists.drop_null().flatten()
    values = prompts.flatten().to_numpy(zero_copy_only=False)
    count = len(prompts) // max(int(valid.sum()), 1)
    scores = np.full((len(lists), max(count, 1)), np.nan)
    if not len(prompts):
        return scores, (1, 0.0)
    logprobs = values.reshape(int(valid.sum()), count, -1)
    scores[valid] = reflection.token_score(logprobs, variant)
    chosen = np.bincount(logprobs.argmax(axis=-1).ravel())
    return scores, (1 + int(chosen.argmax()), float(chosen.max() / chosen.sum()))


def _spread(finished: Finished, tokens: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(n) standard deviation over the rating prompts, as the weighted mean over the models."""
    how, models = finished.facts["selection"]["reflection"], finished.facts["models"]
    named = [i for i, one in enumerate(models) if one["name"] == finished.by.partition("__")[2]]
    if named:
        return np.asarray(tokens[named[0]].std(axis=1))
    parameters = [model["parameters"] for model in models]
    weights = model_weights(parameters, how["variant"], how["weights"])
    spreads = np.stack([one.std(axis=1) for one in tokens], axis=1)
    return np.asarray(spreads @ weights / weights.sum())


def _between_models(finished: Finished, drawn: NDArray[np.int64]) -> Agreement | None:
    names = [model["name"] for model in finished.facts["models"]]
    if len(names) < 2:
        return None
    scores = [finished.scores.scores(f"sentence_score__{name}")[drawn] for name in names]
    return Agreement("", names, rank_correlations(scores))


def _between_prompts(name: str, tokens: NDArray[np.float64]) -> Agreement:
    prompts = [str(1 + i) for i in range(tokens.shape[1])]
    return Agreement(name, prompts, rank_correlations(list(tokens.T)))


# Categories


def _categories(
    dataset: Dataset, reader: RowReader, drawn: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """The first other columns that have few distinct values, with each drawn row's value."""
    read = reader.columns(dataset.column_names)
    others = [c for c in dataset.column_names if c not in read and not is_score(c)][:LOOKED_AT]
    narrow = dataset.select_columns(others)
    found = (_category(narrow, column, drawn) for column in others)
    return list(islice((one for one in found if one is not None), CATEGORY_COLUMNS))


def _category(dataset: Dataset, column: str, drawn: NDArray[np.int64]) -> dict[str, Any] | None:
    kind = dataset.features[column]
    values = dataset.with_format("arrow").select_columns([column])[drawn][column].combine_chunks()
    fits = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer)
    if not any(one(values.type) for one in fits):
        return None
    coded = values.dictionary_encode(null_encoding="encode")
    if not 2 <= len(coded.dictionary) <= min(CATEGORIES, max(2, len(drawn) // 5)):
        return None
    known = coded.dictionary.to_pylist()
    names = kind.int2str if isinstance(kind, ClassLabel) else str
    codes = coded.indices.to_numpy()
    labels = ["(none)" if value is None else names(value) for value in known]
    return {"column": column, "names": labels, "code": packed(codes, "uint8")}


# Embeddings


def _placed(
    dataset: Dataset, reader: RowReader, points: NDArray[np.int64], column: str | None
) -> RowMap | None:
    if len(points) < 3:
        return None
    if column is not None:
        return map_rows(embedding_column(dataset.select(points), column))
    return map_rows(word_embeddings(["\n".join(p) for p in pairs_of(dataset, reader, points)]))


def _embedding_words(column: str | None) -> str:
    if column is not None:
        return f"the embeddings in the column {column}"
    return "the rows' own words (hashed, weighted by TF-IDF, reduced by a truncated SVD)"
