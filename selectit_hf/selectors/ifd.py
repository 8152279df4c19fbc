"""Instruction-Following Difficulty: how much the instruction helps to predict the response."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from selectit_hf.selectors.response_scorer import ResponseScorer, check_choice, finite, loss_of
from selectit_hf.selectors.selector import Measurement, Scores, texts, worst_status

__all__ = ["IFD"]


@dataclass(frozen=True)
class IFD(ResponseScorer):
    """Instruction-Following Difficulty ("From Quantity to Quality", arXiv 2308.12032, section 2.2).

    ``s(A|Q) / s(A)``, the ratio of the mean cross-entropies with and without the instruction; that
    is the paper's formula, and what its released code ranks by. ``ratio="perplexity"`` is
    ``exp(s(A|Q) - s(A))``, the ratio of the perplexities, which "Superfiltering" (arXiv 2402.00530)
    ranks by. Near 1 the instruction hardly helps to predict the response: such rows are difficult,
    and kept. From 1 on the instruction only hurts: those rows get no score and the status
    ``ifd_at_least_1``; they are the same rows by either ratio.

    Writes ``response_given__slug``, ``response_alone__slug`` and ``score__ifd_slug`` in ``(0, 1)``.

    Attributes:
        ratio: ``"loss"`` or ``"perplexity"``.

    Example:
        >>> ds = ds.map(IFD("meta-llama/Llama-2-7b-hf"), batched=True)  # doctest: +SKIP
    """

    ratio: Literal["loss", "perplexity"] = "loss"
    kind: ClassVar[str] = "ifd"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("ratio", self.ratio, ("loss", "perplexity"))

    def measurements(self) -> tuple[Measurement, ...]:
        """Both passes."""
        return self.given(), self.alone()

    def scores(self, tables: Sequence[pa.Table]) -> Scores:
        """The ratios below 1."""
        given, alone = loss_of(tables[0]), loss_of(tables[1])
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            values = given / alone if self.ratio == "loss" else np.exp(given - alone)
        scores = finite(values, worst_status(*(texts(table, "status") for table in tables)))
        for i in np.flatnonzero(scores.values >= 1).tolist():
            scores.values[i] = np.nan
            scores.statuses[i] = "ifd_at_least_1"
        return scores
