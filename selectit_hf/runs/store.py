"""A run folder, by path or URL: every file whole or not there, whoever is killed when.

Locally a file is written beside its place, made durable, and moved there in one step. Object
storage shows an object once all of it has arrived, so there it takes one put. Nothing is locked,
and no copy of a remote folder is kept.
"""

import hashlib
import itertools
import json
import os
import posixpath
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from huggingface_hub.constants import HF_HOME

from selectit_hf.errors import RunError

__all__ = [
    "POINTS",
    "RemoteStore",
    "Store",
    "as_json",
    "is_partial",
    "is_url",
    "json_object",
    "open_store",
    "reached",
    "sha256",
]

POINTS = (
    "shard rated",
    "partial created",
    "partial written",
    "partial synced",
    "file placed",
    "folder synced",
    "table written",
    "looked again",
    "shard committed",
)
"""Where a shard can be interrupted, in order. The five of a file are passed twice: for the table,
then for the sidecar. Object storage passes the first and the last three."""

ABANDONED = 3600.0
"""Seconds after which a partial file that nobody writes to is what a killed process left."""

_NUMBERS = itertools.count()


def reached(point: str) -> None:
    """Called at each of `POINTS`; does nothing. Tests of kills put something in its place."""


def is_url(text: object) -> bool:
    """Whether a folder is named by a URL, as in ``s3://bucket/run``."""
    return re.match(r"[a-z][a-z0-9+.-]+://", str(text), re.IGNORECASE) is not None


def open_store(where: "str | Path | Store") -> "Store":
    """The folder at a path, or at the URL of any protocol that `fsspec` knows.

    Raises:
        RunError: no place for a run, a URL with a password, or a client that is not installed.
    """
    if isinstance(where, Store):
        return where
    text = str(where)
    if not is_url(text):
        if re.match(r"[a-z][a-z0-9+.-]+:/", text):
            raise RunError(f"{text!r} was a URL before it became a path; pass it as a string.")
        return Store(Path(text))
    if text.lower().startswith("file://"):
        return Store(Path(text[len("file://") :]))
    return RemoteStore(text)


class Store:
    """A local folder. Files are named by their paths in it, as in ``ratings/llama/00000.json``.

    Args:
        path: the folder; it is made when the first file is written.

    Raises:
        FileNotFoundError: of every method that reads, a file that is not there.
        OSError: the disk is full or failing. What was there is still there.
    """

    is_local = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's own name, for messages."""
        return Path(str(self)).name

    # Reading

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return (self.path / name).read_bytes()

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        """The bytes of those files that are there."""
        found = {}
        for name in names:
            with suppress(FileNotFoundError):
                found[name] = self.read(name)
        return found

    def exists(self, name: str) -> bool:
        """Whether there is a file."""
        return (self.path / name).is_file()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The names of what lies directly in a folder, with sizes in bytes; empty without it."""
        try:
            with os.scandir(self.path / folder) as entries:
                return {entry.name: entry.stat().st_size for entry in entries}
        except FileNotFoundError:
            return {}

    def parquet(self, name: str) -> pq.ParquetFile:
        """A parquet file, read in pieces."""
        return pq.ParquetFile(self.path / name, pre_buffer=False)

    def file_sha256(self, name: str) -> str:
        """The hash of a file of any size in hexadecimal."""
        with (self.path / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            RunError: it cannot be read, or is something else.
        """
        try:
            facts = json.loads(self.read(name).decode())
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(
                f"{name} of the run cannot be read ({error}); restore it, or start another run."
            ) from error
        if not isinstance(facts, dict):
            raise RunError(f"{name} of the run is no JSON object; restore it.")
        return facts

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """A file as one of this machine, while the block lasts."""
        yield self.path / name

    # Writing

    def write(self, name: str, data: bytes) -> None:
        """Write a file, in place of one that is there."""
        with self._partial(name) as partial:
            _write_durably(partial, data)
            partial.replace(self.path / name)
        self._settle(name)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one already; whether there was none."""
        with self._partial(name) as partial:
            _write_durably(partial, data)
            try:
                os.link(partial, self.path / name)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links; a look has to do
                if self.exists(name):
                    return False
                partial.replace(self.path / name)
        self._settle(name)
        return True

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A file to write in place of ``name``, which it becomes when the block ends well."""
        with self._partial(name) as partial:
            yield partial
            _sync(partial)
            partial.replace(self.path / name)
        self._settle(name)

    def write_json(self, name: str, facts: dict[str, Any]) -> None:
        """Write a JSON object, for people and programs."""
        self.write(name, as_json(facts))

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        (self.path / name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> None:
        """Rename a file that is not what it should be to ``.bad-...``, if it is still there."""
        with suppress(FileNotFoundError):
            folder, base = posixpath.split(name)
            self.write(posixpath.join(folder, f".bad-{time.time_ns()}-{base}"), self.read(name))
            self.remove(name)

    @contextmanager
    def growing(self, name: str) -> Iterator[Path]:
        """A file of lines to append to, as one of this machine."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path

    def sweep(self, folder: str = "") -> None:
        """Remove partial files that a killed process left, an hour after it last wrote to them."""
        for path in (self.path / folder).glob(".*.partial"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()

    # Inside

    @contextmanager
    def _partial(self, name: str) -> Iterator[Path]:
        """A name beside ``name`` that no other process has; gone when the block ends."""
        path = self.path / name
        unique = f"{os.getpid()}-{next(_NUMBERS)}-{os.urandom(4).hex()}"
        partial = path.with_name(f".{path.name}.{unique}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
        except OSError as error:
            error.add_note(f"This was while {path.name} was written.")
            raise
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _settle(self, name: str) -> None:
        reached("file placed")
        _sync((self.path / name).parent)
        reached("folder synced")


class RemoteStore(Store):
    """A folder in object storage; see `Store`, whose methods it has.

    Raises:
        RunError: of every method: the storage does not do what it is asked, in its own words.
    """

    is_local = False

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        self.url = f"{scheme.lower()}://{rest.rstrip('/')}"
        _check_url(scheme.lower(), rest)
        try:
            self._files, self._root = url_to_fs(self.url)
        except Exception as error:  # whatever a client raises that logs in at once
            remedy = "Install what it names" if isinstance(error, ImportError) else "Check the URL"
            raise RunError(
                f"{url!r} cannot be reached from here: {str(error).rstrip('.')}. {remedy} and the "
                "login of its client, or mount the storage."
            ) from error

    def __str__(self) -> str:
        return self.url

    def read(self, name: str) -> bytes:
        with self._reaching(name):
            return bytes(self._files.cat_file(self._at(name)))

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        at = {self._at(name): name for name in names}
        with self._reaching(names[0] if names else ""):
            found = self._files.cat(list(at), on_error="return") if at else {}
            for data in found.values():
                if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                    raise data
        return {at[key]: data for key, data in found.items() if isinstance(data, bytes)}

    def exists(self, name: str) -> bool:
        with self._reaching(name):
            try:
                return bool(self._fresh().info(self._at(name))["type"] == "file")
            except FileNotFoundError:
                return False

    def sizes(self, folder: str = "") -> dict[str, int]:
        at = self._at(folder)
        with self._reaching(folder):
            try:
                found = self._fresh().ls(at, detail=True)
            except FileNotFoundError:
                return {}
        named = {one["name"].rstrip("/"): one["size"] or 0 for one in found}
        return {posixpath.basename(one): named[one] for one in named if one != at}

    def parquet(self, name: str) -> pq.ParquetFile:
        with self._reaching(name):
            return pq.ParquetFile(self._fresh().open(self._at(name), "rb"))

    def file_sha256(self, name: str) -> str:
        with self.fetched(name) as path:
            return Store(path.parent).file_sha256(path.name)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="selectit-") as folder:
            path = Path(folder) / posixpath.basename(name)
            with self._reaching(name):
                self._fresh().get_file(self._at(name), str(path))
            yield path

    def write(self, name: str, data: bytes) -> None:
        with self._reaching(name):
            self._put(name, lambda at: self._files.pipe_file(at, data))

    def create(self, name: str, data: bytes) -> bool:
        if self.exists(name):
            return False
        self.write(name, data)
        return True

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="selectit-") as folder:
            path = Path(folder) / posixpath.basename(name)
            yield path
            with self._reaching(name):
                self._put(name, lambda at: self._files.put_file(str(path), at))

    def remove(self, name: str) -> None:
        with self._reaching(name), suppress(FileNotFoundError):
            self._files.rm_file(self._at(name))

    @contextmanager
    def growing(self, name: str) -> Iterator[Path]:
        kept = Path(HF_HOME).expanduser() / "selectit_hf" / sha256(self._at(name).encode())[:16]
        path = kept / posixpath.basename(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        _merge(path, self.read_many([name]).get(name, b""))
        try:
            yield path
        finally:
            if path.exists():
                _merge(path, self.read_many([name]).get(name, b""))
                self.write(name, path.read_bytes())

    def sweep(self, folder: str = "") -> None:
        """There is nothing to sweep: an object is whole or not there."""

    # Inside

    def _at(self, name: str) -> str:
        return posixpath.join(self._root, name).rstrip("/")

    def _fresh(self) -> Any:
        """The client, without what it remembers of earlier listings."""
        self._files.invalidate_cache()
        return self._files

    def _put(self, name: str, put: Any) -> None:
        try:
            put(self._at(name))
        except FileNotFoundError:  # storage with folders, or no bucket
            top = self._root.split("/")[0] or "/"
            if not self._fresh().exists(top):
                raise RunError(
                    f"There is no {top!r} for {self.url}; make it, or check the name."
                ) from None
            self._files.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)
            put(self._at(name))

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        """Let whatever a client raises say which file it was about, and what to do."""
        try:
            yield
        except (RunError, FileNotFoundError):
            raise
        except Exception as error:
            raise RunError(
                f"{self.url} failed at {name!r} ({type(error).__name__}: {error}). Whole shards "
                "stay there; the same command goes on from them."
            ) from error


def _check_url(scheme: str, rest: str) -> None:
    if not rest.strip("/") or re.search(r"[][*?]", rest):
        raise RunError(
            f"{scheme}://{rest!r} names no folder; write one without brackets, '*' and '?'."
        )
    if urlsplit(f"{scheme}://{rest}").password is not None:
        raise RunError(
            f"The {scheme}:// URL holds a password, which would be written down; omit it, and let "
            "the storage's own client find it (its environment variables or its file)."
        )
    if scheme == "hf" and not rest.startswith("buckets/"):
        raise RunError(
            f"'hf://{rest}' is a repository, where each file that a worker writes is a commit. "
            "Name a bucket, hf://buckets/user/name/run, or a folder; 'selectit push' publishes."
        )


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        reached("partial created")
        file.write(data)
        reached("partial written")
        file.flush()
        os.fsync(file.fileno())
        reached("partial synced")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _merge(path: Path, there: bytes) -> None:
    """Append to a file of lines those that are only ``there``."""
    here = path.read_bytes() if path.exists() else b""
    known = set(here.split(b"\n"))
    new = b"".join(line + b"\n" for line in there.split(b"\n")[:-1] if line not in known)
    if new:
        with path.open("ab") as file:
            file.write(b"\n" * bool(here and not here.endswith(b"\n")) + new)


def is_partial(name: str) -> bool:
    """Whether a file is one that was never finished."""
    return name.startswith(".") and name.endswith(".partial")


def as_json(facts: dict[str, Any]) -> bytes:
    """A JSON object as the bytes of a file."""
    return (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()


def json_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object that ``data`` is, if it is one."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def sha256(data: bytes) -> str:
    """The hash of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
