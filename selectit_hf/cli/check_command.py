"""``selectit check``: the trust check as a command."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from selectit_hf import runs, whole_files
from selectit_hf.analysis import check, check_place, duration, side
from selectit_hf.cli import display, flag_groups
from selectit_hf.cli.flag_groups import with_flags
from selectit_hf.cli.flags import (
    DatasetName,
    Split,
    here,
)
from selectit_hf.cli.stop_signals import Stop
from selectit_hf.errors import SettingError
from selectit_hf.formats import sources
from selectit_hf.rating import Reflection, SentenceScore
from selectit_hf.report import check_plot
from selectit_hf.terminal import SafeConsole

__all__ = ["checking", "show_check"]

checking = typer.Typer()

COLUMNS = 3
MARKS = {"recognised": "+", "preferred": "-", "undecided": " "}


@checking.command(name="check")
@with_flags(scorers=flag_groups.scorers, how=flag_groups.formula, as_json=flag_groups.as_json)
def check_command(
    dataset: DatasetName,
    scorers: list[SentenceScore],
    how: Reflection,
    as_json: bool,
    split: Split = None,
    rows: Annotated[int, typer.Option(min=2, help="Source rows, drawn with --seed.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of rows, defects and intervals.")] = 0,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Also look at length, perplexity, ifd or random. Repeatable."),
    ] = None,
    bad: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column with a worse response to the same instruction, used as one more defect, "
            "as in --bad rejected. Repeatable.",
        ),
    ] = None,
    require: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Exit with 1 if the AUC over all defects is lower, as in 0.6."
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Run folder, or its URL: write check.json there, for the report."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(parser=here, metavar="FILE", help="Plot the result to a PNG file."),
    ] = None,
) -> None:
    """Check whether these models tell good rows of this dataset from broken ones.

    Takes rows of the dataset, plants defects in copies of them (another row's response, cut off,
    shuffled, repeated, a refusal, a wrong number, an unreadable instruction), rates them all, and
    says how often a good row scores above a broken one. The exit code is 0 whatever it finds,
    unless --require is given.

    For example: selectit check vicgalle/alpaca-gpt4 --model Qwen/Qwen3-0.6B-Base --by ifd
    """
    stop = Stop()
    if plot is not None and plot.suffix.lower() != ".png":
        raise SettingError(f"--plot {plot} must end in .png.")
    loaded, source = sources.load(dataset, split)
    store = None if out is None else runs.open_store(out)
    if store is not None:
        check_place(store, source, scorers)
    asked = [replace(one, alpha=how.alpha, variant=how.variant) for one in scorers]
    with display.steps(quiet=as_json) as shown:
        found = check(
            loaded, asked, by=by or (), rows=rows, seed=seed, bad=bad or (), weights=how.weights,
            source=source, tell=display.tell, progress=shown,
        )  # fmt: skip
    stop.heed()
    facts = found.to_dict()
    if store is not None:
        store.write_json(runs.CHECK, facts)
    if as_json:
        display.say(facts, True, "")
    else:
        show_check(facts)
    if plot is not None:
        whole_files.write(plot, check_plot(facts))
    if require is not None and found.used["all"]["auc"] < require:
        display.complain(
            f"The AUC of {found.level} over all defects is {found.used['all']['auc']:.3f}, below "
            f"--require {require:g}."
        )
        raise typer.Exit(1)


def show_check(facts: Mapping[str, Any]) -> None:
    """A table of AUCs, what is known of each model, the verdict, and what to do."""
    console = SafeConsole()
    console.print(
        "AUC of good rows over broken copies, with 95 % intervals; chance is 0.5.\n"
        "+ recognised, - preferred to good rows; pairs: copies below their own row.\n"
    )
    named = sorted(facts["selectors"], key=lambda one: one["name"] != facts["level"])
    for start in range(0, len(named), COLUMNS):
        console.print(_aucs(facts, named[start : start + COLUMNS]))
        console.print()
    for model in facts["models"]:
        console.print(Text(f"{model['name']}: {'; '.join(_of_model(model))}"))
    console.print(Text(f"\n{facts['verdict']['words']}", style="bold"))
    for words in facts["advice"]:
        console.print(Text(f"- {words}"))
    whole = sum(model["whole_seconds"] for model in facts["models"])
    console.print(
        Text(
            f"\n{facts['rows']} of {facts['input']['rows']} rows, seed {facts['seed']}, in "
            f"{duration(facts['seconds'])}. To rate all of them here takes about "
            f"{duration(whole)}."
        )
    )


def _aucs(facts: Mapping[str, Any], selectors: list[dict[str, Any]]) -> Table:
    """The AUC of each defect by each selector; for the ranking level, the pairs as well."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # to fit into 80 columns
    table.add_column("defect")
    table.add_column("copies", justify="right")
    for one in selectors:
        table.add_column(Text(one["name"]), no_wrap=True)
        if one["name"] == facts["level"]:
            table.add_column("pairs", justify="right")
    for name in [*facts["defects"], "all"]:
        cells = [Text(name)]
        for one in selectors:
            auc = one["all"] if name == "all" else one["defects"][name]
            cells += [Text(str(auc["copies"]))] if len(cells) == 1 else []
            cells.append(Text(_cell(auc)))
            if one["name"] == facts["level"]:
                cells.append(Text(f"{auc['pairs_right']:.0%}"))
        table.add_row(*cells, style="bold" if name == "all" else "")
    return table


def _cell(auc: Mapping[str, Any]) -> str:
    ends = f"({auc['low']:.2f}-{auc['high']:.2f})"
    return f"{auc['auc']:.2f} {ends} {MARKS[side(auc)]}"


def _of_model(model: Mapping[str, Any]) -> Iterator[str]:
    if model["rating_mass"] is not None:
        yield f"rating mass {model['rating_mass']:.2f}"
        shares = [(share, i) for i, share in enumerate(model["ratings"], 1) if share >= 0.005]
        yield "likeliest rating " + ", ".join(f"{i}: {share:.0%}" for share, i in shares)
    if model["prompt_correlation"] is not None:
        yield f"rating prompts correlate {model['prompt_correlation']:.2f} on good rows"
    yield f"rated in {duration(model['seconds'])}"
