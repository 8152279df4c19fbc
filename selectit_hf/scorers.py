"""The `Dataset.map` callables: rate on the GPU once, reflect on the CPU for free.

A scorer is a frozen dataclass of settings. What it *hashes* to, and hence what `datasets` caches
under, is everything resolved that can change a rating and nothing else; see
`RatingScorer.__getstate__`. The raw ratings are stored beside the scores, so another ``alpha``,
``variant`` or level never costs another forward pass.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray

from selectit_hf import reflection
from selectit_hf.batches import as_lists, with_columns
from selectit_hf.chat import chat_kwargs_text
from selectit_hf.checkpoints import Checkpoint, model_name, resolve, slug
from selectit_hf.errors import RatingsError, SettingError
from selectit_hf.prompts import RELEASED_TEMPLATE, Template, check_scale, load_rating_prompts
from selectit_hf.raters import Place, Question, Rater
from selectit_hf.ratings import (
    RATED,
    SETTLED,
    Batch,
    Ratings,
    nulled,
    read_ratings,
    typed,
)
from selectit_hf.reflection import Variant, check_variant
from selectit_hf.rows import (
    READING,
    STATUSES,
    Pair,
    RowReader,
    Turns,
    check_batch,
    pair_hash,
    worst,
)
from selectit_hf.survey import REMEDIES, of_statuses
from selectit_hf.ways import together

__all__ = [
    "OF_A_PLACE",
    "OF_THE_WEIGHTS",
    "ModelScore",
    "RatingScorer",
    "SentenceScore",
    "TokenScore",
    "model_score",
    "sentence_score",
    "token_score",
]


logger = logging.getLogger(__name__)

OF_A_PLACE = ("device", "device_map", "token_budget")
"""The fields that say where a model runs, and can change no rating."""
OF_THE_WEIGHTS = ("quantization", "attn_implementation")
"""The fields that say how a model's weights are loaded, told of it where they are set."""
RATING_VERSION = 3
"""Raised whenever a change to rows, prompts, tokens or engine changes a rating."""


@dataclass(frozen=True)
class RatingScorer:
    """What `TokenScore` and `SentenceScore` share: a model that rates, and how it is asked.

    Attributes:
        model: a Hub name, a local checkpoint folder, a GGUF file (its path, or
            ``"FOLDER_OR_HUB_NAME:FILE.gguf"``), or ``"tiny-rater"``; ``None`` for the environment's
            ``SELECTIT_MODEL``, else a small ungated default that is named in the log. The folder or
            repository may hold a PEFT adapter.
        revision: branch, tag or commit of a Hub model; it is pinned to the commit's sha.
        k: top of the rating scale and number of rating prompts, 2 to 9 (paper: 5).
        alpha: weight of the disagreement between rating prompts, 0 or more (paper: 0.2).
        variant: ``"paper"`` or ``"released"``; see `selectit_hf.reflection`.
        rating_prompts: a text file with one prompt a line, or a list of texts; ``None`` for ours.
        template: the layout of a rating prompt; see `selectit_hf.prompts.Template`.
        chat: ask through the tokenizer's chat template, for instruct models.
        chat_template_kwargs: the template's keyword arguments, as in
            ``{"enable_thinking": False}``; kept as their JSON text.
        instruction_column, response_column, turns, translation, roles: see
            `selectit_hf.rows.RowReader`.
        max_length: longest rating prompt in tokens; ``None`` for the model's context.
        base_model: the base of an adapter, a Hub name or a folder; ``None``: the one that its
            configuration names.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``, or short ``"fp32"``, ``"bf16"`` or
            ``"fp16"``; ``None`` or ``"auto"``: bfloat16 on CUDA, else float32.
        quantization: ``"8bit"`` or ``"4bit"``: round the weights with bitsandbytes while they are
            loaded, on CUDA; ``None``: as they are stored.
        attn_implementation: ``"eager"``, ``"sdpa"``, ``"flash_attention_2"``, ...; ``None``: as
            transformers chooses for the architecture.
        device: ``"cpu"``, ``"cuda:0"``, ...; ``None``: ``SELECTIT_DEVICE``, else the GPU of this
            worker's rank, else the CPU.
        device_map: ``"auto"`` (the same as ``"balanced"``), ``"balanced_low_0"`` or
            ``"sequential"``: spread the model over all GPUs that are visible, for a model larger
            than one; ``None``: ``SELECTIT_DEVICE_MAP`` where no device is named, else not. It takes
            one process: the workers of ``map(num_proc=2)`` do not know of it and would each load
            the model on one device, which `selectit_hf.score` refuses.
        token_budget: padded tokens in a forward pass; ``None``: ``SELECTIT_TOKEN_BUDGET``, else
            32768 on CUDA and 1024 on the CPU. Neither ``device`` nor ``device_map`` nor
            ``token_budget`` is part of what is hashed and pickled, so they do not reach the workers
            of ``num_proc``; the environment variables do.
        name: the ``slug`` in the column names, in place of the model's name.

    Raises:
        SettingError: a field out of range.
    """

    model: str | None = None
    revision: str | None = None
    k: int = 5
    alpha: float = 0.2
    variant: Variant = "paper"
    rating_prompts: str | Path | Sequence[str] | None = None
    template: str = RELEASED_TEMPLATE
    chat: bool = False
    chat_template_kwargs: Mapping[str, Any] | str | None = None
    instruction_column: str | None = None
    response_column: str | None = None
    turns: Turns | None = None
    translation: str | None = None
    roles: Sequence[str] | None = None
    max_length: int | None = None
    base_model: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    attn_implementation: str | None = None
    device: str | None = None
    device_map: str | None = None
    token_budget: int | None = None
    name: str | None = None
    _pinned: dict[tuple[str, str | None, str | None], Checkpoint] = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )

    kinds: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        check_scale(self.k)
        check_variant(self.variant, self.k)
        _check_alpha(self.alpha)
        Template(self.template)
        self.reader  # noqa: B018  (checks the row settings)
        _check_device_map(self.device_map)
        if self.device is not None and self.device_map is not None:
            raise SettingError(
                f"device={self.device!r} and device_map={self.device_map!r} contradict each other: "
                "name one device, or spread the model over all of them."
            )
        for name in ("max_length", "token_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name}={value} must be at least 1.")
        text = chat_kwargs_text(self.chat_template_kwargs)
        if text is not None and not self.chat:
            raise SettingError(
                f"chat_template_kwargs={text} (--chat-kwarg) need chat=True (--chat)."
            )
        object.__setattr__(self, "chat_template_kwargs", text)
        if self.name is not None and slug(self.name) != self.name:
            raise SettingError(
                f"name={self.name!r} goes into column names; use snake case: {slug(self.name)!r}."
            )
        if self.roles is not None:
            object.__setattr__(self, "roles", tuple(self.roles))
        if not isinstance(self.rating_prompts, (str, Path, type(None))):
            object.__setattr__(self, "rating_prompts", tuple(self.rating_prompts))

    # What the scorer is

    @property
    def asked(self) -> int:
        """How many of the k rating prompts are asked."""
        raise NotImplementedError

    @property
    def reader(self) -> RowReader:
        """How rows are read."""
        return RowReader.of({name: getattr(self, name) for name in READING})

    @property
    def checkpoint(self) -> Checkpoint:
        """The model, pinned.

        A Hub revision is looked up once in a scorer's life; a local folder's contents are compared
        every time.

        Raises:
            ModelError: see `selectit_hf.checkpoints.resolve`.
        """
        wanted = (model_name(self.model), self.revision, self.base_model)
        if wanted in self._pinned:
            return self._pinned[wanted]
        checkpoint = resolve(*wanted)
        if not checkpoint.is_local:
            self._pinned[wanted] = checkpoint
        return checkpoint

    @property
    def slug(self) -> str:
        """The model's part of the column names."""
        return self.name or slug(self.checkpoint.name)

    def resolved(self) -> Self:
        """This scorer with model, revision, rating prompts and dtype spelt out."""
        return dataclasses.replace(
            self,
            model=model_name(self.model),
            revision=self.checkpoint.revision,
            rating_prompts=load_rating_prompts(self.rating_prompts, self.k),
            dtype=self.place(None).dtype,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything resolved that can change a score, and nothing else.

        The environment's model, the revision as a commit sha or content hash, the texts of the
        rating prompts, and the formula versions are in; weights, device and token budget are not.
        """
        state = _settings(self.resolved())
        for name in OF_A_PLACE:
            del state[name]
        return {**state, "versions": (RATING_VERSION, reflection.FORMULA_VERSION)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        settings = {**state, **dict.fromkeys(OF_A_PLACE), "_pinned": {}}
        del settings["versions"]
        for name, value in settings.items():
            object.__setattr__(self, name, value)

    def rating_key(self) -> str:
        """A hash of all that can change a rating: what stored ratings are recognised by."""
        state = self.__getstate__()
        for other in ("model", "base_model", "name", "alpha", "variant"):
            del state[other]
        gguf_file = self.checkpoint.gguf_file
        if gguf_file is not None:  # a repository holds many at one revision
            state["gguf_file"] = gguf_file
        state["versions"] = RATING_VERSION
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]

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
        """Ratings to score columns, one entry for each row; ``None`` where there is no rating."""
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
            behind the columns of the batch. See `selectit_hf.batches`.

        Raises:
            InputError: the columns do not fit.
            ModelError: the model cannot be loaded or cannot rate.
            RatingsError: the batch holds ratings of another scorer under the same column names.
        """
        ratings = self.rate(as_lists(batch), rank)
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

        The batch that comes ``then`` is tokenized meanwhile.

        Ratings that the same scorer left in the batch are used again, and only rating prompts that
        are missing are asked; without any, no model is loaded. They are recognised by the scorer's
        settings and by the text of the row, so an edited row is rated again. See `__call__` for the
        errors; ``progress`` is told the number of rating prompts done.
        """
        pairs = self.reader.pairs(batch)
        texts = [pair_hash(pair) if isinstance(pair, Pair) else None for pair in pairs]
        stored = _stored(batch, self).of_texts(texts)
        had, has = stored.logprobs.shape[1], stored.asked
        count = max(had, self.asked)
        logprobs = np.full((len(pairs), count, self.k), np.nan, dtype=np.float32)
        logprobs[:, :had] = stored.logprobs
        statuses: list[str] = []
        todo: dict[int, list[int]] = {}  # first rating prompt that is missing, to rows
        for i, (pair, known) in enumerate(zip(pairs, stored.statuses, strict=True)):
            statuses.append(pair if isinstance(pair, str) else known)
            unrated = known not in SETTLED or (known in RATED and not has[i])
            if isinstance(pair, Pair) and (unrated or (known in RATED and has[i] < count)):
                todo.setdefault(0 if unrated else int(has[i]), []).append(i)
        rater = self._rater(rank)
        next_pairs = self.reader.pairs(then) if then is not None else ()
        coming = [pair for pair in next_pairs if isinstance(pair, Pair)]
        splits, readings = 0, []
        for first, rows in sorted(todo.items()):
            asked = [cast(Pair, pairs[i]) for i in rows]
            answer = rater.ask(asked, range(first, count), progress, coming)
            logprobs[rows, first:] = answer.logprobs
            splits += answer.splits
            readings += [answer.reading] if answer.reading is not None else []
            for i, status in zip(rows, answer.statuses, strict=True):
                statuses[i] = status
        logprobs[[status not in RATED for status in statuses]] = np.nan
        facts = stored.rater or {**rater.facts(), "rating_key": self.rating_key()}
        return Ratings(statuses, logprobs, facts, splits, together(readings), tuple(texts))

    def prepare(self) -> None:
        """Load the tokenizer and refuse, before any weights are read, what cannot rate.

        Raises:
            ModelError: there is no such model, or its tokenizer cannot rate.
            SettingError: the rating prompts are longer than the model's context.
        """
        self.check_place()
        self._rater(None).encoder()

    def weights_facts(self) -> dict[str, str]:
        """What else is to be told of the weights, where there is any of it.

        ``base``, the name of the model that an adapter changes; ``quantization``;
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
        return self._rater(None).encoder().prompt_end

    def check_place(self) -> None:
        """Refuse, before anything is loaded, what the device here cannot compute.

        Raises:
            SettingError: the quantization, or the way to compute attention.
            ModelError: a library for it is not installed.
        """
        from selectit_hf.attention import check_attention
        from selectit_hf.quantization import check_device

        place = self.place(None)
        check_device(place.quantization, place.device)
        check_attention(place.attn_implementation, place.dtype)

    def _rater(self, rank: int | None) -> Rater:
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

    @property
    def spread(self) -> str | None:
        """The ``device_map`` that holds here, the environment's included; ``None`` for one device.

        Raises:
            SettingError: the environment's is unknown.
        """
        if self.device or self.device_map or os.environ.get("SELECTIT_DEVICE"):
            return self.device_map
        variable = "SELECTIT_DEVICE_MAP"
        return _check_device_map(os.environ.get(variable) or None, variable)

    def place(self, rank: int | None) -> Place:
        """Device, dtype and token budget for the worker of this ``rank``.

        Raises:
            SettingError: they are unknown or not there, or several workers would each spread the
                model over the same GPUs.
        """
        from selectit_hf.loading import choose_device, choose_dtype, default_budget

        spread = self.spread
        named = None if spread else self.device or os.environ.get("SELECTIT_DEVICE")
        device = choose_device(named, rank)
        if spread and rank and device != "cpu":
            raise SettingError(
                f"With the device map {spread!r} a process takes all GPUs it sees, and this is one "
                f"of several on its machine, number {rank}. Start one on each machine (torchrun "
                "--nproc-per-node 1); 'selectit run --workers' shares the GPUs out to several."
            )
        budget = self.token_budget or _environment_budget() or default_budget(device)
        return Place(
            choose_dtype(self.dtype, device),
            device,
            budget,
            spread,
            self.quantization,
            self.attn_implementation,
        )

    def default_token_budget(self) -> int:
        """The padded tokens in a forward pass that a run of this scorer is planned with here.

        See `selectit_hf.loading.fitting_budget`; what was asked for or stands in the environment
        comes first.
        """
        from selectit_hf.loading import fitting_budget

        place = self.place(None)
        given = self.token_budget or _environment_budget()
        config = self.checkpoint.config()
        return given or fitting_budget(
            config, place.dtype, place.device, place.device_map, place.quantization
        )


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


@dataclass(frozen=True)
class ModelScore:
    """Model-level score: the sentence scores of several models, weighted (section 3.4).

    Computed from the ratings stored in ``rating_logprobs__slug`` and the parameter counts in
    ``rater__slug``; no model is loaded, and the sentence score columns are not read, so ``alpha``
    and ``variant`` hold for all models alike. Writes ``model_score`` in ``[0, k]`` (with
    ``"released"`` up to 1.78 k), null where any model has no rating, and ``selectit_status``, the
    worst of the models' statuses.

    Attributes:
        models: slugs or model names, in order; ``None`` for every model rated in the dataset, in
            column order.
        weights: one for each model, instead of the parameter counts; they are divided by their sum.
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
        _check_alpha(self.alpha)
        check_variant(self.variant, 5)
        for name in ("models", "weights"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))

    def __getstate__(self) -> dict[str, Any]:
        """The settings and the version of the formulas."""
        return {**_settings(self), "version": reflection.FORMULA_VERSION}

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
        """The models that are combined, as they stand in the column names.

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
                f"The model {missing[0]!r} has not rated these rows; those that have: "
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


def _stored(batch: Batch, scorer: RatingScorer) -> Ratings:
    """What this scorer left in the batch, with empty statuses where that is nothing."""
    name, count = scorer.slug, len(next(iter(batch.values()), ()))
    nothing = Ratings([""] * count, np.empty((count, 0, scorer.k), np.float32), {})
    if f"rater__{name}" not in batch:
        _check_overwrites(batch, scorer.columns)
        return nothing
    ratings = read_ratings(batch, name, scorer.k)
    if ratings.rater and ratings.rater["rating_key"] != scorer.rating_key():
        raise RatingsError(
            f"The columns ending in __{name} hold ratings by {ratings.rater['model']!r} with other "
            f"settings{_what_differs(scorer, ratings.rater)}. Give this scorer a name of its own, "
            f"as in name='{name}_2', or drop those columns."
        )
    return ratings if ratings.rater else nothing


_WARNED: set[str] = set()


def _warn_of_unrated(slug: str, statuses: Sequence[str]) -> None:
    """Say once in a process that rows cannot be rated, and what helps."""
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


def _check_overwrites(batch: Batch, columns: Iterable[str]) -> None:
    taken = [column for column in columns if column in batch]
    if taken:
        raise RatingsError(
            f"The dataset has a column {taken[0]!r} that is not ours and would be overwritten; "
            "rename it, or give the scorer another name=."
        )


def _check_ours(batch: Batch) -> None:
    """Let a column of the model level be replaced only by its own kind."""
    scores, statuses = batch.get("model_score", ()), batch.get("selectit_status", ())
    if any(isinstance(value, str) for value in scores) or {*statuses} - {*STATUSES, None}:
        raise RatingsError(
            "The dataset has a column 'model_score' or 'selectit_status' that is not ours and "
            "would be overwritten; rename it."
        )


def _what_differs(scorer: RatingScorer, rater: Mapping[str, Any]) -> str:
    from selectit_hf.loading import DTYPES

    for dtype in DTYPES:
        if dataclasses.replace(scorer, dtype=dtype).rating_key() == rater["rating_key"]:
            return f": they were rated in {dtype}, so give dtype={dtype!r} to reuse them"
    if rater["revision"] != scorer.checkpoint.revision:
        return f": they were rated at the model's revision {rater['revision']}"
    return (
        " (k, rating prompts, template, chat, columns, turns, length, dtype, quantization or "
        "attention)"
    )


# Settings


def _settings(scorer: Any) -> dict[str, Any]:
    return {f.name: getattr(scorer, f.name) for f in dataclasses.fields(scorer) if f.init}


def _check_alpha(alpha: float) -> None:
    if not (np.isfinite(alpha) and alpha >= 0):
        raise SettingError(f"alpha={alpha} must be a finite number of at least 0 (paper: 0.2).")


def _check_device_map(device_map: str | None, name: str = "device_map") -> str | None:
    if device_map is None:
        return None
    from selectit_hf.loading import DEVICE_MAPS

    if device_map not in DEVICE_MAPS:
        raise SettingError(
            f"{name}={device_map!r} is unknown; choose one of {', '.join(DEVICE_MAPS)}."
        )
    return device_map


def _environment_budget() -> int | None:
    text = os.environ.get("SELECTIT_TOKEN_BUDGET")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise SettingError(f"SELECTIT_TOKEN_BUDGET={text!r} must be a whole number of at least 1.")
    return int(text)


token_score = TokenScore()
sentence_score = SentenceScore()
model_score = ModelScore()
