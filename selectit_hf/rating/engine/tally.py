"""The values an engine has read so far, batch by batch in any order, and its progress."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from selectit_hf.rating.engine.verification import Batch, Strategy, Verification

__all__ = ["EngineOutput", "ProgressReporter", "Tally"]


class EngineOutput(NamedTuple):
    """What was read: ``values`` (n, m) float32, NaN where ``oom`` (n,) is true.

    Attributes:
        values: log-probabilities.
        oom: the sequences that did not fit in memory even alone and without padding.
        splits: how often memory ran out and the work was done in another way: a batch halved, a
            sequence without its padding or its shared prefix, a comparison left out.
        reading: how the sequences were computed together.
    """

    values: NDArray[np.float32]
    oom: NDArray[np.bool_]
    splits: int
    reading: Verification


class ProgressReporter:
    """Reports how much is done, in sequences, counting each once even if it is computed again.

    Attributes:
        unshared: how often there was too little memory to keep a prefix, over all ways.
    """

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self.unshared = 0
        self._progress = progress
        self._said = 0

    def reach(self, done: int) -> None:
        """Report that ``done`` sequences are done."""
        if self._progress is not None and done > self._said:
            self._progress(done - self._said)
        self._said = max(done, self._said)


class Tally:
    """The values read so far; they stay on the device until all of them are requested."""

    def __init__(self, count: int, batches: Sequence[Batch]) -> None:
        self.splits = 0
        self.compared = 0
        self.gap = 0.0
        self._count = count
        self._tokens = sum(map(_tokens, batches))
        self._read = 0
        self._parts: list[tuple[list[int], Tensor | None]] = []

    def add(self, batch: Batch, values: Tensor | None) -> None:
        """Add the values (b, m) of a batch, or ``None`` if it does not fit in memory."""
        self._parts.append((list(batch.ids), values))
        self._read += _tokens(batch)

    @property
    def done(self) -> int:
        """The share of the work that is done, in sequences of average length.

        The longest come first: a count of sequences would promise too little at the beginning.
        """
        return self._count * self._read // max(self._tokens, 1)

    def of(self, number: int) -> Tensor | None:
        """The values (m) of one sequence, if it fitted in memory."""
        numbers, values = next(part for part in self._parts if number in part[0])
        return None if values is None else values[numbers.index(number)]

    def read(self, width: int, way: Strategy) -> EngineOutput:
        """All values, in the order of the sequences."""
        values = np.full((self._count, width), np.nan, dtype=np.float32)
        oom = np.ones(self._count, dtype=np.bool_)
        for numbers, part in self._parts:
            if part is not None:
                values[numbers] = part.cpu().numpy()
                oom[numbers] = False
        return EngineOutput(
            values, oom, self.splits, Verification(way.name, self.compared, self.gap)
        )


def _tokens(batch: Batch) -> int:
    return sum(map(len, batch.ids.values()))
