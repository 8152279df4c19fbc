"""Ways to compute many sequences together, from the fastest to the plainest, and their checks.

A way is never taken on trust. Before the values of a call are used, its longest, its shortest, a
middle and its most padded sequence, with a shared prefix and without, are computed once more, each
by itself in a plain forward pass. If they differ from the batches, the next way is used for all
sequences of that call. The choice therefore depends only on the model and the sequences, not on
earlier calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from selectit_hf.rating.engine.batching import buckets

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from selectit_hf.rating.engine.shared_prefix import SharedPrefix

__all__ = [
    "STRATEGIES",
    "Batch",
    "Strategy",
    "Verification",
    "agree",
    "batches_of",
    "changing_rope",
    "gap_of",
    "layer_count",
    "members_of",
    "together",
    "witnesses",
]

TOLERANCE = {"float32": 3e-4}
"""How far log-probabilities may differ from those of a plain pass, as a share of their spread."""
TOLERANCE_OF_A_LAYER = {"float16": 0.005, "bfloat16": 0.04}
"""The same in 16 bits, times the square root of the number of layers: so rounding errors add up."""


@dataclass(frozen=True)
class Strategy:
    """How sequences are computed together.

    Attributes:
        name: its name in a sidecar and in the log.
        shares: the tokens that many sequences begin with are computed once.
        last_mlp: the last MLP sees only the position that is read.
        one_length: a batch holds sequences of one length, so that none is padded.
        alone: each sequence is a batch.
    """

    name: str
    shares: bool = False
    last_mlp: bool = False
    one_length: bool = False
    alone: bool = False

    @property
    def reads_last(self) -> bool:
        """Whether it works only if the last position of each sequence is read."""
        return self.shares or self.last_mlp


STRATEGIES = (
    Strategy("shared prefix, last MLP at one position", shares=True, last_mlp=True),
    Strategy("shared prefix", shares=True),
    Strategy("padded batches"),
    Strategy("batches of one length", one_length=True),
    Strategy("one sequence at a time", alone=True),
)


class Verification(NamedTuple):
    """How the sequences of a call were read.

    Attributes:
        way: the name of one of `STRATEGIES`.
        compared: how many of them were compared with plain forward passes.
        gap: the largest difference found, in nats.
    """

    way: str
    compared: int
    gap: float


def together(readings: Sequence[Verification]) -> Verification | None:
    """Several calls in one: the plainest way and the largest gap; ``None`` for no call."""
    if not readings:
        return None
    names = [way.name for way in STRATEGIES]
    plainest = max(readings, key=lambda one: names.index(one.way))
    compared = sum(one.compared for one in readings)
    return Verification(plainest.way, compared, max(one.gap for one in readings))


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of one forward pass.

    Attributes:
        ids: the token ids that are fed, by the number of their sequence, without the prefix.
        length: what they are padded to.
        prefix: the shared prefix that comes before them.
    """

    ids: Mapping[int, Sequence[int]]
    length: int
    prefix: "SharedPrefix | None" = None


def members_of(
    ids: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]], longest: int | None
) -> dict[tuple[int, ...], list[int]]:
    """The sequences of up to ``longest`` ids that begin with each prefix; at least two of them."""
    members: dict[tuple[int, ...], list[int]] = {
        prefix: [] for prefix in sorted({tuple(p) for p in prefixes if p}, key=len, reverse=True)
    }
    for i, row in enumerate(ids):
        if longest is None or len(row) <= longest:
            begun = (p for p in members if len(p) < len(row))
            found = next((p for p in begun if tuple(row[: len(p)]) == p), None)
            if found is not None:
                members[found].append(i)
    return {prefix: rows for prefix, rows in members.items() if len(rows) > 1}


def batches_of(
    ids: Sequence[Sequence[int]],
    shared: Mapping["SharedPrefix", Sequence[int]],
    way: Strategy,
    token_budget: int,
    longest: int | None,
) -> list[Batch]:
    """All sequences in batches.

    ``shared`` holds the sequences that begin with each prefix. In sequences of more than
    ``longest`` ids, positions depend on the batch's length, so a batch of them has one length.
    """
    taken = {i for rows in shared.values() for i in rows}
    others = [i for i in range(len(ids)) if i not in taken]
    near = [i for i in others if longest is None or len(ids[i]) <= longest]
    far = [i for i in others if longest is not None and len(ids[i]) > longest]
    groups: list[tuple[SharedPrefix | None, Sequence[int], bool]] = [
        *((prefix, rows, way.one_length) for prefix, rows in shared.items()),
        (None, near, way.one_length),
        (None, far, True),
    ]
    batches = []
    for prefix, rows, one_length in groups:
        start = prefix.length if prefix is not None else 0
        rest = [ids[i][start:] for i in rows]
        lengths = [len(row) for row in rest]
        parts = buckets(lengths, 1 if way.alone else token_budget, one_length)
        for part in parts:
            batches.append(Batch({rows[j]: rest[j] for j in part}, lengths[part[0]], prefix))
    return batches


def witnesses(ids: Sequence[Sequence[int]], batches: Sequence[Batch]) -> list[int]:
    """The longest, the shortest, a middle and the most padded sequence.

    Of those that share a prefix, and of those that do not; each once.
    """
    chosen = []
    for shares in (True, False):
        alike = [batch for batch in batches if (batch.prefix is not None) == shares]
        padding = {i: batch.length - len(row) for batch in alike for i, row in batch.ids.items()}
        order = sorted(padding, key=lambda i: (len(ids[i]), i))
        if order:
            most = max(order, key=lambda i: padding[i])
            chosen += [order[-1], order[0], order[len(order) // 2], most]
    return list(dict.fromkeys(chosen))


def agree(
    found: NDArray[np.float32], plain: NDArray[np.float32], spread: float, dtype: str, layers: int
) -> bool:
    """Whether log-probabilities are those of a plain forward pass, up to the dtype's rounding.

    ``spread`` is the deviation of a model's log-probabilities over its vocabulary: about 3 for a
    trained model, and 0.1 for random weights, whose rounding errors are smaller in proportion.
    """
    each = TOLERANCE_OF_A_LAYER.get(dtype, TOLERANCE_OF_A_LAYER["bfloat16"])
    share = TOLERANCE.get(dtype, each * layers**0.5)
    allowed = share * (spread if np.isfinite(spread) else 0)
    return bool(np.allclose(found, plain, rtol=0, atol=allowed, equal_nan=True))


def layer_count(model: "PreTrainedModel") -> int:
    """The number of layers; 1, the strictest, where a configuration does not say."""
    try:
        return int(model.config.get_text_config().num_hidden_layers)
    except (AttributeError, ValueError):
        return 1


def changing_rope(config: "PreTrainedConfig") -> int | None:
    """The longest sequence whose positions do not depend on the batch; ``None`` for any.

    Beyond it, the rotary embeddings of some models change with the longest sequence of a batch.
    """
    text: Any = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    found = [getattr(text, "original_max_position_embeddings", None)]
    for part in parts:
        found.append(part.get("original_max_position_embeddings"))
        if "dynamic" in str(part.get("rope_type")):
            found.append(getattr(text, "max_position_embeddings", None))
    return min((int(n) for n in found if n), default=None)


def gap_of(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """The largest difference of two log-probabilities; infinite if only one of them is finite."""
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    apart = np.abs(np.where(same, 0, ours) - np.where(same, 0, theirs))
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0))
