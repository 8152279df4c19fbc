"""A run folder, by path or URL: every file is whole or absent, even if a process is killed.

A local file is written next to its final place, made durable, and moved there in one step. Object
storage shows an object only when all of it has arrived, so one put is enough. Nothing is locked,
and no copy of a remote folder is kept.
"""

import os
import posixpath
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from selectit_hf import whole_files
from selectit_hf.errors import RunError
from selectit_hf.json_files import as_json, json_object, misfit

__all__ = ["Store", "is_url", "open_store"]


def is_url(text: object) -> bool:
    """Whether a folder is named by a URL, as in ``s3://bucket/run``."""
    return re.match(r"[a-z][a-z0-9+.-]+://", str(text), re.IGNORECASE) is not None


def open_store(where: "str | Path | Store") -> "Store":
    """The folder at a path, or at the URL of any protocol that `fsspec` knows.

    Raises:
        RunError: a place that cannot hold a run, a URL with a password, or a missing client.
    """
    return where if isinstance(where, Store) else Store(where)


class Store:
    """A folder. Its files are named by their paths in it, as in ``ratings/llama/00000.json``.

    Raises:
        FileNotFoundError: raised by every method that reads, if the file does not exist.
        OSError: a local disk is full or failing. Existing files are unchanged.
        RunError: a remote storage failed; the message quotes it.
    """

    def __init__(self, where: str | Path) -> None:
        text = str(where)
        if re.match(r"[a-z0-9]+::", text):
            raise RunError(f"{text!r} is a chain of URLs; name the folder itself, as in s3://...")
        if not is_url(text):
            if re.match(r"[a-z][a-z0-9+.-]+:/", text):
                raise RunError(f"{text!r} is a URL that became a Path; pass it as a string.")
            self._files, self._root = LocalFileSystem(), os.path.abspath(text)
        else:
            scheme, _, rest = text.partition("://")
            text = f"{scheme.lower()}://{rest.rstrip('/')}"
            self._files, self._root = _client(text)
        self._said = text
        self.is_local = isinstance(self._files, LocalFileSystem)

    def __str__(self) -> str:
        return self._said

    @property
    def name(self) -> str:
        """The folder's own name, for messages."""
        return posixpath.basename(self._root)

    def is_same(self, other: "Store") -> bool:
        """Whether both are the same folder."""
        if self.is_local and other.is_local:
            return os.path.realpath(self._root) == os.path.realpath(other._root)
        return str(self) == str(other)

    def path(self, name: str = "") -> Path:
        """The local path of a file or of the folder.

        Raises:
            RunError: it is reached by a link, or is a pipe or a device. A run folder holds none of
                these, so nothing outside it is read or written, whoever sent it.
        """
        assert self.is_local
        path = Path(self._root)
        for part in Path(name).parts:
            path = path / part
            if part == ".." or not _is_plain(path):
                raise RunError(
                    f"{name!r} of the run {self.name!r} is a link, is not a file, or leads out of "
                    "it; links are not followed. Put the files themselves there."
                )
        return path

    # Reading

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        with self._reaching(name):
            return bytes(self._files.cat_file(self._at(name)))

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        """The bytes of those files that are there."""
        if self.is_local:  # fsspec's local client would take brackets for a pattern
            there = [name for name in names if self.path(name).is_file()]
            return {name: self.read(name) for name in there}
        at = {self._at(name): name for name in names}
        with self._reaching(", ".join(names[:1])):
            found = self._files.cat(list(at), on_error="return") if at else {}
            for data in found.values():
                if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                    raise data
        return {at[key]: data for key, data in found.items() if isinstance(data, bytes)}

    def size(self, name: str) -> int | None:
        """The bytes of a file; ``None`` where there is none."""
        with self._reaching(name):
            try:
                found = self._fresh().info(self._at(name))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return int(found["size"]) if found["type"] == "file" else None

    def exists(self, name: str) -> bool:
        """Whether there is a file."""
        return self.size(name) is not None

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The names of the files directly in a folder, with sizes in bytes; empty without it."""
        at = self._at(folder)
        with self._reaching(folder):
            try:
                found = self._fresh().ls(at, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        named = {one["name"].rstrip("/"): one["size"] or 0 for one in found}
        return {posixpath.basename(one): named[one] for one in named if one != at}

    def parquet(self, name: str) -> pq.ParquetFile:
        """A parquet file, read in pieces."""
        if self.is_local:
            return pq.ParquetFile(self.path(name), pre_buffer=False)
        with self._reaching(name):
            return pq.ParquetFile(self._fresh().open(self._at(name), "rb"))

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to one of this machine."""
        with self._reaching(name):
            self._fresh().get_file(self._at(name), str(path))

    def read_json(self, name: str, schema: Any = dict) -> dict[str, Any]:
        """A JSON object that fits ``schema``; see `selectit_hf.json_files.misfit`.

        Raises:
            RunError: it cannot be read, or is something else.
        """
        try:
            facts = json_object(self.read(name))
        except OSError as error:
            raise RunError(
                f"{name} of the run cannot be read ({error}); restore it, or start another run."
            ) from error
        if facts is None:
            raise RunError(f"{name} of the run is not a JSON object; restore it.")
        place = misfit(facts, schema)
        if place is not None:
            raise RunError(
                f"{name} of the run does not hold what it should at {place!r}; restore it, or "
                "start another run."
            )
        return facts

    # Writing

    def write(self, name: str, data: bytes) -> None:
        """Write a file, in place of one that is there."""
        if self.is_local:
            whole_files.write(self.path(name), data)
        else:
            self._put(name, lambda at: self._files.pipe_file(at, data))

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists; return whether it was written.

        This is atomic, except in storage that cannot create files exclusively.
        """
        if self.exists(name):
            return False
        if self.is_local:
            return whole_files.create(self.path(name), data)
        try:
            self._put(name, lambda at: self._files.pipe_file(at, data, mode="create"))
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError):
            self.write(name, data)
        return True

    def write_json(self, name: str, facts: dict[str, Any]) -> None:
        """Write a JSON object, for people and programs."""
        self.write(name, as_json(facts))

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A file of this machine to write, which becomes ``name`` when the block ends well."""
        if self.is_local:
            with whole_files.replacing(self.path(name)) as partial:
                yield partial
            return
        with tempfile.TemporaryDirectory(prefix="selectit-") as folder:
            path = Path(folder) / posixpath.basename(name)
            yield path
            self._put(name, lambda at: self._files.put_file(str(path), at))

    @contextmanager
    def writing_results(self) -> Iterator[None]:
        """Write several files as one unit: in a local folder, two writers never mix.

        Raises:
            RunError: another process is writing now.
        """
        if not self.is_local:
            yield
            return
        with whole_files.alone_in(self.path()) as alone:
            if not alone:
                raise RunError(
                    f"Another command is writing results to {self.name!r}, so these were not "
                    "written. Run the command again, or name another folder with --out."
                )
            yield

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        with self._reaching(name), suppress(FileNotFoundError):
            self._files.rm_file(self._at(name))

    def set_aside(self, name: str) -> None:
        """Rename a file that is not what it should be to ``.bad-...``, if it is still there."""
        folder, base = posixpath.split(name)
        with suppress(FileNotFoundError):
            self.write(posixpath.join(folder, f".bad-{time.time_ns()}-{base}"), self.read(name))
            self.remove(name)

    def sweep(self) -> None:
        """Remove half-written files that killed processes left, in all its folders."""
        if self.is_local:
            whole_files.remove_partial(self.path())

    # Inside

    def _at(self, name: str) -> str:
        if self.is_local:
            return str(self.path(name))
        return posixpath.join(self._root, name).rstrip("/")

    def _fresh(self) -> Any:
        """The client, without its cache of earlier listings."""
        self._files.invalidate_cache()
        return self._files

    def _put(self, name: str, put: Callable[[str], Any]) -> None:
        with self._reaching(name):
            try:
                put(self._at(name))
            except FileNotFoundError:  # storage with folders, or no bucket
                top = self._root.split("/")[0] or "/"
                if not self._fresh().exists(top):
                    raise RunError(
                        f"There is no {top!r} for {self}; create it, or check the name."
                    ) from None
                self._files.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)
                put(self._at(name))

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        """Turn a client's errors into a `RunError` that names the file and the remedy."""
        try:
            yield
        except (RunError, FileNotFoundError, FileExistsError, TypeError, NotImplementedError):
            raise
        except Exception as error:
            if self.is_local:
                raise
            raise RunError(
                f"{self} failed at {name!r} ({type(error).__name__}: {error}). Whole shards stay "
                "there; the same command resumes after them."
            ) from error


def _is_plain(path: Path) -> bool:
    """Whether there is a file, a folder or nothing; opening a pipe could block."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _client(url: str) -> tuple[Any, str]:
    scheme, _, rest = url.partition("://")
    if not rest or re.search(r"[][*?]", rest):
        raise RunError(f"{url!r} names no folder; write one without brackets, '*' and '?'.")
    if urlsplit(url).password is not None:
        raise RunError(
            f"The {scheme}:// URL holds a password, which would be stored in files; omit it, and "
            "let the storage's client find it (in its environment variables or its file)."
        )
    if scheme == "hf" and not rest.startswith("buckets/"):
        raise RunError(
            f"{url!r} is a repository, where each file that a worker writes is a commit. Name a "
            "bucket, hf://buckets/user/name/run, or a folder; 'selectit push' publishes."
        )
    try:
        files, root = url_to_fs(url)
        return files, str(root)
    except Exception as error:  # any error of a client that logs in at once
        remedy = "Install the package" if isinstance(error, ImportError) else "Check the URL"
        raise RunError(
            f"{url!r} cannot be reached from here: {str(error).rstrip('.')}. {remedy}, "
            "check the login of its client, or mount the storage."
        ) from error
