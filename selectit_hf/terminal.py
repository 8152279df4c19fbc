"""Text from rows, files and servers in a terminal: it is shown and never acts on the terminal.

Every console and every line of JSON of the command comes from here, so callers need not care.
Control characters, the C1 set, and marks that change the direction of writing are shown as pictures
or as their code points.
"""

import io
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

__all__ = ["SafeConsole", "as_line", "forgiving_streams", "visible", "write_out"]

ORDERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
"""All characters that can control a terminal, except newline and tab."""


def visible(text: str) -> str:
    """``text`` without characters that control a terminal, except newlines and tabs.

    >>> visible("a\\x1b[2Jb")
    'a\u241b[2Jb'
    """
    return ORDERS.sub(_picture, text)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"


class SafeConsole(Console):
    """A console whose own colours are the only control sequences that it writes."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments with control characters made visible, and without links."""
        for text, style, control in super().render(renderable, options):
            if control:
                yield Segment(text, style, control)
            else:
                safe = style.update_link(None) if style is not None and style.link else style
                yield Segment(visible(text), safe, None)


def as_line(facts: Any) -> str:
    """JSON in one line that reads back the same and is safe to show in a terminal."""
    line = json.dumps(facts, ensure_ascii=False)
    return ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def write_out(words: str) -> None:
    """A text on stdout."""
    print(visible(words))


def forgiving_streams() -> None:
    """Make sure that a problem with output never stops the work.

    Characters that the terminal's encoding lacks are written as escapes. If the reader has gone, as
    with ``| head``, further output is dropped.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # the same under PYTHONUNBUFFERED
        if isinstance(raw, io.FileIO):
            stream.flush()
            forgiving = io.TextIOWrapper(
                io.BufferedWriter(_Unread(raw, stream)),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=True,
            )
            setattr(sys, name, forgiving)


class _Unread(io.RawIOBase):
    """A file that accepts output even if its reader has gone."""

    def __init__(self, file: io.FileIO, owner: Any) -> None:
        self._file = file
        self._owner = owner  # which closes the file when it is gone

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())
            os.close(nowhere)
            return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def isatty(self) -> bool:
        return self._file.isatty()
