"""Where rows come from: a dataset of the Hub or local files, pinned to what they hold."""

import glob
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    ReadInstruction,
    get_dataset_config_names,
    load_dataset_builder,
    load_from_disk,
)
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.exceptions import DatasetsError
from httpx2 import HTTPError
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from selectit_hf import hub_files
from selectit_hf.errors import InputError, SelectItError
from selectit_hf.formats.readers.files import KINDS, as_held, kind_of, read_files
from selectit_hf.hashes import file_sha256, leading_out
from selectit_hf.patience import FAILURES

__all__ = ["FOREIGN", "Source", "load", "local_files", "readable", "stream", "without_rows"]

NO_ROWS = ("corresponds to no data", "No columns to parse", "BatchSize must be greater than 0")
"""How the readers say that a file has no rows."""

READ_HERE = ("json", "csv")
"""Builders of `datasets` whose files are read as local ones are, since they guess types."""

SETTINGS = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""What `datasets` reads before it knows the data files."""

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
    """As `load`, one row after the other: what the Hub has as parquet is not downloaded before.

    `selectit_hf.runs.spool` puts the rows on the disk, where they can be read in any order. What
    the types of text files are follows from all their rows, so those are read whole, as by `load`.

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
    path = Path(dataset).expanduser()
    files = [path] if path.is_file() else _several(dataset)
    if files:
        return _load_files(files, path.name, split)
    if path.is_dir():
        is_saved = any((path / name).is_file() for name in SAVED)
        return _load_saved(path, split) if is_saved else _load_folder(path, split)
    if kind_of(path) or dataset.startswith((".", "/", "~")):
        raise InputError(f"There is no file {dataset!r}; check the path.")
    return _load_hub(dataset, split, streaming)


# Local


SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


def _several(dataset: str) -> list[Path]:
    """The files of a pattern or of a list with commas; none where it is neither."""
    parts = [Path(part).expanduser() for part in dataset.split(",")]
    if len(parts) > 1 and all(part.is_file() for part in parts):
        return parts
    path = Path(dataset).expanduser()
    if path.exists() or not glob.has_magic(dataset):
        return []
    found = sorted(Path(one) for one in glob.glob(str(path), recursive=True))
    return [one for one in found if one.is_file()]


def _load_files(paths: list[Path], name: str, split: str | None) -> tuple[Dataset, Source]:
    base, part = _cut(split)
    if base not in (None, "train"):
        raise InputError(f"Files have no split {split!r}; omit --split.")
    rows = _read(paths, [path.name for path in paths], name)
    source = Source(name, None, split or "train", _content_hash(paths))
    return _part(rows, part, name), source


def _read(paths: Sequence[Path], names: Sequence[str], name: str, **how: Any) -> Dataset:
    kinds = {kind_of(path): path.name for path in reversed(paths)}
    if None in kinds:
        raise InputError(
            f"The file {kinds[None]!r} is not one of {', '.join(KINDS)}, of which text may be "
            "compressed (gz, bz2, xz, zst); convert it, or name a folder written by save_to_disk."
        )
    if len(kinds) > 1:
        raise InputError(
            f"{name!r} has files of several kinds ({', '.join(sorted(kinds.values()))}); name "
            "those of one kind, as in 'data/*.jsonl'."
        )
    (kind,) = kinds
    if all(path.stat().st_size == 0 for path in paths):
        raise without_rows(name)
    with readable(name):
        return read_files(paths, names, str(kind), **how)


def _load_folder(path: Path, split: str | None) -> tuple[Dataset, Source]:
    """A folder of files, whose names may tell splits."""
    path = Path(os.path.abspath(path))  # as `datasets` names the files in it
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and kind_of(p) and _is_seen(p, path)]
    if not files:
        raise InputError(
            f"The folder {path.name!r} is no saved dataset and has no file of rows "
            f"({', '.join(KINDS)}); name another."
        )
    _refuse_outside(path, files)
    with readable(path.name):
        found = DataFilesDict.from_patterns(get_data_patterns(str(path)), base_path=str(path))
    splits = {str(s): [f for f in files if str(f) in set(ones)] for s, ones in found.items()}
    splits = {name: ones for name, ones in splits.items() if ones}
    left = set(files).difference(*splits.values())
    if left:
        raise InputError(
            f"The folder {path.name!r} has splits by the names of its files, and "
            f"{min(left).name!r} is of none; name files, as in '{path.name}/*.jsonl'."
        )
    base, part = _cut(split)
    chosen = _choose_split(list(splits), base, path.name)
    ones = splits[chosen]
    rows = _read(ones, [str(one.relative_to(path)) for one in ones], path.name)
    source = Source(path.name, None, split or chosen, _content_hash(ones, path))
    return _part(rows, part, path.name), source


def _is_seen(path: Path, root: Path) -> bool:
    return not any(part.startswith((".", "__")) for part in path.relative_to(root).parts)


def _load_saved(path: Path, split: str | None) -> tuple[Dataset, Source]:
    base, part = _cut(split)
    root = path.resolve()
    with readable(path.name):
        try:
            loaded = load_from_disk(str(root), keep_in_memory=False)
        except IndexError as error:  # what it says of a dataset saved without rows
            raise without_rows(path.name) from error
    every = loaded.values() if isinstance(loaded, DatasetDict) else [loaded]
    used = {Path(one["filename"]) for rows in every for one in rows.cache_files}
    _refuse_outside(root, used)
    single = not isinstance(loaded, DatasetDict) and part and base == "train"
    rows, chosen = _one_split(loaded, None if single else base, path.name)
    with readable(path.name):
        rows = as_held(rows, path.name)
    files = {p for p in root.rglob("*") if p.is_file() and not _is_cache(p)} | used
    _refuse_outside(root, files)
    source = Source(path.name, None, split or chosen, _content_hash(sorted(files), root))
    return _part(rows, part, path.name), source


def _refuse_outside(folder: Path, files: Iterable[Path]) -> None:
    outside = leading_out(folder, {os.path.relpath(file, folder) for file in files})
    if outside is not None:
        raise InputError(
            f"The folder {folder.name!r} leads to a file outside it, {outside!r}, which may be any "
            "file of this machine. Copy that file into the folder, or name the file itself."
        )


def _is_cache(path: Path) -> bool:
    """What `datasets` itself leaves in a saved dataset that is mapped."""
    return path.name.startswith(("cache-", "tmp"))


# Splits


def _cut(split: str | None) -> tuple[str | None, str | None]:
    """The split of ``train[:1000]``, and the whole where a part of it is asked for."""
    if split is None or "[" not in split:
        return split, None
    return split.partition("[")[0], split


def _part(rows: Dataset, part: str | None, name: str) -> Dataset:
    if part is None:
        return rows
    base = part.partition("[")[0]
    try:
        (found,) = ReadInstruction.from_spec(part).to_absolute({base: len(rows)})
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"--split {part} is no part of the {len(rows)} rows of {name!r}: {error} Write it as "
            "in train[:1000] or train[:10%]."
        ) from error
    start, stop = found.from_ or 0, len(rows) if found.to is None else found.to
    return rows.select(range(start, stop))


def _one_split(loaded: Any, split: str | None, name: str) -> tuple[Any, str]:
    if not isinstance(loaded, (DatasetDict, IterableDatasetDict)):
        if split is not None:
            raise InputError(f"{name!r} is a single split; omit --split.")
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
        f"The dataset {name!r} has the splits {', '.join(map(str, splits))}, and {problem}; choose "
        "one with --split."
    )


def _content_hash(files: Sequence[Path], root: Path | None = None) -> str:
    total = hashlib.sha256()
    for path in files:
        called = path.name if root is None else path.relative_to(root)
        total.update(f"{called}\0{file_sha256(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


# The Hub


def _load_hub(dataset: str, split: str | None, streaming: bool) -> tuple[Any, Source]:
    match = HUB_NAME.fullmatch(dataset)
    if match is None:
        raise InputError(
            f"{dataset!r} is no dataset name; write name, name:config or name:config@revision."
        )
    name, config, revision = match["name"], match["config"], match["revision"]
    sha, known = _commit(name, revision)
    base, part = _cut(split)
    with readable(name):
        listed = hub_files.listing("dataset", name, sha, known)
        hub_files.fetch("dataset", name, sha, [one for one in SETTINGS if one in listed])
        builder = _builder(name, config, sha)
        files = _data_files(builder, name, sha, listed)
        splits = list(builder.info.splits or {}) or list(files)
        chosen = _choose_split(splits, base, name) if splits else base
        source = Source(name, config, split or str(chosen), sha)
        if _is_read_here(builder):
            return _part(_read_hub(builder, name, files[str(chosen)], sha), part, name), source
        if streaming:
            if part:
                raise InputError(f"--streaming reads a whole split, not {part}; omit one of both.")
            loaded = builder.as_streaming_dataset(split=chosen)
        else:
            hub_files.fetch("dataset", name, sha, set(chain(*files.values())))
            builder.download_and_prepare()
            loaded = builder.as_dataset(split=chosen)
        several = isinstance(loaded, (DatasetDict, IterableDatasetDict))
        rows, chosen = _one_split(loaded, base, name) if several else (loaded, str(chosen))
        if not streaming:
            rows = _part(as_held(rows, name), part, name)
    return rows, Source(name, config, split or chosen, sha)


def _data_files(builder: Any, name: str, sha: str, listed: Collection[str]) -> dict[str, list[str]]:
    """The paths in the repository of each split's files, if they are those of the commit.

    Where the Hub fails, `datasets` takes what it has in its cache of another commit, and a file
    that it cannot reach for none.
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
                f"{url} is no file of {name} at the commit {sha}; repeat the command"
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
    """The text files of a split, downloaded, and read as local ones."""
    files = [file for file in found if kind_of(Path(file))]
    if not files:
        raise without_rows(name)
    folder = hub_files.fetch("dataset", name, sha, files)
    paths = [folder / file for file in files]
    return _read(
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
        raise _gated(name) from error
    except RevisionNotFoundError as error:
        raise InputError(f"The dataset {name!r} has no revision {revision!r}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"There is no dataset {name!r}: no file of that name here, and none on the Hub that "
            "this login can see. Check the spelling; for a private dataset, log in with "
            "'hf auth login' or set HF_TOKEN."
        ) from error
    except hub_files.Unverified as error:
        raise InputError(f"Looking up the dataset {name!r}, {error}. Repeat it later.") from error
    except FAILURES as error:
        raise InputError(
            f"The Hub cannot be reached to look up the dataset {name!r} ({hub_files.said(error)}). "
            "Connect, or name a local file."
        ) from error


def _gated(name: str) -> InputError:
    return InputError(
        f"The dataset {name!r} is gated: accept its terms on "
        f"https://huggingface.co/datasets/{name}, then log in with 'hf auth login' or set HF_TOKEN."
    )


FOREIGN = (
    DatasetsError,
    HTTPError,
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    RuntimeError,
    pa.ArrowException,
)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what the libraries raise while a dataset is read into an `InputError`."""
    try:
        yield
    except GatedRepoError as error:
        raise _gated(name) from error
    except SelectItError:
        raise
    except hub_files.Unverified as error:
        raise InputError(f"The dataset {name!r} is not loaded: {error}.") from error
    except FOREIGN as error:
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
