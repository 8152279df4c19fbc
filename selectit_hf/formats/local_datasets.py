"""Datasets on this machine: files of rows, a folder of them, or one that was saved.

Each loader gives the rows, the split they are of, and ``sha256:`` with the hash of what was read.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_from_disk
from datasets.data_files import DataFilesDict, get_data_patterns

from selectit_hf.errors import InputError
from selectit_hf.formats.readers.failures import readable, without_rows
from selectit_hf.formats.readers.files import KINDS, as_held, kind_of, read_files
from selectit_hf.formats.splits import choose_split, cut, one_split, part_of
from selectit_hf.hashes import file_sha256, leading_out

__all__ = ["load_files", "load_folder", "load_saved", "read_alike"]


def load_files(paths: list[Path], name: str, split: str | None) -> tuple[Dataset, str, str]:
    """The rows of files of one kind, which are the split ``train``."""
    base, part = cut(split)
    if base not in (None, "train"):
        raise InputError(f"Files have no split {split!r}; omit --split.")
    rows = read_alike(paths, [path.name for path in paths], name)
    return *part_of(rows, "train", part, name), _content_hash(paths)


def read_alike(paths: Sequence[Path], names: Sequence[str], name: str, **how: Any) -> Dataset:
    """Files of one kind, read by `read_files`; another kind or several are refused."""
    kinds = {kind_of(path): path.name for path in reversed(paths)}
    if None in kinds:
        raise InputError(
            f"The file {kinds[None]!r} is not one of {', '.join(KINDS)}, of which text may be "
            "compressed (gz, bz2, xz, zst); convert it, or give a folder written by save_to_disk."
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


def load_folder(path: Path, split: str | None) -> tuple[Dataset, str, str]:
    """A folder of files, named from the root as `datasets` does; their names may tell splits."""
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and kind_of(p) and _is_seen(p, path)]
    if not files:
        raise InputError(
            f"The folder {path.name!r} is not a saved dataset and has no file of rows "
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
            f"The folder {path.name!r} has splits by the names of its files, but "
            f"{min(left).name!r} belongs to none; name files, as in '{path.name}/*.jsonl'."
        )
    base, part = cut(split)
    chosen = choose_split(list(splits), base, path.name)
    ones = splits[chosen]
    rows = read_alike(ones, [str(one.relative_to(path)) for one in ones], path.name)
    return *part_of(rows, chosen, part, path.name), _content_hash(ones, path)


def _is_seen(path: Path, root: Path) -> bool:
    return not any(part.startswith((".", "__")) for part in path.relative_to(root).parts)


def load_saved(path: Path, split: str | None) -> tuple[Dataset, str, str]:
    """A dataset written by ``save_to_disk``."""
    base, part = cut(split)
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
    rows, chosen = one_split(loaded, None if single else base, path.name)
    with readable(path.name):
        rows = as_held(rows, path.name)
    files = {p for p in root.rglob("*") if p.is_file() and not _is_cache(p)} | used
    _refuse_outside(root, files)
    return *part_of(rows, chosen, part, path.name), _content_hash(sorted(files), root)


def _refuse_outside(folder: Path, files: Iterable[Path]) -> None:
    outside = leading_out(folder, {os.path.relpath(file, folder) for file in files})
    if outside is not None:
        raise InputError(
            f"{outside!r} in the folder {folder.name!r} leads out of it, to what may be any file "
            "of this machine. Copy that file into the folder, or name the file itself."
        )


def _is_cache(path: Path) -> bool:
    """Whether `datasets` itself left this file in a saved dataset that was mapped."""
    return path.name.startswith(("cache-", "tmp"))


def _content_hash(files: Sequence[Path], root: Path | None = None) -> str:
    total = hashlib.sha256()
    for path in files:
        called = path.name if root is None else path.relative_to(root)
        total.update(f"{called}\0{file_sha256(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"
