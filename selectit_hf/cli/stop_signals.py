"""Ctrl-C and SIGTERM, so that a command ends in order."""

import signal
from typing import Any

from selectit_hf.runs import Progress

__all__ = ["Stop"]


class Stop:
    """Ctrl-C, and SIGTERM from a scheduler: leave in order.

    Raised where the program is, and once more by `heed`: what is raised in a finalizer is dropped.
    """

    def __init__(self) -> None:
        self._asked: BaseException | None = None
        signal.signal(signal.SIGTERM, self._told)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background job
            signal.signal(signal.SIGINT, self._told)

    def _told(self, number: int, frame: Any) -> None:
        is_key = number == signal.SIGINT
        self._asked = KeyboardInterrupt() if is_key else SystemExit(128 + number)
        raise self._asked

    def heed(self) -> None:
        """Leave if that was asked."""
        if self._asked is not None:
            raise self._asked

    def heeding(self, progress: Progress) -> Progress:
        """``progress``, where what was asked is heeded."""

        def told(slug: str, prompts: int) -> None:
            self.heed()
            progress(slug, prompts)

        return told
