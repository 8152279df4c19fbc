"""A finished selection from a run folder, whose files are all verified first."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets import Dataset

from selectit_hf.analysis.finished import (
    ASKING,
    Finished,
    assemble,
    is_read_alike,
    model_facts,
)
from selectit_hf.analysis.trust.check_file import aside, read_check
from selectit_hf.analysis.verified_results import (
    CHOSEN,
    check_rows,
    check_written,
    read_rows,
    read_summary,
)
from selectit_hf.errors import RunError
from selectit_hf.rating import score_schema
from selectit_hf.runs import Run, open_results

__all__ = ["from_run"]


def from_run(run: Run | str | Path) -> Finished:
    """A run that has been finished, or its folder or URL.

    Raises:
        RunError: it is not finished, or its files do not belong together.
    """
    run = run if isinstance(run, Run) else open_results(run)
    plan, store = run.plan, run.results
    chosen = check_written(run)
    summary = read_summary(run)
    facts = {
        "input": plan["input"],
        "rating": {key: plan["rating"].get(key) for key in ASKING},
        "models": [model | model_facts(summary, model["name"]) for model in plan["models"]],
        "selection": {key: chosen[key] for key in (*CHOSEN, "asked") if key in chosen},
        "score_quantiles": summary["score_quantiles"],
        "contrast": summary.get("contrast", {}),
        "versions": plan["versions"],
    }
    checked = read_check(run)
    facts |= {"check": checked | {"aside": aside(checked, chosen)}} if checked else {}
    ours = score_schema(run.slugs, plan["rating"]["k"])
    columns = set(plan["input"]["columns"])
    kept = read_rows(store, "selected.parquet", chosen["selected"], ours.remove(0), columns)
    scores = read_rows(store, "scores.parquet", run.rows, ours)
    finished = assemble(facts, kept, scores, summary)
    check_rows(finished)
    return replace(finished, written=chosen, are_rows_of=partial(_are_rows_of, run))


def _are_rows_of(run: Run, dataset: Dataset) -> bool:
    if not is_read_alike(run.reader, run.plan["input"]["columns"], dataset.column_names):
        return False
    try:
        run.check_rows(dataset)
    except RunError:
        return False
    return True
