"""Answers that were paid, and are never paid again: an append-only file."""

import json
import logging
import os
import threading
from pathlib import Path
from typing import NamedTuple

from selectit_hf.errors import RunError

__all__ = ["Answer", "Journal"]

logger = logging.getLogger(__name__)

MALFORMED = (ValueError, TypeError, AttributeError, KeyError)


class Answer(NamedTuple):
    """What came back for one prompt, and the tokens it was paid by (0 where not said)."""

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Journal:
    """The answers that are paid: one JSON line each, found by the hash of what was asked.

    Several processes may append to the same file. A line that a kill tore is skipped, and said.

    Raises:
        RunError: the file is no journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._answers = self._read()

    def get(self, key: str) -> Answer | None:
        """The answer that is stored, if any."""
        return self._answers.get(key)

    def append(self, key: str, answer: Answer) -> None:
        """Store an answer; it is on the disk when this returns."""
        line = json.dumps({"key": key, **answer._asdict()}, ensure_ascii=False) + "\n"
        with self._lock, self.path.open("ab+") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            torn = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * torn + line.encode())
            file.flush()
            os.fsync(file.fileno())
            self._answers[key] = answer

    def _read(self) -> dict[str, Answer]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        found = [self._parsed(line) for line in lines if line.strip()]
        torn = found.count(None)
        if found and torn == len(found):
            raise RunError(f"{self.path.name!r} holds no answers of a judge; name another journal.")
        if torn:
            logger.warning("%d torn lines of %s are skipped.", torn, self.path.name)
        return dict(one for one in found if one is not None)

    def _parsed(self, line: bytes) -> tuple[str, Answer] | None:
        try:
            facts = json.loads(line)
            return facts.pop("key"), Answer(**facts)
        except MALFORMED:
            return None
