"""Where a run stands: what is done, how fast, and what is wrong. Changes nothing."""

from pathlib import Path
from typing import Any

from selectit_hf import claims
from selectit_hf.errors import RunError
from selectit_hf.finishing import RESULTS
from selectit_hf.mirror import FRESH
from selectit_hf.runs import Run, look_at
from selectit_hf.shards import Shards
from selectit_hf.workers import deaths

__all__ = ["status"]


def status(folder: Path) -> dict[str, Any]:
    """The state of a run folder, as JSON-able facts, also while workers are at it.

    Every shard in the folder is hashed; of those that lie in object storage only, the sidecars are
    read and the tables taken at their word.

    Returns:
        ``rows``; for each of ``models``: ``shards``, ``done``, ``in_progress`` and ``bad`` (their
        numbers), ``rows_done``, ``rows_per_second`` of those at work now and ``seconds_left``
        (null while nobody is); ``finished``, whether the results are written; ``wrong``, a list of
        what does not look right, with what becomes of it.

    Raises:
        RunError: there is no run, or its plan cannot be read.
    """
    run = look_at(folder)
    shards = {slug: run.shards(slug) for slug in run.slugs}
    models = {slug: _of_a_model(one) for slug, one in shards.items()}
    wrong = [words for slug, one in shards.items() for words in _wrong(one, models[slug])]
    finished = _is_finished(run)
    if finished and any(model["done"] < model["shards"] for model in models.values()):
        wrong.append("there are results, and not every row is rated: they are of other ratings")
    return {"rows": run.rows, "models": models, "finished": finished, "wrong": wrong}


def _is_finished(run: Run) -> bool:
    if run.is_mirrored:
        return {*RESULTS} <= run.mirror.sizes(run.folder).keys()
    return all((run.folder / name).is_file() for name in RESULTS)


def _of_a_model(shards: Shards) -> dict[str, Any]:
    facts = shards.glance()
    done = {number: one for number, one in enumerate(facts) if one is not None}
    left = [number for number in range(len(shards)) if number not in done]
    in_progress = [number for number in left if _is_at_work(shards, number)]
    rows_done = sum(len(shards.rows_of(number)) for number in done)
    seconds = sum(one.get("seconds", 0) for one in done.values())
    speed = len(in_progress) * rows_done / seconds if in_progress and seconds else None
    return {
        "shards": len(shards),
        "done": len(done),
        "in_progress": in_progress,
        "bad": [n for n in left if shards.is_committed(n) or shards.is_elsewhere(n, FRESH)],
        "rows_done": rows_done,
        "rows_per_second": None if speed is None else round(speed, 3),
        "seconds_left": None if speed is None else round((shards.rows - rows_done) / speed, 1),
    }


def _is_at_work(shards: Shards, number: int) -> bool:
    path = shards.beside(number, "claim")
    if claims.is_live(path):
        return True
    return shards.mirror.has(path, FRESH) and not shards.mirror.is_abandoned(path)


def _is_claimed(shards: Shards, number: int) -> bool:
    path = shards.beside(number, "claim")
    return path.exists() or shards.mirror.has(path, FRESH)


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
        left = _is_claimed(shards, number) and number not in model["in_progress"]
        if left and not _is_at_work(shards, number):  # or just done, and about to give it back
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
