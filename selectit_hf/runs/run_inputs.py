"""The rows and scorers of a run, opened again from its folder, wherever that is.

A plan holds no local path. It identifies rows on the Hub, rows in the run folder, models on the Hub
and the bundled model. Local files and checkpoint folders are looked for where they were on this
machine (see `remembered`), and must be given again if they are not there.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets import Dataset

from selectit_hf.errors import ModelError, RunError
from selectit_hf.formats import Source, sources
from selectit_hf.hashes import is_content_hash
from selectit_hf.rating import OF_THE_WEIGHTS, SentenceScore, is_local, resolve, was_folder
from selectit_hf.runs.remembered import places_of, remember
from selectit_hf.runs.run import Run
from selectit_hf.runs.streamed_rows import streamed

__all__ = ["inputs", "is_streamed", "model_folder", "remember_inputs", "rows_of"]


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
        models: checkpoint folders of this machine, for those models of the plan that were folders;
            by default, where they were.
        place: ``device`` and ``device_map`` of `selectit_hf.TokenScore`.

    Raises:
        RunError: rows or a model of the plan are not here and were not given, or have changed.
    """
    folders = {resolve(path).revision: path for path in models}
    scorers = []
    for model in run.plan["models"]:
        is_folder = was_folder(model["model"], model["revision"])
        found = model_folder(run, model["revision"]) if is_folder and not models else None
        if found is not None:
            folders.setdefault(model["revision"], found)
        if is_folder and model["revision"] not in folders:
            raise RunError(
                f"The run's model {model['model']!r} was a folder, and the plan does not store its "
                f"path; give it again with --model. It must still hold {model['revision']}."
            )
        own = {name: model[name] for name in ("name", "revision", "dtype", "token_budget")}
        own |= {setting: model[setting] for setting in OF_THE_WEIGHTS if setting in model}
        name = folders.get(model["revision"], model["model"])
        scorers.append(SentenceScore(model=name, **own, **run.plan["rating"], **place))
    planned = {model["revision"] for model in run.plan["models"]}
    remember(run.plan, models={key: folders[key] for key in folders if key in planned})
    return rows_of(run, data, split), scorers


def model_folder(run: Run, revision: str) -> str | None:
    """Where a local model of the plan was on this machine, if it is still there and the same."""
    path = places_of(run.plan)["models"].get(revision)
    with suppress(ModelError):
        if path is not None and is_local(path) and resolve(path).revision == revision:
            return str(path)
    return None


def remember_inputs(run: Run, data: str, scorers: Sequence[SentenceScore]) -> None:
    """Remember where the local rows and models are that a run was just planned with."""
    planned = zip(run.plan["models"], scorers, strict=False)
    models = {
        str(model["revision"]): str(one.model)
        for model, one in planned
        if was_folder(model["model"], model["revision"])
    }
    is_here = is_content_hash(_source(run).revision)
    remember(run.plan, data if is_here and sources.local_files(data) else None, models)


def is_streamed(run: Run) -> bool:
    """Whether the rows lie in the run folder, where a stream was stored."""
    return streamed(run.store, _source(run)) is not None


def _source(run: Run) -> Source:
    return Source(*(run.plan["input"][key] for key in ("name", "config", "split", "revision")))


def rows_of(run: Run, data: str | None = None, split: str | None = None) -> Dataset:
    """The rows that ``run`` rated, with all their columns.

    Args:
        run: the run.
        data: for a run over a local file, that file; by default, where it was.
        split: which split, if there are several and the run does not say.

    Raises:
        RunError: a local file is not given, or the rows have changed since.
    """
    said = _source(run)
    there = streamed(run.store, said)
    if there is not None:
        return there
    given, is_local_file = data, is_content_hash(said.revision)
    if data is None and is_local_file:
        data = places_of(run.plan)["data"]
    if is_local_file and not (given or (data and sources.local_files(data))):
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
            f"{said.revision}. Give the file the run was made from, with --data."
        )
    if given is not None and is_local_file:
        remember(run.plan, given)
    return rows
