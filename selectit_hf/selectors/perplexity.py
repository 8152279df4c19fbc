"""Perplexity: how much a response surprises a model that knows the instruction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from selectit_hf.selectors.response_scorer import ResponseScorer, check_choice, finite, loss_of
from selectit_hf.selectors.selector import Measurement, Scores, texts

__all__ = ["Perplexity"]


@dataclass(frozen=True)
class Perplexity(ResponseScorer):
    """Perplexity of the response given its instruction, ``exp(s(A|Q))``. Range 1 and above.

    Writes ``response_given__slug``, and ``score__perplexity_slug``: the perplexity, negative with
    ``keep="low"`` so that the higher score is kept.

    Attributes:
        keep: ``"low"`` keeps what the model finds natural, ``"high"`` what surprises it.

    Example:
        >>> ds = ds.map(Perplexity("meta-llama/Llama-2-7b-hf"), batched=True)  # doctest: +SKIP
    """

    keep: Literal["low", "high"] = "low"
    kind: ClassVar[str] = "perplexity"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("keep", self.keep, ("low", "high"))

    def measurements(self) -> tuple[Measurement, ...]:
        """The pass given the instruction."""
        return (self.given(),)

    def scores(self, tables: Sequence[pa.Table]) -> Scores:
        """The perplexities, signed by ``keep``."""
        with np.errstate(over="ignore"):
            values = np.exp(loss_of(tables[0]))
        sign = -1 if self.keep == "low" else 1
        return finite(sign * values, texts(tables[0], "status"))
