"""What users type and read stays as it was: names, commands, flags, columns.

``data/surface.json`` was written before the modules moved into rooms. A name may be added to it;
one that goes, or changes, breaks somebody's script.
"""

import json
from pathlib import Path
from typing import Any

import typer.main

import selectit_hf
from selectit_hf import runs
from selectit_hf.cli.app import app

LISTED = Path(__file__).parent / "data" / "surface.json"


def commands() -> dict[str, list[str]]:
    """The flags of each command, arguments without dashes."""
    group: Any = typer.main.get_command(app)
    return {
        name: sorted(
            flag
            for parameter in command.params
            for flag in (*parameter.opts, *parameter.secondary_opts)
            if flag != "--help"
        )
        for name, command in group.commands.items()
    }


def columns() -> list[str]:
    """The columns of both kinds of scorers, and of their combination."""
    scorer = selectit_hf.SentenceScore("tiny-rater")
    names = {*selectit_hf.TokenScore("tiny-rater").columns, *scorer.columns}
    return sorted(names | {*selectit_hf.ModelScore.columns})


def surface() -> dict[str, Any]:
    return {
        "selectit_hf": sorted(selectit_hf.__all__),
        "selectit_hf.runs": sorted(runs.__all__),
        "commands": commands(),
        "columns": columns(),
    }


def test_nothing_that_users_type_has_gone() -> None:
    listed, found = json.loads(LISTED.read_text()), surface()
    for name in ("selectit_hf", "selectit_hf.runs"):
        assert {*listed[name]} <= {*found[name]}
    assert listed["columns"] == found["columns"]
    for command, flags in listed["commands"].items():
        assert {*flags} <= {*found["commands"][command]}, command
