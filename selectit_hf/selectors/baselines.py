"""The simple selectors that SelectIT is compared with; they need no further forward pass.

`Expected` ranks by the mean rating, `Random` by a seeded draw, `Length` by the response's tokens.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from numpy.typing import NDArray

from selectit_hf.errors import RatingsError, SettingError
from selectit_hf.formats import Pair, Turns, check_batch, worst
from selectit_hf.rating import (
    Batch,
    Checkpoint,
    ModelScore,
    Ratings,
    TokenScore,
    read_ratings,
    reflection,
    settings_of,
    text_ids,
)
from selectit_hf.selectors.selector import (
    Measured,
    Measurement,
    Progress,
    ResolvedSelector,
    Scores,
    key_of,
    numbers,
    score_columns,
    texts,
    to_columns,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Expected", "Length", "Random", "expected_rating"]

LENGTH_VERSION = 1


def expected_rating(logprobs: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The mean rating ``sum_i i * P'_i``, averaged over the rating prompts.

    ``P'`` are the probabilities of section 3.2, equation 1 of SelectIT (arXiv 2402.16705), without
    its uncertainty: ``(..., prompts, k)`` log-probabilities to ``(...)`` float64 in ``[1, k]``.
    G-Eval (arXiv 2303.16634) scores by such a mean, and some tools publish it as SelectIT; it is
    not SelectIT's score.
    """
    p = reflection.normalised(logprobs)
    return np.asarray((p @ np.arange(1, p.shape[-1] + 1)).mean(axis=-1))


@dataclass(frozen=True)
class Expected:
    """The expected rating from stored ratings; see `expected_rating`. Range 1 to k.

    For several models it is the mean, weighted as in `selectit_hf.ModelScore`.

    Attributes:
        models, weights: see `ModelScore`.

    Example:
        >>> ds = ds.map(Expected(), batched=True)  # doctest: +SKIP
    """

    models: Sequence[str] | None = None
    weights: Sequence[float] | None = None

    name: ClassVar[str] = "expected"
    columns: ClassVar[dict[str, Any]] = score_columns("expected")

    def __post_init__(self) -> None:
        for setting in ("models", "weights"):
            value = getattr(self, setting)
            if value is not None:
                object.__setattr__(self, setting, tuple(value))

    def features(self, dataset: Dataset) -> Features:
        """The dataset's features with these columns added, for ``map(features=...)``."""
        return Features({**dataset.features, **self.columns})

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Add ``score__expected`` and ``status__expected`` to rows that a model rated.

        Raises:
            RatingsError: no ratings, or rows that were asked different numbers of prompts.
        """
        check_batch(batch)
        slugs = ModelScore(models=self.models).slugs(list(batch))
        return to_columns(self.name, self.combine({s: read_ratings(batch, s) for s in slugs}))

    def combine(self, stored: Mapping[str, Ratings]) -> Scores:
        """The scores from the ratings of each model, by slug; see `__call__` for errors."""
        expected = [_expected(name, ratings) for name, ratings in stored.items()]
        parameters = [int(ratings.rater.get("parameters", 1)) for ratings in stored.values()]
        weights = reflection.model_weights(parameters, weights=self.weights)
        rows = zip(*(ratings.statuses for ratings in stored.values()), strict=True)
        values = reflection.model_score(np.stack(expected, axis=-1), weights)
        return Scores(values, [worst(row) for row in rows])


def _expected(name: str, ratings: Ratings) -> NDArray[np.float64]:
    values = np.full(len(ratings.statuses), np.nan)
    if "" in ratings.statuses:
        raise RatingsError(f"Some rows have not been rated by {name!r}; rate the whole dataset.")
    if not ratings.rated.any():
        return values
    asked = np.unique(ratings.asked[ratings.rated])
    if len(asked) > 1:
        raise RatingsError(
            f"The model {name!r} was asked {asked.min()} rating prompts for some rows and "
            f"{asked.max()} for others; map its SentenceScore, which asks the missing ones."
        )
    values[ratings.rated] = expected_rating(ratings.logprobs[ratings.rated][:, : asked[0]])
    return values


@dataclass(frozen=True)
class Random:
    """A seeded draw for each row: the random baseline of every table. Uniform in ``[0, 1)``.

    Row ``i`` gets draw ``i`` of ``numpy.random.default_rng(seed)``, whatever the batches, workers
    and rows around it.

    Attributes:
        seed: the seed; another seed gives another selection.

    Example:
        >>> ds = ds.map(Random(seed=1), with_indices=True, batched=True)  # doctest: +SKIP
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    columns: ClassVar[dict[str, Any]] = score_columns("random")

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise SettingError(f"seed={self.seed} must be at least 0.")

    def features(self, dataset: Dataset) -> Features:
        """The dataset's features with these columns added, for ``map(features=...)``."""
        return Features({**dataset.features, **self.columns})

    def __call__(self, batch: Batch, indices: Sequence[int]) -> dict[str, Any]:
        """Add ``score__random`` and ``status__random``; map ``with_indices=True``."""
        return to_columns(self.name, self.draw(indices))

    def draw(self, rows: Sequence[int] | range) -> Scores:
        """The scores of the rows with these numbers."""
        wanted = np.asarray(rows, dtype=np.int64)
        first, last = (wanted.min(), wanted.max() + 1) if len(wanted) else (0, 0)
        bits = np.random.default_rng(self.seed).bit_generator
        bits.advance(int(first))  # type: ignore[attr-defined]  # PCG64's, one step a draw
        draws = np.random.Generator(bits).random(int(last - first))
        return Scores(draws[wanted - first], ["ok"] * len(wanted))

    def draw_outside(self, kept: NDArray[np.bool_]) -> Scores:
        """The scores of all rows except those that another selector keeps.

        This is "Random from the unselected rows" of SelectIT (arXiv 2402.16705, Table 10). The rows
        in ``kept``, (n) bool, get no score and the status ``selected``.
        """
        draws = self.draw(range(len(kept))).values
        statuses = ["selected" if one else "ok" for one in kept.tolist()]
        return Scores(np.where(kept, np.nan, draws), statuses)


@dataclass(frozen=True)
class Length(ResolvedSelector):
    """The number of tokens of the response: the longer the better.

    "Long Is More for Alignment" (arXiv 2402.04833) keeps the longest responses. Tokens are counted
    with the rater's own tokenizer, without special tokens around the text and without truncation.
    No weights are loaded. Writes ``response_tokens__slug`` and
    ``score__length_slug``, ``status__length_slug``.

    Attributes:
        model, revision, base_model: the model whose tokenizer counts; see `selectit_hf.TokenScore`.
        instruction_column, response_column, turns, translation, roles: see
            `selectit_hf.formats.rows.RowReader`.
        slug: replaces the model's name in the column names.

    Example:
        >>> ds = ds.map(Length("meta-llama/Llama-2-7b-hf"), batched=True)  # doctest: +SKIP
    """

    model: str | None = None
    revision: str | None = None
    base_model: str | None = None
    instruction_column: str | None = None
    response_column: str | None = None
    turns: Turns | None = None
    translation: str | None = None
    roles: Sequence[str] | None = None
    slug: str | None = None
    _rater: TokenScore = field(init=False, repr=False, compare=False, hash=False)

    fields: ClassVar[dict[str, Any]] = {"tokens": Value("int32"), "status": Value("string")}

    def __post_init__(self) -> None:
        settings = settings_of(self)
        # No model runs, so any device will do.
        rater = TokenScore(name=settings.pop("slug"), device="cpu", **settings)
        object.__setattr__(self, "_rater", rater)

    def __getstate__(self) -> dict[str, Any]:
        """All resolved settings that can change a value, the revision as a commit or hash."""
        rater = self._rater.__getstate__()
        state = {f.name: rater[f.name] for f in dataclasses.fields(self) if f.name in rater}
        state = {name: value for name, value in state.items() if name != "base_model" or value}
        return {**state, "slug": self.slug, "version": LENGTH_VERSION}

    @property
    def name(self) -> str:
        """``length_slug``."""
        return f"length_{self._rater.slug}"

    @property
    def column(self) -> str:
        """``response_tokens__slug``."""
        return f"response_tokens__{self._rater.slug}"

    def key(self) -> str:
        """A hash of all that can change a length."""
        state = self.__getstate__()
        for unread in ("model", "base_model", "slug"):
            state.pop(unread, None)
        return key_of(state)

    def measurements(self) -> tuple[Measurement, ...]:
        """The lengths themselves."""
        return (self,)

    def measure(
        self, batch: Batch, rank: int | None = None, progress: Progress | None = None
    ) -> Measured:
        """Count the tokens of each response; see `Selector.__call__` for the errors."""
        pairs = self._rater.reader.pairs(batch)
        responses = [pair.response for pair in pairs if isinstance(pair, Pair)]
        counts = map(len, text_ids(_tokenizer(self._rater.checkpoint), responses))
        tokens = [next(counts) if isinstance(pair, Pair) else None for pair in pairs]
        statuses = ["ok" if isinstance(pair, Pair) else pair for pair in pairs]
        if progress is not None:
            progress(len(pairs))
        types = {"tokens": pa.int32(), "status": pa.string()}
        return Measured(pa.table([tokens, statuses], schema=pa.schema(types)))

    def scores(self, tables: Sequence[pa.Table]) -> Scores:
        """The lengths as scores."""
        return Scores(numbers(tables[0], "tokens"), texts(tables[0], "status"))


@functools.lru_cache(maxsize=1)
def _tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    return checkpoint.tokenizer()
