"""From scores to kept rows, and how kept rows differ from the others."""

from selectit_hf.selection.select_flags import cut_flags, ranking_flags
from selectit_hf.selection.selected_file import write_selected
from selectit_hf.selection.selection import (
    Cut,
    Selection,
    decide,
    divide,
    kept_rows,
    score_column,
    select,
    status_column,
    stored_scores,
    stored_statuses,
)
from selectit_hf.selection.summary import LOW_RATING_MASS, ModelFacts, summarise

__all__ = [
    "LOW_RATING_MASS",
    "Cut",
    "ModelFacts",
    "Selection",
    "cut_flags",
    "decide",
    "divide",
    "kept_rows",
    "ranking_flags",
    "score_column",
    "select",
    "status_column",
    "stored_scores",
    "stored_statuses",
    "summarise",
    "write_selected",
]
