"""Comparing selectors, ablations, the trust check, and finished selections."""

from selectit_hf.analysis import choices
from selectit_hf.analysis.candidates import NAMES, Candidates
from selectit_hf.analysis.choices import JudgeSettings, Reader
from selectit_hf.analysis.comparison import compare
from selectit_hf.analysis.dry_run import dry_run
from selectit_hf.analysis.exporting import Exported, export, for_training
from selectit_hf.analysis.finished import Finished, Rows, is_score
from selectit_hf.analysis.finished_run import from_run
from selectit_hf.analysis.finished_selection import from_selection
from selectit_hf.analysis.measures import Measures
from selectit_hf.analysis.speed import duration
from selectit_hf.analysis.trust.auc import CHANCE
from selectit_hf.analysis.trust.check_file import check_place
from selectit_hf.analysis.trust.defects import DEFECTS
from selectit_hf.analysis.trust.trust_check import check
from selectit_hf.analysis.trust.verdict import side
from selectit_hf.analysis.verified_results import check_unchanged

__all__ = [
    "CHANCE",
    "DEFECTS",
    "NAMES",
    "Candidates",
    "Exported",
    "Finished",
    "JudgeSettings",
    "Measures",
    "Reader",
    "Rows",
    "check",
    "check_place",
    "check_unchanged",
    "choices",
    "compare",
    "dry_run",
    "duration",
    "export",
    "for_training",
    "from_run",
    "from_selection",
    "is_score",
    "side",
]
