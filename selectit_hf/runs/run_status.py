"""The status of a run: what is done, how fast, and what is wrong. Changes nothing."""

import re
import time
from pathlib import Path
from typing import Any

from selectit_hf.json_files import json_object, misfit
from selectit_hf.runs.run import PROGRESS, RESULTS, Run, open_run
from selectit_hf.runs.shards import rows_words

__all__ = ["status"]

SILENT = 120.0
"""Seconds after which a note about a shard in progress is taken to be a dead worker's."""

NOTE = {"at": float, "rows": int}
"""What a note says; see `selectit_hf.json_files.misfit`."""


def status(where: Run | str | Path) -> dict[str, Any]:
    """The state of a run, as JSON-able facts, also while workers are rating.

    Sidecars are read, and tables must exist; only `finish` reads all tables.

    Returns:
        ``rows``; for each of ``models``: ``shards``, ``done``, ``in_progress`` and ``bad`` (their
        numbers), ``rows_done``, including shards in progress, ``rows_per_second`` of the workers
        that are rating now, and ``seconds_left`` (null if there are none); ``finished``, whether
        the results are written; ``wrong``, a list of problems and what will happen to them.

    Raises:
        RunError: there is no run, or its plan cannot be read.
    """
    run = where if isinstance(where, Run) else open_run(where)
    notes = _notes(run)
    models = {slug: _of_a_model(run, slug, notes) for slug in run.slugs}
    wrong = [
        f"{rows_words(run.parts[number].rows)}, by {slug!r}, differ from what was committed; "
        "they will be rated again"
        for slug, model in models.items()
        for number in model["bad"]
    ]
    finished = run.store.exists(RESULTS[-1])
    if finished and any(model["done"] < model["shards"] for model in models.values()):
        wrong.append("there are results, but not every row is rated: they are of other ratings")
    return {"rows": run.rows, "models": models, "finished": finished, "wrong": wrong}


def _notes(run: Run) -> dict[tuple[str, int], int]:
    """The rows done of each shard that is being rated, by model and number."""
    names = [f"{PROGRESS}/{name}" for name in run.store.sizes(PROGRESS) if name.endswith(".json")]
    found = {}
    for name, data in run.store.read_many(names).items():
        said, (slug, _, number) = json_object(data) or {}, Path(name).stem.partition(".")
        if misfit(said, NOTE) is not None or not re.fullmatch("[0-9]{1,9}", number):
            continue
        if abs(time.time() - said["at"]) < SILENT:
            found[slug, int(number)] = said["rows"]
    return found


def _of_a_model(run: Run, slug: str, notes: dict[tuple[str, int], int]) -> dict[str, Any]:
    shards = run.shards(slug)
    done, files = shards.committed(), run.store.sizes(shards.folder)
    at_work = {n: rows for (name, n), rows in notes.items() if name == slug and n not in done}
    whole = sum(len(run.parts[number].rows) for number in done)
    rows, seconds = whole + sum(at_work.values()), sum(one["seconds"] for one in done.values())
    speed = len(at_work) * whole / seconds if at_work and seconds else None
    return {
        "shards": len(shards),
        "done": len(done),
        "in_progress": sorted(at_work),
        "bad": [n for n in range(len(shards)) if f"{n:05d}.json" in files and n not in done],
        "rows_done": rows,
        "rows_per_second": None if speed is None else round(speed, 3),
        "seconds_left": None if speed is None else round((run.rows - rows) / speed, 1),
    }
