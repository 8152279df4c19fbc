"""Are the rows to publish those of their source? Compared by hash, where it can be read."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from datasets import Dataset
from huggingface_hub import HfApi, constants

from selectit_hf.analysis import Finished
from selectit_hf.errors import InputError, SelectItError
from selectit_hf.formats import Source, sources
from selectit_hf.hub.card import DERIVED, NOT_COMPARED, SAME
from selectit_hf.hub.card_code import is_local_source
from selectit_hf.patience import FAILURES
from selectit_hf.runs import Run, is_streamed, rows_of

__all__ = ["compared", "rows_of_hub", "rows_of_run"]

Load = Callable[[], Dataset]


def compared(finished: Finished, load: Load, derived: bool) -> tuple[Finished, tuple[str, ...]]:
    """Compare the rows that were rated with the source; the facts say what was found.

    Args:
        finished: the selection.
        load: reads the source's rows.
        derived: the publisher says that the rows are not the source's own.

    Returns:
        The selection with ``input.relation``, and notes for the publisher.

    Raises:
        InputError: the rows differ from the source, and ``derived`` was not said.
    """
    source: dict[str, Any] = finished.facts["input"]
    notes: tuple[str, ...] = ()
    try:
        relation = SAME if finished.are_rows_of(load()) else DERIVED
    except (SelectItError, *FAILURES) as error:
        relation = DERIVED if derived else NOT_COMPARED
        notes = (f"the rows were not compared with {source['name']}: {error}",)
    if relation == DERIVED and not derived:
        raise InputError(
            f"The {source['rows']} rows that were rated are not those of {source['name']} at "
            f"{source['revision']}: they were filtered, reordered or changed. Publish them as "
            "derived from it with derived=True (--derived), or name the dataset that they are."
        )
    facts = finished.facts | {"input": source | {"relation": relation}}
    return replace(finished, facts=facts), notes


def rows_of_run(run: Run, api: HfApi) -> Dataset:
    """The rows of a run's source, read again.

    Raises:
        InputError, RunError: they cannot be read, or were only read as a stream.
    """
    if is_streamed(run):
        raise InputError("it was read as a stream")
    if not is_local_source(run.plan["input"]):
        _check_endpoint(api)
    return rows_of(run)


def rows_of_hub(source: Source, api: HfApi) -> Dataset:
    """The rows of a source on the Hub, at its commit.

    Raises:
        InputError: they cannot be read.
    """
    _check_endpoint(api)
    config = f":{source.config}" if source.config else ""
    return sources.load(f"{source.name}{config}@{source.revision}", source.split)[0]


def _check_endpoint(api: HfApi) -> None:
    if api.endpoint != constants.ENDPOINT:
        raise InputError("datasets are read from another Hub than that of api=; set HF_ENDPOINT")
