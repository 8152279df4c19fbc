"""Where rows lie relative to each other: embeddings, a 2-D map, distance to the centre.

The representation analysis of SelectIT (arXiv 2402.16705) asks whether the kept rows lie where the
others do. Embeddings come from a column of the dataset, or from the words of the rows alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from selectit_hf.errors import InputError, SettingError, how_to_install

__all__ = ["RowMap", "embedding_column", "map_rows", "word_embeddings"]

FEATURES = 2**14
DIMENSIONS = 64
SEED = 0


@dataclass(frozen=True)
class RowMap:
    """Rows in the plane.

    Attributes:
        xy: (n, 2) float32, the first two principal components of the embeddings.
        distance: (n) float32, Euclidean distance to the mean of all embeddings.
        explained: share of the embeddings' variance along each of the two components.
    """

    xy: NDArray[np.float32]
    distance: NDArray[np.float32]
    explained: tuple[float, float]


def word_embeddings(texts: Sequence[str]) -> NDArray[np.float32]:
    """Latent semantic analysis: ``n`` texts to ``(n, d)`` float32 of length 1, ``d`` at most 64.

    Words are hashed into 16,384 features and weighted by TF-IDF; a truncated SVD keeps the largest
    directions. The same texts give the same embeddings. A text without a word is all zeros.

    Raises:
        SettingError: scikit-learn is not installed.
    """
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import (
            HashingVectorizer,
            TfidfTransformer,
        )
        from sklearn.preprocessing import normalize
    except ImportError as error:
        raise _missing() from error
    hashed = HashingVectorizer(n_features=FEATURES, alternate_sign=False, norm=None)
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(hashed.fit_transform(texts))
    dimensions = max(1, min(DIMENSIONS, len(texts) - 1))
    reduced = TruncatedSVD(dimensions, random_state=SEED).fit_transform(weighted)
    return np.asarray(normalize(reduced), dtype=np.float32)


def embedding_column(dataset: Dataset, name: str) -> NDArray[np.float32]:
    """The embeddings in a column of lists of numbers, all of one length: ``(n, d)`` float32.

    Raises:
        InputError: there is no such column, or it holds something else.
    """
    if name not in dataset.column_names:
        raise InputError(
            f"There is no column {name!r} with embeddings; the dataset has {dataset.column_names}."
        )
    column = dataset.with_format("arrow").select_columns([name])[:][name]
    lists = column.cast(pa.list_(pa.float32())) if _is_numbers(column.type) else None
    lengths = set() if lists is None else set(lists.combine_chunks().value_lengths().to_pylist())
    flat = None if lists is None else lists.combine_chunks().flatten()
    if flat is None or len(lengths) != 1 or not lengths - {0, None} or flat.null_count:
        raise InputError(
            f"The column {name!r} holds {column.type}, not embeddings, which are lists of numbers, "
            "all of one length and none missing."
        )
    values = flat.to_numpy().reshape(len(column), -1)
    if not np.isfinite(values).all():
        raise InputError(f"The column {name!r} holds embeddings that are not finite; fix them.")
    return np.asarray(values)


def _is_numbers(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(one(kind) for one in lists):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def map_rows(embeddings: NDArray[np.float32]) -> RowMap:
    """Principal components and distances to the centre of ``(n, d)`` embeddings."""
    centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    plane = directions[:, ::-1][:, :2]
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), range(plane.shape[1])])
    xy = np.zeros((len(centred), 2), dtype=np.float32)
    xy[:, : plane.shape[1]] = centred @ plane
    total = float(variances.sum())
    first, second = [
        float(one) / total if total > 0 else 0.0 for one in [*variances[::-1], 0.0][:2]
    ]
    distance = np.linalg.norm(centred, axis=1).astype(np.float32)
    return RowMap(xy, distance, (first, second))


def _missing() -> SettingError:
    return SettingError(f"The report needs bokeh and scikit-learn: {how_to_install('report')}.")
