"""Figures with matplotlib: their style, and writing them as PNG files."""

import io
from typing import Any

from selectit_hf.errors import SettingError, how_to_install

__all__ = ["figure_of", "png_of", "shortened"]


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


def png_of(figure: Any) -> bytes:
    """A figure as a PNG file, without the time it was made."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", metadata={"Software": None})
        return file.getvalue()


def shortened(name: str, length: int) -> str:
    """A name for a tick or a legend, cut if it is longer than ``length``."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
