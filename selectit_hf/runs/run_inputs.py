"""The rows and scorers of a run, opened again from its folder, wherever that is.

A plan holds no local path. It identifies rows on the Hub, rows in the run folder, models on the Hub
and the bundled model; local files and checkpoint folders must be given again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from selectit_hf.errors import RunError
from selectit_hf.formats import Source, sources
from selectit_hf.rating import OF_THE_WEIGHTS, TINY_RATER, SentenceScore, resolve
from selectit_hf.runs.run import Run
from selectit_hf.runs.streamed_rows import streamed

__all__ = ["inputs", "is_streamed", "rows_of"]


def inputs(
    run: Run,
    data: str | None = None,
    split: str | None = None,
    models: Sequence[str] = (),
    **place: Any,
) -> tuple[Dataset, list[SentenceScore]]:
    """Everything else that `rate` and `rate_shard` need, in a process that has only the run.

    Args:
        run: the run.
        data, split: see `rows_of`.
        models: checkpoint folders of this machine, for those models of the plan that were folders.
        place: ``device`` and ``device_map`` of `selectit_hf.TokenScore`.

    Raises:
        RunError: rows or a model of the plan are not here and were not given, or have changed.
    """
    folders = {resolve(path).revision: path for path in models}
    scorers = []
    for model in run.plan["models"]:
        is_folder = model["revision"].startswith("sha256:") and model["model"] != TINY_RATER
        if is_folder and model["revision"] not in folders:
            raise RunError(
                f"The run's model {model['model']!r} was a folder, and the plan does not store its "
                f"path; give it again with --model. It must still hold {model['revision']}."
            )
        own = {name: model[name] for name in ("name", "revision", "dtype", "token_budget")}
        own |= {setting: model[setting] for setting in OF_THE_WEIGHTS if setting in model}
        name = folders.get(model["revision"], model["model"])
        scorers.append(SentenceScore(model=name, **own, **run.plan["rating"], **place))
    return rows_of(run, data, split), scorers


def is_streamed(run: Run) -> bool:
    """Whether the rows lie in the run folder, where a stream was stored."""
    return streamed(run.store, _source(run)) is not None


def _source(run: Run) -> Source:
    return Source(*(run.plan["input"][key] for key in ("name", "config", "split", "revision")))


def rows_of(run: Run, data: str | None = None, split: str | None = None) -> Dataset:
    """The rows that ``run`` rated, with all their columns.

    Args:
        run: the run.
        data: for a run over a local file, that file.
        split: which split, if there are several and the run does not say.

    Raises:
        RunError: a local file is not given, or the rows have changed since.
    """
    said = _source(run)
    there = streamed(run.store, said)
    if there is not None:
        return there
    if data is None and said.revision.startswith("sha256:"):
        raise RunError(
            f"The run rated the local file {said.name!r}; give it again with --data, so that "
            "its rows can be read with all their columns."
        )
    config = f":{said.config}" if said.config else ""
    is_one = data is not None and (Path(data).is_file() or (Path(data) / "state.json").is_file())
    several = not is_one or "[" in said.split
    rows, found = sources.load(
        data or f"{said.name}{config}@{said.revision}", split or (said.split if several else None)
    )
    if found.revision != said.revision:
        raise RunError(
            f"{found.name!r} has changed since it was rated: {found.revision}, not "
            f"{said.revision}. Give the file the run was made from."
        )
    return rows
