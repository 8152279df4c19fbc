"""The `Dataset.map` callables: rate on the GPU once, reflect on the CPU for free.

A scorer is a frozen dataclass of settings. Its hash, which `datasets` uses for its cache, covers
the resolved settings that can change a rating and nothing else; see `RatingScorer.__getstate__`.
The raw ratings are stored next to the scores, so another ``alpha``, ``variant`` or level never
costs another forward pass.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from datasets import Dataset, Features, List, Value

from selectit_hf.formats import REMEDIES, of_statuses
from selectit_hf.rating import reflection
from selectit_hf.rating.batches import as_lists, with_columns
from selectit_hf.rating.placement import planned_budget
from selectit_hf.rating.prompts.rating_prompts import Template, load_rating_prompts
from selectit_hf.rating.rate_batch import inside_batch, rate_batch
from selectit_hf.rating.rater import Question, Rater
from selectit_hf.rating.ratings import Batch, Ratings, nulled, typed
from selectit_hf.rating.scorer_settings import OF_THE_WEIGHTS, ScorerSettings

__all__ = ["RatingScorer"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RatingScorer(ScorerSettings):
    """The base of `TokenScore` and `SentenceScore`: a model that rates; see `ScorerSettings`."""

    kinds: ClassVar[tuple[str, ...]]

    @property
    def asked(self) -> int:
        """How many of the k rating prompts are asked."""
        raise NotImplementedError

    # What it writes

    @property
    def columns(self) -> dict[str, Any]:
        """The columns this scorer writes, with their `datasets` feature types."""
        of = {
            "rating_logprobs": List(List(Value("float32"))),
            "token_score": Value("float32"),
            "sentence_score": Value("float32"),
            "status": Value("string"),
            "rater": {
                "model": Value("string"),
                "revision": Value("string"),
                "parameters": Value("int64"),
                "rating_key": Value("string"),
                "pair": Value("string"),
            },
        }
        return {f"{kind}__{self.slug}": of[kind] for kind in self.kinds}

    def features(self, dataset: Dataset) -> Features:
        """The dataset's features with the score columns added, for ``map(features=...)``."""
        return Features({**dataset.features, **self.columns})

    def values(self, ratings: Ratings) -> dict[str, list[Any]]:
        """Score columns from ratings, one entry for each row; ``None`` without a rating."""
        tokens = reflection.token_score(ratings.logprobs, self.variant)
        sentences = reflection.sentence_score(tokens, self.alpha)
        of = {
            "rating_logprobs": nulled(ratings.logprobs, ratings.rated),
            "token_score": nulled(tokens[:, 0].astype(np.float32), ratings.rated),
            "sentence_score": nulled(sentences.astype(np.float32), ratings.rated),
            "status": ratings.statuses,
            "rater": [{**ratings.rater, "pair": pair} for pair in ratings.texts()],
        }
        return {f"{kind}__{self.slug}": of[kind] for kind in self.kinds}

    # What it does

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """Add the score columns to a batch, for `datasets` and for Ray Data.

        That is, for ``Dataset.map(scorer, batched=True)`` and ``map_batches(scorer)``.

        Args:
            batch: a dict of lists or of NumPy arrays, all of one length, a ``pandas.DataFrame`` or
                a ``pyarrow.Table``.
            rank: the worker's number, as ``with_rank=True`` gives it; chooses the GPU.

        Returns:
            The score columns, one entry for each row, in order; for a table, and for Ray Data,
            after the columns of the batch. See `selectit_hf.rating.batches`.

        Raises:
            InputError: the columns do not fit.
            ModelError: the model cannot be loaded or cannot rate.
            RatingsError: the batch holds ratings of another scorer under the same column names.
        """
        lists = as_lists(batch)
        with inside_batch(self, lists, rank) as progress:
            ratings = self.rate(lists, rank, progress)
        _warn_of_unrated(self.slug, ratings.statuses)
        return with_columns(batch, typed(self.values(ratings), self.columns), self.columns)

    def rate(
        self,
        batch: Batch,
        rank: int | None = None,
        progress: Callable[[int], None] | None = None,
        then: Batch | None = None,
    ) -> Ratings:
        """The raw ratings of a batch.

        Meanwhile the next batch, ``then``, is tokenized.

        Ratings that the same scorer left in the batch are used again, and only missing rating
        prompts are asked; if none is missing, no model is loaded. Stored ratings are recognised by
        the scorer's settings and by the text of the row, so an edited row is rated again. See
        `__call__` for the errors; ``progress`` is called with the number of rating prompts done.
        """
        return rate_batch(self, batch, rank, progress, then)

    def prepare(self) -> None:
        """Load the tokenizer, and refuse a model that cannot rate before any weights are read.

        Raises:
            ModelError: there is no such model, or its tokenizer cannot rate.
            SettingError: the rating prompts are longer than the model's context.
        """
        self.check_place()
        self.rater(None).encoder()

    def weights_facts(self) -> dict[str, str]:
        """Further facts about the weights, each only if set.

        These are ``base``, the name of the model that an adapter changes, ``quantization`` and
        ``attn_implementation``.
        """
        base = self.checkpoint.base
        facts = {name: getattr(self, name) for name in OF_THE_WEIGHTS}
        facts["base"] = base.name if base is not None else None
        return {name: value for name, value in facts.items() if value is not None}

    def prompt_end(self) -> list[str]:
        """The last tokens before the rating, as this tokenizer's vocabulary spells them.

        Raises:
            ModelError: see `prepare`.
        """
        return self.rater(None).encoder().prompt_end

    def check_place(self) -> None:
        """Refuse, before anything is loaded, settings that the device cannot compute.

        Raises:
            SettingError: it cannot compute the quantization or the attention implementation.
            ModelError: a library for it is not installed.
        """
        from selectit_hf.rating.engine.attention import check_attention
        from selectit_hf.rating.models.quantization import check_device

        place = self.place(None)
        check_device(place.quantization, place.device)
        check_attention(place.attn_implementation, place.dtype)

    def rater(self, rank: int | None) -> Rater:
        """What asks the model, for the worker of this ``rank``."""
        return Rater(self.checkpoint, self._question, self.place(rank))

    @property
    def _question(self) -> Question:
        texts = load_rating_prompts(self.rating_prompts, self.k)
        return Question(
            Template(self.template),
            texts,
            self.k,
            self.max_length,
            self.chat,
            cast(str | None, self.chat_template_kwargs),
        )

    def default_token_budget(self) -> int:
        """The padded tokens in a forward pass that a run of this scorer is planned with here.

        The scorer's setting or the environment's takes precedence over `fitting_budget`.
        """
        return planned_budget(self)


_WARNED: set[str] = set()


def _warn_of_unrated(slug: str, statuses: Sequence[str]) -> None:
    """Say once per process that rows cannot be rated, and what helps."""
    found = Counter(status for status in statuses if status in REMEDIES)
    if not found or slug in _WARNED:
        return
    if found["multi_turn"] or 2 * found.total() > len(statuses):
        _WARNED.add(slug)
        ((most, _),) = found.most_common(1)
        logger.warning(
            "%d of %d rows of a batch cannot be rated (%s). For %r: %s",
            found.total(), len(statuses), of_statuses(dict(found)), most, REMEDIES[most],
        )  # fmt: skip
