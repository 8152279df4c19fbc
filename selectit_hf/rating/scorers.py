"""The scorers that users map: token and sentence level, and a default scorer for each level."""

from dataclasses import dataclass
from typing import ClassVar

from selectit_hf.rating.model_level import ModelScore
from selectit_hf.rating.rating_scorer import RatingScorer
from selectit_hf.rating.scorer_settings import ScorerSettings

__all__ = ["SentenceScore", "TokenScore", "model_score", "sentence_score", "token_score"]


def _explain(scorer: type[RatingScorer]) -> None:
    """Add the arguments that the base class documents to ``help(scorer)``."""
    told = ScorerSettings.__doc__ or ""
    scorer.__doc__ = f"{scorer.__doc__}\n{told[told.index('    Attributes:') :]}"


@dataclass(frozen=True)
class TokenScore(RatingScorer):
    """Token-level score: the first rating prompt alone (section 3.2; see `RatingScorer`).

    Writes ``rating_logprobs__slug`` (1 list of k float32), ``token_score__slug`` in ``[0, k]``,
    ``status__slug`` and ``rater__slug``.

    Example:
        >>> ds = ds.map(TokenScore("meta-llama/Llama-2-7b-hf"), batched=True)  # doctest: +SKIP
    """

    kinds: ClassVar[tuple[str, ...]] = ("rating_logprobs", "token_score", "status", "rater")

    @property
    def asked(self) -> int:
        """One."""
        return 1


@dataclass(frozen=True)
class SentenceScore(RatingScorer):
    """Sentence-level score: all k rating prompts (section 3.3; see `RatingScorer`).

    Writes ``rating_logprobs__slug`` (k lists of k float32), ``token_score__slug`` (of the first
    rating prompt) and ``sentence_score__slug`` in ``[0, k]``, ``status__slug``, ``rater__slug``.

    Example:
        >>> ds = ds.map(SentenceScore("meta-llama/Llama-2-7b-hf"), batched=True)  # doctest: +SKIP
    """

    kinds: ClassVar[tuple[str, ...]] = (
        "rating_logprobs",
        "token_score",
        "sentence_score",
        "status",
        "rater",
    )

    @property
    def asked(self) -> int:
        """All k."""
        return self.k


for _level in (TokenScore, SentenceScore):
    _explain(_level)

token_score = TokenScore()
sentence_score = SentenceScore()
model_score = ModelScore()
