"""Where the local rows and models of runs were, on this machine: never part of a run folder.

    $XDG_STATE_HOME/selectit/runs/<hash of the plan>.json
    $XDG_STATE_HOME/selectit/selections/<hash of the manifest>.json   which run it was made from

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
from selectit_hf.runs.store import is_url

__all__ = ["places_of", "remember", "remember_selection", "run_of_selection"]

PLACES = {"data": (str, None), "models": {str: str}}


def places_of(plan: dict[str, Any]) -> dict[str, Any]:
    """What is remembered of the run with a plan.

    Returns:
        ``data``: what ``--data`` was, as a whole path, or `None`; ``models``: paths by revision.
    """
    return _read("runs", facts_hash(plan), PLACES) or {"data": None, "models": {}}


def remember(
    plan: dict[str, Any], data: str | None = None, models: Mapping[str, str] | None = None
) -> None:
    """Add the places of a run's local rows and models to what is remembered.

    Args:
        plan: the run's plan.
        data: a local file, folder, pattern or list with commas; it was checked.
        models: the paths of checked models, by the revision in the plan.
    """
    old = places_of(plan)
    whole = {revision: os.path.abspath(path) for revision, path in (models or {}).items()}
    new = {"data": _whole(data) if data else old["data"], "models": old["models"] | whole}
    if new != old:
        _write("runs", facts_hash(plan), new)


def remember_selection(manifest: str, run: str) -> None:
    """Remember from which run the selection with this ``manifest_sha256`` was made."""
    _write("selections", manifest, {"run": run if is_url(run) else os.path.abspath(run)})


def run_of_selection(manifest: str) -> str | None:
    """The path or URL of that run, if it is remembered."""
    found = _read("selections", manifest, {"run": str})
    return None if found is None else str(found["run"])


def _file(kind: str, key: str) -> Path:
    said = os.environ.get("XDG_STATE_HOME", "")
    state = Path(said) if os.path.isabs(said) else Path.home() / ".local" / "state"
    return state / "selectit" / kind / f"{key}.json"


def _read(kind: str, key: str, schema: Any) -> dict[str, Any] | None:
    with suppress(OSError, RuntimeError):
        found = json_object(_file(kind, key).read_bytes())
        return found if misfit(found, schema) is None else None
    return None


def _write(kind: str, key: str, facts: dict[str, Any]) -> None:
    with suppress(OSError, RuntimeError):  # a folder that cannot be written, or no home at all
        path = _file(kind, key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_files.replacing(path) as partial:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(as_json(facts))


def _whole(data: str) -> str:
    """The same files, named from anywhere."""
    path = Path(data).expanduser()
    parts = [data] if path.exists() else data.split(",")
    return ",".join(os.path.abspath(Path(part).expanduser()) for part in parts)
