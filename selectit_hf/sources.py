"""Where rows come from: a dataset of the Hub or a local file, pinned to what it holds."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    Value,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetsError
from httpx2 import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from selectit_hf.errors import InputError

__all__ = ["Source", "load", "readable", "stream", "without_rows"]

NO_ROWS = ("corresponds to no data", "No columns to parse", "BatchSize must be greater than 0")
"""How the readers say that a file has no rows."""


def _read_csv(path: str, streaming: bool) -> Dataset:
    """Every cell a text as it stands: 007 is no number, and NA no missing value."""
    names = pandas.read_csv(path, nrows=0).columns
    types = Features({name: Value("string") for name in names})
    return Dataset.from_csv(path, features=types, keep_default_na=False, streaming=streaming)


READERS: dict[str, Callable[..., Any]] = {
    ".json": Dataset.from_json,
    ".jsonl": Dataset.from_json,
    ".parquet": Dataset.from_parquet,
    ".csv": _read_csv,
}

HUB_NAME = re.compile(r"(?P<name>[^:@]+)(:(?P<config>[^@]+))?(@(?P<revision>.+))?")


@dataclass(frozen=True)
class Source:
    """A dataset, pinned.

    Attributes:
        name: the Hub name, or the base name of a local file or folder.
        config: the Hub dataset's configuration, if one was named.
        split: the split that was read.
        revision: the commit sha, or ``sha256:`` and the hash of the local contents.
    """

    name: str
    config: str | None
    split: str
    revision: str


def load(dataset: str, split: str | None = None) -> tuple[Dataset, Source]:
    """Load ``name[:config][@revision]`` from the Hub, or a json, jsonl, parquet or csv file, or a
    folder written by ``save_to_disk``.

    Raises:
        InputError: it is not there, cannot be read, is empty, or has several splits and none named.
    """
    rows, source = _open(dataset, split, streaming=False)
    if not len(rows):
        raise without_rows(source.name)
    return rows, source


def stream(dataset: str, split: str | None = None) -> tuple[IterableDataset, Source]:
    """As `load`, one row after the other: nothing is downloaded or converted beforehand.

    `selectit_hf.spool.spool` puts the rows on the disk, where they can be read in any order.

    Raises:
        InputError: it is not there, or has several splits and none named. What cannot be read, or
            has no rows, is found while it is read.
    """
    rows, source = _open(dataset, split, streaming=True)
    return rows, source


def _open(dataset: str, split: str | None, streaming: bool) -> tuple[Any, Source]:
    path = Path(dataset).expanduser()
    looks_local = path.suffix in READERS or dataset.startswith((".", "/", "~"))
    if path.is_dir():
        rows, source = _load_folder(path, split)
        return rows.to_iterable_dataset() if streaming else rows, source
    if path.exists():
        return _load_file(path, split, streaming)
    if looks_local:
        raise InputError(f"There is no file {dataset!r}; check the path.")
    return _load_hub(dataset, split, streaming)


# Local


def _load_file(path: Path, split: str | None, streaming: bool) -> tuple[Any, Source]:
    if path.suffix not in READERS:
        raise InputError(
            f"The file {path.name!r} is not one of {', '.join(READERS)}; convert it, or name a "
            "folder written by save_to_disk."
        )
    if split not in (None, "train"):
        raise InputError(f"A single file has no split {split!r}; leave --split away.")
    if path.stat().st_size == 0:
        raise without_rows(path.name)
    with readable(path.name):
        rows = READERS[path.suffix](str(_by_content(path)), streaming=streaming)
        return rows, Source(path.name, None, "train", _content_hash([path], path.parent))


def _by_content(path: Path) -> Path:
    """A link to the file, named after what the file holds.

    `datasets` caches what it read under a file's name and time, so a file overwritten in place
    could come back as it was; and it takes ``*`` or ``::`` in a name for a pattern.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "selectit_hf"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / f"{_file_hash(path)}{path.suffix}"
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(path.resolve())
    return fresh.replace(link)


def _load_folder(path: Path, split: str | None) -> tuple[Dataset, Source]:
    with readable(path.name):
        try:
            loaded = load_from_disk(str(path))
        except IndexError as error:  # what it says of a dataset saved without rows
            raise without_rows(path.name) from error
    rows, chosen = _one_split(loaded, split, path.name)
    files = sorted(p for p in path.rglob("*") if p.is_file() and not _is_cache(p))
    return rows, Source(path.name, None, chosen, _content_hash(files, path))


def _is_cache(path: Path) -> bool:
    """What `datasets` itself leaves in a saved dataset that is mapped."""
    return path.name.startswith(("cache-", "tmp"))


def _one_split(loaded: Any, split: str | None, name: str) -> tuple[Any, str]:
    if not isinstance(loaded, (DatasetDict, IterableDatasetDict)):
        if split is not None:
            raise InputError(f"{name!r} is a single split; leave --split away.")
        return loaded, "train"
    chosen = _choose_split(list(loaded), split, name)
    return loaded[chosen], chosen


def _choose_split(splits: list[str], split: str | None, name: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split in splits:
        return str(split)
    problem = "no split was named" if split is None else f"there is no split {split!r}"
    raise InputError(
        f"The dataset {name!r} has the splits {', '.join(splits)}, and {problem}; choose one with "
        "--split."
    )


def _content_hash(files: list[Path], root: Path) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(root)}\0{_file_hash(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The Hub


def _load_hub(dataset: str, split: str | None, streaming: bool) -> tuple[Any, Source]:
    match = HUB_NAME.fullmatch(dataset)
    if match is None:
        raise InputError(
            f"{dataset!r} is no dataset name; write name, name:config or name:config@revision."
        )
    name, config, revision = match["name"], match["config"], match["revision"]
    sha = _commit(name, revision)
    with readable(name):
        builder = load_dataset_builder(name, config, revision=sha)
        known = list(builder.info.splits or {})
        if known:
            split = _choose_split(known, split, name)
        loaded = load_dataset(name, config, split=split, revision=sha, streaming=streaming)
    several = isinstance(loaded, (DatasetDict, IterableDatasetDict))
    rows, chosen = _one_split(loaded, split, name) if several else (loaded, str(split))
    return rows, Source(name, config, chosen, sha)


def _commit(name: str, revision: str | None) -> str:
    try:
        sha = HfApi().dataset_info(name, revision=revision).sha
    except GatedRepoError as error:
        raise _gated(name) from error
    except RevisionNotFoundError as error:
        raise InputError(f"The dataset {name!r} has no revision {revision!r}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"There is no dataset {name!r}: no file of that name here, and none on the Hub that "
            "this login can see. Check the spelling; for a private dataset, log in with "
            "'hf auth login' or set HF_TOKEN."
        ) from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise InputError(
            f"The Hub cannot be reached to look up the dataset {name!r} ({type(error).__name__}). "
            "Connect, or name a local file."
        ) from error
    assert sha is not None
    return sha


def _gated(name: str) -> InputError:
    return InputError(
        f"The dataset {name!r} is gated: accept its terms on "
        f"https://huggingface.co/datasets/{name}, then log in with 'hf auth login' or set HF_TOKEN."
    )


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what the libraries raise while a dataset is read into an `InputError`."""
    try:
        yield
    except GatedRepoError as error:
        raise _gated(name) from error
    except (DatasetsError, HTTPError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        detail = str(cause).strip().split("\n", 1)[0]
        if any(text in detail for text in NO_ROWS):
            raise without_rows(name) from error
        raise InputError(
            f"The dataset {name!r} cannot be read: {detail} Check that every row has the same "
            "columns and types, and that the file is what its ending says."
        ) from error


def without_rows(name: str) -> InputError:
    """The error for a dataset with nothing in it."""
    return InputError(f"The dataset {name!r} has no rows; there is nothing to rate.")
