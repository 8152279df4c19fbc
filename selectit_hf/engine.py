"""Token ids in, log-probabilities out. The only module that runs a model.

One forward: batches of neighbours in length, padded on the right, without an attention mask (for a
causal model the padding behind a position cannot reach it), one position read through the model's
own head, nothing kept for generation.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from selectit_hf.batching import buckets
from selectit_hf.errors import ModelError, SettingError

__all__ = [
    "DTYPES",
    "Engine",
    "Read",
    "choose_device",
    "choose_dtype",
    "default_budget",
    "load_model",
    "set_threads",
    "thread_count",
]

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKEN_BUDGET = {"cuda": 32768, "cpu": 1024}

HEAD_ROWS = 16384
_IMPORTED_IN = os.getpid()
OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "DefaultCPUAllocator",
)


class Read(NamedTuple):
    """What was read: ``values`` (n, m) float32, NaN where ``oom`` (n,) is true.

    ``oom`` marks the sequences that did not fit in memory even alone; ``splits`` counts how often
    a batch had to be halved.
    """

    values: NDArray[np.float32]
    oom: NDArray[np.bool_]
    splits: int


def choose_device(device: str | None, rank: int | None = None) -> str:
    """``device`` itself, else this rank's CUDA GPU, else the CPU.

    Raises:
        SettingError: a CUDA device that is not there.
    """
    count = torch.cuda.device_count()
    if device is None:
        return f"cuda:{(rank or 0) % count}" if count else "cpu"
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise SettingError(f"device={device!r} is unknown; use 'cpu' or 'cuda:0'.") from error
    if asked.type == "cuda" and (asked.index or 0) >= count:
        raise SettingError(f"device={device!r} is not there: {count} CUDA devices are visible.")
    return device


def choose_dtype(dtype: str | None, device: str) -> str:
    """``dtype`` itself, else bfloat16 on CUDA and float32 elsewhere.

    Raises:
        SettingError: a dtype that is not in `DTYPES`.
    """
    if dtype is None:
        return "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in DTYPES:
        raise SettingError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")
    return dtype


def default_budget(device: str) -> int:
    """Padded tokens a forward pass on ``device`` may hold, where none are given."""
    return TOKEN_BUDGET.get(torch.device(device).type, TOKEN_BUDGET["cpu"])


def thread_count() -> int:
    """CPU threads of one operation."""
    return torch.get_num_threads()


def set_threads(count: int) -> None:
    """Let one operation use ``count`` CPU threads."""
    torch.set_num_threads(count)


def load_model(path: str, dtype: str, device: str, **arguments: Any) -> PreTrainedModel:
    """Load a causal language model from safetensors, in ``dtype``, onto ``device``.

    Raises:
        ModelError: no safetensors weights, an unknown architecture, or weights that are missing
            (they would be drawn at random).
    """
    _tame_fork()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"The weights cannot be loaded: {str(error).strip()} Only causal language models with "
            "safetensors weights are loaded, and code of a model repository is never run."
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"The checkpoint lacks {len(missing)} weights, {missing[0]!r} among them, which would "
            "have been drawn at random; use a complete causal language model."
        )
    placed: PreTrainedModel = model.to(torch.device(device)).eval()
    _check_causal(placed)
    return placed


@torch.inference_mode()
def _check_causal(model: PreTrainedModel) -> None:
    """Padding is left unmasked, so what comes later must not reach an earlier position."""
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device)
    one, other = model(input_ids=ids, use_cache=False).logits[:, :3].float()
    if not torch.allclose(one, other, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ModelError(
            f"{type(model).__name__} is not causal: what follows a token changes what it predicts "
            "there. Only causal language models rate."
        )


def _tame_fork() -> None:
    """In a forked worker, use one thread: the threads of the parent are not there to wait for."""
    if os.getpid() != _IMPORTED_IN:
        torch.set_num_threads(1)


class Engine:
    """A causal language model that reads log-probabilities of chosen tokens.

    Args:
        model: a causal language model in evaluation mode, on its device.
        token_budget: padded tokens a forward pass may hold; see `default_budget`.
    """

    def __init__(self, model: PreTrainedModel, token_budget: int | None = None) -> None:
        self.model = model
        self.device = model.device
        self.token_budget = token_budget or default_budget(str(self.device))

    @property
    def parameters(self) -> int:
        """The number of parameters, tied ones counted once."""
        return sum(p.numel() for p in self.model.parameters())

    def next_token_logprobs(
        self,
        ids: Sequence[Sequence[int]],
        token_ids: Sequence[int],
        progress: Callable[[int], None] | None = None,
    ) -> Read:
        """Log-probability of each of ``token_ids`` as the next token after each sequence.

        ``n`` sequences of at least one id and ``m`` token ids to a `Read` of (n, m) float32: the
        log-softmax over the whole vocabulary, computed in float32. The same as one forward pass for
        each sequence alone, up to rounding. ``progress`` is told the number of sequences done.
        """
        _tame_fork()
        values = np.full((len(ids), len(token_ids)), np.nan, dtype=np.float32)
        oom = np.zeros(len(ids), dtype=np.bool_)
        splits = 0
        chosen = torch.tensor(list(token_ids), device=self.device)
        for batch in buckets([len(row) for row in ids], self.token_budget):
            read = self._read([ids[i] for i in batch], len(ids[batch[0]]), chosen)
            values[batch], oom[batch] = read.values, read.oom
            splits += read.splits
            if progress is not None:
                progress(len(batch))
        return Read(values, oom, splits)

    def _read(self, rows: list[Sequence[int]], length: int, chosen: Tensor) -> Read:
        """One batch; halved, at the same padded length, for as long as it is out of memory."""
        try:
            values = self._logprobs(rows, length, chosen)
            return Read(values, np.zeros(len(rows), dtype=np.bool_), 0)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(rows) == 1:
            logger.warning("A sequence padded to %d tokens does not fit in memory.", length)
            return Read(np.full((1, len(chosen)), np.nan, np.float32), np.ones(1, np.bool_), 0)
        logger.warning("Out of memory with %d x %d tokens; halving.", len(rows), length)
        half = len(rows) // 2
        first = self._read(rows[:half], length, chosen)
        second = self._read(rows[half:], length, chosen)
        return Read(
            np.concatenate([first.values, second.values]),
            np.concatenate([first.oom, second.oom]),
            first.splits + second.splits + 1,
        )

    @torch.inference_mode()
    def _logprobs(
        self, rows: list[Sequence[int]], length: int, chosen: Tensor
    ) -> NDArray[np.float32]:
        padded = torch.zeros((len(rows), length), dtype=torch.long)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = torch.tensor(row)
        last = torch.tensor([len(row) - 1 for row in rows])
        with _reads_at(self.model, last.to(self.device)):
            output = self.model(input_ids=padded.to(self.device), use_cache=False)
        logits = output.logits[:, 0].float()
        read = logits[:, chosen] - logits.logsumexp(dim=-1, keepdim=True)
        result: NDArray[np.float32] = read.cpu().numpy()
        return result


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, in any of the ways PyTorch says it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


@contextmanager
def _reads_at(model: PreTrainedModel, last: Tensor) -> Iterator[None]:
    """Let the model's head see position ``last`` of each row only, and compute it in float32.

    What the model does to its logits afterwards (softcaps, scales) stays the model's own.
    """
    head: Any = cast(Any, model).get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output embeddings to read from.")

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return (hidden[rows, last.to(hidden.device)].unsqueeze(1), *args[1:])

    def in_float32(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if type(module) is not nn.Linear or module.weight.dtype == torch.float32:
            return None
        hidden = args[0].float()
        # Again, since the module did it in 16 bits (one position, so cheap); and by parts, since a
        # float32 copy of a large vocabulary's head would cost gigabytes.
        parts = [F.linear(hidden, part.float()) for part in torch.split(module.weight, HEAD_ROWS)]
        logits = torch.cat(parts, dim=-1)
        return logits if module.bias is None else logits + module.bias.float()

    hooks = [head.register_forward_pre_hook(gather), head.register_forward_hook(in_float32)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
