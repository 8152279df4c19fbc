"""A run folder in object storage: each machine works in a copy of its own, and they meet there.

    HF_HOME/selectit_hf/runs/<hash of the URL>/<name>/    the copy, a run folder like any other
        origin.json                                       the URL that it is a copy of

Object storage can neither rename nor lock, and nothing here needs it. A shard's table goes there
before its sidecar, which commits it there as it did here; what is torn does not fit its hash and is
made again. A claim there is an object that its holder writes anew now and then; one that stays the
same for `claims.STALE` seconds, by the watch of whoever looks, is nobody's.
"""

import json
import posixpath
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.core import url_to_fs
from huggingface_hub.constants import HF_HOME

from selectit_hf import claims, storage
from selectit_hf.errors import RunError

__all__ = ["FRESH", "ORIGIN", "Alone", "Mirror", "copy_of", "is_url", "mirror_of"]

ORIGIN = "origin.json"
FRESH = 5.0
"""Seconds for which a listing of a folder is good enough to know what others have done."""
LOOK = 30.0
"""Seconds between two looks at the same claim of another."""
HERE_ONLY = re.compile(r"origin\.json|rows|\..*|.*\.(claim|retry)")
SHARDS = ("ratings", "measures")


def is_url(text: str) -> bool:
    """Whether a run folder is named by a URL, as in ``s3://bucket/run``."""
    return re.match(r"[a-z][a-z0-9+.-]+://", text) is not None


def copy_of(url: str) -> Path:
    """This machine's copy of the run folder at a URL; empty at first.

    Args:
        url: of any protocol that `fsspec` knows: ``s3://``, ``gs://``, ``abfs://``, ``sftp://``.

    Raises:
        RunError: no place where workers can meet.
    """
    if url.startswith("hf://"):
        raise RunError(
            f"{url!r} is on the Hub, where each file that a worker writes is a commit. Name a "
            "folder, or one in object storage such as s3://bucket/run; 'selectit push' publishes."
        )
    url = url.rstrip("/")
    name = storage.sha256(url.encode())[:16]
    folder = Path(HF_HOME).expanduser() / "selectit_hf" / "runs" / name / posixpath.basename(url)
    folder.mkdir(parents=True, exist_ok=True)
    storage.create_json(folder / ORIGIN, {"url": url})
    return folder


def mirror_of(folder: Path) -> "Alone":
    """What a run folder is a copy of.

    Raises:
        RunError: storage that cannot be reached from here.
    """
    path = folder / ORIGIN
    return Mirror(str(storage.read_json(path)["url"]), folder) if path.exists() else Alone()


class Alone:
    """No storage behind a run folder: all its workers see the folder itself."""

    url = ""
    poll = 0.0
    """Seconds that must pass between two looks at what others have done."""

    def has(self, path: Path, age: float = 0.0) -> bool:
        """Whether a file is there, as it was known at most ``age`` seconds ago."""
        return False

    def create(self, path: Path, data: bytes) -> bool:
        """Write a file there unless there is one; whether there was none."""
        return True

    def read(self, path: Path) -> bytes | None:
        """The bytes of a file there; ``None`` where there is none."""
        return None

    def is_empty(self) -> bool:
        """Whether there is nothing there."""
        return True

    def send(self, *paths: Path) -> None:
        """Write files there as they are here, one after the other."""

    def send_rest(self) -> None:
        """Write there what lies in folders and is no shard, such as a report."""

    def fetch(self, path: Path) -> bool:
        """Write a file here as it is there, whole or not at all; whether there is one."""
        return False

    def fetch_all(self) -> None:
        """Take everything from there, shards that are here already apart."""

    def sizes(self, folder: Path, age: float = 0.0) -> dict[str, int]:
        """The files of a folder there, in bytes, as was known at most ``age`` seconds ago."""
        return {}

    def sidecars(self, folder: Path) -> dict[Path, bytes]:
        """What commits each shard of a folder there."""
        return {}

    def remove(self, *paths: Path) -> None:
        """Remove files there, where they are."""

    def clear(self, folder: Path) -> None:
        """Remove the claims of the dead from a folder there."""

    def take(self, path: Path) -> AbstractContextManager[Any] | None:
        """Claim there what ``path`` stands for; ``None`` while another holds it."""
        return nullcontext()

    def wait(self, path: Path) -> AbstractContextManager[Any]:
        """Claim there what ``path`` stands for, as soon as no other holds it."""
        while (claim := self.take(path)) is None:
            time.sleep(self.poll)
        return claim


class Mirror(Alone):
    """Storage behind a run folder, whose files have the same names there.

    Args:
        url: the folder there.
        folder: the copy here.

    Raises:
        RunError: of every method, and at once where a package for the protocol is missing: the
            storage does not do what it is asked, with its own words.
    """

    poll = FRESH

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        try:
            self._files, self._root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise RunError(
                f"{url!r} cannot be reached from here: {str(error).rstrip('.')}. Install what "
                "fsspec names for that protocol (s3fs for s3://), or mount the storage."
            ) from error
        self._listings: dict[str, tuple[float, dict[str, int]]] = {}
        self._watched: dict[str, _Watched] = {}

    # Files

    def has(self, path: Path, age: float = 0.0) -> bool:
        return path.name in self.sizes(path.parent, age)

    def create(self, path: Path, data: bytes) -> bool:
        def exclusively(name: str) -> None:
            try:
                self._files.pipe_file(name, data, mode="create")
            except (TypeError, NotImplementedError):  # storage that cannot; nearly as good
                if self._files.exists(name):
                    raise FileExistsError(name) from None
                self._files.pipe_file(name, data)

        with self._reaching(path):
            try:
                self._put(path, exclusively)
            except FileExistsError:
                return False
        return True

    def read(self, path: Path) -> bytes | None:
        with self._reaching(path):
            try:
                return bytes(self._files.cat_file(self._name(path)))
            except FileNotFoundError:
                return None

    def is_empty(self) -> bool:
        return not self.sizes(self.folder)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file there."""
        with self._reaching(path):
            self._put(path, lambda name: self._files.pipe_file(name, data))

    def send(self, *paths: Path) -> None:
        for path in paths:
            with self._reaching(path):
                self._put(path, lambda name, path=path: self._files.put_file(str(path), name))

    def send_rest(self) -> None:
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            parts = path.relative_to(self.folder).parts
            if len(parts) > 1 and not _is_shard(parts) and not _stays_here(parts):
                self._merge(path)
                self.send(path)

    def fetch(self, path: Path) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._reaching(path):
            try:
                with storage.replacing(path) as partial:
                    self._files.get_file(self._name(path), str(partial))
            except FileNotFoundError:
                return False
        return True

    def fetch_all(self) -> None:
        with self._reaching(self.folder):
            found = self._files.find(self._root)
        folders = set()
        for name in found:
            parts = Path(posixpath.relpath(name, self._root)).parts
            path = self.folder.joinpath(*parts)
            if _is_shard(parts):
                folders.add(path.parent)
            elif not _stays_here(parts) and not self._merge(path):
                self.fetch(path)
        for folder in sorted(folders):
            for path, sidecar in self.sidecars(folder).items():
                if not path.exists():
                    self.fetch(path.with_suffix(".parquet"))
                    storage.write(path, sidecar)

    def sizes(self, folder: Path, age: float = 0.0) -> dict[str, int]:
        name = self._name(folder)
        known = self._listings.get(name)
        if known is None or time.monotonic() - known[0] > age:
            asked = time.monotonic()
            with self._reaching(folder):
                try:
                    found = self._files.ls(name, detail=True)
                except FileNotFoundError:
                    found = []
            sizes = {posixpath.basename(one["name"].rstrip("/")): one["size"] or 0 for one in found}
            known = asked, sizes
            self._listings[name] = known
        return known[1]

    def sidecars(self, folder: Path) -> dict[Path, bytes]:
        there = sorted(name for name in self.sizes(folder) if re.fullmatch(r"\d+\.json", name))
        paths = {self._name(folder / name): folder / name for name in there}
        with self._reaching(folder):
            found = self._files.cat(list(paths)) if paths else {}
        return {paths[name]: bytes(data) for name, data in found.items()}

    def remove(self, *paths: Path) -> None:
        for path in paths:
            with self._reaching(path), suppress(FileNotFoundError):
                self._files.rm_file(self._name(path))
            self._listings.pop(self._name(path.parent), None)

    # Claims

    def clear(self, folder: Path) -> None:
        for name in self.sizes(folder):
            path = folder / name
            if path.suffix == ".claim" and claims.is_of_the_dead(self.read(path) or b""):
                self.remove(path)

    def take(self, path: Path) -> AbstractContextManager[Any] | None:
        if self.has(path, FRESH):
            if self._is_live(path):
                return None
            self.remove(path)
        lease = _Lease(self, path)
        return claims.Claim(lease.touch, lease.drop) if self.create(path, lease.said()) else None

    def _is_live(self, path: Path) -> bool:
        """Whether a claim there changes, or may yet."""
        now, name = time.monotonic(), self._name(path)
        known = self._watched.get(name)
        if known is not None and now - known.looked < LOOK:
            return True
        said = self.read(path)
        if said is None or claims.is_of_the_dead(said):
            return False
        since = known.since if known is not None and known.said == said else now
        self._watched[name] = _Watched(said, since, now)
        return now - since <= claims.STALE

    # Inside

    def _merge(self, path: Path) -> bool:
        """Add to a journal here the lines that it has there; whether it is one that is here."""
        if path.suffix != ".jsonl" or not path.exists():
            return False
        here = path.read_bytes().splitlines(keepends=True)
        there = (self.read(path) or b"").splitlines(keepends=True)
        known = set(here)
        new = [line for line in there if line not in known]
        if new:
            storage.write(path, b"".join([*here, *new]))
        return True

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self.folder).parts
        return posixpath.join(self._root, *parts)

    def _put(self, path: Path, write: Any) -> None:
        name = self._name(path)
        self._listings.pop(self._name(path.parent), None)
        try:
            write(name)
        except FileNotFoundError:  # storage with folders
            top = self._root.split("/")[0] or "/"
            if not self._files.exists(top):
                raise
            self._files.makedirs(posixpath.dirname(name), exist_ok=True)
            write(name)

    @contextmanager
    def _reaching(self, path: Path) -> Iterator[None]:
        """Let whatever a client of a storage raises say which file it was about, and what to do."""
        try:
            yield
        except RunError:
            raise
        except Exception as error:
            raise RunError(
                f"{self.url} failed at {path.name!r} ({type(error).__name__}: {error}). What is "
                "done stays in this machine's copy; the same command goes on from it."
            ) from error


class _Watched(NamedTuple):
    """What a claim said, since when, and when that was last looked at; by the monotonic clock."""

    said: bytes
    since: float
    looked: float


class _Lease:
    """A claim there that this process holds: an object that says something new at each touch."""

    def __init__(self, mirror: Mirror, path: Path) -> None:
        self._mirror, self._path = mirror, path
        self._owner = claims.owner()
        self._beats = 0

    def said(self) -> bytes:
        return json.dumps({**self._owner, "beats": self._beats}).encode()

    def touch(self) -> None:
        if self._is_ours():
            self._beats += 1
            self._mirror.write(self._path, self.said())

    def drop(self) -> None:
        if self._is_ours():
            self._mirror.remove(self._path)

    def _is_ours(self) -> bool:
        return self._mirror.read(self._path) == self.said()


def _stays_here(parts: tuple[str, ...]) -> bool:
    """Whether a path in the folder is of one machine only."""
    return any(map(HERE_ONLY.fullmatch, parts))


def _is_shard(parts: tuple[str, ...]) -> bool:
    """Whether a path in the folder is of a shard: of ratings or of a measure."""
    return len(parts) == 3 and parts[0] in SHARDS
