"""The rows of a run, read again: a run folder keeps its ratings and the selected rows only."""

from pathlib import Path

from datasets import Dataset

from selectit_hf import sources
from selectit_hf.errors import RunError
from selectit_hf.runs import Run
from selectit_hf.spool import spooled

__all__ = ["rows_of"]


def rows_of(run: Run, data: str | None = None, split: str | None = None) -> Dataset:
    """The rows that ``run`` rated, with all their columns.

    Args:
        run: the run.
        data: for a run over a local file, that file.
        split: which split, where there are several and the run does not say.

    Raises:
        RunError: a local file that is not given, or rows that have changed since.
    """
    source = run.plan["input"]
    there = spooled(run.folder / "rows")
    if there is not None and there[1].revision == source["revision"]:
        return there[0]
    if data is None and source["revision"].startswith("sha256:"):
        raise RunError(
            f"The run rated the local file {source['name']!r}; give it again with --data, so that "
            "its rows can be read with all their columns."
        )
    config = f":{source['config']}" if source["config"] else ""
    name = data or f"{source['name']}{config}@{source['revision']}"
    is_one = data is not None and (Path(data).is_file() or (Path(data) / "state.json").is_file())
    several = not is_one or "[" in source["split"]
    rows, found = sources.load(name, split or (source["split"] if several else None))
    if found.revision != source["revision"]:
        raise RunError(
            f"{found.name!r} has changed since it was rated: {found.revision}, not "
            f"{source['revision']}. Give the file the run was made from."
        )
    return rows
