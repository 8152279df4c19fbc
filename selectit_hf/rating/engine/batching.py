"""Which sequences are computed together: longest-first batches under a token budget.

Unsorted batches spend more than half of their tokens on padding; batches of neighbours in length
spend next to none. The longest come first, so that a batch that does not fit fails at once.
"""

from collections.abc import Sequence

from selectit_hf.errors import SettingError

__all__ = ["buckets"]

PADDING = 0.01
SMALL = 4


def buckets(lengths: Sequence[int], token_budget: int, one_length: bool = False) -> list[list[int]]:
    """Group the indices of ``lengths`` into batches of at most ``token_budget`` padded tokens.

    Every index occurs exactly once. A batch begins with its longest item, so its padded size is
    ``len(batch) * lengths[batch[0]]``. A single item over the budget is a batch of its own. Once a
    batch holds a quarter of the budget, it takes no item that would make more than 1 % of it
    padding; with ``one_length`` a batch never holds padding. The result depends on the arguments
    alone: equal lengths keep their order.
    """
    if token_budget < 1:
        raise SettingError(f"token_budget={token_budget} must be at least 1.")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    tokens = 0  # in the last batch, without its padding
    for i in order:
        longest, held = (lengths[batches[-1][0]], len(batches[-1])) if batches else (0, 0)
        padded = (held + 1) * longest
        small = SMALL * held * longest < token_budget
        tight = padded - tokens - lengths[i] <= PADDING * padded
        joins = lengths[i] == longest if one_length else small or tight
        if batches and padded <= token_budget and joins:
            batches[-1].append(i)
            tokens += lengths[i]
        else:
            batches.append([i])
            tokens = lengths[i]
    return batches
