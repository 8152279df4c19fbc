"""One forward pass: batches in, logits at chosen positions out. The only module that runs a model.

Batches are padded on the right and have no attention mask: in a causal model, padding after a
position cannot affect it. Positions are read through the model's own head, and no cache is kept for
generation.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from selectit_hf.errors import ModelError
from selectit_hf.rating.engine.shared_prefix import SharedPrefix, mlp_reads_at, sharing
from selectit_hf.rating.engine.verification import Batch, changing_rope
from selectit_hf.rating.models.loading import input_device

__all__ = ["Forward"]

HEAD_ROWS = 16384


class Forward:
    """Forward passes of one model.

    Args:
        model: in evaluation mode, on its device or devices.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = input_device(model)
        self._takes = inspect.signature(model.forward).parameters

    def last_logits(self, batch: Batch, mlp: nn.Module | None = None) -> Tensor:
        """(b, vocabulary) float32 logits after the end of each sequence."""
        last = torch.tensor([len(row) - 1 for row in batch.ids.values()])
        return self.logits(batch, torch.arange(len(batch.ids)), last, mlp)

    def logits(
        self, batch: Batch, rows: Tensor, positions: Tensor, mlp: nn.Module | None = None
    ) -> Tensor:
        """(p, vocabulary) float32 logits at ``positions`` (p) of the sequences ``rows`` (p).

        ``mlp``, the last one, may be given where each sequence is read once, in order.
        """
        padded = torch.zeros((len(batch.ids), batch.length), dtype=torch.long)
        for i, row in enumerate(batch.ids.values()):
            padded[i, : len(row)] = torch.tensor(row)
        settings: dict[str, Any] = {}
        if batch.prefix is not None:
            start = batch.prefix.length
            places = torch.arange(start, start + batch.length)
            settings["position_ids"] = places.expand(len(batch.ids), -1).to(self.device)
        if self.device.type == "cuda":
            padded = padded.pin_memory()
        read = (rows.to(self.device), positions.to(self.device))
        self._settle(batch.length)
        with (
            sharing(self.model, batch.prefix) if batch.prefix is not None else nullcontext(),
            mlp_reads_at(mlp, *read),
            _reads_at(self.model, padded.shape, *read),
        ):
            output = self.model(
                input_ids=padded.to(self.device, non_blocking=True), use_cache=False, **settings
            )
        return cast(Tensor, output.logits[:, 0].float())

    @torch.inference_mode()
    def plain_logprobs(self, ids: Sequence[int], last: int) -> Tensor:
        """(last, vocabulary) float32 log-probabilities of one sequence, by a plain forward pass.

        Only the head is computed in float32, as everywhere here.
        """
        tensor = torch.tensor([list(ids)], device=self.device)
        settings: dict[str, Any] = {}
        if "attention_mask" in self._takes:
            settings["attention_mask"] = torch.ones_like(tensor)
        if "logits_to_keep" in self._takes:
            settings["logits_to_keep"] = last
        self._settle(len(ids))
        # 16 bits are 0.5 apart at 100, where GPT-2 has its logits: too coarse to compare with.
        with _head_in_float32(_head(self.model)):
            output = self.model(input_ids=tensor, use_cache=False, **settings)
        logits = cast(Tensor, output.logits[0, -last:].float())
        # log_softmax sums in float32, and over 262,144 tokens is off by 1e-4 on a CPU.
        return logits - logits.logsumexp(dim=-1, keepdim=True)

    @cached_property
    def rope_limit(self) -> int | None:
        """The longest sequence whose positions do not depend on the batch; ``None`` for any."""
        return changing_rope(self.model.config)

    def _settle(self, length: int) -> None:
        """Reset rotary embeddings that have grown with the length of an earlier sequence."""
        if self.rope_limit is not None and length >= self.rope_limit:
            self.model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device))

    @torch.inference_mode()
    def record(self, ids: Sequence[int]) -> SharedPrefix:
        """The prefix ``ids``, for batches whose prompts begin with it.

        Raises:
            Unshareable: the model's attention is of another kind.
        """
        prefix = SharedPrefix()
        prefix.recording = True
        self.last_logits(Batch({0: ids}, len(ids), prefix))
        prefix.length = len(ids)
        prefix.recording = False
        return prefix


@contextmanager
def _reads_at(
    model: PreTrainedModel, shape: torch.Size, rows: Tensor, positions: Tensor
) -> Iterator[None]:
    """Let the model's head see ``positions`` (p) of ``rows`` (p) only, and compute it in float32.

    ``shape`` is that of the ids that are fed.

    What the model does to its logits afterwards (softcaps, scales) stays the model's own.
    """
    head = _head(model)

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        if hidden.shape[:2] != shape:
            raise ModelError(
                f"{type(model).__name__} cannot rate: its head does not get each position of "
                "each sequence. Use a causal language model."
            )
        read = hidden[rows.to(hidden.device), positions.to(hidden.device)]
        return (read.unsqueeze(1), *args[1:])

    hook = head.register_forward_pre_hook(gather)
    try:
        with _head_in_float32(head):
            yield
    finally:
        hook.remove()


def _head(model: PreTrainedModel) -> nn.Module:
    head = cast(Any, model).get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output embeddings to read from.")
    return cast(nn.Module, head)


@contextmanager
def _head_in_float32(head: nn.Module) -> Iterator[None]:
    """Let a model's head compute in float32."""

    def in_float32(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if type(module) is not nn.Linear or module.weight.dtype == torch.float32:
            return None
        # The head may be on another device than the last layer if it is tied to the embeddings.
        hidden = args[0].to(module.weight.device, torch.float32)
        # Computed again, since the module used 16 bits (few positions, so cheap), and in parts,
        # since a float32 copy of a large vocabulary's head would take gigabytes.
        parts = [F.linear(hidden, part.float()) for part in torch.split(module.weight, HEAD_ROWS)]
        logits = torch.cat(parts, dim=-1)
        return logits if module.bias is None else logits + module.bias.float()

    hook = head.register_forward_hook(in_float32)
    try:
        yield
    finally:
        hook.remove()
