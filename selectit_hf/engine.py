"""Token ids in, log-probabilities out. The only module that runs a model; `loading` loads it.

One forward: batches of neighbours in length, padded on the right, without an attention mask (for a
causal model the padding behind a position cannot reach it), one position read through the model's
own head, nothing kept for generation.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from selectit_hf.batching import buckets
from selectit_hf.errors import ModelError
from selectit_hf.loading import (
    default_budget,
    input_device,
    is_out_of_memory,
    parameter_count,
    tame_fork,
)
from selectit_hf.shortcuts import (
    SharedPrefix,
    Unshareable,
    check_positions,
    last_mlp,
    mlp_reads_at,
    sharing,
)

__all__ = ["Engine", "Read", "set_threads", "thread_count"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

HEAD_ROWS = 16384
SPAN_LOGITS = 2**28
"""Logits that reading spans may hold at once: 1 GiB in float32."""
PROBE = (3, 5, 4, 7)
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.2}
NO_LIMIT = 2**62


Batch = Mapping[int, Sequence[int]]
"""Sequences of token ids, by their number."""


class Read(NamedTuple):
    """What was read: ``values`` (n, m) float32, NaN where ``oom`` (n,) is true.

    ``oom`` marks the sequences that did not fit in memory even alone and without padding;
    ``splits`` counts how often memory ran out and the work was done in another way: a batch halved,
    a sequence without its padding, or without its shared prefix, or all without shortcuts.
    """

    values: NDArray[np.float32]
    oom: NDArray[np.bool_]
    splits: int


def thread_count() -> int:
    """CPU threads of one operation."""
    return torch.get_num_threads()


def set_threads(count: int) -> None:
    """Let one operation use ``count`` CPU threads."""
    torch.set_num_threads(count)


class Engine:
    """A causal language model that reads log-probabilities of chosen tokens.

    Args:
        model: a causal language model in evaluation mode, on its device or spread over several.
        token_budget: padded tokens a forward pass may hold; see `default_budget`.
        shortcuts: compute less for the same answer, where a check of this model finds it the same;
            see `selectit_hf.shortcuts`.
    """

    def __init__(
        self, model: PreTrainedModel, token_budget: int | None = None, shortcuts: bool = True
    ) -> None:
        self.model = model
        self.device = input_device(model)
        self.token_budget = token_budget or default_budget(str(self.device))
        self._wants_shortcuts = shortcuts

    @property
    def parameters(self) -> int:
        """The number of parameters, tied ones counted once."""
        return parameter_count(self.model)

    def next_token_logprobs(
        self,
        ids: Sequence[Sequence[int]],
        token_ids: Sequence[int],
        progress: Callable[[int], None] | None = None,
        prefixes: Sequence[Sequence[int]] = (),
    ) -> Read:
        """Log-probability of each of ``token_ids`` as the next token after each sequence.

        ``n`` sequences of at least one id and ``m`` token ids to a `Read` of (n, m) float32: the
        log-softmax over the whole vocabulary, computed in float32. The same as one forward pass for
        each sequence alone, up to rounding. ``progress`` is told the number of sequences done.
        ``prefixes`` are beginnings that many of the sequences share; they change the speed only.
        """
        tame_fork()
        chosen = torch.tensor(list(token_ids), device=self.device)
        mlp = self._shortcuts.mlp
        tally = _Tally(len(ids), progress)
        tally.splits += self._shortcuts.unchecked
        for beginning, members in self._by_prefix(ids, prefixes):
            prefix = self._recorded(beginning, tally) if beginning else None
            shared = prefix.length if prefix is not None else 0
            rest = {i: ids[i][shared:] for i in members}
            self._read_all(
                rest, self.token_budget, partial(self._next_token, chosen, prefix, mlp), tally
            )
        return tally.read(len(token_ids))

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
        tame_fork()
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        budget = min(self.token_budget, max(SPAN_LOGITS // vocabulary, 1))
        tally = _Tally(len(ids), progress)
        self._read_all(dict(enumerate(ids)), budget, partial(self._spans, starts), tally)
        return tally.read(1)

    # One forward pass

    @torch.inference_mode()
    def _next_token(
        self,
        chosen: Tensor,
        prefix: SharedPrefix | None,
        mlp: nn.Module | None,
        batch: Batch,
        length: int,
    ) -> Tensor:
        logits = self._last_logits(list(batch.values()), length, prefix, mlp)
        return logits[:, chosen.to(logits.device)] - logits.logsumexp(dim=-1, keepdim=True)

    @torch.inference_mode()
    def _spans(self, starts: Sequence[int], batch: Batch, length: int) -> Tensor:
        places = [
            (row, p, ids[p])
            for row, (i, ids) in enumerate(batch.items())
            for p in range(starts[i], len(ids))
        ]
        rows, ends, target = torch.tensor(places, dtype=torch.long).reshape(-1, 3).unbind(1)
        logits = self._logits(list(batch.values()), length, rows, ends - 1)
        found = logits.gather(1, target.to(logits.device).unsqueeze(1)).squeeze(1)
        sums = torch.zeros(len(batch), dtype=torch.float64, device=logits.device)
        sums.index_add_(0, rows.to(logits.device), (found - logits.logsumexp(dim=-1)).double())
        return sums.float().unsqueeze(1)

    def _last_logits(
        self,
        ids: Sequence[Sequence[int]],
        length: int,
        prefix: SharedPrefix | None = None,
        mlp: nn.Module | None = None,
    ) -> Tensor:
        """(b, vocabulary) float32 logits behind the end of each sequence."""
        last = torch.tensor([len(row) - 1 for row in ids])
        return self._logits(ids, length, torch.arange(len(ids)), last, prefix, mlp)

    def _logits(
        self,
        ids: Sequence[Sequence[int]],
        length: int,
        rows: Tensor,
        positions: Tensor,
        prefix: SharedPrefix | None = None,
        mlp: nn.Module | None = None,
    ) -> Tensor:
        """(p, vocabulary) float32 logits at ``positions`` (p) of the sequences ``rows`` (p).

        ``mlp``, the last one, may be given where each sequence is read once, in order.
        """
        padded = torch.zeros((len(ids), length), dtype=torch.long)
        for i, row in enumerate(ids):
            padded[i, : len(row)] = torch.tensor(row)
        settings: dict[str, Any] = {}
        if prefix is not None:
            places = torch.arange(prefix.length, prefix.length + length)
            settings["position_ids"] = places.expand(len(ids), -1).to(self.device)
        if self.device.type == "cuda":
            padded = padded.pin_memory()
        read = (rows.to(self.device), positions.to(self.device))
        with (
            sharing(self.model, prefix) if prefix is not None else nullcontext(),
            mlp_reads_at(mlp, *read),
            _reads_at(self.model, *read),
        ):
            output = self.model(
                input_ids=padded.to(self.device, non_blocking=True),
                use_cache=False,
                **settings,
            )
        return cast(Tensor, output.logits[:, 0].float())

    # Batches

    def _read_all(
        self, ids: Batch, budget: int, read: Callable[[Batch, int], Tensor], tally: "_Tally"
    ) -> None:
        numbers = list(ids)
        for bucket in buckets([len(row) for row in ids.values()], budget):
            batch = {numbers[i]: ids[numbers[i]] for i in bucket}
            self._read(batch, len(ids[numbers[bucket[0]]]), read, tally)

    def _read(
        self, batch: Batch, length: int, read: Callable[[Batch, int], Tensor], tally: "_Tally"
    ) -> None:
        """One batch; halved, at the same padded length, for as long as it is out of memory.

        A sequence alone is tried once more without padding before it is given up.
        """
        values = self._in_memory(partial(read, batch, length))
        if values is not None:
            tally.add(batch, values)
            return
        rows, own = list(batch.items()), max(map(len, batch.values()))
        parts = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        if len(rows) > 1:
            logger.warning("Out of memory with %d x %d tokens; halving.", len(rows), length)
        elif own < length:
            logger.warning("Out of memory with 1 x %d tokens; %d without padding.", length, own)
            parts, length = [rows], own
        else:
            logger.warning("A sequence of %d tokens does not fit in memory.", length)
            tally.add(batch, None)
            return
        tally.splits += 1
        for part in parts:
            self._read(dict(part), length, read, tally)

    def _in_memory(self, compute: Callable[[], T]) -> T | None:
        """What is computed; ``None`` where memory ran out, once what was held of it is let go."""
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    # Shortcuts

    def _by_prefix(
        self, ids: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> list[tuple[tuple[int, ...], list[int]]]:
        """The sequences that share each prefix, and last, without any, the others."""
        shared: dict[tuple[int, ...], list[int]] = {}
        limit = self._shortcuts.limit if prefixes else 0
        for prefix in sorted({tuple(p) for p in prefixes if p}, key=len, reverse=True):
            shared[prefix] = []
        others: list[int] = []
        for i, row in enumerate(ids):
            begun = (p for p in shared if len(p) < len(row) <= limit)
            found = next((p for p in begun if tuple(row[: len(p)]) == p), ())
            (shared[found] if found else others).append(i)
        worth = [(p, rows) for p, rows in shared.items() if len(rows) > 1]
        others += [i for rows in shared.values() if len(rows) == 1 for i in rows]
        return [*worth, ((), sorted(others))]

    def _recorded(self, ids: Sequence[int], tally: "_Tally") -> SharedPrefix | None:
        """A prefix to go on from; ``None`` where memory is too short to keep it."""
        prefix = self._in_memory(partial(self._record, ids))
        if prefix is None:
            logger.warning("Out of memory with a shared prefix of %d tokens; not shared.", len(ids))
            tally.splits += 1
        return prefix

    @torch.inference_mode()
    def _record(self, *parts: Sequence[int]) -> SharedPrefix:
        prefix = SharedPrefix()
        for ids in parts:
            prefix.recording = True
            self._last_logits([ids], len(ids), prefix)
            prefix.length += len(ids)
            prefix.recording = False
        return prefix

    @cached_property
    def _shortcuts(self) -> "_Shortcuts":
        if not self._wants_shortcuts:
            return _Shortcuts()
        checked = self._in_memory(self._checked_shortcuts)
        if checked is None:
            logger.warning("Out of memory while the shortcuts were checked; none is taken.")
        return checked or _Shortcuts(unchecked=True)

    @torch.inference_mode()
    def _checked_shortcuts(self) -> "_Shortcuts":
        """What gives this model's own logits for a few sequences, computed both ways."""
        probes = [[*PROBE, *range(1, 1 + n)] for n in (5, 3, 1)]
        ends = [row[len(PROBE) :] for row in probes]
        whole = self._last_logits(probes, len(probes[0])).log_softmax(-1)
        without = self._last_logits(ends, len(ends[0])).log_softmax(-1)

        def same(name: str, logits: Tensor) -> bool:
            gap = float((logits.log_softmax(-1) - whole).abs().max())
            far = float((without - whole).abs().max())
            logger.debug("%s: within %.1g (without the beginning: %.1g).", name, gap, far)
            return gap < PROBE_TOLERANCE[self.model.dtype] and gap * 10 < far

        try:
            check_positions(self.model)
            prefix = self._record(PROBE)
            self._record(PROBE, ends[0]).check(self.model, self._record(probes[0]))
            if not same("Shared prefix", self._last_logits(ends, len(ends[0]), prefix)):
                raise Unshareable("its logits change")
        except Unshareable as reason:
            logger.info(
                "Whole prompts are computed, since %s: %s.", type(self.model).__name__, reason
            )
            return _Shortcuts()
        logger.info("What the prompts begin with is computed once; checked to be the same.")
        mlp = last_mlp(self.model, list(prefix.layers)[-1])
        if mlp is not None:
            read = self._last_logits(probes, len(probes[0]), mlp=mlp)
            mlp = mlp if same("Last MLP for one position", read) else None
        return _Shortcuts(prefix.limit or NO_LIMIT, mlp)


@dataclass(frozen=True)
class _Shortcuts:
    """What is taken of `selectit_hf.shortcuts`.

    Attributes:
        limit: longest sequence whose prefix may be shared.
        mlp: the last one.
        unchecked: memory was too short to check them, so that every read goes another way.
    """

    limit: int = 0
    mlp: nn.Module | None = None
    unchecked: bool = False


class _Tally:
    """What has been read so far; it stays on the device until all is asked for."""

    def __init__(self, count: int, progress: Callable[[int], None] | None) -> None:
        self.splits = 0
        self._count = count
        self._progress = progress
        self._parts: list[tuple[list[int], Tensor | None]] = []

    def add(self, batch: Batch, values: Tensor | None) -> None:
        """The values (b, m) of a batch, or ``None`` where it does not fit in memory."""
        self._parts.append((list(batch), values))
        if self._progress is not None:
            self._progress(len(batch))

    def read(self, width: int) -> Read:
        """All of it, in the sequences' order."""
        values = np.full((self._count, width), np.nan, dtype=np.float32)
        oom = np.ones(self._count, dtype=np.bool_)
        for numbers, part in self._parts:
            if part is not None:
                values[numbers] = part.cpu().numpy()
                oom[numbers] = False
        return Read(values, oom, self.splits)


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
        # Not moved yet where the head, tied to the embeddings, is not with the last layer.
        hidden = args[0].to(module.weight.device, torch.float32)
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
