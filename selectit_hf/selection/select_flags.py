"""A selection as the flags of ``selectit select`` that make it again."""

from collections.abc import Mapping
from typing import Any

from selectit_hf.rating import Reflection

__all__ = ["cut_flags", "ranking_flags"]


def ranking_flags(chosen: Mapping[str, Any]) -> list[str]:
    """What the rows are ranked by.

    Args:
        chosen: ``by``, ``asked`` and ``reflection``, as in ``selection.json``.
    """
    how, default = chosen["reflection"], Reflection()
    flags = ["--by", chosen.get("asked") or chosen["by"].removeprefix("score__")]
    if how["alpha"] != default.alpha:
        flags += ["--alpha", str(how["alpha"])]
    if how["variant"] != default.variant:
        flags += ["--variant", how["variant"]]
    if how["weights"]:
        flags += ["--weights", ",".join(map(str, how["weights"]))]
    return flags


def cut_flags(cut: Mapping[str, Any]) -> list[str]:
    """How much is kept; ``cut`` is that of ``selection.json``."""
    names = ("proportion", "n", "threshold")
    return [part for n in names if cut.get(n) is not None for part in (f"--{n}", str(cut[n]))]
