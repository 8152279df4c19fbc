"""Flags and arguments that several commands share: their types and what ``--help`` says of them."""

from pathlib import Path
from typing import Annotated

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
    "Out",
    "Per",
    "Quantization",
    "RunNamed",
    "Seed",
    "Split",
    "Weights",
    "here",
]

DatasetName = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="Hub name (name\\[:config]\\[@revision]); a json, jsonl, csv, tsv, parquet or arrow "
        "file, text also as .gz, .bz2, .xz or .zst; a folder or pattern of files, as in "
        "'data/*.jsonl'; or a folder written by save_to_disk.",
    ),
]


def here(text: str | Path) -> Path:
    """A path of this machine.

    Raises:
        SettingError: it is a URL.
    """
    if is_url(str(text)):
        raise SettingError(f"{text} is a URL, and this is written to this machine; name a path.")
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
    str | None, typer.Option(help="Of the models, as in 7,13,70. Default: parameter counts.")
]
RunNamed = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or its URL.")]
Data = Annotated[str | None, typer.Option(help="For a run over a local file: that file again.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda:0, ... Default: a GPU if there is one.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Spread each model over all visible GPUs, for one larger than a GPU: auto, "
        "balanced, balanced_low_0 or sequential."
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        help="Of an adapter: a Hub name or folder, where its adapter_config.json names none that "
        "is here."
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option(help="8bit or 4bit: load the weights in fewer bits with bitsandbytes, on CUDA."),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help="eager, sdpa, flash_attention_2, ... Default: as transformers chooses for the model."
    ),
]
Per = Annotated[
    str | None,
    typer.Option(help="Column of groups: the same share of each, so that none takes all."),
]
Seed = Annotated[int, typer.Option(help="Of --by random.")]
Split = Annotated[
    str | None,
    typer.Option(help="Which split, where there are several, or a part, as in train\\[:1000]."),
]
AllowUnrated = Annotated[
    bool,
    typer.Option("--allow-unrated", help="Go on though more than half of the rows get no score."),
]
AllowMixed = Annotated[
    bool,
    typer.Option(
        "--allow-mixed",
        help="Go on where shards were rated with other versions of the libraries or on other "
        "hardware. Summary and card say so.",
    ),
]
Folders = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help="For a model that was a folder: that folder again. Repeat for several."
    ),
]
