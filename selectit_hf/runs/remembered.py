"""Where the local rows and models of runs were, on this machine: never part of a run folder.

    $XDG_STATE_HOME/selectit/runs/<hash of the plan>.json

The place is only a hint. What lies there is checked like what is given by hand, so a file that is
gone or was changed is not used. Where the folder cannot be written, nothing is remembered.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from selectit_hf import whole_files
from selectit_hf.json_files import as_json, facts_hash, json_object, misfit
from selectit_hf.runs.run import Run

__all__ = ["Places", "places_of", "remember"]

SCHEMA = {"data": (str, None), "models": {str: str}}
Places = dict[str, Any]
"""``data``: what ``--data`` was, as a whole path, or `None`; ``models``: paths by revision."""


def places_of(run: Run) -> Places:
    """What is remembered of a run; nothing if the file is not there or is damaged."""
    with suppress(OSError):
        found = json_object(_file(run).read_bytes())
        if found is not None and misfit(found, SCHEMA) is None:
            return found
    return {"data": None, "models": {}}


def remember(run: Run, data: str | None = None, models: Mapping[str, str] | None = None) -> None:
    """Add the places of a run's local rows and models to what is remembered.

    Args:
        run: the run.
        data: a local file, folder, pattern or list with commas; it was checked.
        models: the paths of checked models, by the revision in the plan.
    """
    old = places_of(run)
    whole = {revision: os.path.abspath(path) for revision, path in (models or {}).items()}
    new = {"data": _whole(data) if data else old["data"], "models": old["models"] | whole}
    if new == old:
        return
    with suppress(OSError):
        path = _file(run)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_files.replacing(path) as partial:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(as_json(new))


def _file(run: Run) -> Path:
    said = os.environ.get("XDG_STATE_HOME", "")
    state = Path(said) if os.path.isabs(said) else Path.home() / ".local" / "state"
    return state / "selectit" / "runs" / f"{facts_hash(run.plan)}.json"


def _whole(data: str) -> str:
    """The same files, named from anywhere."""
    path = Path(data).expanduser()
    parts = [data] if path.exists() else data.split(",")
    return ",".join(os.path.abspath(Path(part).expanduser()) for part in parts)
