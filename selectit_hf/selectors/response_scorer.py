"""How a model reads responses, for perplexity and Instruction-Following Difficulty.

Both are made of the mean cross-entropy of the response's ``N`` tokens under a causal model,

    s(A|Q) = -1/N * sum_t log p(a_t | Q, a_1..a_{t-1})      given the instruction
    s(A)   = -1/N * sum_t log p(a_t | a_1..a_{t-1})         alone

Each of the two passes is a measurement that stores the sum of log-probabilities and ``N``, so
perplexity costs nothing after IFD, and IFD after perplexity costs only the second pass. The
response is encoded once, by itself, and both passes read the same tokens. In both passes the first
token is the tokenizer's BOS, or its EOS if it has no BOS (in such models EOS separates documents),
since the first token of a response cannot be predicted without one before it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from datasets import Value
from numpy.typing import NDArray

from selectit_hf.errors import SettingError
from selectit_hf.formats import Pair, Turns
from selectit_hf.rating import (
    OF_A_PLACE,
    RATED,
    Batch,
    Checkpoint,
    Question,
    Rater,
    ResponseEncoder,
    Template,
    TokenScore,
    context_length,
    settings_of,
)
from selectit_hf.selectors.selector import (
    Measured,
    Progress,
    ResolvedSelector,
    Scores,
    key_of,
    numbers,
)

if TYPE_CHECKING:
    from selectit_hf.rating import Engine

__all__ = ["CONTEXT", "ResponseLogprobs", "ResponseScorer", "check_choice", "finite", "loss_of"]

CONTEXT = "Instruction:{instruction}\nResponse:"
"""The context before a response given its instruction: the layout of the rating prompts."""

PASS_VERSION = 1
"""Increased whenever a change to rows, tokens or engine changes a measurement."""

Which = Literal["given", "alone"]


@dataclass(frozen=True)
class ResponseScorer(ResolvedSelector):
    """The base of `IFD` and `Perplexity`: a model that reads responses.

    Attributes:
        model, revision, base_model, dtype, quantization, attn_implementation, device, device_map,
            token_budget: see `selectit_hf.TokenScore`; a model that rates and reads is
            loaded once.
        context: the text before a response given its instruction; see `CONTEXT`.
        instruction_column, response_column, turns, translation, roles: see
            `selectit_hf.formats.rows.RowReader`.
        max_length: longest sequence in tokens; ``None`` for the model's context.
        slug: replaces the model's name in the column names.

    Raises:
        SettingError: a field out of range.
    """

    model: str | None = None
    revision: str | None = None
    context: str = CONTEXT
    instruction_column: str | None = None
    response_column: str | None = None
    turns: Turns | None = None
    translation: str | None = None
    roles: Sequence[str] | None = None
    max_length: int | None = None
    base_model: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    attn_implementation: str | None = None
    device: str | None = None
    device_map: str | None = None
    token_budget: int | None = None
    slug: str | None = None
    rater: TokenScore = field(init=False, repr=False, compare=False, hash=False)

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if self.context.count("{instruction}") != 1:
            raise SettingError(f"context={self.context!r} must hold {{instruction}} once.")
        settings = {name: getattr(self, name) for name in OF_A_RATER}
        object.__setattr__(self, "rater", TokenScore(**settings, name=self.slug))

    def __getstate__(self) -> dict[str, Any]:
        """All resolved settings that can change a score, as in `RatingScorer.__getstate__`."""
        own = settings_of(self)
        rater = self.rater.__getstate__()
        resolved = {name: rater[name] for name in OF_A_RATER if name in rater}
        places = dict.fromkeys(OF_A_PLACE)
        state = {**own, **resolved, **places, "version": PASS_VERSION}
        del state["device_map"]  # added after `datasets` caches were written, like these:
        return {name: value for name, value in state.items() if name not in LATER or value}

    @property
    def name(self) -> str:
        """``kind_slug``."""
        return f"{self.kind}_{self.rater.slug}"

    def given(self) -> "ResponseLogprobs":
        """The pass over the response given its instruction."""
        return ResponseLogprobs(self, "given")

    def alone(self) -> "ResponseLogprobs":
        """The pass over the response alone."""
        return ResponseLogprobs(self, "alone")


LATER = ("base_model", "quantization", "attn_implementation", "roles")
OF_A_RATER = tuple(
    f.name
    for f in dataclasses.fields(ResponseScorer)
    if f.init and f.name not in ("context", "slug")
)


@dataclass(frozen=True)
class ResponseLogprobs:
    """One reading of every response: ``logprob``, the sum of its log-probabilities, and ``tokens``.

    Attributes:
        scorer: the scorer whose model reads, and its settings.
        which: ``"given"`` the instruction, or ``"alone"``.
    """

    scorer: ResponseScorer
    which: Which

    fields: ClassVar[dict[str, Any]] = {
        "logprob": Value("float32"),
        "tokens": Value("int32"),
        "status": Value("string"),
    }

    @property
    def column(self) -> str:
        """``response_given__slug`` or ``response_alone__slug``."""
        return f"response_{self.which}__{self.scorer.rater.slug}"

    def key(self) -> str:
        """A hash of all that can change a log-probability."""
        state = self.scorer.__getstate__()
        named = (*OF_A_RATER, "context", "version")
        unread = ("model", "base_model")  # the revision says which
        shared = {name: state[name] for name in named if name in state and name not in unread}
        return key_of({**shared, "which": self.which})

    def measure(
        self, batch: Batch, rank: int | None = None, progress: Progress | None = None
    ) -> Measured:
        """Read each response; see `Selector.__call__` for the errors."""
        rater = self.scorer.rater
        pairs = rater.reader.pairs(batch)
        readable = [i for i, pair in enumerate(pairs) if isinstance(pair, Pair)]
        encoder = _encoder(rater.checkpoint, self.scorer.context, rater.max_length)
        encoded = encoder.encode([pair for pair in pairs if isinstance(pair, Pair)])
        statuses = [pair if isinstance(pair, str) else "" for pair in pairs]
        for i, one in zip(readable, encoded, strict=True):
            statuses[i] = one.status
        asked = [(i, one) for i, one in zip(readable, encoded, strict=True) if one.response]
        before = [[encoder.start] + one.context * (self.which == "given") for _, one in asked]
        ids = [start + one.response for start, (_, one) in zip(before, asked, strict=True)]
        values = np.full(len(pairs), np.nan, np.float32)
        counts = np.zeros(len(pairs), np.int32)
        if asked:
            rows = [i for i, _ in asked]
            read = self._engine(rank).span_logprobs(ids, [len(start) for start in before], progress)
            values[rows] = read.values[:, 0]
            counts[rows] = [len(one.response) for _, one in asked]
            for i, oom in zip(rows, read.oom.tolist(), strict=True):
                if not np.isfinite(values[i]):
                    statuses[i] = "oom" if oom else "nonfinite"
        return Measured(_table(values, counts, statuses), len(ids), sum(map(len, ids)))

    def _engine(self, rank: int | None) -> "Engine":
        """The engine that also rates with this model, in the same place."""
        rater = self.scorer.rater
        nothing = Question(Template(), (), rater.k, None, False)
        return Rater(rater.checkpoint, nothing, rater.place(rank)).engine()


def _table(values: NDArray[np.float32], counts: NDArray[np.int32], statuses: list[str]) -> pa.Table:
    missing = ~np.isfinite(values)
    return pa.table(
        {
            "logprob": pa.array(values, pa.float32(), mask=missing),
            "tokens": pa.array(counts, pa.int32(), mask=missing),
            "status": pa.array(statuses, pa.string()),
        }
    )


@functools.lru_cache(maxsize=1)
def _encoder(checkpoint: Checkpoint, context: str, max_length: int | None) -> ResponseEncoder:
    tokenizer = checkpoint.tokenizer()
    limits = [context_length(checkpoint.config(), tokenizer), max_length]
    limit = min((n for n in limits if n is not None), default=None)
    return ResponseEncoder(tokenizer, context, limit)


def loss_of(table: pa.Table) -> NDArray[np.float64]:
    """(n) mean cross-entropy in nats, NaN where nothing was read."""
    return np.asarray(-numbers(table, "logprob") / numbers(table, "tokens"))


def finite(values: NDArray[np.float64], statuses: list[str]) -> Scores:
    """Scores; a value that overflowed or was divided by zero is ``nonfinite``."""
    lost = ~np.isfinite(values)
    statuses = [
        "nonfinite" if gone and status in RATED else status
        for gone, status in zip(lost.tolist(), statuses, strict=True)
    ]
    return Scores(np.where(lost, np.nan, values), statuses)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a setting that is not one of ``choices``.

    Raises:
        SettingError: it is not.
    """
    if value not in choices:
        raise SettingError(
            f"{name}={value!r} is unknown; choose {' or '.join(map(repr, choices))}."
        )
