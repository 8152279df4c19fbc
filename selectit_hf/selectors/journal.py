"""An append-only file of paid answers, so that none is paid for twice."""

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
    """The answer to one prompt, and the tokens that were billed (0 if unknown)."""

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Journal:
    """The paid answers: one JSON line each, found by the hash of the question.

    Several processes may append to the same file. A line that a kill cut off is skipped, with a
    warning.

    Raises:
        RunError: the file is not a journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._answers = self._read()

    def get(self, key: str) -> Answer | None:
        """The answer that is stored, if any."""
        return self._answers.get(key)

    def append(self, key: str, answer: Answer) -> None:
        """Store an answer; it is on the disk when the method returns."""
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
            raise RunError(f"{self.path.name!r} is not a journal of a judge; name another journal.")
        if torn:
            logger.warning("Skipped %d incomplete lines of %s.", torn, self.path.name)
        return dict(one for one in found if one is not None)

    def _parsed(self, line: bytes) -> tuple[str, Answer] | None:
        try:
            facts = json.loads(line)
            return facts.pop("key"), Answer(**facts)
        except MALFORMED:
            return None
