"""How long to wait for the Hub, and how often to retry.

Two limits make every request end. A request that moves less than `SLOWEST` bytes a second for
`PATIENCE` seconds is given up; this ends a stalled server, but not a long download. `time_limit`
bounds the seconds of all requests together. Both limits apply to the headers, the body and uploads,
in every thread, since they act where bytes are read from and written to the socket.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpcore2
import httpx2
from httpx2 import HTTPError, TransportError
from huggingface_hub import set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import _http as hub_http

__all__ = [
    "FAILURES",
    "WAITS",
    "Overdue",
    "bounded",
    "is_transient",
    "patiently",
    "pause",
    "seconds_left",
    "sleep",
    "time_limit",
]

T = TypeVar("T")

FAILURES = (
    *(HTTPError, OSError, RuntimeError, ValueError),
    *(AttributeError, LookupError, TypeError, AssertionError),
)
"""What the client raises when a request fails; an upload that fails is a bare RuntimeError.

The second line is what it raises if a reply with status 200 lacks what it should hold.
"""

WAITS = (1.0, 2.0, 4.0)
"""Seconds between attempts; a 429 may ask for more, up to `LONGEST_WAIT`."""

LONGEST_WAIT = 60.0
TRANSIENT = (429, 500, 502, 503, 504)

PATIENCE = 60.0
SLOWEST = 1024.0


class Overdue(TimeoutError):
    """A limit was reached. No retry of the client catches it."""


class _Clock:
    """The end of all requests together, on the monotonic clock."""

    end: float | None = None


def seconds_left() -> float | None:
    """Seconds until the innermost `time_limit` ends; ``None`` outside of any."""
    return None if _Clock.end is None else _Clock.end - time.monotonic()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Give all requests within at most ``seconds`` together; then they raise `Overdue`."""
    bounded()
    before, _Clock.end = _Clock.end, time.monotonic() + seconds
    try:
        yield
    finally:
        _Clock.end = before


# Asking again


def patiently(work: Callable[[], T]) -> T:
    """Do ``work``, which must be safe to repeat, and repeat it while the Hub fails."""
    for wait in WAITS:
        try:
            return work()
        except FAILURES as error:
            if not is_transient(error):
                raise
            sleep(pause(error, wait))
    return work()


def sleep(seconds: float) -> None:
    """Wait before the next attempt, but leave time for that attempt."""
    left = seconds_left()
    time.sleep(seconds if left is None else max(0.0, min(seconds, left)))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return not isinstance(error.__cause__, Overdue)
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in TRANSIENT
    return isinstance(error, (TransportError, LocalEntryNotFoundError, json.JSONDecodeError))


def pause(error: BaseException, wait: float) -> float:
    """Seconds to wait after a failure: what the Hub asked for, else ``wait``."""
    asked = ""
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        asked = error.response.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_WAIT) if asked.isdecimal() else wait


# The limits


def bounded() -> None:
    """Set both limits in the client of `huggingface_hub`, whatever its other settings are."""
    with _LOCK:
        factory = hub_http._GLOBAL_CLIENT_FACTORY
        if not isinstance(factory, _Factory):
            set_client_factory(_Factory(factory))


_LOCK = threading.Lock()


class _Factory:
    def __init__(self, factory: Callable[[], httpx2.Client]) -> None:
        self.factory = factory

    def __call__(self) -> httpx2.Client:
        client = self.factory()
        for transport in (client._transport, *client._mounts.values()):
            pool: Any = getattr(transport, "_pool", None)
            if isinstance(pool, httpcore2.ConnectionPool):
                pool._network_backend = _Backend(pool._network_backend)
        return client


class _Backend(httpcore2.NetworkBackend):
    def __init__(self, inner: httpcore2.NetworkBackend) -> None:
        self.inner = inner

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *others: Any, **more: Any
    ) -> httpcore2.NetworkStream:
        left = _Left()
        with left.counted(timeout) as at_most:
            stream = self.inner.connect_tcp(host, port, at_most, *others, **more)
        return _Stream(stream, left)

    def sleep(self, seconds: float) -> None:
        sleep(seconds)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, inner: httpcore2.NetworkStream, left: "_Left") -> None:
        self.inner, self.left, self.has_read = inner, left, False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with self.left.counted(timeout) as at_most:
            found = self.inner.read(max_bytes, at_most)
        self.left.moved(len(found))
        self.has_read = True
        return found

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self.has_read:  # the next request on this connection
            self.left.seconds, self.has_read = PATIENCE, False
        for start in range(0, len(buffer), PIECE):
            piece = buffer[start : start + PIECE]
            with self.left.counted(timeout) as at_most:
                self.inner.write(piece, at_most)
            self.left.moved(len(piece))

    def start_tls(self, *arguments: Any, **more: Any) -> httpcore2.NetworkStream:
        return _Stream(self.inner.start_tls(*arguments, **more), self.left)

    def close(self) -> None:
        self.inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)


PIECE = 1 << 16


class _Left:
    """The seconds that a request may still wait; transferred bytes extend them."""

    def __init__(self) -> None:
        self.seconds = PATIENCE

    @contextmanager
    def counted(self, timeout: float | None) -> Iterator[float]:
        """The seconds that one step may take; raises `Overdue` if there are none."""
        limits = [timeout, self.seconds, seconds_left()]
        at_most = min(limit for limit in limits if limit is not None)
        if at_most <= 0:
            self.stop()
        start = time.monotonic()
        try:
            yield at_most
        except httpcore2.TimeoutException as error:
            if timeout is None or at_most < timeout:
                self.stop(error)
            raise
        finally:
            self.seconds -= time.monotonic() - start

    def moved(self, count: int) -> None:
        self.seconds = min(PATIENCE, self.seconds + count / SLOWEST)

    def stop(self, error: Exception | None = None) -> None:
        left = seconds_left()
        if left is not None and left <= 0.001:
            raise Overdue("the time limit is reached; --timeout raises it") from error
        raise Overdue(
            f"the server moved less than {SLOWEST:.0f} bytes a second for {PATIENCE:.0f} seconds"
        ) from error
