"""Quality with diversity: the best rows that do not repeat a better row.

Rows are taken best first. A row is left out if it is a near duplicate of a row taken before
("Deduplicating Training Data Makes Language Models Better", arXiv 2107.06499: MinHash over word
shingles), or if its embedding is too close to one (the diversity step of DEITA,
arXiv 2312.15685). The order does not depend on how many rows are wanted: any number of rows is a
beginning of the same list. Memory grows with rows times dimensions, never with pairs of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selectit_hf.errors import SettingError, how_to_install
from selectit_hf.selectors.duplicates import DuplicateIndex
from selectit_hf.selectors.selector import Scores

__all__ = ["Diverse", "best_first", "embed", "too_close"]

BLOCK = 1024
CHUNK = 4096
"""Rows that are processed at a time: in a matrix product, and as texts."""

FEATURES = 2**16
FITTED = 20_000

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Diverse:
    """Any score, with rows that repeat a better one left out.

    Attributes:
        cap: leave out rows whose cosine similarity to a better row is at least this
            (``too_similar``); ``None`` for no cap.
        jaccard: leave out rows that share at least this part of their word shingles with a better
            row (``near_duplicate``); ``None`` to keep them.

    Raises:
        SettingError: a setting out of range.

    Example:
        >>> scores = Diverse().scores(base, texts, embed(texts))  # doctest: +SKIP
    """

    cap: float | None = 0.9
    jaccard: float | None = 0.8

    def __post_init__(self) -> None:
        for name in ("cap", "jaccard"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise SettingError(f"{name}={value} must be above 0 and at most 1.")

    def scores(
        self, base: Scores, texts: Sequence[str], embeddings: NDArray[np.float32] | None = None
    ) -> Scores:
        """``base`` without the rows that repeat a better one.

        Args:
            base: the scores that say which row is better; with equal scores, the earlier row.
            texts: (n) the texts that are compared for near duplicates.
            embeddings: (n, d) any vectors; by default made from ``texts`` by `embed`.

        Raises:
            SettingError: the extra ``compare`` is not installed, or the numbers of rows differ.
        """
        order = best_first(base.values)
        scores = Scores(base.values.copy(), list(base.statuses))
        if self.jaccard is not None:
            repeats = DuplicateIndex(texts, self.jaccard).repeats(order)
            order = _leave_out(scores, order, repeats, "near_duplicate")
        if self.cap is not None:
            vectors = embed(texts) if embeddings is None else _unit(embeddings)
            if len(vectors) != len(texts):
                raise SettingError(
                    f"{len(vectors)} embeddings for {len(texts)} rows; give one each."
                )
            _leave_out(scores, order, too_close(vectors, order, self.cap), "too_similar")
        return scores


def best_first(values: NDArray[np.float64]) -> Rows:
    """The rows with a score, best first; of equal scores the earlier row."""
    rows = np.flatnonzero(np.isfinite(values))
    return np.asarray(rows[np.argsort(-values[rows], kind="stable")])


def _leave_out(scores: Scores, order: Rows, repeats: Rows, status: str) -> Rows:
    """Remove the scores of rows that repeat another; return the order of the others."""
    for i in np.flatnonzero(repeats >= 0).tolist():
        scores.values[i] = np.nan
        scores.statuses[i] = status
    return np.asarray(order[repeats[order] < 0])


def embed(texts: Sequence[str], dimensions: int = 256, seed: int = 0) -> NDArray[np.float32]:
    """Embed texts without any model: latent semantic analysis of their words.

    Hashed word counts, weighted by TF-IDF, projected onto the main directions of a seeded sample of
    20,000 texts. (n) texts to (n, d) float32 vectors of length 1, ``d`` at most ``dimensions`` and
    the number of texts; a text without a word is the zero vector, similar to nothing. To compare
    meaning rather than words, use vectors of a sentence model instead.
    """
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    except ImportError as error:
        raise SettingError(
            f"Embedding texts needs scikit-learn: {how_to_install('compare')}. Or give embeddings "
            "of your own."
        ) from error

    hashed = HashingVectorizer(
        n_features=FEATURES, alternate_sign=False, norm=None, dtype=np.float32
    )
    fitted = np.sort(np.random.default_rng(seed).permutation(len(texts))[:FITTED])
    counts = hashed.transform(texts[i] for i in fitted.tolist())
    weighted = TfidfTransformer(sublinear_tf=True).fit(counts)
    size = max(min(dimensions, len(fitted) - 1), 1)
    with np.errstate(invalid="ignore", divide="ignore"):  # identical texts have no variance
        directions = TruncatedSVD(size, random_state=seed, n_iter=2).fit(weighted.transform(counts))
    parts = [
        directions.transform(weighted.transform(hashed.transform(texts[i : i + CHUNK])))
        for i in range(0, len(texts), CHUNK)
    ]
    return _unit(np.concatenate(parts))


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise SettingError("Embeddings must be finite vectors, one for each row, of one length.")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 1e-12, norms, 1), dtype=np.float32)


def too_close(vectors: NDArray[np.float32], order: Rows, cap: float) -> Rows:
    """For each row, the nearest earlier row in ``order`` that it is too close to, -1 for none.

    ``vectors`` (n, d) have length 1. A row is too close if its cosine similarity to a row that was
    taken is ``cap`` or more. Returns (n) int64; every row it names was itself taken.
    """
    repeats = np.full(len(vectors), -1)
    taken: Rows = np.empty(len(order), np.int64)
    count = 0
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        nearest, best = _nearest(vectors, rows, taken[:count])
        within = vectors[rows] @ vectors[rows].T
        for i, row in enumerate(rows.tolist()):
            if best[i] >= cap:
                repeats[row] = nearest[i]
                continue
            taken[count] = row
            count += 1
            closer = within[i] > best
            best[closer], nearest[closer] = within[i][closer], row
    return repeats


def _nearest(
    vectors: NDArray[np.float32], rows: Rows, taken: Rows
) -> tuple[Rows, NDArray[np.float32]]:
    """For each of ``rows``, the nearest of ``taken`` and its similarity."""
    nearest, best = np.full(len(rows), -1), np.full(len(rows), -np.inf, np.float32)
    for start in range(0, len(taken), CHUNK):
        part = taken[start : start + CHUNK]
        similar = vectors[rows] @ vectors[part].T
        at = similar.argmax(axis=1)
        found = similar[np.arange(len(rows)), at]
        closer = found > best
        best[closer], nearest[closer] = found[closer], part[at[closer]]
    return nearest, best
