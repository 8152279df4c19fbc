"""Models rate rows: the scorers, and every step from a batch to its score columns."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from selectit_hf.rating import mapping, reflection
from selectit_hf.rating.mapping import environment, score, shares
from selectit_hf.rating.model_level import ModelScore
from selectit_hf.rating.models.checkpoints import OF_BASE, Checkpoint
from selectit_hf.rating.models.model_names import (
    DEFAULT_MODEL,
    TINY_RATER,
    is_local,
    model_name,
    resolve,
    slug,
    was_folder,
)
from selectit_hf.rating.prompts.prompt_encoder import context_length, text_ids
from selectit_hf.rating.prompts.rating_prompts import (
    RELEASED_TEMPLATE,
    Template,
    load_rating_prompts,
)
from selectit_hf.rating.prompts.response_encoder import ResponseEncoder
from selectit_hf.rating.prompts.template_ends import encoders_by_end
from selectit_hf.rating.rater import Question, Rater
from selectit_hf.rating.rating_scorer import RatingScorer
from selectit_hf.rating.ratings import RATED, Batch, Ratings, Totals, TypedColumn, read_ratings
from selectit_hf.rating.reflection import (
    Reflection,
    Variant,
    check_variant,
    model_weights,
    rating_mass,
)
from selectit_hf.rating.score_tables import score_schema, score_table, scorers_of
from selectit_hf.rating.scorer_settings import OF_A_PLACE, OF_THE_WEIGHTS, settings_of
from selectit_hf.rating.scorers import (
    SentenceScore,
    TokenScore,
    model_score,
    sentence_score,
    token_score,
)

if TYPE_CHECKING:
    from selectit_hf.rating.engine.engine import Engine, set_threads, thread_count
    from selectit_hf.rating.models.hardware import made_with

__all__ = [
    "DEFAULT_MODEL",
    "OF_A_PLACE",
    "OF_BASE",
    "OF_THE_WEIGHTS",
    "RATED",
    "RELEASED_TEMPLATE",
    "TINY_RATER",
    "Batch",
    "Checkpoint",
    "Engine",
    "ModelScore",
    "Question",
    "Rater",
    "RatingScorer",
    "Ratings",
    "Reflection",
    "ResponseEncoder",
    "SentenceScore",
    "Template",
    "TokenScore",
    "Totals",
    "TypedColumn",
    "Variant",
    "check_variant",
    "context_length",
    "encoders_by_end",
    "environment",
    "is_local",
    "load_rating_prompts",
    "made_with",
    "mapping",
    "model_name",
    "model_score",
    "model_weights",
    "rating_mass",
    "read_ratings",
    "reflection",
    "resolve",
    "score",
    "score_schema",
    "score_table",
    "scorers_of",
    "sentence_score",
    "set_threads",
    "settings_of",
    "shares",
    "slug",
    "text_ids",
    "thread_count",
    "token_score",
    "was_folder",
]

_WITH_TORCH = {
    "Engine": "selectit_hf.rating.engine.engine",
    "set_threads": "selectit_hf.rating.engine.engine",
    "thread_count": "selectit_hf.rating.engine.engine",
    "made_with": "selectit_hf.rating.models.hardware",
}
"""Names that are imported on first use."""


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
