"""The steps of the ladder of ``bench.py``, and what is counted while one runs."""

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import released_loop
import torch
from float8 import to_float8

from selectit_hf.rating.engine.engine import Engine
from selectit_hf.rating.engine.verification import STRATEGIES
from selectit_hf.rating.prompts.prompt_encoder import PromptEncoder

NAIVE_BATCH = 16
STEPS = ("released", "last position", "naive batches", "sorted", "prefix", "last MLP")


@dataclass(frozen=True)
class Timed:
    """One step over ``prompts`` prompts.

    ``executed`` tokens went through the model, of which ``needed`` were not padding; the released
    loop would execute ``released``. ``values`` (prompts, k) are log-probabilities.
    """

    name: str
    seconds: float
    prompts: int
    executed: int
    needed: int
    released: int
    peak_megabytes: float
    values: Any

    @property
    def line(self) -> str:
        """For the terminal."""
        return f"{self.name}: {self.seconds:.2f} s, {self.prompts / self.seconds:.2f} prompts/s"


class Bench:
    """One model and one list of prompts, k for each row, for every step."""

    def __init__(
        self,
        model: Any,
        ids: list[list[int]],
        encoder: PromptEncoder,
        budget: int,
        process_clock: bool,
    ) -> None:
        self.model, self.ids = model, ids
        self.prefixes, self.chosen = encoder.prefixes, list(encoder.rating_token_ids)
        self.cuda = model.device.type == "cuda"
        self.parameters = sum(p.numel() for p in model.parameters())
        self.in_layers = sum(p.numel() for p in model.model.layers.parameters())
        self.clock = time.process_time if process_clock else time.perf_counter
        self.plain = Engine(model, budget, shortcuts=False)
        self.whole = Engine(model, 2**40, shortcuts=False)
        self.full = Engine(model, budget)
        self.shared = Engine(model, budget)
        self.shared._ways = [way for way in STRATEGIES if not way.last_mlp]

    def run(self, name: str, few: int) -> Timed:
        """One step; the loops use only the first ``few`` prompts."""
        ids = self.ids[:few] if name in STEPS[:2] else self.ids
        steps: dict[str, Callable[[Any], Any]] = {
            "released": self._released,
            "last position": self._last_position,
            "naive batches": self._naive,
            "sorted": lambda ids: self.plain.next_token_logprobs(ids, self.chosen).values,
            "prefix": lambda ids: self._with_prefixes(self.shared, ids),
            "last MLP": lambda ids: self._with_prefixes(self.full, ids),
        }
        needed = sum(map(len, ids)) - (self._saved(ids) if name in STEPS[4:] else 0)
        return self.timed(name, ids, needed, lambda: steps[name](ids))

    def compiled(self, repeats: int) -> list[Timed]:
        """Sorted batches with every decoder layer compiled for any shape; the layers stay so."""
        for layer in self.model.model.layers:
            layer.compile(dynamic=True)
        return self._sorted_again("compile", repeats)

    def in_float8(self, repeats: int) -> list[Timed]:
        """Sorted batches with 8-bit matrix products, in the layers as they are; they stay so."""
        to_float8(self.model)
        return self._sorted_again("8-bit products", repeats)

    def _sorted_again(self, name: str, repeats: int) -> list[Timed]:
        read = self.plain.next_token_logprobs
        read(self.ids, self.chosen)
        needed = sum(map(len, self.ids))
        return [
            self.timed(name, self.ids, needed, lambda: read(self.ids, self.chosen).values)
            for _ in range(repeats)
        ]

    # Steps

    def _released(self, ids: Sequence[list[int]]) -> Any:
        loop = released_loop.rating_probabilities
        return np.log([loop(self.model, one, self.chosen) for one in ids])

    @torch.no_grad()
    def _last_position(self, ids: Sequence[list[int]]) -> Any:
        found = []
        for one in ids:
            tensor = torch.tensor([one], device=self.model.device)
            mask = torch.ones_like(tensor)
            output = self.model(input_ids=tensor, attention_mask=mask, logits_to_keep=1)
            softmax = torch.softmax(output.logits[:, -1, :].float(), dim=-1)[0]
            found.append([float(softmax[i]) for i in self.chosen])
        return np.log(found)

    def _naive(self, ids: Sequence[list[int]]) -> Any:
        starts = range(0, len(ids), NAIVE_BATCH)
        batches = [ids[i : i + NAIVE_BATCH] for i in starts]
        read = self.whole.next_token_logprobs
        return np.concatenate([read(batch, self.chosen).values for batch in batches])

    def _with_prefixes(self, engine: Engine, ids: Sequence[list[int]]) -> Any:
        return engine.next_token_logprobs(ids, self.chosen, prefixes=self.prefixes).values

    def _saved(self, ids: Sequence[list[int]]) -> int:
        """Tokens that need not be computed if a prefix is computed once."""
        saved = 0
        for prefix in self.prefixes:
            members = sum(tuple(one[: len(prefix)]) == prefix for one in ids)
            saved += max(members - 1, 0) * len(prefix)
        return saved

    # Clock and counters

    def timed(
        self, name: str, ids: Sequence[list[int]], needed: int, work: Callable[[], Any]
    ) -> Timed:
        """Run ``work`` by the clock of the bench, and count the tokens that the model is given."""
        self._forget_peak()
        with self._counted() as seen:
            self._wait()
            started = self.clock()
            values = work()
            self._wait()
            seconds = self.clock() - started
        released = sum(map(len, ids))
        executed = sum(seen)
        return Timed(
            name, seconds, len(ids), executed, needed, released, self._peak(), np.asarray(values)
        )

    @contextmanager
    def _counted(self) -> Iterator[list[int]]:
        seen: list[int] = []
        embedding = self.model.get_input_embeddings()
        hook = embedding.register_forward_pre_hook(lambda m, args: seen.append(args[0].numel()))
        try:
            yield seen
        finally:
            hook.remove()

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _forget_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def _peak(self) -> float:
        """Peak memory in megabytes: the device's, or this process's."""
        if self.cuda:
            return round(torch.cuda.max_memory_allocated() / 1e6)
        status = Path("/proc/self/status")
        if status.exists():
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            return round(int(lines["VmHWM"].split()[0]) * 1024 / 1e6)
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)

    # Against the hardware

    def peak(self) -> dict[str, float]:
        """Matrix products a second that the device reaches, in TFLOP/s; on CUDA only."""
        if not self.cuda:
            return {}
        size = 8192
        a = torch.randn(size, size, device=self.model.device, dtype=self.model.dtype)
        spent = []
        for _ in range(10):
            self._wait()
            started = time.perf_counter()
            for _ in range(10):
                a @ a
            self._wait()
            spent.append((time.perf_counter() - started) / 10)
        self.tflops = 2 * size**3 / statistics.median(spent) / 1e12
        return {"matrix_product_tflops": round(self.tflops, 1)}

    def utilisation(self, timed: Timed, prompts_per_second: float) -> dict[str, float]:
        """Share of the matrix-product peak, from executed and from released floating-point work."""
        if not self.cuda:
            return {}
        layers = self.in_layers
        head = self.model.lm_head.weight.numel()
        heads = timed.released if timed.name == "released" else timed.prompts
        executed = 2 * (layers * timed.executed + head * heads) / timed.prompts
        released = 2 * (layers + head) * timed.released / timed.prompts
        return {
            "mfu_executed": round(executed * prompts_per_second / 1e12 / self.tflops, 3),
            "mfu_released": round(released * prompts_per_second / 1e12 / self.tflops, 3),
        }
