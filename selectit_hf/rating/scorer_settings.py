"""The settings of the scorers: how they are hashed, how they are resolved, where they run."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from selectit_hf.errors import SettingError
from selectit_hf.formats import READING, RowReader, Turns
from selectit_hf.rating import reflection
from selectit_hf.rating.models.checkpoints import Checkpoint
from selectit_hf.rating.models.model_names import model_name, resolve, slug
from selectit_hf.rating.placement import check_device_map, choose_place, spread_here
from selectit_hf.rating.prompts.chat_templates import chat_kwargs_text
from selectit_hf.rating.prompts.rating_prompts import (
    RELEASED_TEMPLATE,
    Template,
    check_scale,
    load_rating_prompts,
)
from selectit_hf.rating.rater import Place
from selectit_hf.rating.reflection import Variant, check_alpha, check_variant

__all__ = ["OF_A_PLACE", "OF_THE_WEIGHTS", "ScorerSettings", "settings_of"]

OF_A_PLACE = ("device", "device_map", "token_budget")
"""The fields that say where a model runs, which cannot change a rating."""
OF_THE_WEIGHTS = ("quantization", "attn_implementation")
"""The fields that say how a model's weights are loaded; they are reported if they are set."""
RATING_VERSION = 3
"""Increased whenever a change to rows, prompts, tokens or engine changes a rating."""


@dataclass(frozen=True)
class ScorerSettings:
    """A model that rates, and how it is asked: the settings of `TokenScore` and `SentenceScore`.

    Attributes:
        model: a Hub name, a local checkpoint folder, a GGUF file (its path, or
            ``"FOLDER_OR_HUB_NAME:FILE.gguf"``), or ``"tiny-rater"``; ``None`` for the environment's
            ``SELECTIT_MODEL``, else a small ungated default that the log names. The folder or
            repository may hold a PEFT adapter.
        revision: branch, tag or commit of a Hub model; it is pinned to the commit's sha.
        k: top of the rating scale and number of rating prompts, 2 to 9 (paper: 5).
        alpha: weight of the disagreement between rating prompts, 0 or more (paper: 0.2).
        variant: ``"paper"`` or ``"released"``; see `selectit_hf.rating.reflection`.
        rating_prompts: a text file with one prompt a line, or a list; ``None`` for the default.
        template: the layout of a rating prompt; see `Template`.
        chat: ask through the tokenizer's chat template, for instruct models.
        chat_template_kwargs: the chat template's keyword arguments, as in
            ``{"enable_thinking": False}``; stored as JSON text.
        instruction_column, response_column, turns, translation, roles: see
            `selectit_hf.formats.rows.RowReader`.
        max_length: longest rating prompt in tokens; ``None`` for the model's context.
        base_model: the base of an adapter, a Hub name or a folder; ``None`` for the one that its
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
            ``"sequential"``: spread a model that is too large for one GPU over all visible GPUs;
            ``None``: ``SELECTIT_DEVICE_MAP`` if no device is set, else one device. It needs a
            single process: the workers of ``map(num_proc=2)`` do not get this setting and would
            each load the model on one device, which `selectit_hf.score` refuses.
        token_budget: padded tokens in a forward pass; ``None``: ``SELECTIT_TOKEN_BUDGET``, else
            32768 on CUDA and 1024 on the CPU. ``device``, ``device_map`` and ``token_budget`` are
            neither hashed nor pickled, so they do not reach the workers of ``num_proc``; the
            environment variables do.
        name: the ``slug`` in the column names, instead of one made from the model's name.

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

    def __post_init__(self) -> None:
        check_scale(self.k)
        check_variant(self.variant, self.k)
        check_alpha(self.alpha)
        Template(self.template)
        self.reader  # noqa: B018  (checks the row settings)
        check_device_map(self.device_map)
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
    def reader(self) -> RowReader:
        """How rows are read."""
        return RowReader.of({name: getattr(self, name) for name in READING})

    @property
    def checkpoint(self) -> Checkpoint:
        """The model, pinned.

        A Hub revision is looked up once for each scorer; a local folder's contents are checked
        every time.

        Raises:
            ModelError: see `selectit_hf.rating.models.model_names.resolve`.
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
        """All resolved settings that can change a score, and nothing else.

        This includes the environment's model, the revision as a commit sha or content hash, the
        texts of the rating prompts and the formula versions, but not weights, device or token
        budget.
        """
        state = settings_of(self.resolved())
        for name in OF_A_PLACE:
            del state[name]
        return {**state, "versions": (RATING_VERSION, reflection.FORMULA_VERSION)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        settings = {**state, **dict.fromkeys(OF_A_PLACE), "_pinned": {}}
        del settings["versions"]
        for name, value in settings.items():
            object.__setattr__(self, name, value)

    def rating_key(self) -> str:
        """A hash of everything that can change a rating, which identifies stored ratings."""
        state = self.__getstate__()
        for other in ("model", "base_model", "name", "alpha", "variant"):
            del state[other]
        gguf_file = self.checkpoint.gguf_file
        if gguf_file is not None:  # a repository holds many at one revision
            state["gguf_file"] = gguf_file
        state["versions"] = RATING_VERSION
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def spread(self) -> str | None:
        """The ``device_map`` that applies, from here or the environment; ``None`` for one device.

        Raises:
            SettingError: the environment's is unknown.
        """
        return spread_here(self.device, self.device_map)

    def place(self, rank: int | None) -> Place:
        """Device, dtype and token budget for the worker of this ``rank``.

        Raises:
            SettingError: they are unknown or not available, or several workers would each spread
                the model over the same GPUs.
        """
        return choose_place(self, rank)


def settings_of(scorer: Any) -> dict[str, Any]:
    """The fields of a scorer or selector that its caller sets, with their values."""
    return {f.name: getattr(scorer, f.name) for f in dataclasses.fields(scorer) if f.init}
