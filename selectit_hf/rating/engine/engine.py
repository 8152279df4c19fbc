"""Token ids in, log-probabilities out: of the next token, or of a span.

Sequences are computed together by the first of `STRATEGIES` that agrees with plain
forward passes of some of them; see `out_of_memory` for what does not fit.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selectit_hf.errors import ModelError
from selectit_hf.rating.engine.forward import Forward
from selectit_hf.rating.engine.out_of_memory import none_if_out_of_memory, read_halved
from selectit_hf.rating.engine.shared_prefix import SharedPrefix, Unshareable, last_mlp
from selectit_hf.rating.engine.tally import EngineOutput, ProgressReporter, Tally
from selectit_hf.rating.engine.verification import (
    STRATEGIES,
    Batch,
    Strategy,
    agree,
    batches_of,
    gap_of,
    layer_count,
    members_of,
    witnesses,
)
from selectit_hf.rating.models.loading import (
    default_budget,
    input_device,
    parameter_count,
    tame_fork,
)

__all__ = ["Engine", "set_threads", "thread_count"]

logger = logging.getLogger(__name__)

SPAN_LOGITS = 2**28
"""Number of logits held at once while spans are read: 1 GiB in float32."""


class _Disagrees(ModelError):
    """The values of a way are wrong and are discarded."""


@dataclass(frozen=True)
class _Task:
    """What is read from which sequences.

    Attributes:
        ids: the sequences.
        prefixes: beginnings that many of them share.
        budget: padded tokens in a forward pass.
        read: gives the values (b, m) of a batch; takes the last MLP if that may be cut.
        plain: gives the values (m) of one sequence, by its number, from a plain forward pass, and
            the spread of the log-probabilities that they are computed from.
        width: m.
        last_only: nothing but the last position of each sequence is read.
    """

    ids: Sequence[Sequence[int]]
    prefixes: Sequence[Sequence[int]]
    budget: int
    read: Callable[[Batch, nn.Module | None], Tensor]
    plain: Callable[[int], tuple[Tensor, float]]
    width: int
    last_only: bool


def thread_count() -> int:
    """CPU threads of one operation."""
    return torch.get_num_threads()


def set_threads(count: int) -> None:
    """Let one operation use ``count`` CPU threads."""
    torch.set_num_threads(count)


class Engine:
    """A causal language model that predicts one position of each sequence, in batches.

    Args:
        model: in evaluation mode, on its device or devices.
        token_budget: padded tokens in a forward pass; ``None`` for the device's default. When
            memory runs out, the batch is halved.
        shortcuts: share prefixes and cut the last MLP; see `shared_prefix`.
    """

    def __init__(
        self, model: PreTrainedModel, token_budget: int | None = None, shortcuts: bool = True
    ) -> None:
        self.model = model
        self.device = input_device(model)
        self.token_budget = token_budget or default_budget(str(self.device))
        self._ways = [way for way in STRATEGIES if shortcuts or not way.reads_last]
        self._forward = Forward(model)
        self._layers = layer_count(model)
        self._said: set[str] = set()

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
    ) -> EngineOutput:
        """Log-probability of each of ``token_ids`` as the next token after each sequence.

        ``n`` sequences of at least one id and ``m`` token ids give an `EngineOutput` of (n, m)
        float32: the log-softmax over the whole vocabulary. Up to rounding, the result is
        that of one forward pass for each sequence alone. ``progress`` is called with how much
        is done, in sequences of average length. ``prefixes`` are beginnings that many of the
        sequences share; they change only the speed.

        Raises:
            ModelError: the model gives other values even for one sequence at a time.
        """
        chosen = torch.tensor(list(token_ids), device=self.device)

        def plain(number: int) -> tuple[Tensor, float]:
            logprobs = self._forward.plain_logprobs(ids[number], 1)[0]
            return logprobs[chosen], _spread(logprobs)

        task = _Task(
            ids, prefixes, self.token_budget, partial(self._next_token, chosen), plain,
            len(token_ids), last_only=True,
        )  # fmt: skip
        return self._vouched(task, ProgressReporter(progress))

    def span_logprobs(
        self,
        ids: Sequence[Sequence[int]],
        starts: Sequence[int],
        progress: Callable[[int], None] | None = None,
    ) -> EngineOutput:
        """Log-probability of the end of each sequence, given its beginning.

        ``n`` sequences, each with the position its span starts at, from 1 to its length, give a
        `EngineOutput` of (n, 1) float32: the sum over the tokens ``ids[i][starts[i]:]`` of their
        log-probabilities (natural logarithm), each given all tokens before it; 0 for an empty span.

        Raises:
            ValueError: a span starts at the first token, which nothing predicts, or after the end.
            ModelError: the model gives other values even for one sequence at a time.
        """
        for i, (row, start) in enumerate(zip(ids, starts, strict=True)):
            if not 1 <= start <= len(row):
                raise ValueError(f"starts[{i}]={start} must be from 1 to {len(row)}.")
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        budget = min(self.token_budget, max(SPAN_LOGITS // vocabulary, 1))

        def plain(number: int) -> tuple[Tensor, float]:
            row, start = ids[number], starts[number]
            logprobs = self._forward.plain_logprobs(row, len(row) - start + 1)[:-1]
            target = torch.tensor(row[start:], dtype=torch.long, device=logprobs.device)
            found = logprobs.gather(1, target.unsqueeze(1)).double().sum(dim=0).float()
            return found, _spread(logprobs[0]) * len(logprobs) if len(logprobs) else 0.0

        task = _Task(ids, (), budget, partial(self._spans, starts), plain, 1, last_only=False)
        return self._vouched(task, ProgressReporter(progress))

    # Ways

    def _vouched(self, task: _Task, told: ProgressReporter) -> EngineOutput:
        """The values by the first way that agrees with plain forward passes."""
        tame_fork()
        ways = [way for way in self._ways if task.last_only or not way.reads_last]
        failed = ""
        for way in ways:
            try:
                read = self._by(way, task, told)
            except Unshareable as reason:
                self._say_once(f"{type(self.model).__name__} cannot use {way.name}: {reason}.")
            except Exception as error:  # a plain pass may succeed where a shortcut fails
                if way is ways[-1]:
                    raise
                said = str(error).strip().splitlines() or [type(error).__name__]
                failed = f"{way.name} failed: {said[0]}"
            else:
                if failed:
                    logger.warning("%d prompts read as %s; %s", len(task.ids), way.name, failed)
                return read
        raise AssertionError("the plainest way raises or reads")

    def _by(self, way: Strategy, task: _Task, told: ProgressReporter) -> EngineOutput:
        """The values by one way.

        Raises:
            _Disagrees: they differ from plain forward passes.
            Unshareable: the model is known not to fit.
        """
        mlp = last_mlp(self.model) if way.last_mlp else None
        if way.last_mlp and mlp is None:
            raise Unshareable("its last MLP is not found")
        shared = self._shared(task, told) if way.shares else {}
        if way.shares and not (shared or way.last_mlp):
            raise Unshareable("no two sequences begin alike")
        batches = batches_of(task.ids, shared, way, task.budget, self._forward.rope_limit)
        tally = Tally(len(task.ids), batches)
        chosen = witnesses(task.ids, batches)

        def read(batch: Batch) -> Tensor:
            return task.read(batch, mlp)

        first = [batch for batch in batches if not batch.ids.keys().isdisjoint(chosen)]
        for batch in first:
            read_halved(batch, read, tally, self.device)
        self._compare(chosen, task, tally)
        if (
            not tally.compared
            and way is not STRATEGIES[-1]
            and any(tally.of(i) is not None for i in chosen)
        ):
            raise _Disagrees("no plain forward pass to compare with fits in memory.")
        told.reach(tally.done)
        for batch in batches:
            if batch not in first:
                read_halved(batch, read, tally, self.device)
                told.reach(tally.done)
        tally.splits += told.unshared
        return tally.read(task.width, way)

    def _compare(self, numbers: Sequence[int], task: _Task, tally: Tally) -> None:
        """Compare the values of some sequences with a plain forward pass of each."""
        for i in numbers:
            found = tally.of(i)
            if found is None:
                continue
            computed = none_if_out_of_memory(partial(task.plain, i), self.device)
            if computed is None:
                logger.warning("Out of memory in a plain pass over sequence %d; not compared.", i)
                tally.splits += 1
                continue
            plain, spread = computed
            ours, theirs = found.float().cpu().numpy(), plain.float().cpu().numpy()
            gap = gap_of(ours, theirs)
            dtype = str(self.model.dtype).removeprefix("torch.")
            if not agree(ours, theirs, spread, dtype, self._layers):
                raise _Disagrees(
                    f"{type(self.model).__name__} gives a sequence of {len(task.ids[i])} tokens "
                    f"values that differ from those of a plain forward pass by {gap:.2g} nats. "
                    "If no way agrees, the model cannot rate: use another model."
                )
            tally.compared += 1
            tally.gap = max(tally.gap, gap)

    def _shared(self, task: _Task, told: ProgressReporter) -> dict[SharedPrefix, list[int]]:
        """Record each prefix, and return the sequences that begin with it."""
        shared = {}
        for ids, rows in members_of(task.ids, task.prefixes, self._forward.rope_limit).items():
            prefix = none_if_out_of_memory(partial(self._forward.record, ids), self.device)
            if prefix is None:
                logger.warning(
                    "Out of memory with a shared prefix of %d tokens; not shared.", len(ids)
                )
                told.unshared += 1
                continue
            prefix.check(self.model)
            limit = prefix.limit
            fits = [i for i in rows if limit is None or len(task.ids[i]) <= limit]
            if len(fits) > 1:
                shared[prefix] = fits
        return shared

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.info(text)

    # What is read

    @torch.inference_mode()
    def _next_token(self, chosen: Tensor, batch: Batch, mlp: nn.Module | None) -> Tensor:
        logits = self._forward.last_logits(batch, mlp)
        return logits[:, chosen.to(logits.device)] - logits.logsumexp(dim=-1, keepdim=True)

    @torch.inference_mode()
    def _spans(self, starts: Sequence[int], batch: Batch, mlp: nn.Module | None) -> Tensor:
        places = [
            (row, p, ids[p])
            for row, (i, ids) in enumerate(batch.ids.items())
            for p in range(starts[i], len(ids))
        ]
        rows, ends, target = torch.tensor(places, dtype=torch.long).reshape(-1, 3).unbind(1)
        logits = self._forward.logits(batch, rows, ends - 1)
        found = logits.gather(1, target.to(logits.device).unsqueeze(1)).squeeze(1)
        sums = torch.zeros(len(batch.ids), dtype=torch.float64, device=logits.device)
        sums.index_add_(0, rows.to(logits.device), (found - logits.logsumexp(dim=-1)).double())
        return sums.float().unsqueeze(1)


def _spread(logprobs: Tensor) -> float:
    """A standard deviation of log-probabilities (vocabulary), estimated from their middle half.

    Values of minus infinity are left out; a model may give them to tokens that it never writes.
    """
    possible = logprobs[logprobs != -torch.inf]
    quarters = torch.quantile(possible, torch.tensor([0.25, 0.75], device=logprobs.device))
    return float((quarters[1] - quarters[0]) / 1.35)
