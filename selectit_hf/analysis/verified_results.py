"""The results of a run, verified before they are used: hashes, schemas and scores."""

import tempfile
from collections.abc import Iterator, Set
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features

from selectit_hf.analysis.finished import BATCH, Finished, Rows, raters_of
from selectit_hf.errors import RunError
from selectit_hf.formats import FOREIGN
from selectit_hf.hashes import file_sha256
from selectit_hf.json_files import facts_hash
from selectit_hf.runs import RESULTS, Run, Store, is_url

__all__ = ["CHOSEN", "check_rows", "check_unchanged", "check_written", "read_rows", "read_summary"]

UNREADABLE = (*FOREIGN, AttributeError, LookupError, RecursionError, AssertionError)
"""What the libraries raise for a table whose metadata anybody may have written."""
FIRST = 2
"""The format of plans whose runs may have results without a hash of ``selection.json`` itself."""
NUMBER = (float, None)
CHOSEN = {
    "by": str,
    "cut": {"proportion": NUMBER, "n": (int, None), "threshold": NUMBER, "variant": str},
    "reflection": {"alpha": float, "variant": str, "weights": ([float], None)},
    "threshold": NUMBER,
    "rows": int,
    "selected": int,
    "reasons": {str: int},
}
"""What ``selection.json`` holds beside hashes; see `selectit_hf.json_files.misfit`."""
FURTHER = {"sha256?": {str: str}, "tables?": {str: [str]}, "asked?": str}
GROUP = {
    "rows": int,
    "mean_instruction_characters?": float,
    "mean_response_characters?": float,
    "median_response_characters?": float,
    "numeric_share?": float,
    "mean_turns?": float,
}
CONTRAST = {
    "selected": GROUP,
    "rejected": GROUP,
    "response_characters?": {"edges": [float], "selected": [int], "rejected": [int]},
}
"""What `selectit_hf.selection.contrast.contrast` makes."""
EXAMPLE = {"row": int, "score": float, "instruction": str, "response": str}
SUMMARY = {
    "rows": int,
    "score_quantiles": [NUMBER],
    "contrast?": CONTRAST,
    "models": {
        str: {
            "parameters": int,
            "statuses": {str: int},
            "rating_mass": NUMBER,
            "made_with?": [{str: str}],
        }
    },
    "best": [EXAMPLE],
    "worst": [EXAMPLE],
}
"""What ``summary.json`` holds."""


def read_summary(run: Run) -> dict[str, Any]:
    """What ``summary.json`` says.

    Raises:
        RunError: it is invalid, or names other models than the plan.
    """
    summary = _facts(run.results, "summary.json", SUMMARY)
    if summary["models"].keys() != {*run.slugs}:
        raise _unfinished("summary.json names other models than the plan")
    _check_contrast(summary.get("contrast"))
    return summary


def check_written(run: Run) -> dict[str, Any]:
    """Compare results and ratings with the hashes that were stored with them.

    Returns:
        What ``selection.json`` says about the selection, and the hashes in it.

    Raises:
        RunError: a file is not the one that was written; the message names it. Runs of 0.1.0 hold
            fewer hashes; those they hold are compared.
    """
    if not run.results.exists(RESULTS[-1]):
        raise RunError(
            f"{run.name!r} has no results yet. 'selectit status' shows how far it is; the same "
            "'selectit run' command resumes it; 'selectit finish' ends a run that is rated."
        )
    chosen = _facts(run.results, "selection.json", CHOSEN | FURTHER)
    written = chosen.pop("manifest_sha256", None)
    without_hash = written is None and run.plan["format"] == FIRST
    if written != facts_hash(chosen) and not without_hash:
        raise _unfinished("selection.json was changed after it was written; its hash differs")
    for name in RESULTS[:-1]:
        said = chosen["sha256"].get(name)
        if said is not None and _hash(run.results, name) != said:
            raise _unfinished(f"{name} was changed after it was written; its hash differs")
    for slug, tables in chosen["tables"].items():
        try:
            found = [facts["sha256"] for facts in run.shards(slug).check()]
        except RunError as error:
            raise _unfinished(str(error).partition(";")[0]) from error
        if found != tables:
            raise _unfinished(f"they are not made from the ratings by {slug}")
    further = {name: chosen[name] for name in ("sha256", "tables", "asked") if name in chosen}
    return further | {name: _known(chosen[name], schema) for name, schema in CHOSEN.items()}


def _hash(store: Store, name: str) -> str:
    with tempfile.TemporaryDirectory(prefix="selectit-") as folder:
        path = Path(folder) / "file"
        if not is_url(str(store)):
            path = store.path(name)
        else:
            store.fetch(name, path)
        try:
            return file_sha256(path)
        except OSError as error:
            raise _unfinished(f"{name} cannot be read") from error


def _facts(store: Store, name: str, schema: Any) -> dict[str, Any]:
    try:
        return {"sha256": {}, "tables": {}, **store.read_json(name, schema)}
    except RunError as error:
        raise _unfinished(str(error).partition(";")[0]) from error


def _known(value: Any, schema: Any) -> Any:
    """Only the keys of an object that the schema names."""
    names = isinstance(schema, dict) and str not in schema
    return {name: value[name] for name in schema} if names else value


def _unfinished(problem: str) -> RunError:
    return RunError(
        f"The run is not finished, or its files do not belong together: {problem}. "
        "'selectit select RUN --out FOLDER' writes them again from the stored ratings."
    )


def _check_contrast(contrast: dict[str, Any] | None) -> None:
    """Check that the histogram has one more edge than bins, and a group with rows has means."""
    if contrast is None:
        return
    groups = [contrast["selected"], contrast["rejected"]]
    means = {name.removesuffix("?") for name in GROUP if name != "mean_turns?"}
    bins = contrast.get("response_characters")
    fits = all(not group["rows"] or means <= group.keys() for group in groups)
    if fits and all(group["rows"] for group in groups):
        edges = [] if bins is None else bins["edges"]
        rising = all(0 < low < high for low, high in pairwise(edges))
        lengths = {len(bins[name]) + 1 for name in ("selected", "rejected")} if bins else set()
        fits = rising and lengths == {len(edges)}
    if not fits:
        raise _unfinished("summary.json has an invalid value at 'contrast'")


def read_rows(
    store: Store, name: str, rows: int, ours: pa.Schema, others: Set[str] = frozenset()
) -> Rows:
    """A file of the results, checked before any of its rows is read.

    Args:
        store: the run folder.
        name: the name of the file.
        rows: how many rows it must have.
        ours: the score columns.
        others: the columns of the input that the file must also have.

    Raises:
        RunError: it cannot be read, or holds another table.
    """
    try:
        with store.parquet(name) as file:
            found, schema = file.metadata.num_rows, file.schema_arrow
            features = Features.from_arrow_schema(schema)
            fits = schema.equals(features.arrow_schema) and len({*schema.names}) == len(schema)
    except UNREADABLE as error:
        raise _unfinished(f"{name} cannot be read") from error
    missing = {*others, *ours.names}.difference(schema.names)
    if not fits or missing or found != rows or not all(_is_ours(schema, one) for one in ours):
        raise _unfinished(f"{name} does not have the rows and columns of the run's results")

    def tables(columns: list[str] | None) -> Iterator[pa.Table]:
        with store.parquet(name) as file:
            for batch in file.iter_batches(BATCH, columns=columns):
                yield pa.Table.from_batches([batch])

    return Rows(features, tables)


def _is_ours(schema: pa.Schema, field: pa.Field) -> bool:
    """Whether a column has the type that this package writes; raters of 0.1.0 have fewer fields."""
    found = schema.field(field.name).type
    if pa.types.is_struct(found) and pa.types.is_struct(field.type):
        known = {inner.name: inner.type for inner in field.type}
        return all(known.get(inner.name) == inner.type for inner in found)
    return bool(found == field.type)


def check_rows(finished: Finished) -> None:
    """Compare what the files say with what follows from the scores.

    Raises:
        RunError: other models rated, other rows were kept, or the number of rows differs.
    """
    facts, scores = finished.facts, finished.scores
    for model in facts["models"]:
        for rater in raters_of(scores.column(f"rater__{model['name']}")):
            if any(rater[key] != model[key] for key in ("model", "revision", "rating_key")):
                raise _unfinished(f"scores.parquet was rated by another model than {model['name']}")
    ranked, kept = scores.scores(finished.by), scores.column("selected").to_numpy(False)
    found = (len(ranked), int(kept.sum()))
    said = (facts["input"]["rows"], facts["selection"]["selected"])
    if found != said:
        raise _unfinished(f"(rows, kept rows) are {found}, but the JSON files say {said}")
    if not np.array_equal(finished.selected.scores(finished.by), ranked[kept]):
        raise _unfinished("selected.parquet does not hold the best rows of scores.parquet")


def check_unchanged(run: Run, finished: Finished) -> None:
    """Compare again after everything is read, since another process may have selected meanwhile.

    Raises:
        RunError: the files are no longer those that it was made from.
    """
    if check_written(run) != finished.written:
        raise RunError(
            "Another selection was written to the run while its files were being read, so this "
            "command stopped. Run it again."
        )
