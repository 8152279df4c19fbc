"""Ctrl-C and SIGTERM stop a command in an orderly way."""

import signal
from typing import Any

from selectit_hf.runs import Progress

__all__ = ["Stop"]


class Stop:
    """Stop in an orderly way on Ctrl-C, or on SIGTERM from a scheduler.

    The exception is raised where the program is, and again by `heed`, since an exception raised in
    a finalizer is lost.
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
        """Stop if that was requested."""
        if self._asked is not None:
            raise self._asked

    def heeding(self, progress: Progress) -> Progress:
        """``progress``, with a call of `heed` at each step."""

        def told(slug: str, prompts: int) -> None:
            self.heed()
            progress(slug, prompts)

        return told
