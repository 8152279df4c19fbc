"""Where a run stands: what is done, how fast, and what is wrong. Changes nothing."""

from pathlib import Path
from typing import Any

from selectit_hf import claims
from selectit_hf.errors import RunError
from selectit_hf.finishing import RESULTS
from selectit_hf.mirror import FRESH, Alone
from selectit_hf.runs import Run
from selectit_hf.shards import Shards
from selectit_hf.workers import deaths

__all__ = ["status"]


def status(folder: Path) -> dict[str, Any]:
    """The state of a run folder, as JSON-able facts, also while workers are at it.

    Returns:
        ``rows``; for each of ``models``: ``shards``, ``done``, ``in_progress`` and ``bad`` (their
        numbers), ``rows_done``, ``rows_per_second`` of those at work now and ``seconds_left``
        (null while nobody is); ``finished``, whether the results are written; ``wrong``, a list of
        what does not look right, with what becomes of it.

    Raises:
        RunError: there is no run, or its plan cannot be read.
    """
    run = Run.open(folder)
    shards = {slug: run.shards(slug) for slug in run.slugs}
    models = {slug: _of_a_model(one) for slug, one in shards.items()}
    wrong = [words for slug, one in shards.items() for words in _wrong(one, models[slug])]
    finished = all((folder / name).is_file() for name in RESULTS)
    if finished and any(model["done"] < model["shards"] for model in models.values()):
        wrong.append("there are results, and not every row is rated: they are of other ratings")
    return {"rows": run.rows, "models": models, "finished": finished, "wrong": wrong}


def _of_a_model(shards: Shards) -> dict[str, Any]:
    facts = {number: shards.facts(number) for number in range(len(shards))}
    done = {number: one for number, one in facts.items() if one is not None}
    left = [number for number in facts if number not in done]
    in_progress = [n for n in left if _is_claimed(shards.beside(n, "claim"), shards.mirror)]
    rows_done = sum(len(shards.rows_of(number)) for number in done)
    seconds = sum(one.get("seconds", 0) for one in done.values())
    speed = len(in_progress) * rows_done / seconds if in_progress and seconds else None
    return {
        "shards": len(shards),
        "done": len(done),
        "in_progress": in_progress,
        "bad": [number for number in left if shards.is_committed(number)],
        "rows_done": rows_done,
        "rows_per_second": None if speed is None else round(speed, 3),
        "seconds_left": None if speed is None else round((shards.rows - rows_done) / speed, 1),
    }


def _is_claimed(path: Path, mirror: Alone) -> bool:
    return claims.is_live(path) or mirror.has(path, FRESH)


def _wrong(shards: Shards, model: dict[str, Any]) -> list[str]:
    slug = shards.folder.name
    found = [
        f"the shard of {_rows(shards, number)}, by {slug!r}, is not what was committed; the next "
        "run sets it aside and rates it again"
        for number in model["bad"]
    ]
    found += [
        f"{name} in {slug!r} is no shard of the plan; the next run sets it aside"
        for name in shards.strays()
    ]
    for number in range(len(shards)):
        rows = f"{_rows(shards, number)}, by {slug!r}"
        if number not in model["in_progress"] and shards.beside(number, "claim").exists():
            found.append(f"who was at {rows}, is gone; any worker takes over")
        found += _deaths(shards, number, rows)
    return found


def _deaths(shards: Shards, number: int, rows: str) -> list[str]:
    try:
        died = deaths(shards, number)
    except RunError as error:
        return [str(error)]
    return [f"{died} workers died at {rows}"] if died else []


def _rows(shards: Shards, number: int) -> str:
    rows = shards.rows_of(number)
    return f"the rows {rows.start} to {rows.stop - 1}"
