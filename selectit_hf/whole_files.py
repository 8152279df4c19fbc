"""Local files that are whole or absent, whatever happens while they are written."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["POINTS", "alone_in", "create", "reached", "remove_partial", "replacing", "write"]

POINTS = (
    "partial created",
    "partial written",
    "partial synced",
    "file placed",
    "folder synced",
)
"""Where writing a file can be interrupted, in order."""
ABANDONED = 3600.0
"""Seconds after its last write that a partial file is taken to be a killed process's."""


def reached(point: str) -> None:
    """Called at each of `POINTS`; does nothing. Tests that kill processes replace it."""


@contextmanager
def replacing(path: Path, place: Callable[[Path, Path], object] = Path.replace) -> Iterator[Path]:
    """A new file or folder next to ``path``, which replaces it when the block succeeds.

    Raises:
        OSError: the disk is full or failing. An existing file is unchanged.
    """
    partial = path.with_name(f".{os.getpid()}-{os.urandom(6).hex()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        reached("partial synced")
        place(partial, path)
        reached("file placed")
        _sync(path.parent)
        reached("folder synced")
    except OSError as error:
        error.add_note(f"This happened while {path.name} was being written.")
        raise
    finally:
        with suppress(OSError):
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)


def write(path: Path, data: bytes, place: Callable[[Path, Path], object] = Path.replace) -> None:
    """Write a file, replacing an existing one. See `replacing` for the errors."""
    with replacing(path, place) as partial, partial.open("xb") as file:
        reached("partial created")
        file.write(data)
        reached("partial written")


def create(path: Path, data: bytes) -> bool:
    """Write a file unless it exists; return whether it was written."""

    def place(partial: Path, path: Path) -> None:
        try:
            os.link(partial, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            partial.replace(path)

    try:
        write(path, data, place)
    except FileExistsError:
        return False
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Whether this process is the only one inside such a block for a folder.

    Nothing is written, and the lock ends with the process. On a file system without locks, the
    answer is always yes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(descriptor)


def remove_partial(folder: Path) -> None:
    """Remove partial files in a folder and below, an hour after a process last wrote to them."""
    for path in folder.rglob(".*.partial"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
