"""Figures with matplotlib: their style, and writing them as PNG or SVG files."""

import io
from typing import Any, Literal

from selectit_hf.errors import SettingError, how_to_install

__all__ = ["Form", "figure_of", "image_of", "shortened"]

Form = Literal["png", "svg"]
METADATA = {"png": {"Software": None}, "svg": {"Creator": None, "Date": None}}
"""Without the time and the version, so that the same numbers give the same bytes."""


def figure_of(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure of this size in inches, and its axes.

    Raises:
        SettingError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingError(
            f"The plots of a card need matplotlib: {how_to_install('publish')}."
        ) from error
    figure = Figure(figsize=(width, height), dpi=140, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def image_of(figure: Any, form: Form) -> bytes:
    """A figure as the bytes of a file; the same figure gives the same bytes."""
    from matplotlib import rc_context

    with io.BytesIO() as file, rc_context({"svg.hashsalt": "selectit"}):
        figure.savefig(file, format=form, metadata=METADATA[form])
        return file.getvalue()


def shortened(name: str, length: int) -> str:
    """A name for a tick or a legend, cut if it is longer than ``length``."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
