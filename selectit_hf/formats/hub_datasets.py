"""Datasets of the Hub, pinned to a commit: which files it has there, and how they are read."""

from collections.abc import Collection, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    IterableDatasetDict,
    get_dataset_config_names,
    load_dataset_builder,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from selectit_hf import hub_files
from selectit_hf.errors import InputError
from selectit_hf.formats.local_datasets import read_alike
from selectit_hf.formats.readers.failures import gated, readable, without_rows
from selectit_hf.formats.readers.files import as_held, kind_of
from selectit_hf.formats.splits import choose_split, cut, one_split, part_of, start_of
from selectit_hf.patience import FAILURES

__all__ = ["load_hub"]

READ_HERE = ("json", "csv")
"""Builders of `datasets` that guess types; their files are read like local files instead."""

SETTINGS = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""Files that `datasets` reads before it knows the data files."""


def load_hub(
    name: str, config: str | None, revision: str | None, split: str | None, streaming: bool
) -> tuple[Any, str, str]:
    """The rows of a dataset of the Hub, the split they are of, and the commit sha.

    Raises:
        InputError: it is not there, or has several configs or splits and none named.
    """
    sha, known = _commit(name, revision)
    base, part = cut(split)
    with readable(name):
        listed = hub_files.listing("dataset", name, sha, known)
        hub_files.fetch("dataset", name, sha, [one for one in SETTINGS if one in listed])
        builder = _builder(name, config, sha)
        files = _data_files(builder, name, sha, listed)
        splits = list(builder.info.splits or {}) or list(files)
        chosen = choose_split(splits, base, name) if splits else base
        if _is_read_here(builder):
            rows = _read_hub(builder, name, files[str(chosen)], sha)
            return *part_of(rows, str(chosen), part, name), sha
        if streaming:
            loaded = builder.as_streaming_dataset(split=chosen)
        else:
            hub_files.fetch("dataset", name, sha, set(chain(*files.values())))
            builder.download_and_prepare()
            loaded = builder.as_dataset(split=chosen)
        several = isinstance(loaded, (DatasetDict, IterableDatasetDict))
        rows, chosen = one_split(loaded, base, name) if several else (loaded, str(chosen))
        if streaming:
            return *start_of(rows, chosen, part), sha
        return *part_of(as_held(rows, name), chosen, part, name), sha


def _data_files(builder: Any, name: str, sha: str, listed: Collection[str]) -> dict[str, list[str]]:
    """The paths in the repository of each split's files, if they are those of the commit.

    When the Hub fails, `datasets` silently uses another commit from its cache, and treats a file
    that it cannot reach as missing.
    """
    if builder.hash != sha:
        raise hub_files.Unverified(
            f"datasets fell back to its cache ({builder.hash}), which is not the commit {sha}; "
            "repeat the command when the Hub answers"
        )
    start = f"hf://datasets/{name}@{sha}/"
    given = (builder.config.data_files or {}).items()
    found = {str(part): [str(url) for url in urls] for part, urls in given}
    for url in chain(*found.values()):
        if not url.startswith(start) or url.removeprefix(start) not in listed:
            raise hub_files.Unverified(
                f"{url} is not a file of {name} at the commit {sha}; repeat the command"
            )
    return {split: [url.removeprefix(start) for url in urls] for split, urls in found.items()}


def _builder(name: str, config: str | None, sha: str) -> Any:
    try:
        return load_dataset_builder(name, config, revision=sha)
    except ValueError as error:
        configs = get_dataset_config_names(name, revision=sha)
        if config in configs or (config is None and len(configs) < 2):
            raise
        problem = "none was named" if config is None else f"there is no {config!r}"
        raise InputError(
            f"The dataset {name!r} has the configs {', '.join(configs)}, and {problem}; choose "
            f"one, as in {name}:{configs[0]}."
        ) from error


def _is_read_here(builder: Any) -> bool:
    """Whether the files are text, and the card says nothing else about how to read them."""
    if (
        type(builder).__module__.rpartition(".")[2] not in READ_HERE
        or not builder.config.data_files
    ):
        return False
    usual = type(builder.config)()
    own = ["name", "version", "data_dir", "data_files", "description", "features"]
    own += ["sep", "delimiter"]
    return all(
        getattr(builder.config, f.name) == getattr(usual, f.name)
        for f in fields(builder.config)
        if f.name not in own
    )


def _read_hub(builder: Any, name: str, found: Sequence[str], sha: str) -> Dataset:
    """The text files of a split, downloaded, and read like local files."""
    files = [file for file in found if kind_of(Path(file))]
    if not files:
        raise without_rows(name)
    folder = hub_files.fetch("dataset", name, sha, files)
    paths = [folder / file for file in files]
    return read_alike(
        paths,
        files,
        name,
        features=builder.info.features,
        delimiter=getattr(builder.config, "sep", None),
    )


def _commit(name: str, revision: str | None) -> tuple[str, set[str]]:
    """The sha of a revision, and the paths that the Hub names there."""
    try:
        return hub_files.commit_of("dataset", name, revision)
    except GatedRepoError as error:
        raise gated(name) from error
    except RevisionNotFoundError as error:
        raise InputError(f"The dataset {name!r} has no revision {revision!r}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"There is no dataset {name!r}: no file of that name here, and none on the Hub that "
            "this login can see. Check the spelling; for a private dataset, log in with "
            "'hf auth login' or set HF_TOKEN."
        ) from error
    except hub_files.Unverified as error:
        raise InputError(f"The dataset {name!r} cannot be looked up: {error}.") from error
    except FAILURES as error:
        raise InputError(
            f"The Hub cannot be reached to look up the dataset {name!r} ({hub_files.said(error)}). "
            "Connect, or name a local file."
        ) from error
