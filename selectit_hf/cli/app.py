"""The ``selectit`` command. Thin: it reads flags, calls the package, and shows the results."""

import sys
import traceback
from collections import Counter
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import datasets
import typer

from selectit_hf import __version__, runs
from selectit_hf.analysis import JudgeSettings, Reader, choices
from selectit_hf.cli import display, flag_groups
from selectit_hf.cli.check_command import checking
from selectit_hf.cli.export_command import exporting
from selectit_hf.cli.failures import explained
from selectit_hf.cli.flag_groups import with_flags
from selectit_hf.cli.flags import (
    AllowUnrated,
    Data,
    DatasetName,
    Out,
    Per,
    RunNamed,
    Seed,
    Split,
    here,
)
from selectit_hf.cli.launch_command import launching
from selectit_hf.cli.recipes import RecipeCommand
from selectit_hf.cli.run_commands import commands
from selectit_hf.cli.run_steps import (
    Settings,
    refuse_nothing_rated,
    run_all,
    tell_demo,
    tell_survey,
)
from selectit_hf.cli.stop_signals import Stop
from selectit_hf.errors import SettingError
from selectit_hf.formats import check_writable, sources, writer
from selectit_hf.hub import CardSettings, Pushed, PushSettings, push_run
from selectit_hf.rating import TINY_RATER, ModelScore, Reflection, SentenceScore, mapping
from selectit_hf.redaction import redacted
from selectit_hf.report import write_report
from selectit_hf.selection import Cut, select
from selectit_hf.terminal import forgiving_streams, visible, write_out

__all__ = ["app", "main"]

OF_A_RUN = ("plan.json", runs.RESULTS[-1])
"""A run folder has the first, and what ``select RUN --out OTHER`` wrote only the second."""

app = typer.Typer(
    name="selectit",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Let base LLMs rate an instruction dataset and keep the best fifth (SelectIT, "
    "arXiv 2402.16705). Start with [bold]selectit demo[/bold], then "
    "[bold]selectit run DATASET --model MODEL --out RUN[/bold].",
    epilog="Exit codes: 0 done, 1 an error with its remedy, 2 wrong usage, 70 a bug in selectit, "
    "130 stopped by Ctrl-C.",
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"selectit_hf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Options that belong to no command."""


app.add_typer(checking)
app.add_typer(commands)
app.add_typer(launching)
app.add_typer(exporting)


@app.command()
@with_flags(scorers=flag_groups.scorers, how=flag_groups.formula, as_json=flag_groups.as_json)
def score(
    dataset: DatasetName,
    out: Annotated[
        Path,
        typer.Option(
            parser=here, metavar="OUT", help="A .parquet, .jsonl or .json file, or a folder."
        ),
    ],
    scorers: list[SentenceScore],
    how: Reflection,
    as_json: bool,
    split: Split = None,
    allow_unrated: AllowUnrated = False,
) -> None:
    """Add score columns to a dataset and write all its rows.

    Rows that already have ratings by the same model and settings are not rated again. For long
    jobs, prefer 'selectit run', which can be resumed.
    """
    write = writer(out, sources.local_files(dataset))
    rows, source = sources.load(dataset, split)
    check_writable(out, rows)
    tell_survey(rows, source.name, scorers, allow_unrated)
    if not as_json and mapping.device_count() > 1:  # the bars of several processes
        datasets.enable_progress_bars()
    scorers = [replace(scorer, alpha=how.alpha, variant=how.variant) for scorer in scorers]
    with display.bars([one.slug for one in scorers], len(rows), scorers[0].k, as_json) as shown:
        for scorer in scorers:
            rows = mapping.score(rows, scorer, progress=shown)
    if len(scorers) > 1:
        combine = ModelScore(weights=how.weights, alpha=how.alpha, variant=how.variant)
        rows = mapping.score(rows, combine)
    elif how.weights is not None:
        raise SettingError("--weights needs several models, but there is only one.")
    write(rows)
    statuses = {s.slug: dict(Counter(rows[f"status__{s.slug}"])) for s in scorers}
    refuse_nothing_rated(statuses)
    counted = "; ".join(f"{slug}: {display.counts(found)}" for slug, found in statuses.items())
    facts = {"rows": len(rows), "statuses": statuses, "out": str(out)}
    display.say(facts, as_json, f"{len(rows)} rows with score columns are in {out} ({counted}).")


@app.command(name="select", cls=RecipeCommand)
@with_flags(
    how=flag_groups.reflection,
    cut=flag_groups.cut,
    reader=flag_groups.reader,
    as_json=flag_groups.as_json,
)
def select_command(
    scored: Annotated[
        str, typer.Argument(metavar="SCORED", help="Run folder, or a dataset with score columns.")
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="OUT",
            help="For a run, a folder or its URL; else a .parquet, .jsonl or .json file or "
            "a folder.",
        ),
    ],
    how: Reflection,
    cut: Cut,
    reader: Reader,
    as_json: bool,
    data: Data = None,
    split: Split = None,
    seed: Seed = 0,
    per: Per = None,
) -> None:
    """Select again, from a run's stored ratings or from a scored dataset; no model is loaded.

    For a run, level, alpha, variant and weights may change; a scored dataset is used as it is.
    For a run, --by also accepts the selectors of 'selectit compare', some of which load a model.
    """
    Stop()
    if runs.is_url(scored) or any(map(runs.open_store(scored).exists, OF_A_RUN)):
        if out.endswith((".parquet", ".jsonl", ".json")):
            raise SettingError("A run's selection has several files; name a folder with --out.")
        run = runs.open_results(scored)
        how = choices.within(how, per)
        rows = runs.rows_of(run, data, split)
        if reader != Reader() and not choices.is_selector(rows, how.by):
            raise SettingError(
                "--model, --device and --device-map apply only to --by ifd, perplexity or length; "
                "omit them."
            )
        asked, (rows, how) = how.by, choices.rank_by(run, rows, how, cut, reader, seed)
        summary = runs.finish(run, rows, how, cut, out, allow_mixed=True, asked=asked)
        display.show_summary(summary, out, as_json)
        return
    if how != Reflection(variant=how.variant, by=how.by) or per is not None or reader != Reader():
        raise SettingError(
            "--alpha, --weights, --per, --model, --device and --device-map need a run; a scored "
            "dataset already has its scores. Score it again, which rates nothing twice, or omit "
            "them."
        )
    if runs.is_url(out):
        raise SettingError(f"Only a run's selection can go to a URL; give a file instead of {out}.")
    write = writer(Path(out), sources.local_files(scored))
    rows, _ = sources.load(scored, split)
    check_writable(Path(out), rows)
    selection = select(
        rows, by=how.by, proportion=cut.proportion, n=cut.n, threshold=cut.threshold,
        variant=cut.variant,
    )  # fmt: skip
    write(selection.selected)
    facts = {
        "rows": len(rows),
        "selected": len(selection.selected),
        "by": selection.by,
        "threshold": selection.threshold,
        "reasons": selection.reasons,
        "out": str(out),
    }
    display.say(facts, as_json, f"{len(selection.selected)} of {len(rows)} rows are in {out}.")


@app.command(cls=RecipeCommand)
@with_flags(card=flag_groups.card, settings=flag_groups.push, as_json=flag_groups.as_json)
def push(
    run: RunNamed,
    repo: Annotated[str, typer.Argument(help="Repository, as in user/selective-alpaca.")],
    card: CardSettings,
    settings: PushSettings,
    as_json: bool,
    yes: Annotated[
        bool, typer.Option("--yes", help="Push; without it nothing is written.")
    ] = False,
) -> None:
    """Publish a finished run as a dataset on the Hub, with a card, all scores and a manifest.

    Without --yes, it only prints what would be pushed. The push is one commit, private unless
    --public, and is read back and compared. It uses the login of 'hf auth login', or HF_TOKEN.
    """
    tell = display.tell if as_json else write_out
    done = push_run(run, repo, yes=yes, card=card, settings=settings, tell=tell)
    if as_json:
        facts = asdict(done) if isinstance(done, Pushed) else {"repo": repo, "new": False}
        display.say(facts, True, "")


@app.command()
@with_flags(as_json=flag_groups.as_json)
def demo(
    as_json: bool,
    out: Out = "selectit-demo",
) -> None:
    """See it work in a minute: rate a bundled sample dataset with a bundled tiny model.

    No GPU, no login, no download. The sample has good rows and rows broken on purpose; the summary
    says how many broken ones were kept.
    """
    sample = files("selectit_hf").joinpath("data", "sample.jsonl")
    rows, source = sources.load(str(sample))
    scorers = [SentenceScore(TINY_RATER)]
    run_all(rows, source, scorers, out, Settings(), as_json, data=str(sample))
    with runs.open_store(out).parquet("selected.parquet") as file:
        tell_demo(rows, file.read(columns=["defect"]))


@app.command()
@with_flags(
    how=flag_groups.formula,
    cut=flag_groups.cut,
    reader=flag_groups.reader,
    judge=flag_groups.judge,
    as_json=flag_groups.as_json,
)
def compare(
    run: RunNamed,
    by: Annotated[
        list[str],
        typer.Option(
            help="Repeatable: token, sentence or model, expected, random, random-rest, length, "
            "ifd, perplexity, judge, diverse\\[:NAME], per:COLUMN\\[:NAME], hub:DATASET, or a "
            "column."
        ),
    ],
    how: Reflection,
    cut: Cut,
    reader: Reader,
    judge: JudgeSettings,
    as_json: bool,
    data: Data = None,
    split: Split = None,
    seed: Seed = 0,
    embeddings: Annotated[
        str | None, typer.Option(help="Column of embeddings. Default: from the rows' words.")
    ] = None,
) -> None:
    """Compare what selectors keep of a run's rows: overlap, rank correlation, contents, costs.

    What a selector measures is kept in the run folder and never paid for twice. For example:
    selectit compare RUN --by sentence --by ifd --by length --by random
    """
    Stop()
    opened = runs.open_results(run)
    rows = runs.rows_of(opened, data, split)
    found = choices.compare_run(
        opened, rows, by, cut, how, reader, seed, judge, embeddings, display.tell
    )
    display.show_comparison(found.to_dict(), as_json)


@app.command()
@with_flags(as_json=flag_groups.as_json)
def report(
    run: RunNamed,
    as_json: bool,
    data: Data = None,
    split: Split = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=here, metavar="FOLDER", help="Default: the folder report in the run."),
    ] = None,
    embeddings: Annotated[
        str | None, typer.Option(help="Column of embeddings for the map. Default: from words.")
    ] = None,
) -> None:
    """Write a page that shows what was kept and why: report.html, which needs no network."""
    opened, doubts = runs.open_results(run), list[str]()
    page = write_report(
        opened,
        runs.rows_of(opened, data, split),
        out,
        embeddings=embeddings,
        ablation=choices.ablate_run(opened),
        tell=doubts.append,
    )
    said = "\n".join([f"The report is {page}.", *(f"- {words}" for words in doubts)])
    display.say({"report": str(page), "cautions": doubts}, as_json, said)


def main() -> None:
    """Run the command; errors are a paragraph on stderr, with a traceback under ``--debug``."""
    forgiving_streams()
    try:
        app()
    except Exception as error:
        words, code = explained(error)
        if "--debug" in sys.argv:
            print(visible(redacted(traceback.format_exc())), file=sys.stderr)
            sys.exit(code)
        display.complain(words)
        sys.exit(code)
