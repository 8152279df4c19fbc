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
SPAN_LOGITS = 2**28
"""Logits that reading spans may hold at once: 1 GiB in float32."""
_IMPORTED_IN = os.getpid()
OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "DefaultCPUAllocator",
)


Reader = Callable[[list[int], int], NDArray[np.float32]]
"""Reads the sequences of these numbers, padded to a length, in one forward pass."""


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
        chosen = torch.tensor(list(token_ids), device=self.device)

        def read(batch: list[int], length: int) -> NDArray[np.float32]:
            rows = torch.arange(len(batch))
            last = torch.tensor([len(ids[i]) - 1 for i in batch])
            logits = self._logits([ids[i] for i in batch], length, rows, last)
            return _numpy(logits[:, chosen] - logits.logsumexp(dim=-1, keepdim=True))

        return self._read_all(ids, len(token_ids), self.token_budget, read, progress)

    def span_logprobs(
        self,
        ids: Sequence[Sequence[int]],
        starts: Sequence[int],
        progress: Callable[[int], None] | None = None,
    ) -> Read:
        """Log-probability of the end of each sequence, given its beginning.

        ``n`` sequences and for each the position its span starts at, from 1 to its length, to a
        `Read` of (n, 1) float32: the sum over the tokens ``ids[i][starts[i]:]`` of their
        log-probabilities (natural logarithm), each given all tokens before it; 0 for an empty span.

        Raises:
            ValueError: a span that starts at the first token, which nothing predicts, or behind the
                end.
        """
        for i, (row, start) in enumerate(zip(ids, starts, strict=True)):
            if not 1 <= start <= len(row):
                raise ValueError(f"starts[{i}]={start} must be from 1 to {len(row)}.")

        def read(batch: list[int], length: int) -> NDArray[np.float32]:
            spans = [range(starts[i], len(ids[i])) for i in batch]
            rows = torch.tensor([r for r, span in enumerate(spans) for _ in span], dtype=torch.long)
            ends = torch.tensor([p for span in spans for p in span], dtype=torch.long)
            wanted = torch.tensor(
                [ids[i][p] for i, span in zip(batch, spans, strict=True) for p in span]
            )
            logits = self._logits([ids[i] for i in batch], length, rows, ends - 1)
            target = wanted.to(logits.device, torch.long).unsqueeze(1)
            found = _numpy(logits.gather(1, target).squeeze(1) - logits.logsumexp(dim=-1))
            sums = np.bincount(rows.numpy(), weights=found, minlength=len(batch))
            return sums.astype(np.float32).reshape(-1, 1)

        vocabulary = int(self.model.config.get_text_config().vocab_size)
        budget = min(self.token_budget, max(SPAN_LOGITS // vocabulary, 1))
        return self._read_all(ids, 1, budget, read, progress)

    def _read_all(
        self,
        ids: Sequence[Sequence[int]],
        width: int,
        budget: int,
        read: Reader,
        progress: Callable[[int], None] | None,
    ) -> Read:
        _tame_fork()
        values = np.full((len(ids), width), np.nan, dtype=np.float32)
        oom = np.zeros(len(ids), dtype=np.bool_)
        splits = 0
        for batch in buckets([len(row) for row in ids], budget):
            done = self._read(batch, len(ids[batch[0]]), width, read)
            values[batch], oom[batch] = done.values, done.oom
            splits += done.splits
            if progress is not None:
                progress(len(batch))
        return Read(values, oom, splits)

    def _read(self, batch: list[int], length: int, width: int, read: Reader) -> Read:
        """One batch; halved, at the same padded length, for as long as it is out of memory."""
        try:
            return Read(read(batch, length), np.zeros(len(batch), dtype=np.bool_), 0)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            logger.warning("A sequence padded to %d tokens does not fit in memory.", length)
            return Read(np.full((1, width), np.nan, np.float32), np.ones(1, np.bool_), 0)
        logger.warning("Out of memory with %d x %d tokens; halving.", len(batch), length)
        half = len(batch) // 2
        first = self._read(batch[:half], length, width, read)
        second = self._read(batch[half:], length, width, read)
        return Read(
            np.concatenate([first.values, second.values]),
            np.concatenate([first.oom, second.oom]),
            first.splits + second.splits + 1,
        )

    @torch.inference_mode()
    def _logits(
        self, ids: list[Sequence[int]], length: int, rows: Tensor, positions: Tensor
    ) -> Tensor:
        """(p, vocabulary) float32 logits at ``positions`` (p) of the sequences ``rows`` (p)."""
        padded = torch.zeros((len(ids), length), dtype=torch.long)
        for i, row in enumerate(ids):
            padded[i, : len(row)] = torch.tensor(row)
        with _reads_at(self.model, rows.to(self.device), positions.to(self.device)):
            output = self.model(input_ids=padded.to(self.device), use_cache=False)
        return cast(Tensor, output.logits[:, 0].float())


def _numpy(values: Tensor) -> NDArray[np.float32]:
    result: NDArray[np.float32] = values.cpu().numpy()
    return result


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, in any of the ways PyTorch says it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


@contextmanager
def _reads_at(model: PreTrainedModel, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """Let the model's head see ``positions`` (p) of ``rows`` (p) only, and compute it in float32.

    What the model does to its logits afterwards (softcaps, scales) stays the model's own.
    """
    head: Any = cast(Any, model).get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output embeddings to read from.")

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        read = hidden[rows.to(hidden.device), positions.to(hidden.device)]
        return (read.unsqueeze(1), *args[1:])

    def in_float32(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if type(module) is not nn.Linear or module.weight.dtype == torch.float32:
            return None
        hidden = args[0].float()
        # Again, since the module did it in 16 bits (few positions, so cheap); and by parts, since a
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
