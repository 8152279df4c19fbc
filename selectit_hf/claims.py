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
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from selectit_hf import storage
from selectit_hf.errors import RunError

__all__ = ["BEAT", "STALE", "Claim", "holder", "is_live", "take", "wait"]

BEAT = 20.0
STALE = 300.0
POLL = 1.0


class Claim:
    """A claim that this process holds; a context manager that keeps it fresh and gives it back."""

    def __init__(self, path: Path, said: bytes) -> None:
        self.path, self._said = path, said
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
        with suppress(OSError):
            if self._is_ours():
                self.path.unlink()
        storage.reached("claim released")

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            with suppress(OSError):  # the disk is away for a while
                if self._is_ours():
                    os.utime(self.path)

    def _is_ours(self) -> bool:
        return self.path.read_bytes() == self._said


def take(path: Path) -> Claim | None:
    """Claim what ``path`` stands for; ``None`` while another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = {"machine": storage.machine(), "pid": os.getpid(), "claim": uuid.uuid4().hex}
    said = json.dumps(owner).encode()
    if not storage.create(path, said):
        if is_live(path):
            return None
        path.unlink(missing_ok=True)
        if not storage.create(path, said):
            return None
    storage.reached("claim taken")
    return Claim(path, said)


def wait(path: Path) -> Claim:
    """Claim what ``path`` stands for, as soon as no other holds it."""
    while (claim := take(path)) is None:
        time.sleep(POLL)
    return claim


def holder(path: Path) -> dict[str, Any]:
    """The machine and process that made a claim; empty if there is none, or it says nothing."""
    try:
        owner = storage.read_json(path)
    except RunError:
        return {}
    known = isinstance(owner.get("machine"), str) and isinstance(owner.get("pid"), int)
    return owner if known else {}


def is_live(path: Path) -> bool:
    """Whether someone is at what ``path`` stands for."""
    owner = holder(path)
    if owner and storage.owner_is_dead(owner["machine"], owner["pid"]):
        return False
    age = storage.age(path)
    return age is not None and age <= STALE
