"""Asking a model: one tokenizer and one set of weights are loaded at a time.

The tokenizer is loaded first, so problems are found before any weights are read.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from selectit_hf.errors import ModelError, TokenizerError
from selectit_hf.formats import Pair
from selectit_hf.rating.models.checkpoints import Checkpoint
from selectit_hf.rating.prompts.encode_ahead import Ahead
from selectit_hf.rating.prompts.prompt_encoder import PromptEncoder, context_length
from selectit_hf.rating.prompts.rating_prompts import Template
from selectit_hf.rating.prompts.template_ends import advice, encoders_by_end
from selectit_hf.rating.ratings import Ratings

if TYPE_CHECKING:
    from selectit_hf.rating.engine.engine import Engine

__all__ = ["Place", "Question", "Rater"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """What a model is asked about each pair; see `selectit_hf.TokenScore`."""

    template: Template
    rating_prompts: tuple[str, ...]
    k: int
    max_length: int | None
    chat: bool
    chat_template_kwargs: str | None = None


@dataclass(frozen=True)
class Place:
    """Where and how a model runs; see `selectit_hf.TokenScore`."""

    dtype: str
    device: str
    token_budget: int
    device_map: str | None = None
    quantization: str | None = None
    attn_implementation: str | None = None


class _Slot(Generic[T]):
    """Keeps one value, and frees it before it makes another."""

    def __init__(self) -> None:
        self._held: tuple[object, T] | None = None

    def get(self, key: object, make: Callable[[], T]) -> T:
        if self._held is None or self._held[0] != key:
            self._held = None
            self._held = (key, make())
        return self._held[1]


_AHEAD = Ahead()
_ENCODER: _Slot[PromptEncoder] = _Slot()
_ENGINE: "_Slot[Engine]" = _Slot()


@dataclass(frozen=True)
class Rater:
    """A checkpoint, the question it is asked, and the place it runs in. Loaded only when needed."""

    checkpoint: Checkpoint
    question: Question
    place: Place

    def ask(
        self,
        pairs: Sequence[Pair],
        prompts: range,
        progress: Callable[[int], None] | None = None,
        then: Sequence[Pair] = (),
    ) -> Ratings:
        """Rate each pair under the rating prompts numbered ``prompts``; equal pairs once.

        While the model works on them, the next pairs, ``then``, are encoded. The result's ``rater``
        is empty, and rows without a rating are NaN.

        Raises:
            ModelError: the checkpoint cannot be loaded, or cannot rate.
        """
        different = list(dict.fromkeys(pairs))
        answers = self._ask(different, prompts, progress, list(dict.fromkeys(then)))
        places = {pair: i for i, pair in enumerate(different)}
        rows = [places[pair] for pair in pairs]
        statuses = [answers.statuses[i] for i in rows]
        return answers._replace(statuses=statuses, logprobs=answers.logprobs[rows])

    def _ask(
        self,
        pairs: Sequence[Pair],
        prompts: range,
        progress: Callable[[int], None] | None,
        then: Sequence[Pair],
    ) -> Ratings:
        k = self.question.k
        encoder = self.encoder()
        encoded = _AHEAD.encode(encoder, pairs)
        prefixes = [encoder.prefixes[j] for j in prompts]  # before another thread tokenizes
        if then:
            _AHEAD.begin(encoder, then)
        asked = [i for i, one in enumerate(encoded) if one.ids]
        ids = [encoded[i].ids[j] for i in asked for j in prompts]
        read = self.engine().next_token_logprobs(ids, encoder.rating_token_ids, progress, prefixes)
        logprobs = np.full((len(pairs), len(prompts), k), np.nan, dtype=np.float32)
        # Prompt j of pair i is sequence i * len(prompts) + j.
        logprobs[asked] = read.values.reshape(-1, len(prompts), k)
        oom = np.zeros((len(pairs), len(prompts)), dtype=np.bool_)
        oom[asked] = read.oom.reshape(-1, len(prompts))
        statuses = [one.status for one in encoded]
        for i in asked:
            if not np.isfinite(logprobs[i]).all():
                statuses[i] = "oom" if oom[i].any() else "nonfinite"
        tokens = sum(map(len, ids))
        return Ratings(statuses, logprobs, {}, read.splits, read.reading, tokens=tokens)

    def facts(self) -> dict[str, Any]:
        """Who rates: name, revision and number of parameters. Loads the model to count them."""
        return {
            "model": self.checkpoint.name,
            "revision": self.checkpoint.revision,
            "parameters": self.engine().parameters,
        }

    def encoder(self) -> PromptEncoder:
        """The encoder, loaded without any weights; see `PromptEncoder` for the errors."""
        return _ENCODER.get((self.checkpoint, self.question), self._load_encoder)

    def _load_encoder(self) -> PromptEncoder:
        from selectit_hf.rating.models.loading import embedding_rows

        tokenizer = self.checkpoint.tokenizer()
        asked = self.question
        config = self.checkpoint.config()
        limits = [context_length(config, tokenizer), asked.max_length]
        limit = min((n for n in limits if n is not None), default=None)

        def make(template: Template) -> PromptEncoder:
            return PromptEncoder(
                tokenizer,
                template,
                asked.rating_prompts,
                asked.k,
                limit,
                asked.chat,
                asked.chat_template_kwargs,
                embedding_rows(config),
            )

        try:
            return make(asked.template)
        except TokenizerError as error:
            if asked.chat:  # the chat template decides how the prompt ends
                raise
            others = encoders_by_end(asked.template, make)
            raise TokenizerError(f"{error} {advice(others, self._mass)}") from error

    def _mass(self, encoder: PromptEncoder, ids: Sequence[list[int]]) -> float | None:
        """The mean probability of all ratings together; ``None`` if the model does not load."""
        try:
            read = self.engine().next_token_logprobs(ids, encoder.rating_token_ids)
        except ModelError as error:
            logger.info("The model cannot be asked which template suits it: %s", error)
            return None
        return float(np.exp(read.values).sum(axis=1).mean())

    def engine(self) -> "Engine":
        """The loaded model; raises ModelError if it cannot be loaded."""
        return _ENGINE.get((self.checkpoint, self.place), self._load_engine)

    def _load_engine(self) -> "Engine":
        from selectit_hf.rating.engine.engine import Engine
        from selectit_hf.rating.models.loading import load_model

        place = self.place
        where = place.device if place.device_map is None else f"all GPUs ({place.device_map})"
        logger.info("Loading %s on %s in %s.", self.checkpoint.name, where, place.dtype)
        weights = self.checkpoint.weights
        model = load_model(
            weights.folder(weights=True),
            place.dtype,
            place.device,
            place.device_map,
            adapter=self.checkpoint.adapter_folder(),
            quantization=place.quantization,
            attn_implementation=place.attn_implementation,
            config=self.checkpoint.config(),
            **weights.load_arguments,
        )
        return Engine(model, place.token_budget)
