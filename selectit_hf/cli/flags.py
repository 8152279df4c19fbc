"""Flags and arguments that several commands share: their types and help texts."""

import inspect
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Annotated, get_args

import typer

from selectit_hf.errors import SettingError
from selectit_hf.runs import is_url

__all__ = [
    "AllowMixed",
    "AllowUnrated",
    "Alpha",
    "Attention",
    "BaseModel",
    "Data",
    "DatasetName",
    "Device",
    "DeviceMap",
    "Folders",
    "Formula",
    "Limit",
    "Out",
    "Per",
    "Quantization",
    "RunNamed",
    "Seed",
    "Split",
    "Weights",
    "here",
    "in_panel",
]

PANELS = {
    "scorers": "Models, and how they are asked",
    "formula": "Score",
    "reflection": "Score",
    "cut": "How many rows are kept",
    "reader": "Model of --by ifd, perplexity and length",
    "card": "Card",
    "push": "Repository",
    "judge": "Judge",
}
"""Titles in ``--help`` for the groups of flags, by name; the flags of other groups have none."""

DatasetName = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="Hub name (name\\[:config]\\[@revision]); a json, jsonl, csv, tsv, parquet or arrow "
        "file (text may be compressed: .gz, .bz2, .xz, .zst); a folder or pattern of files, as in "
        "'data/*.jsonl'; or a folder written by save_to_disk.",
    ),
]


def here(text: str | Path) -> Path:
    """A path of this machine.

    Raises:
        SettingError: it is a URL.
    """
    if is_url(str(text)):
        raise SettingError(f"{text} is a URL, but this is written to a local path; give a path.")
    return Path(text)


Out = Annotated[
    str,
    typer.Option(
        metavar="RUN",
        help="Run folder, or the URL of one in object storage, as in s3://bucket/run.",
    ),
]
Alpha = Annotated[float, typer.Option(help="Weight of the disagreement between rating prompts.")]
Formula = Annotated[
    str, typer.Option(help="paper, or released: the arithmetic of the authors' code.")
]
Weights = Annotated[
    str | None, typer.Option(help="Model weights, as in 7,13,70. Default: parameter counts.")
]
RunNamed = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or its URL.")]
Data = Annotated[str | None, typer.Option(help="For a run over a local file: its path again.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda:0, ... Default: a GPU if there is one.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Spread each model over all visible GPUs, if it does not fit on one: auto, "
        "balanced, balanced_low_0 or sequential."
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        help="Base of an adapter: a Hub name or folder, if adapter_config.json names none that "
        "can be found."
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option(help="8bit or 4bit: load the weights in fewer bits with bitsandbytes, on CUDA."),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help="eager, sdpa, flash_attention_2, ... Default: transformers' choice for the model."
    ),
]
Per = Annotated[
    str | None,
    typer.Option(help="Column of groups: keep the same share of each group."),
]
Seed = Annotated[int, typer.Option(help="Seed of --by random.")]
Split = Annotated[
    str | None,
    typer.Option(help="Split, if there are several, or part of one, as in train\\[:1000]."),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Only the first N rows, as --split train\\[:N] does: to try first. The same command "
        "without it, in the same RUN, rates the other rows.",
    ),
]
AllowUnrated = Annotated[
    bool,
    typer.Option("--allow-unrated", help="Continue even if over half of the rows get no score."),
]
AllowMixed = Annotated[
    bool,
    typer.Option(
        "--allow-mixed",
        help="Continue if shards were rated with other library versions or on other hardware. "
        "The summary and the card report the mix.",
    ),
]
Folders = Annotated[
    list[str] | None,
    typer.Option("--model", help="For a model from a local folder: its path again. Repeatable."),
]


def in_panel(group: str, flags: Mapping[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """The flags of a group, shown under its title in ``--help``."""
    found = {}
    for name, flag in flags.items():
        kind, option = get_args(flag.annotation) or (flag.annotation, typer.Option())
        option = copy(option)
        option.rich_help_panel = PANELS.get(group)
        found[name] = flag.replace(annotation=Annotated[kind, option])
    return found
