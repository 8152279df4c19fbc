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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fsspec.core import url_to_fs
from huggingface_hub.constants import HF_HOME

from selectit_hf import claims, storage
from selectit_hf.errors import RunError

__all__ = [
    "FRESH",
    "ORIGIN",
    "Alone",
    "Mirror",
    "begin_copy",
    "copy_of",
    "is_url",
    "mirror_of",
]

ORIGIN = "origin.json"
FRESH = 5.0
"""Seconds for which a listing of a folder is good enough to know what others have done."""
LOOK = 30.0
"""Seconds between two looks at the same claim of another."""
HERE_ONLY = re.compile(r"origin\.json|rows|\..*|.*\.(claim|retry)")
SHARDS = ("ratings", "measures")


def is_url(text: str) -> bool:
    """Whether a run folder is named by a URL, as in ``s3://bucket/run``."""
    return re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE) is not None


def copy_of(url: str) -> Path:
    """This machine's copy of the run folder at a URL; empty at first.

    Args:
        url: of any protocol that `fsspec` knows: ``s3://``, ``gs://``, ``abfs://``, ``sftp://``.

    Raises:
        RunError: no place where workers can meet, or a URL with a password.
    """
    scheme, _, rest = url.partition("://")
    url = f"{scheme.lower()}://{rest.rstrip('/')}"
    _check_url(url)
    name = re.sub(r"[^\w.-]", "_", posixpath.basename(rest.rstrip("/")))
    runs = Path(HF_HOME).expanduser() / "selectit_hf" / "runs"
    folder = runs / storage.sha256(url.encode())[:16] / name
    begin_copy(folder, url)
    return folder


def _check_url(url: str) -> None:
    scheme, _, rest = url.partition("://")
    if not rest or re.search(r"[][*?]", rest):
        raise RunError(f"{url!r} names no folder; write one without brackets, '*' and '?'.")
    if urlsplit(url).password is not None:
        raise RunError(
            f"The {scheme}:// URL holds a password, which would be written down; leave it away, "
            "and let the storage's own client find it (its environment variables or its file)."
        )
    if scheme == "hf":
        raise RunError(
            f"{url!r} is on the Hub, where each file that a worker writes is a commit. Name a "
            "folder, or one in object storage such as s3://bucket/run; 'selectit push' publishes."
        )


def begin_copy(folder: Path, url: str) -> None:
    """Make a folder the copy of a run at a URL, if it is not yet."""
    folder.mkdir(parents=True, exist_ok=True)
    storage.create_json(folder / ORIGIN, {"url": url, "folder": str(folder.resolve())})


def mirror_of(folder: Path) -> "Alone":
    """What a run folder is a copy of. A folder that was itself copied elsewhere is none.

    Raises:
        RunError: storage that cannot be reached from here.
    """
    path = folder / ORIGIN
    origin = storage.read_json(path) if path.exists() else {}
    if origin.get("folder") != str(folder.resolve()):
        return Alone()
    return Mirror(str(origin["url"]), folder)


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

    def send(self, path: Path) -> None:
        """Write a file there as it is here."""

    def send_rest(self) -> None:
        """Write there what lies in folders and is no shard, such as a report."""

    def merge(self, journal: Path) -> None:
        """Append to a journal here the lines that it has there alone."""

    def fetch(self, path: Path) -> bool:
        """Write a file here as it is there, whole or not at all; whether there is one."""
        return False

    def sizes(self, folder: Path, age: float = 0.0) -> dict[str, int]:
        """The files of a folder there, in bytes, as was known at most ``age`` seconds ago."""
        return {}

    def sidecars(self, folder: Path) -> dict[Path, bytes]:
        """What commits each shard of a folder there."""
        return {}

    def remove(self, path: Path) -> None:
        """Remove a file there, if there is one."""

    def clear(self, folder: Path) -> None:
        """Remove the claims of the dead from a folder there."""

    def is_abandoned(self, path: Path) -> bool:
        """Whether who claimed what ``path`` stands for there is gone, by this machine's clock."""
        return False

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
            self._files, self._root = url_to_fs(url)
        except Exception as error:  # whatever a client raises that logs in at once
            remedy = "Install what it names" if isinstance(error, ImportError) else "Check the URL"
            raise RunError(
                f"{url!r} cannot be reached from here: {str(error).rstrip('.')}. {remedy} and the "
                "login of its client, or mount the storage."
            ) from error
        self._listings: dict[str, _Listing] = {}
        self._watched: dict[str, _Watched] = {}

    # Files

    def has(self, path: Path, age: float = 0.0) -> bool:
        if age:
            return path.name in self.sizes(path.parent, age)
        with self._reaching(path):
            try:
                self._fresh().info(self._name(path))
            except FileNotFoundError:
                return False
        return True

    def create(self, path: Path, data: bytes) -> bool:
        def exclusively(name: str) -> None:
            try:
                self._files.pipe_file(name, data, mode="create")
            except (TypeError, NotImplementedError):  # storage that cannot; nearly as good
                if self.has(path):
                    raise FileExistsError(name) from None
                self._files.pipe_file(name, data)

        with self._reaching(path):
            try:
                self._put(path, len(data), exclusively)
            except FileExistsError:
                return False
        return True

    def read(self, path: Path) -> bytes | None:
        with self._reaching(path):
            try:
                return bytes(self._files.cat_file(self._name(path)))
            except FileNotFoundError:
                return None

    def write(self, path: Path, data: bytes) -> None:
        """Write a file there."""
        with self._reaching(path):
            self._put(path, len(data), lambda name: self._files.pipe_file(name, data))

    def send(self, path: Path) -> None:
        with self._reaching(path):
            size = path.stat().st_size
            self._put(path, size, lambda name: self._files.put_file(str(path), name))

    def send_rest(self) -> None:
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            parts = path.relative_to(self.folder).parts
            if len(parts) > 1 and not _is_shard(parts) and not _stays_here(parts):
                if path.suffix == ".jsonl":
                    self.merge(path)
                self.send(path)

    def merge(self, journal: Path) -> None:
        here = journal.read_bytes() if journal.exists() else b""
        known = set(here.split(b"\n"))
        there = (self.read(journal) or b"").split(b"\n")[:-1]  # behind the last one it is torn
        new = b"".join(line + b"\n" for line in there if line not in known)
        if new:
            journal.parent.mkdir(parents=True, exist_ok=True)
            torn = bool(here) and not here.endswith(b"\n")
            with journal.open("ab") as file:  # others may be appending
                file.write(b"\n" * torn + new)

    def fetch(self, path: Path) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._reaching(path):
            try:
                with storage.replacing(path) as partial:
                    self._files.get_file(self._name(path), str(partial))
            except FileNotFoundError:
                return False
        return True

    def sizes(self, folder: Path, age: float = 0.0) -> dict[str, int]:
        name = self._name(folder)
        known = self._listings.get(name)
        if known is None or time.monotonic() - known.at > max(age, 2 * known.took):
            asked = time.monotonic()
            with self._reaching(folder):
                try:
                    found = self._fresh().ls(name, detail=True)
                except FileNotFoundError:
                    found = []
            named = {one["name"].rstrip("/"): one["size"] or 0 for one in found}
            sizes = {posixpath.basename(one): named[one] for one in named if one != name}
            now = time.monotonic()
            known = self._listings[name] = _Listing(now, now - asked, sizes)
        return known.sizes

    def sidecars(self, folder: Path) -> dict[Path, bytes]:
        there = [name for name in sorted(self.sizes(folder)) if re.fullmatch(r"\d+\.json", name)]
        paths = {self._name(folder / name): folder / name for name in there}
        with self._reaching(folder):
            found = self._files.cat(list(paths), on_error="return") if paths else {}
            for data in found.values():
                if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                    raise data
        return {paths[name]: data for name, data in found.items() if isinstance(data, bytes)}

    def remove(self, path: Path) -> None:
        with self._reaching(path), suppress(FileNotFoundError):
            self._files.rm_file(self._name(path))
        self._note(path, None)

    # Claims

    def clear(self, folder: Path) -> None:
        for name in list(self.sizes(folder)):
            path = folder / name
            if path.suffix == ".claim" and claims.is_of_the_dead(self.read(path) or b""):
                self.remove(path)

    def is_abandoned(self, path: Path) -> bool:
        if claims.is_of_the_dead(self.read(path) or b""):
            return True
        with self._reaching(path):
            try:
                written = self._fresh().modified(self._name(path))
            except (FileNotFoundError, RuntimeError):
                written = None  # it is gone, or the storage does not know
        if not isinstance(written, datetime):
            return False
        return (datetime.now(UTC) - written.astimezone(UTC)).total_seconds() > claims.STALE

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

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self.folder).parts
        return posixpath.join(self._root, *parts)

    def _fresh(self) -> Any:
        """The client, without what it remembers of earlier listings."""
        self._files.invalidate_cache()
        return self._files

    def _note(self, path: Path, size: int | None) -> None:
        """Remember what was written or, without a size, removed."""
        known = self._listings.get(self._name(path.parent))
        if known is not None:
            known.sizes.pop(path.name, None)
            if size is not None:
                known.sizes[path.name] = size

    def _put(self, path: Path, size: int, write: Callable[[str], object]) -> None:
        name = self._name(path)
        try:
            write(name)
        except FileNotFoundError:  # storage with folders, or no bucket
            top = self._root.split("/")[0] or "/"
            if not self._fresh().exists(top):
                raise RunError(
                    f"There is no {top!r} for {self.url}; make it, or check the name."
                ) from None
            self._files.makedirs(posixpath.dirname(name), exist_ok=True)
            write(name)
        self._note(path, size)

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


class _Listing(NamedTuple):
    """The files of a folder there: since when it is known, what it took to ask, their sizes."""

    at: float
    took: float
    sizes: dict[str, int]


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
        return self._owner["claim"].encode() in (self._mirror.read(self._path) or b"")


def _stays_here(parts: tuple[str, ...]) -> bool:
    """Whether a path in the folder is of one machine only."""
    return any(map(HERE_ONLY.fullmatch, parts))


def _is_shard(parts: tuple[str, ...]) -> bool:
    """Whether a path in the folder is of a shard: of ratings or of a measure."""
    return len(parts) == 3 and parts[0] in SHARDS
