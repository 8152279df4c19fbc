"""Claims: a worker's word that it is at something, so that others take something else.

Nothing rests on claims but time. Files are made whole or not at all and from the same inputs, so
two workers at one shard do its work twice and end in the same bytes.

A claim is a file that says which process of which machine made it, and that the process touches
for as long as it is at work. It is taken over at once when its process is dead, where that can be
known (on the same machine), and otherwise when it has not been touched for `STALE` seconds, by the
clock of the file system.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from selectit_hf import storage
from selectit_hf.errors import RunError

__all__ = [
    "BEAT",
    "STALE",
    "Claim",
    "is_live",
    "is_of_the_dead",
    "owner",
    "take",
    "wait",
]

BEAT = 20.0
STALE = 300.0
POLL = 1.0


class Claim:
    """A claim that this process holds; a context manager that keeps it fresh and gives it back.

    Args:
        touch: keeps it fresh, if it is still this process's.
        drop: gives it back, likewise.
    """

    def __init__(self, touch: Callable[[], None], drop: Callable[[], None]) -> None:
        self._touch, self._drop = touch, drop
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._heart.join()
        with suppress(OSError, RunError):
            self._drop()
        storage.reached("claim released")

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            with suppress(OSError, RunError):  # the disk is away for a while
                self._touch()


def take(path: Path) -> Claim | None:
    """Claim what ``path`` stands for; ``None`` while another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = json.dumps(owner()).encode()
    if not storage.create(path, said):
        if is_live(path):
            return None
        path.unlink(missing_ok=True)
        if not storage.create(path, said):
            return None
    storage.reached("claim taken")

    def if_ours(do: Callable[[Path], None]) -> None:
        if path.read_bytes() == said:
            do(path)

    return Claim(lambda: if_ours(os.utime), lambda: if_ours(Path.unlink))


def wait(path: Path) -> Claim:
    """Claim what ``path`` stands for, as soon as no other holds it."""
    while (claim := take(path)) is None:
        time.sleep(POLL)
    return claim


def owner() -> dict[str, Any]:
    """What a claim of this process says, unlike any other claim."""
    return {"machine": storage.machine(), "pid": os.getpid(), "claim": uuid.uuid4().hex}


def is_of_the_dead(said: bytes) -> bool:
    """Whether a claim is known to be of a process that is gone."""
    found = storage.json_object(said) or {}
    known = (type(found.get("machine")), type(found.get("pid"))) == (str, int)
    return known and storage.owner_is_dead(found["machine"], found["pid"])


def is_live(path: Path) -> bool:
    """Whether someone is at what ``path`` stands for."""
    with suppress(OSError):
        if is_of_the_dead(path.read_bytes()):
            return False
    age = storage.age(path)
    return age is not None and age <= STALE
