"""The rows and scorers of a run, opened again from its folder, wherever that is.

A plan names no path of a machine. Rows of the Hub, rows that lie in the folder, models of the Hub
and the bundled one are found by it; local files and checkpoint folders are given again.
"""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from selectit_hf import sources
from selectit_hf.checkpoints import TINY_RATER, resolve
from selectit_hf.errors import RunError
from selectit_hf.runs.run import Run
from selectit_hf.runs.streaming import streamed
from selectit_hf.scorers import SentenceScore
from selectit_hf.sources import Source

__all__ = ["inputs", "rows_of", "scorers_of"]


def inputs(
    run: Run,
    data: str | None = None,
    split: str | None = None,
    models: Sequence[str] = (),
    *,
    device: str | None = None,
    device_map: str | None = None,
) -> tuple[Dataset, list[SentenceScore]]:
    """All that `rate` and `rate_shard` need beside the run, in a process that has only the run.

    Args:
        run: the run.
        data, split: see `rows_of`.
        models, device, device_map: see `scorers_of`.

    Raises:
        RunError: what the plan names is not here and was not given, or has changed.
    """
    return rows_of(run, data, split), scorers_of(run, models, device=device, device_map=device_map)


def rows_of(run: Run, data: str | None = None, split: str | None = None) -> Dataset:
    """The rows that ``run`` rated, with all their columns.

    Args:
        run: the run.
        data: for a run over a local file, that file.
        split: which split, where there are several and the run does not say.

    Raises:
        RunError: a local file that is not given, or rows that have changed since.
    """
    said = run.plan["input"]
    there = streamed(run.store, Source(*(said[k] for k in ("name", "config", "split", "revision"))))
    if there is not None:
        return there
    if data is None and said["revision"].startswith("sha256:"):
        raise RunError(
            f"The run rated the local file {said['name']!r}; give it again with --data, so that "
            "its rows can be read with all their columns."
        )
    config = f":{said['config']}" if said["config"] else ""
    name = data or f"{said['name']}{config}@{said['revision']}"
    several = data is None or (Path(data) / "dataset_dict.json").is_file()
    rows, found = sources.load(name, split or (said["split"] if several else None))
    if found.revision != said["revision"]:
        raise RunError(
            f"{found.name!r} has changed since it was rated: {found.revision}, not "
            f"{said['revision']}. Give the file the run was made from."
        )
    return rows


def scorers_of(
    run: Run,
    models: Sequence[str] = (),
    *,
    device: str | None = None,
    device_map: str | None = None,
) -> list[SentenceScore]:
    """A scorer for each model of the plan, with all its settings.

    Args:
        run: the run.
        models: checkpoint folders of this machine, for those models of the plan that were folders.
        device, device_map: where they rate; see `selectit_hf.scorers.RatingScorer`.

    Raises:
        RunError: a folder is missing, or holds another model than the plan's.
    """
    folders = {checkpoint.revision: path for path in models if (checkpoint := resolve(path))}
    asked = {**run.plan["rating"], "device": device, "device_map": device_map}
    scorers = []
    for model in run.plan["models"]:
        path = folders.pop(model["revision"], model["model"])
        is_folder = model["revision"].startswith("sha256:") and model["model"] != TINY_RATER
        if is_folder and path == model["model"]:
            raise RunError(
                f"The run's model {model['model']!r} was a folder, and its place is not written "
                f"down; give it again with --model. It must still hold {model['revision']}."
            )
        own = {name: model[name] for name in ("name", "revision", "dtype", "token_budget")}
        scorers.append(SentenceScore(model=path, **own, **asked))
    return scorers
