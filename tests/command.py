"""The command in this process, and a small file of rows for it."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from selectit_hf.cli import app, display
from selectit_hf.terminal import SafeConsole

ROWS = [
    {"instruction": f"Say {i}.", "input": "", "output": f"{i} " * (i % 7 + 1)} for i in range(30)
]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.fixture
def selectit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """Run the command in this process, in a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SafeConsole, "_environ", os.environ)  # whoever imported rich, and when
    monkeypatch.setenv("COLUMNS", "400")
    for console in (display._words, display._log):  # made in the terminal of the tests
        monkeypatch.setattr(console, "width", 400)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["selectit", *map(str, arguments)])
        try:
            app.main()
        except SystemExit as stop:
            return Outcome(int(stop.code or 0), *capsys.readouterr())
        return Outcome(0, *capsys.readouterr())

    return run
