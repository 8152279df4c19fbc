"""How selectors differ: what each keeps, how alike their scores are, what the kept rows hold.

Everything is computed from scores that exist already; nothing is measured here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selectit_hf.analysis.measures import Cost
from selectit_hf.errors import SettingError
from selectit_hf.formats import Pair
from selectit_hf.selection import Cut, decide, kept_rows
from selectit_hf.selectors import DuplicateIndex, Scores, embed

__all__ = ["Candidate", "Comparison", "compare", "spearman"]

CODE = re.compile(
    r"```|^\s*(def \w+\(|class \w+[(:{]|import [\w.]+;?$|from \w+ import |#include\b|<\?php|"
    r"(public|private|static) [\w<>\[\]]+ \w+\(|function \w*\(|for ?\(.*;.*\)|SELECT\b.+\bFROM\b)"
    r"|</(div|p|html|body|script|span|table)>",
    re.MULTILINE,
)
"""What marks a response as one with code; a rule of thumb."""

Matrix = list[list[float | None]]


@dataclass(frozen=True)
class Candidate:
    """A selector in a comparison.

    Attributes:
        name: what it is called.
        scores: its scores of all rows.
        cost: what its measurements cost, whoever paid for them.
        paid: the part of the cost that was paid for this comparison.
        cut: how much it keeps, where it differs from the comparison's cut (a published subset).
        note: what else a reader should know.
    """

    name: str
    scores: Scores
    cost: Cost = field(default_factory=Cost)
    paid: Cost = field(default_factory=Cost)
    cut: Cut | None = None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Selectors side by side, in the order they were named.

    Attributes:
        cut: how much each keeps.
        rows: the number of rows.
        selectors: facts of each one: ``name``, ``kept``, ``mean_response_characters``,
            ``mean_response_tokens`` (null without a tokenizer), ``digit_share`` and ``code_share``
            (of responses), ``duplicate_share`` (kept rows that nearly repeat an earlier kept row),
            ``diversity`` (mean cosine distance of two kept rows), ``reasons``, ``cost``, ``paid``.
        everything: the same facts of all rows.
        jaccard: rows kept by both over rows kept by either, for each pair of selectors; null where
            neither keeps any.
        share: the share of the row selector's kept rows that the column selector keeps too.
        spearman: rank correlation of the scores, over rows that have both; null below two rows.
    """

    cut: Cut
    rows: int
    selectors: list[dict[str, Any]]
    everything: dict[str, Any]
    jaccard: Matrix
    share: Matrix
    spearman: Matrix

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        cut = {name: value for name, value in vars(self.cut).items() if value is not None}
        return {**vars(self), "cut": cut}


def compare(
    candidates: Sequence[Candidate],
    pairs: Sequence[Pair | str],
    cut: Cut,
    tokens: NDArray[np.float64] | None = None,
    embeddings: NDArray[np.float32] | None = None,
) -> Comparison:
    """Compare what selectors keep of the same rows.

    Args:
        candidates: the selectors.
        pairs: (n) the rows, as `selectit_hf.formats.rows.RowReader` reads them.
        cut: how much each keeps.
        tokens: (n) tokens of each response, NaN for none.
        embeddings: (n, d) vectors of length 1; made from the texts where not given.

    Raises:
        SettingError: a name occurs twice, scores of another number of rows, or the extra
            ``compare`` is not installed.
    """
    names = [one.name for one in candidates]
    if len(set(names)) < len(names):
        raise SettingError(f"A selector is named twice: {', '.join(names)}; name each once.")
    for one in candidates:
        if len(one.scores.values) != len(pairs):
            raise SettingError(
                f"{one.name!r} scores {len(one.scores.values)} rows, but there are {len(pairs)}."
            )
    decided = [decide(one.scores.values, one.cut or cut, one.scores.statuses) for one in candidates]
    kept = [kept_rows(table) for table in decided]
    contents = _Contents(pairs, tokens, embeddings)
    facts = []
    for one, table, mask in zip(candidates, decided, kept, strict=True):
        reasons = {r["values"]: r["counts"] for r in table["reason"].value_counts().to_pylist()}
        own = {"reasons": reasons, "cost": one.cost._asdict(), "paid": one.paid._asdict()}
        facts.append({"name": one.name, **contents.facts(mask), **own, "note": one.note})
    return Comparison(
        cut,
        len(pairs),
        facts,
        contents.facts(np.ones(len(pairs), np.bool_)),
        [[_ratio((a & b).sum(), (a | b).sum()) for b in kept] for a in kept],
        [[_ratio((a & b).sum(), a.sum()) for b in kept] for a in kept],
        [[spearman(a.scores.values, b.scores.values) for b in candidates] for a in candidates],
    )


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation over rows with both scores, equal scores sharing their rank.

    ``None`` where fewer than two rows have both, or all have the same.
    """
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2:
        return None
    ranks = [_ranks(values[both]) for values in (a, b)]
    x, y = (rank - rank.mean() for rank in ranks)
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread > 0 else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the places that equal values share."""
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[at])


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


class _Contents:
    """The contents of each row, read once for all selectors."""

    def __init__(
        self,
        pairs: Sequence[Pair | str],
        tokens: NDArray[np.float64] | None,
        embeddings: NDArray[np.float32] | None,
    ) -> None:
        responses = [pair.response if isinstance(pair, Pair) else "" for pair in pairs]
        texts = ["\n".join(pair) if isinstance(pair, Pair) else "" for pair in pairs]
        self.readable = np.array([isinstance(pair, Pair) for pair in pairs], dtype=np.bool_)
        self.characters = np.array([len(text) for text in responses], dtype=np.float64)
        self.tokens = tokens
        self.digits = np.array([any(map(str.isdigit, text)) for text in responses])
        self.code = np.array([CODE.search(text) is not None for text in responses])
        self.duplicates = DuplicateIndex(texts)
        self.vectors = embed(texts) if embeddings is None else embeddings

    def facts(self, kept: NDArray[np.bool_]) -> dict[str, Any]:
        """Facts about the kept rows; null where none is kept."""
        rows = np.flatnonzero(kept & self.readable)
        repeats = self.duplicates.repeats(rows)
        return {
            "kept": int(kept.sum()),
            "mean_response_characters": _mean(self.characters[rows]),
            "mean_response_tokens": _mean(self.tokens[rows]) if self.tokens is not None else None,
            "digit_share": _mean(self.digits[rows]),
            "code_share": _mean(self.code[rows]),
            "duplicate_share": _mean(repeats[rows] >= 0),
            "diversity": _mean_distance(self.vectors[rows]),
        }


def _mean(values: NDArray[Any]) -> float | None:
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _mean_distance(vectors: NDArray[np.float32]) -> float | None:
    """Mean cosine distance of two different rows, exact: ``sum_ij v_i.v_j = |sum_i v_i|^2``."""
    count = len(vectors)
    if count < 2:
        return None
    values = vectors.astype(np.float64)
    total = values.sum(axis=0)
    similar = total @ total - (values * values).sum()
    return float(1 - similar / (count * (count - 1)))
