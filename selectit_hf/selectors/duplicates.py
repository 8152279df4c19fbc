"""Near duplicates among texts, in memory that grows with the texts and not with their pairs."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from selectit_hf.errors import SettingError, how_to_install

__all__ = ["DuplicateIndex"]

SHINGLE = 3
BANDS, IN_BAND = 32, 4
"""With these bands two texts that share 80 % of their shingles meet with probability 1 - 5e-8."""

DOUBT = 0.15
"""How far an estimate from two signatures may be below the true value: four deviations."""

Rows = NDArray[np.int64]


class DuplicateIndex:
    """Finds near duplicates among texts, in any order of them.

    Two texts are near duplicates if their sets of three consecutive words, without case and
    punctuation, overlap by ``|A and B| / |A or B| >= jaccard``. Candidates share a bucket of
    MinHash signatures (Broder 1997), and each is then checked exactly. Texts without a word repeat
    nothing.

    Args:
        texts: (n) texts.
        jaccard: the overlap of near duplicates; below 0.5 some may be missed.

    Raises:
        SettingError: the extra ``compare`` is not installed.
    """

    def __init__(self, texts: Sequence[str], jaccard: float = 0.8) -> None:
        self.texts, self.jaccard = texts, jaccard
        self._signatures = _signatures(texts)
        self._buckets = _buckets(self._signatures)

    def repeats(self, order: Rows) -> Rows:
        """For each row, the earlier row in ``order`` that it repeats, -1 for none.

        ``order`` holds the numbers of some or all rows. Returns (n) int64; no row it names repeats
        another.
        """
        meets: dict[int, list[int]] = {}
        repeats = np.full(len(self.texts), -1)
        for i in order.tolist():
            own = self._buckets[i][self._buckets[i] >= 0].tolist()
            others = sorted({other for bucket in own for other in meets.get(bucket, ())})
            repeats[i] = self._repeated(i, np.array(others, np.int64)) if others else -1
            if repeats[i] < 0:
                for bucket in own:
                    meets.setdefault(bucket, []).append(i)
        return repeats

    def _repeated(self, row: int, others: Rows) -> int:
        """Which of ``others`` a row repeats, trying the most similar first; -1 for none."""
        alike = (self._signatures[others] == self._signatures[row]).mean(axis=1)
        likely = np.argsort(-alike, kind="stable")[: int((alike >= self.jaccard - DOUBT).sum())]
        own = _shingles(self.texts[row])
        for other in others[likely].tolist():
            its = _shingles(self.texts[other])
            if len(own & its) >= self.jaccard * len(own | its):
                return int(other)
        return -1


def _signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """(n, BANDS * IN_BAND) MinHash values."""
    try:
        import datasketch
        import xxhash
    except ImportError as error:
        raise SettingError(
            f"Finding near duplicates needs datasketch and xxhash: {how_to_install('compare')}."
        ) from error
    blank = datasketch.MinHash(BANDS * IN_BAND, seed=1, hashfunc=xxhash.xxh32_intdigest)
    signatures = np.empty((len(texts), BANDS * IN_BAND), np.uint32)
    for i in range(len(texts)):
        one = blank.copy()
        one.update_batch(_shingles(texts[i]))
        signatures[i] = one.hashvalues
    return signatures


def _buckets(signatures: NDArray[np.uint32]) -> Rows:
    """(n, BANDS) the bucket that a text shares with others in each band, -1 for none."""
    buckets = np.full((len(signatures), BANDS), -1)
    wordless = (signatures == np.iinfo(np.uint32).max).all(axis=1)
    for band in range(BANDS):
        part = signatures[:, band * IN_BAND : (band + 1) * IN_BAND]
        _, at, count = np.unique(part, axis=0, return_inverse=True, return_counts=True)
        at = at.ravel()
        shared = (count[at] > 1) & ~wordless
        buckets[shared, band] = at[shared] * BANDS + band
    return buckets


def _shingles(text: str) -> set[bytes]:
    words = re.findall(r"\w+", text.casefold())
    starts = range(max(len(words) - SHINGLE + 1, 1)) if words else range(0)
    return {" ".join(words[i : i + SHINGLE]).encode() for i in starts}
