"""Where memory runs out: a batch is halved, until its sequences fit or are given up."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from selectit_hf.rating.engine.tally import Tally
from selectit_hf.rating.engine.verification import Batch
from selectit_hf.rating.models.loading import is_out_of_memory

__all__ = ["none_if_out_of_memory", "read_halved"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def read_halved(
    batch: Batch, read: Callable[[Batch], Tensor], tally: Tally, device: torch.device
) -> None:
    """Read one batch; halved, at the same padded length, for as long as it is out of memory.

    A sequence alone is tried once more without padding before it is given up.
    """
    values = none_if_out_of_memory(lambda: read(batch), device)
    if values is not None:
        tally.add(batch, values)
        return
    rows, length = list(batch.ids.items()), batch.length
    own = max(map(len, batch.ids.values()))
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
        read_halved(Batch(dict(part), length, batch.prefix), read, tally, device)


def none_if_out_of_memory(compute: Callable[[], T], device: torch.device) -> T | None:
    """What is computed; ``None`` where memory ran out, once what was held of it is let go."""
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None
