"""The plot of a trust check: a dot and its interval for each defect and selector, chance marked."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from selectit_hf.analysis import CHANCE
from selectit_hf.report.figures import Form, figure_of, image_of, shortened

__all__ = ["check_plot"]

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#000000")
MARKS = "osD^vP*X"
"""Okabe and Ito's colours, and a mark for each: distinct for any colour vision."""
INK = "#1f2937"
NAME_LENGTH = 28


def check_plot(facts: Mapping[str, Any], form: Form = "png") -> bytes:
    """An image file of the facts of `Check`; the ranking level comes first.

    Raises:
        SettingError: matplotlib is not installed.
    """
    selectors = sorted(facts["selectors"], key=lambda one: one["name"] != facts["level"])
    rows = [*facts["defects"], "all"]
    height = 1.1 + 0.16 * len(rows) * (len(selectors) + 1.2) + 0.2 * -(-len(selectors) // 3)
    figure, axes = figure_of(6.4, height)
    axes.axvline(CHANCE, color=INK, linewidth=1, linestyle="--", zorder=0)
    offsets = np.linspace(-0.34, 0.34, len(selectors)) if len(selectors) > 1 else [0.0]
    for i, (one, offset) in enumerate(zip(selectors, offsets, strict=True)):
        found = [one["all"] if name == "all" else one["defects"][name] for name in rows]
        middle = np.array([auc["auc"] for auc in found])
        ends = np.array([[auc["low"] for auc in found], [auc["high"] for auc in found]])
        axes.errorbar(
            middle,
            np.arange(len(rows)) + offset,
            xerr=np.maximum(np.abs(ends - middle), 0),
            fmt=MARKS[i % len(MARKS)],
            color=COLORS[i % len(COLORS)],
            markersize=5,
            linewidth=1.2,
            label=shortened(one["name"], NAME_LENGTH),
        )
    axes.set_yticks(range(len(rows)), [f"{n} ({_count(facts, n)})" for n in rows], fontsize=9)
    axes.axhline(len(rows) - 1.5, color="#cbd5e1", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("AUC, good rows over broken copies (chance is 0.5)", fontsize=9)
    columns = min(len(selectors), 3)
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    return image_of(figure, form)


def _count(facts: Mapping[str, Any], name: str) -> int:
    defects = facts["defects"]
    return int(sum(defects.values()) if name == "all" else defects[name])
