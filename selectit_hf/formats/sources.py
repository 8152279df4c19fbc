"""Where rows come from: a Hub dataset or local files, pinned to their contents."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from selectit_hf.errors import InputError, did_you_mean
from selectit_hf.formats.hub_datasets import load_hub
from selectit_hf.formats.local_datasets import load_files, load_folder, load_saved
from selectit_hf.formats.readers.failures import without_rows
from selectit_hf.formats.readers.files import kind_of

__all__ = ["Source", "load", "local_files", "stream"]

HUB_NAME = re.compile(r"(?P<name>[^:@]+)(:(?P<config>[^@]+))?(@(?P<revision>.+))?")
SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


@dataclass(frozen=True)
class Source:
    """A dataset, pinned.

    Attributes:
        name: the Hub name, or the base name of a local file or folder.
        config: the Hub dataset's configuration, if one was named.
        split: the split that was read, or the part of it, as in ``train[:1000]``.
        revision: the commit sha, or ``sha256:`` and the hash of the local contents.
    """

    name: str
    config: str | None
    split: str
    revision: str


def load(dataset: str, split: str | None = None) -> tuple[Dataset, Source]:
    """Load ``name[:config][@revision]`` from the Hub, local files, or a saved dataset.

    A file is json, jsonl, ndjson, csv, tsv, parquet or arrow, text also compressed (gz, bz2, xz,
    zst); several are given as a folder, a pattern such as ``data/*.jsonl``, or with commas. See
    docs/formats.md.

    Args:
        dataset: what to load.
        split: which one, or a part of it, as in ``train[:1000]``.

    Raises:
        InputError: it is not there, cannot be read, is empty, or has several splits and none named.
    """
    rows, source = _open(dataset, split, streaming=False)
    if not len(rows):
        raise without_rows(source.name)
    return rows, source


def stream(dataset: str, split: str | None = None) -> tuple[IterableDataset, Source]:
    """Like `load`, but row by row: parquet files on the Hub are not downloaded first.

    `selectit_hf.runs.spool` puts the rows on the disk, where they can be read in any order. The
    types of text files depend on all their rows, so text files are read whole, as in `load`.

    Raises:
        InputError: it is not there, or has several splits and none named. What cannot be read, or
            has no rows, is found while it is read.
    """
    rows, source = _open(dataset, split, streaming=True)
    return rows if isinstance(rows, IterableDataset) else rows.to_iterable_dataset(), source


def local_files(dataset: str) -> list[Path]:
    """The files of this machine that `load` may read; none for a dataset of the Hub."""
    path = Path(dataset).expanduser()
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    return [path] if path.is_file() else _several(dataset)


def _open(dataset: str, split: str | None, streaming: bool) -> tuple[Any, Source]:
    if any("\ud800" <= one <= "\udfff" for one in dataset):
        raise InputError(f"The name {dataset!a} is not UTF-8; rename the file.")
    path = Path(dataset).expanduser()
    files = [path] if path.is_file() else _several(dataset)
    name, config = path.name, None
    if files:
        rows, chosen, revision = load_files(files, name, split)
    elif path.is_dir():
        path = Path(os.path.abspath(path))
        name = path.name
        is_saved = any((path / one).is_file() for one in SAVED)
        rows, chosen, revision = (load_saved if is_saved else load_folder)(path, split)
    elif kind_of(path) or dataset.startswith((".", "/", "~")):
        near = path.parent.iterdir() if path.parent.is_dir() else ()
        meant = did_you_mean(path.name, (one.name for one in near))
        raise InputError(f"There is no file {dataset!r}; check the path.{meant}")
    else:
        name, config, wanted = _hub_name(dataset)
        rows, chosen, revision = load_hub(name, config, wanted, split, streaming)
    return rows, Source(name, config, chosen, revision)


def _hub_name(dataset: str) -> tuple[str, str | None, str | None]:
    match = HUB_NAME.fullmatch(dataset)
    if match is None:
        raise InputError(
            f"{dataset!r} is not a dataset name; write name, name:config or name:config@revision."
        )
    return match["name"], match["config"], match["revision"]


def _several(dataset: str) -> list[Path]:
    """The files of a pattern or of a list with commas; none if it is neither."""
    parts = [Path(part).expanduser() for part in dataset.split(",")]
    if len(parts) > 1 and all(part.is_file() for part in parts):
        return parts
    path = Path(dataset).expanduser()
    if path.exists() or not glob.has_magic(dataset):
        return []
    found = sorted(Path(one) for one in glob.glob(str(path), recursive=True))
    return [one for one in found if one.is_file()]
