"""Sharing the beginnings of sequences, and reading only one position: less work, same answer.

A shared prefix: every rating prompt begins with the same tokens in every row. Their keys and values
are computed once, and a batch holds only what follows. The queries are padded in front by as many
positions as the prefix has, so the fused causal attention of the plain path serves here too; only
attention sees the padding, and it is a small part of the work.

The last MLP: after the last layer's attention only the position that is read matters, so its MLP
gets only that position, and the residual stream broadcasts it back.

Neither is exact for every model. Models that are known not to fit are refused here; for all others
the engine compares the values with plain forward passes before it uses them.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

from torch import Tensor, cat, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["SharedPrefix", "Unshareable", "last_mlp", "mlp_reads_at", "sharing"]

NAME = "selectit_shared_prefix"
CHANGES_ATTENTION = ("softcap", "s_aux", "position_bias")
CAUSAL_LAYERS = {"full_attention", "sliding_attention"}


class Unshareable(Exception):
    """The model's sequences cannot share a prefix; the message says why."""


class SharedPrefix:
    """The keys and values of the tokens that the prompts of a batch begin with.

    Attributes:
        length: number of those tokens.
        layers: keys and values, each (1, heads, length, head size), of each attention module, in
            the order they run.
        limit: longest sequence for which sharing is exact; ``None`` for any.
        recording: the next forward pass, of one sequence, adds its tokens.
    """

    def __init__(self) -> None:
        self.length = 0
        self.layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.limit: int | None = None
        self.recording = False

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a recorded prefix that the model cannot continue.

        Raises:
            Unshareable: with the reason.
        """
        config = model.config.get_text_config()
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise Unshareable("it takes no positions")
        if len(self.layers) != config.num_hidden_layers:
            raise Unshareable(
                f"{len(self.layers)} of {config.num_hidden_layers} layers use the common attention"
            )
        others = set(getattr(config, "layer_types", None) or ()) - CAUSAL_LAYERS
        if others:
            raise Unshareable(f"it has layers of the type {min(others)}")


_SHARED: ContextVar[SharedPrefix] = ContextVar("shared_prefix")


@contextmanager
def sharing(model: PreTrainedModel, prefix: SharedPrefix) -> Iterator[None]:
    """Let the model's attention continue ``prefix``, or add to it while it is recording."""
    before = model.config._attn_implementation
    token = _SHARED.set(prefix)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _SHARED.reset(token)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention of a batch whose prompts begin with the shared prefix."""
    for name in CHANGES_ATTENTION:
        if settings.get(name) is not None:
            raise Unshareable(f"its attention has {name}")
    shared = _SHARED.get()
    if module in shared.layers:
        first_key, first_value = shared.layers[module]
        batch = key.shape[0]
        key = cat([first_key.expand(batch, -1, -1, -1), key], dim=2)
        value = cat([first_value.expand(batch, -1, -1, -1), value], dim=2)
        query = F.pad(query, (0, 0, shared.length, 0))
    if shared.recording:
        shared.layers[module] = (key, value)
        window = settings.get("sliding_window")
        shared.limit = min((n for n in (window, shared.limit) if n is not None), default=None)
    attend = cast(Any, sdpa_attention_forward)
    output, _ = attend(module, query, key, value, None, scaling=scaling, is_causal=True)
    return output[:, shared.length :], None


AttentionInterface.register(NAME, _attention)


def last_mlp(model: PreTrainedModel) -> nn.Module | None:
    """The MLP of the last layer, if it has that name."""
    layers = model.config.get_text_config().num_hidden_layers
    stacks = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == layers)
    stack = next(stacks, None)
    return None if stack is None else getattr(stack[-1], "mlp", None)


@contextmanager
def mlp_reads_at(mlp: nn.Module | None, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """Let ``mlp`` see only one position of each row: ``positions`` (p) of ``rows`` (p)."""
    if mlp is None:
        yield
        return

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not args or args[0].ndim != 3:
            return None
        hidden = args[0]
        read = hidden[rows.to(hidden.device), positions.to(hidden.device)]
        return (read.unsqueeze(1), *args[1:])

    hook = mlp.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()
