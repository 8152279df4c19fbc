"""SelectIT for Hugging Face datasets: let base LLMs rate instruction data, keep the best fifth.

See `TokenScore`, `SentenceScore` and `ModelScore` for the scores, `select` for the selection, and
the ``selectit`` command for all of it at once. The names below are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selectit_hf.analysis import check, export
    from selectit_hf.errors import SelectItError
    from selectit_hf.hub import publish
    from selectit_hf.rating import (
        ModelScore,
        RatingScorer,
        SentenceScore,
        TokenScore,
        model_score,
        score,
        sentence_score,
        token_score,
    )
    from selectit_hf.selection import Selection, select

__all__ = [
    "ModelScore",
    "RatingScorer",
    "SelectItError",
    "Selection",
    "SentenceScore",
    "TokenScore",
    "check",
    "export",
    "model_score",
    "publish",
    "score",
    "select",
    "sentence_score",
    "token_score",
]

__version__ = "0.1.0"

_HOMES = {
    "analysis": ("check", "export"),
    "errors": ("SelectItError",),
    "hub": ("publish",),
    "rating": (
        "ModelScore",
        "RatingScorer",
        "SentenceScore",
        "TokenScore",
        "model_score",
        "score",
        "sentence_score",
        "token_score",
    ),
    "selection": ("Selection", "select"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"selectit_hf.{module}"), name)
    raise AttributeError(f"module 'selectit_hf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
