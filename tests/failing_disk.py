"""A disk that fails once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def failing_at(call: int, code: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the `os.fsync` number ``call`` (from 0) in the block fail with the error ``code``."""
    sync, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield
