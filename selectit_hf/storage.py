"""Files of a run folder: whole or not there, whoever is killed when.

A file is written beside its place under a name of its own, made durable, read back where it must
not be lost, and moved into place in one step. Several processes may write the same file at once:
one of the whole files stays. What a killed process leaves is named so that it is known for what it
is, and swept.
"""

import functools
import hashlib
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selectit_hf.errors import RunError

__all__ = [
    "POINTS",
    "age",
    "create",
    "create_json",
    "file_sha256",
    "is_partial",
    "json_object",
    "machine",
    "owner_is_dead",
    "reached",
    "read_json",
    "replacing",
    "sha256",
    "sweep",
    "write",
    "write_json",
]

POINTS = (
    "claim taken",
    "claimed in the mirror",
    "shard rated",
    "partial created",
    "partial written",
    "partial synced",
    "partial read back",
    "file renamed",
    "folder synced",
    "table mirrored",
    "sidecar mirrored",
    "shard committed",
    "claim released",
)
"""Where the protocol of a shard can be interrupted, in the order it gets there.

The six of a file are passed twice: for the shard's table, then for its sidecar.
"""

_NUMBERS = itertools.count()


def reached(point: str) -> None:
    """Called at each of `POINTS`; does nothing. Tests of kills put something in its place."""


# Writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write in place of ``path``; it is moved there, whole, when the block ends well.

    Raises:
        OSError: the disk is full or failing; ``path`` is what it was.
    """
    partial = _partial(path)
    with _named(path):
        try:
            yield partial
            _sync(partial)
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        reached("file renamed")
        _sync(path.parent)
        reached("folder synced")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error of the disk say which file it was about."""
    try:
        yield
    except OSError as error:
        error.add_note(f"This was while {path.name} was written.")
        raise


def write(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` and read it back before it takes its place.

    Raises:
        OSError: the disk is full or failing, or gives back other bytes.
    """
    with replacing(path) as partial:
        with partial.open("xb") as file:
            reached("partial created")
            file.write(data)
            reached("partial written")
            file.flush()
            os.fsync(file.fileno())
            reached("partial synced")
        if partial.read_bytes() != data:
            raise OSError(f"the disk gave back other bytes than were written to {path.name}")
        reached("partial read back")


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write a JSON object, for people and programs; see `write`."""
    write(path, _as_json(facts))


def _as_json(facts: dict[str, Any]) -> bytes:
    return (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()


def create(path: Path, data: bytes) -> bool:
    """Write ``data`` to ``path`` unless there is a file already; whether there was none.

    Raises:
        OSError: the disk is full or failing.
    """
    partial = _partial(path)
    with _named(path):
        try:
            partial.write_bytes(data)
            _sync(partial)
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                return _create_by_name(path, data)
            try:
                _sync(path.parent)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            return True
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def create_json(path: Path, facts: dict[str, Any]) -> bool:
    """Write a JSON object unless there is a file already; see `create`."""
    return create(path, _as_json(facts))


def _create_by_name(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def age(path: Path) -> float | None:
    """Seconds since a file was touched, by the clock of its file system; ``None`` without it."""
    probe = _partial(path)
    try:
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except OSError:  # a folder that may only be read
        now = time.time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return now - touched


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{machine()}-{os.getpid()}-{next(_NUMBERS)}.partial")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RunError: it cannot be read, or is something else.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path.name} of the run cannot be read ({error}); restore it, or start another run."
        ) from error
    if not isinstance(facts, dict):
        raise RunError(f"{path.name} of the run is no JSON object; restore it.")
    return facts


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


def file_sha256(path: Path) -> str:
    """The hash of a file of any size in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What a killed process leaves


def is_partial(path: Path) -> bool:
    """Whether a file is one that was never finished."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def sweep(folder: Path) -> None:
    """Remove the partial files of processes of this machine that are dead."""
    for path in folder.glob(".*.partial"):
        owner = path.name.removesuffix(".partial").rpartition(".")[2].split("-")
        if len(owner) == 3 and owner[1].isdecimal() and owner_is_dead(owner[0], int(owner[1])):
            path.unlink(missing_ok=True)


@functools.cache
def machine() -> str:
    """A name for this machine, this boot of it and this container, that tells nothing about it."""
    known = [socket.gethostname()]
    with suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        known.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(known).encode()).hexdigest()[:12]


def owner_is_dead(host: str, pid: int) -> bool:
    """Whether a process is known to be gone; of another machine's it is not known."""
    if host != machine():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return _waits_to_be_buried(pid)


def _waits_to_be_buried(pid: int) -> bool:
    """Whether a process has ended and its parent has not asked how, so that its number lives on."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in "ZX"
