"""Where the copies of a run meet: the same plan in all of them, and one set of results.

What is done here does nothing for a run folder that is no copy.
"""

import json
import time
from pathlib import Path
from typing import Any

from selectit_hf import claims, storage
from selectit_hf.errors import RunError
from selectit_hf.mirror import Alone

__all__ = ["RESULTS", "bring_results", "offer_plan", "read_results", "send_results", "take_plan"]

RESULTS = ("scores.parquet", "selected.parquet", "summary.json", "selection.json")
"""In the order they are written; the last one says of which ratings the others are, and vouches."""
LOOKS = 5


def take_plan(path: Path, mirror: Alone) -> bool:
    """Have the plan here that is there; whether there is one.

    Raises:
        RunError: this is the copy of another run, or there is something that is no run.
    """
    there = _plan_there(path, mirror)
    if there is None and not mirror.is_empty():
        there = _plan_there(path, mirror)  # another machine may just have begun
        if there is None:
            raise RunError(
                f"{mirror.url} holds something and has no plan.json, so it is no run; name another."
            )
    if there is None or (path.exists() and path.read_bytes() == there):
        return there is not None
    if path.exists() and (path.parent / "ratings").exists():
        raise RunError(
            f"{mirror.url} has another plan than when this machine's copy of it was made; remove "
            f"the copy, {str(path.parent)!r}, to work at the run that is there now."
        )
    storage.write(path, there)
    return True


def offer_plan(path: Path, mirror: Alone) -> None:
    """Have the plan there that is here, unless another was quicker: then have that one here.

    Raises:
        RunError: as `take_plan`.
    """
    mirror.create(path, path.read_bytes())
    take_plan(path, mirror)


def _plan_there(path: Path, mirror: Alone) -> bytes | None:
    for _ in range(LOOKS):
        there = mirror.read(path)
        if there is None or _is_json(there):
            return there
        time.sleep(mirror.poll)  # it may be on its way
    raise RunError(f"plan.json at {mirror.url} cannot be read; restore it, or name another.")


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def send_results(folder: Path, mirror: Alone) -> None:
    """Write the results there; until all are there, none vouches for them."""
    mirror.remove(folder / RESULTS[-1])
    mirror.send(*(folder / name for name in RESULTS))


def read_results(folder: Path, mirror: Alone) -> dict[str, Any] | None:
    """Bring what says how the results there were chosen; ``None`` where they are not all there."""
    if not {*RESULTS} <= mirror.sizes(folder).keys():
        return None
    mirror.fetch(folder / "summary.json")
    mirror.fetch(folder / RESULTS[-1])
    return _read(folder / RESULTS[-1])


def bring_results(folder: Path, mirror: Alone) -> None:
    """Have the results here that are there, and no others; not while they are written here."""
    claim = claims.take(folder / "results.claim")
    if claim is None:
        return
    with claim:
        chosen = read_results(folder, mirror)
        said = (chosen or {}).get("sha256", {})
        for path in (folder / name for name in RESULTS[:-1]):
            if chosen is None:
                path.unlink(missing_ok=True)
            elif not path.exists() or storage.file_sha256(path) != said.get(path.name):
                mirror.fetch(path)
        if chosen is None:
            (folder / RESULTS[-1]).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return storage.read_json(path)
    except RunError:
        return None
