"""The command ``selectit``."""

from selectit_hf.cli.app import main

__all__ = ["main"]
