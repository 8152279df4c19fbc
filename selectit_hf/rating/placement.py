"""Where a scorer's model runs: device, dtype, token budget, from settings and environment."""

import os
from typing import Any

from selectit_hf.errors import SettingError
from selectit_hf.rating.rater import Place

__all__ = ["check_device_map", "choose_place", "planned_budget", "spread_here"]


def choose_place(scorer: Any, rank: int | None) -> Place:
    """The place of a `RatingScorer` in the worker of this ``rank``; see `RatingScorer.place`."""
    from selectit_hf.rating.models.loading import choose_device, choose_dtype, default_budget

    spread = scorer.spread
    named = None if spread else scorer.device or os.environ.get("SELECTIT_DEVICE")
    device = choose_device(named, rank)
    if spread and rank and device != "cpu":
        raise SettingError(
            f"With the device map {spread!r} a process takes all GPUs it sees, but this is one "
            f"of several on its machine, number {rank}. Start one on each machine (torchrun "
            "--nproc-per-node 1); 'selectit run --workers' divides the GPUs among several."
        )
    dtype = choose_dtype(scorer.dtype, device)
    budget = scorer.token_budget or _environment_budget() or default_budget(device)
    return Place(dtype, device, budget, spread, scorer.quantization, scorer.attn_implementation)


def planned_budget(scorer: Any) -> int:
    """Padded tokens in a forward pass; see `RatingScorer.default_token_budget`."""
    from selectit_hf.rating.models.loading import fitting_budget

    place, config = scorer.place(None), scorer.checkpoint.config()
    given = scorer.token_budget or _environment_budget()
    return given or fitting_budget(
        config, place.dtype, place.device, place.device_map, place.quantization
    )


def spread_here(device: str | None, device_map: str | None) -> str | None:
    """The device map that applies here; see `RatingScorer.spread`."""
    if device or device_map or os.environ.get("SELECTIT_DEVICE"):
        return device_map
    variable = "SELECTIT_DEVICE_MAP"
    return check_device_map(os.environ.get(variable) or None, variable)


def check_device_map(device_map: str | None, name: str = "device_map") -> str | None:
    """The device map, if it is ``None`` or known.

    Raises:
        SettingError: it is unknown; ``name`` is where it was set.
    """
    if device_map is None:
        return None
    from selectit_hf.rating.models.loading import DEVICE_MAPS

    if device_map not in DEVICE_MAPS:
        raise SettingError(
            f"{name}={device_map!r} is unknown; choose one of {', '.join(DEVICE_MAPS)}."
        )
    return device_map


def _environment_budget() -> int | None:
    text = os.environ.get("SELECTIT_TOKEN_BUDGET")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise SettingError(f"SELECTIT_TOKEN_BUDGET={text!r} must be a whole number of at least 1.")
    return int(text)
