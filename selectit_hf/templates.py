"""The templates of card and report: inside an installed package, next to it in a checkout."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

__all__ = ["templates"]


def templates() -> Traversable:
    """The folder ``hub_cards``."""
    built = files("selectit_hf").joinpath("hub_cards")
    return built if built.is_dir() else Path(__file__).parent.parent / "hub_cards"
