"""Other ways to rank rows: length, perplexity, IFD, a judge, diversity, quotas."""

from selectit_hf.selectors.baselines import Expected, Length, Random
from selectit_hf.selectors.diversity import Diverse, embed
from selectit_hf.selectors.duplicates import DuplicateIndex
from selectit_hf.selectors.endpoint import Endpoint
from selectit_hf.selectors.ifd import IFD
from selectit_hf.selectors.judge import JUDGE_THRESHOLD, Judge
from selectit_hf.selectors.perplexity import Perplexity
from selectit_hf.selectors.quotas import rank_in_group
from selectit_hf.selectors.response_scorer import ResponseScorer
from selectit_hf.selectors.selector import (
    Measurement,
    Progress,
    Scores,
    Selector,
    numbers,
    to_columns,
)

__all__ = [
    "IFD",
    "JUDGE_THRESHOLD",
    "Diverse",
    "DuplicateIndex",
    "Endpoint",
    "Expected",
    "Judge",
    "Length",
    "Measurement",
    "Perplexity",
    "Progress",
    "Random",
    "ResponseScorer",
    "Scores",
    "Selector",
    "embed",
    "numbers",
    "rank_in_group",
    "to_columns",
]
