"""The model level: the ratings of several models, weighted, in one score."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, Features, Value
from numpy.typing import NDArray

from selectit_hf.errors import RatingsError
from selectit_hf.formats import STATUSES, check_batch, worst
from selectit_hf.rating import reflection
from selectit_hf.rating.batches import as_lists, with_columns
from selectit_hf.rating.models.model_names import slug
from selectit_hf.rating.ratings import Batch, Ratings, nulled, read_ratings, typed
from selectit_hf.rating.reflection import Variant, check_alpha, check_variant
from selectit_hf.rating.scorer_settings import settings_of

__all__ = ["ModelScore"]


@dataclass(frozen=True)
class ModelScore:
    """Model-level score: the sentence scores of several models, weighted (section 3.4).

    Computed from the ratings stored in ``rating_logprobs__slug`` and the parameter counts in
    ``rater__slug``. No model is loaded. The sentence score columns are not read, so ``alpha`` and
    ``variant`` apply to all models alike. Writes ``model_score`` in ``[0, k]`` (with
    ``"released"`` up to 1.78 k), null where any model has no rating, and ``selectit_status``, the
    worst of the models' statuses.

    Attributes:
        models: slugs or model names, in order; ``None`` for every model rated in the dataset, in
            column order.
        weights: one for each model, instead of the parameter counts; divided by their sum.
        alpha, variant: see `RatingScorer`.

    Raises:
        SettingError: ``alpha`` or ``variant`` out of range.

    Example:
        >>> ds = ds.map(ModelScore(), batched=True)  # doctest: +SKIP
    """

    models: Sequence[str] | None = None
    weights: Sequence[float] | None = None
    alpha: float = 0.2
    variant: Variant = "paper"

    columns: ClassVar[dict[str, Any]] = {
        "model_score": Value("float32"),
        "selectit_status": Value("string"),
    }

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_variant(self.variant, 5)
        for name in ("models", "weights"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))

    def __getstate__(self) -> dict[str, Any]:
        """The settings and the version of the formulas."""
        return {**settings_of(self), "version": reflection.FORMULA_VERSION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in (f.name for f in dataclasses.fields(self)):
            object.__setattr__(self, name, state[name])

    def features(self, dataset: Dataset) -> Features:
        """The dataset's features with this scorer's columns added, for ``map(features=...)``."""
        return Features({**dataset.features, **self.columns})

    def __call__(self, batch: Any) -> Any:
        """Add ``model_score`` and ``selectit_status`` to a batch; see `RatingScorer.__call__`.

        Raises:
            RatingsError: a model without stored ratings, with fewer than k rating prompts, or with
                another scale than the others.
            SettingError: weights or ``"released"`` with another number of models.
        """
        rows: Batch = as_lists(batch)
        check_batch(rows)
        _check_ours(rows)
        stored = {name: read_ratings(rows, name) for name in self.slugs(list(rows))}
        return with_columns(batch, typed(self.combine(stored), self.columns), self.columns)

    def combine(self, stored: Mapping[str, Ratings]) -> dict[str, list[Any]]:
        """The two columns from the ratings of each model, by slug; see `__call__` for errors."""
        for name, ratings in stored.items():
            if "" in ratings.statuses:
                raise RatingsError(
                    f"{ratings.statuses.count('')} rows have not been rated by {name!r}; map its "
                    "scorer over the whole dataset, which rates only those."
                )
        rated = np.all([ratings.rated for ratings in stored.values()], axis=0)
        statuses = zip(*(ratings.statuses for ratings in stored.values()), strict=True)
        return {
            "model_score": nulled(self._scores(stored).astype(np.float32), rated),
            "selectit_status": [worst(row) for row in statuses],
        }

    def slugs(self, columns: Sequence[str]) -> list[str]:
        """The models that are combined, as their slugs in the column names.

        Raises:
            RatingsError: none at all, or one that is not there.
        """
        there = [c.removeprefix("rater__") for c in columns if c.startswith("rater__")]
        if not there:
            raise RatingsError(
                "No model has rated these rows: there is no rater__* column. Map a SentenceScore "
                "for each model first."
            )
        if self.models is None:
            return there
        asked = [name if name in there else slug(name) for name in self.models]
        missing = [name for name in asked if name not in there]
        if missing:
            raise RatingsError(
                f"The model {missing[0]!r} has not rated these rows; these models have: "
                f"{', '.join(there)}."
            )
        return asked

    def _scores(self, stored: Mapping[str, Ratings]) -> NDArray[np.float64]:
        """(n) model-level scores, NaN where a model has no rating."""
        parameters = [int(ratings.rater.get("parameters", 1)) for ratings in stored.values()]
        weights = reflection.model_weights(parameters, self.variant, self.weights)
        scales = {ratings.logprobs.shape[2] for ratings in stored.values() if ratings.rated.any()}
        if len(scales) > 1:
            raise RatingsError(f"The models rated on different scales, k = {sorted(scales)}.")
        sentences = [self._sentence_scores(name, ratings) for name, ratings in stored.items()]
        return reflection.model_score(np.stack(sentences, axis=-1), weights)

    def _sentence_scores(self, name: str, ratings: Ratings) -> NDArray[np.float64]:
        if not ratings.rated.any():
            return np.full(len(ratings.statuses), np.nan)
        k = ratings.logprobs.shape[2]
        check_variant(self.variant, k)
        fewest = int(ratings.asked[ratings.rated].min())
        if fewest < k:
            raise RatingsError(
                f"The model {name!r} was asked {fewest} of {k} rating prompts for some rows; the "
                "model level needs all. Map a SentenceScore with the same settings, which asks the "
                "missing ones only."
            )
        tokens = reflection.token_score(ratings.logprobs, self.variant)
        return reflection.sentence_score(tokens, self.alpha)


def _check_ours(batch: Batch) -> None:
    """Refuse to overwrite a column with the model level's name that this package did not write."""
    scores, statuses = batch.get("model_score", ()), batch.get("selectit_status", ())
    if any(isinstance(value, str) for value in scores) or {*statuses} - {*STATUSES, None}:
        raise RatingsError(
            "The dataset has a column 'model_score' or 'selectit_status' that no scorer wrote "
            "and that would be overwritten; rename it."
        )
