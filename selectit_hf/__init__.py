"""SelectIT for Hugging Face datasets: let base LLMs rate instruction data, keep the best fifth.

See `TokenScore`, `SentenceScore` and `ModelScore` for the scores, `select` for the selection, and
the ``selectit`` command for all of it at once.
"""

from selectit_hf.errors import SelectItError
from selectit_hf.publishing import publish
from selectit_hf.scorers import (
    ModelScore,
    SentenceScore,
    TokenScore,
    model_score,
    sentence_score,
    token_score,
)
from selectit_hf.selection import Selection, select

__all__ = [
    "ModelScore",
    "SelectItError",
    "Selection",
    "SentenceScore",
    "TokenScore",
    "model_score",
    "publish",
    "select",
    "sentence_score",
    "token_score",
]

__version__ = "0.1.0"
