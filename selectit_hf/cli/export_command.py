"""The command that feeds a trainer."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from selectit_hf.analysis import export
from selectit_hf.cli import display, flag_groups
from selectit_hf.cli.flag_groups import with_flags
from selectit_hf.cli.flags import RunNamed, here
from selectit_hf.cli.stop_signals import Stop
from selectit_hf.errors import SettingError
from selectit_hf.hub import CardSettings, Pushed, PushSettings, push_run
from selectit_hf.terminal import write_out

__all__ = ["exporting"]

exporting = typer.Typer()

HUB = "hub:"
COLUMNS = {
    "messages": {"messages": "messages"},
    "sharegpt": {"messages": "conversations"},
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "prompt-completion": {"prompt": "prompt", "response": "completion"},
    "text": {"prompt": "text"},
}
"""What LLaMA-Factory calls the columns of each form."""
OPENAI = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
TYPES = {
    "messages": "type: chat_template",
    "sharegpt": "type: chat_template, field_messages: conversations, "
    "message_property_mappings: {role: from, content: value}",
    "alpaca": "type: alpaca",
    "prompt-completion": "type: {system_prompt: '', field_instruction: prompt, "
    "field_output: completion, format: '{instruction}', no_input_format: '{instruction}'}",
    "text": "type: completion, field: text",
}
"""How axolotl reads each form."""
STEM = "selectit_kept"


@exporting.command(name="export")
@with_flags(card=flag_groups.card, settings=flag_groups.push, as_json=flag_groups.as_json)
def export_command(
    run: RunNamed,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="messages or sharegpt: whole conversations; prompt-completion, alpaca or text: "
            "instruction and response as they were rated.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="OUT",
            help="A .jsonl, .json or .parquet file; a new folder, for load_from_disk; or "
            "hub:USER/NAME.",
        ),
    ],
    card: CardSettings,
    settings: PushSettings,
    as_json: bool,
    with_scores: Annotated[
        bool, typer.Option("--with-scores", help="Keep the score columns.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="For hub: push; without it nothing is written there.")
    ] = False,
) -> None:
    """Write the kept rows of a finished run as a trainer reads them: TRL, LLaMA-Factory, axolotl.

    The run's files are verified first. Nothing is dropped silently: columns that are left out are
    named, and a row that the form cannot hold is an error. With hub:USER/NAME, it is pushed as
    'selectit push' does, with card and scores; the flags of 'push' apply only there. For example:
    selectit export RUN --format messages --out kept.jsonl
    """
    Stop()
    if out.startswith(HUB):
        tell = display.tell if as_json else write_out
        done = push_run(
            run, out.removeprefix(HUB), yes=yes, card=card, settings=settings,
            form=form, with_scores=with_scores, tell=tell,
        )  # fmt: skip
        if as_json:
            is_done = isinstance(done, Pushed)
            facts: dict[str, Any] = asdict(done) if isinstance(done, Pushed) else {"new": False}
            display.say({"out": out, "pushed": is_done, **facts}, True, "")
        return
    if yes or (card, settings) != (CardSettings(), PushSettings()):
        raise SettingError("--yes and the flags of 'push' apply only to --out hub:USER/NAME.")
    path = here(out)
    made = export(run, form, path, with_scores=with_scores)
    for note in made.notes:
        display.tell(f"Note: {note}.")
    facts = {"rows": made.rows, "columns": list(made.columns), "notes": list(made.notes)}
    facts |= {"format": form, "out": out}
    display.say(facts, as_json, f"{made.rows} rows in the form {form} are in {out}.")
    for line in _hints(form, path, made.columns):
        display.tell(line)


def _hints(form: str, out: Path, columns: tuple[str, ...]) -> list[str]:
    """How each trainer is told of the file."""
    if not out.suffix:
        return [f"TRL: train_dataset=datasets.load_from_disk({str(out)!r})"]
    kind = "parquet" if out.suffix == ".parquet" else "json"
    entry: dict[str, Any] = {"file_name": out.name}
    has_tools = "tools" in columns
    if form in ("messages", "sharegpt"):
        entry["formatting"] = "openai" if has_tools and form == "messages" else "sharegpt"
    entry["columns"] = COLUMNS[form] | ({"tools": "tools"} if has_tools else {})
    if form == "messages":
        entry["tags"] = OPENAI | ({"observation_tag": "tool"} if has_tools else {})
    return [
        f"TRL: train_dataset=load_dataset({kind!r}, data_files={str(out)!r}, split='train')",
        f"LLaMA-Factory, in dataset_info.json: {json.dumps({STEM: entry})}",
        f"axolotl: {{path: {out}, ds_type: {kind}, {TYPES[form]}}}",
    ]
