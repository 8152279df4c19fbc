"""Where the copies of a run meet: the same plan in all of them, and one set of results.

What is done here does nothing for a run folder that is no copy.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selectit_hf import claims, storage
from selectit_hf.errors import RunError
from selectit_hf.finishing import RESULTS
from selectit_hf.mirror import Alone

__all__ = [
    "bring_results",
    "offer_plan",
    "read_results",
    "send_results",
    "take_plan",
    "writing_results",
]

CLAIM = "results.claim"
LOOKS = 5


def take_plan(path: Path, mirror: Alone) -> bool:
    """Have the plan here that is there; whether there is one.

    Raises:
        RunError: this is the copy of another run, or there is something that is no run.
    """
    there = _plan_there(path, mirror)
    if there is None and mirror.sizes(path.parent):
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
        if there is None or storage.json_object(there) is not None:
            return there
        time.sleep(mirror.poll)  # it may be on its way
    raise RunError(f"plan.json at {mirror.url} cannot be read; restore it, or name another.")


def send_results(folder: Path, mirror: Alone) -> None:
    """Write the results there; until all are there, none vouches for them."""
    mirror.remove(folder / RESULTS[-1])
    for name in RESULTS:
        mirror.send(folder / name)


def read_results(folder: Path, mirror: Alone) -> dict[str, Any] | None:
    """Bring what says how the results there were chosen; ``None`` where they are not all there."""
    if not {*RESULTS} <= mirror.sizes(folder).keys():
        return None
    for name in RESULTS[-2:]:
        mirror.fetch(folder / name)
    return storage.json_object((folder / RESULTS[-1]).read_bytes())


def bring_results(folder: Path, mirror: Alone) -> None:
    """Have the results here that are there, and no others; not while they are written here."""
    claim = claims.take(folder / CLAIM)
    if claim is None:
        return
    with claim:
        chosen = read_results(folder, mirror)
        if chosen is None:
            for name in RESULTS:
                (folder / name).unlink(missing_ok=True)
            return
        said = chosen.get("sha256", {})
        for path in (folder / name for name in RESULTS[:-1]):
            if not path.exists() or storage.file_sha256(path) != said.get(path.name):
                mirror.fetch(path)


@contextmanager
def writing_results(folder: Path, mirror: Alone) -> Iterator[None]:
    """Nobody else writes results there meanwhile."""
    with claims.wait(folder / CLAIM), mirror.wait(folder / CLAIM):
        yield
