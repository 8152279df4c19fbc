"""Texts of any origin are shown in a terminal, and never obeyed by it."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from rich.markup import escape
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from selectit_hf.cli import display
from selectit_hf.errors import HubError
from selectit_hf.terminal import SafeConsole, as_line, visible

ESC = "\x1b"
ORDERS = [
    "\x1b[2J",
    "\x1b]52;c;cm0gLXJm\x07",
    "\x1b]8;;https://elsewhere.example\x1b\\here\x1b]8;;\x1b\\",
    "\x9b31m",
    "\x9d0;title\x9c",
    "\r\x08\x7f",
    "\u202egnp.exe\u202c",
    "\u2066a\u2069\u200f\u061c",
    "\x00\x0e\x85\u2028\ufeff",
]
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What our consoles write to a terminal without colours."""
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=False, width=300)
    monkeypatch.setattr(display, "_words", console)
    monkeypatch.setattr(display, "_log", console)
    return out


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_that_is_said_or_logged_is_obeyed(order: str, written: io.StringIO) -> None:
    display.tell(f"row {order} end [/b]")
    display.complain(str(HubError(f"the server says {order} [/b]")))
    table = Table("name")
    table.add_row(Text(order))
    display._words.print(table)
    before = logging.getLogger().handlers[:]
    try:
        display.quieten(debug=False)
        logging.getLogger("selectit_hf.test").warning("a note: %s [/b]", order)
    finally:
        logging.getLogger().handlers[:] = before
    with Progress(TextColumn("{task.description}"), console=display._words) as bar:
        bar.add_task(escape(order), total=1)
    assert not RAW.search(written.getvalue())
    assert written.getvalue().count("[/b]") == 3
    assert "row " in written.getvalue()
    assert " end" in written.getvalue()


@pytest.mark.parametrize("order", ORDERS)
def test_json_reads_back_the_same_and_holds_no_order(order: str) -> None:
    line = as_line({"a": [order, "ä\U0001f600"]})
    assert json.loads(line) == {"a": [order, "ä\U0001f600"]}
    assert not RAW.search(line)
    assert "ä\U0001f600" in line


def test_colours_are_ours_and_links_nobodys() -> None:
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=True, color_system="standard", width=80)
    console.print(Text("\x1b[2Jred", style="red"), Text("go", style="link https://a.example"))
    assert "\x1b[31m" in out.getvalue()
    assert "\u241b[2Jred" in out.getvalue()
    assert "]8;" not in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()


def test_lines_and_tabs_stay() -> None:
    assert visible("a\tb\nc é 漢\U0001f600") == "a\tb\nc é 漢\U0001f600"


@pytest.mark.parametrize("debug", [False, True])
def test_the_command_shows_what_it_was_given(debug: bool, tmp_path: Path) -> None:
    name = "gone\x1b[2J\u202e\x9b.json"
    words = [sys.executable, "-m", "selectit_hf", "run", name, "--out", "run"]
    done = subprocess.run(
        [*words, *["--debug"] * debug], capture_output=True, cwd=tmp_path, timeout=120
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 1
    assert "gone" in said
    assert not RAW.search(said)
    assert ("Traceback" in said) == debug


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_and_a_poor_terminal_stop_nothing(
    unbuffered: str, tmp_path: Path
) -> None:
    """As `selectit score ... 2>&1 | head -c 0` does, in ASCII."""
    rows = [{"instruction": f"Say é {i}.", "output": f"数 {i}. {ESC}[2J"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["score", "rows.jsonl", "--model", "tiny-rater", "--out", "out.jsonl"]
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "selectit_hf", *command],
            cwd=tmp_path,
            env={**os.environ, **plain, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)},
            stdout=writes,
            stderr=writes,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writes)
    assert done.returncode == 0
    assert len((tmp_path / "out.jsonl").read_text("utf-8").splitlines()) == 4


def test_warnings_are_shown_as_text() -> None:
    code = (
        "import warnings\nfrom selectit_hf.cli import display\ndisplay.quieten(False)\n"
        "warnings.warn('row says \\x1b[2J', stacklevel=1)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "row says \u241b[2J" in done.stderr
    assert ESC not in done.stderr
