"""The ``selectit`` command. Thin: it reads flags, calls the package, and shows what came out."""

import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import datasets
import pyarrow.parquet as pq
import typer
from datasets import Dataset

from selectit_hf import analysis, claims, mapping, options, screen, sources, supervisor
from selectit_hf.analysis import JudgeSettings, Reader
from selectit_hf.candidates import NAMES as SELECTORS
from selectit_hf.card import CardSettings
from selectit_hf.checkpoints import TINY_RATER
from selectit_hf.errors import InputError, SettingError
from selectit_hf.faults import explained
from selectit_hf.finishing import Reflection
from selectit_hf.hub import Pushed, PushSettings
from selectit_hf.inputs import rows_of
from selectit_hf.mirror import mirror_of
from selectit_hf.options import (
    AllowUnrated,
    Data,
    DatasetName,
    Out,
    Per,
    RunFolder,
    RunNamed,
    Seed,
    Split,
    with_flags,
)
from selectit_hf.publishing import push_run
from selectit_hf.ratings import RATED
from selectit_hf.runs import Run, check_folder
from selectit_hf.scorers import ModelScore, SentenceScore
from selectit_hf.selection import Cut, select
from selectit_hf.sources import Source
from selectit_hf.spool import spool
from selectit_hf.status import status
from selectit_hf.survey import check_ranking, check_space, look
from selectit_hf.workers import Worker
from selectit_hf.writing import check_writable, writer

__all__ = ["app", "main"]

app = typer.Typer(
    name="selectit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Let base LLMs rate an instruction dataset and keep the best fifth (SelectIT, "
    "arXiv 2402.16705). Start with [bold]selectit demo[/bold], then "
    "[bold]selectit run DATASET --model MODEL --out RUN[/bold].",
    epilog="Exit codes: 0 done, 1 an error with its remedy, 2 wrong usage, 70 a fault of selectit, "
    "130 stopped by Ctrl-C.",
)


@app.command()
@with_flags(
    scorers=options.scorers, how=options.reflection, cut=options.cut, as_json=options.as_json
)
def run(
    dataset: DatasetName,
    out: Out,
    scorers: list[SentenceScore],
    how: Reflection,
    cut: Cut,
    as_json: bool,
    split: Split = None,
    streaming: Annotated[
        bool,
        typer.Option("--streaming", help="Read the dataset once, row by row, into the run folder."),
    ] = False,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Rows in a shard. Default: 8192.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes. Default: one for each visible GPU, else one."),
    ] = None,
    per: Per = None,
    allow_unrated: AllowUnrated = False,
) -> None:
    """Rate a dataset, score it and select the best rows, into a run folder.

    Stopped or killed, the same command goes on where it was; given again while it runs, on this
    machine or another, it joins in. It also works under torchrun, 'accelerate launch' and Slurm.
    The raw ratings stay in the folder, so 'selectit select RUN' with another level, alpha, variant
    or proportion takes seconds.
    """
    how = analysis.within(how, per)
    worker = Worker.from_environment()
    if worker.rank > 0:
        screen.hush()
    count = _count(worker, workers, scorers)
    rows, source = _spooled(dataset, split, out) if streaming else sources.load(dataset, split)
    _survey(rows, source.name, scorers, allow_unrated)
    check_ranking(rows, how.by, cut.threshold, SELECTORS)
    check_space(out, rows, len(scorers), scorers[0].k, cut.proportion or 1.0)
    _run(rows, source, scorers, how, cut, out, shard_size, as_json, worker, count)


@app.command()
@with_flags(scorers=options.scorers, how=options.formula, as_json=options.as_json)
def score(
    dataset: DatasetName,
    out: Annotated[
        Path,
        typer.Option(
            parser=options.here, metavar="OUT", help="A .parquet or .jsonl file, or a folder."
        ),
    ],
    scorers: list[SentenceScore],
    how: Reflection,
    as_json: bool,
    split: Split = None,
    allow_unrated: AllowUnrated = False,
) -> None:
    """Add score columns to a dataset and write all its rows.

    Rows that carry ratings by the same model and settings are not rated again. For long jobs prefer
    'selectit run', which loses nothing when it is stopped.
    """
    write = writer(out)
    rows, source = sources.load(dataset, split)
    check_writable(out, rows)
    _survey(rows, source.name, scorers, allow_unrated)
    if not as_json:
        datasets.enable_progress_bars()
    for scorer in scorers:
        scorer = replace(scorer, alpha=how.alpha, variant=how.variant)
        rows = mapping.score(rows, scorer)
    if len(scorers) > 1:
        combine = ModelScore(weights=how.weights, alpha=how.alpha, variant=how.variant)
        rows = mapping.score(rows, combine)
    elif how.weights is not None:
        raise SettingError("--weights combine several models, and there is one.")
    write(rows)
    statuses = {s.slug: dict(Counter(rows[f"status__{s.slug}"])) for s in scorers}
    _refuse_nothing_rated(statuses)
    counted = "; ".join(f"{slug}: {screen.counts(found)}" for slug, found in statuses.items())
    facts = {"rows": len(rows), "statuses": statuses, "out": str(out)}
    screen.say(facts, as_json, f"{len(rows)} rows with score columns are in {out} ({counted}).")


@app.command(name="select")
@with_flags(how=options.reflection, cut=options.cut, reader=options.reader, as_json=options.as_json)
def select_command(
    scored: Annotated[
        str, typer.Argument(metavar="SCORED", help="Run folder, or a dataset with score columns.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=options.folder,
            metavar="OUT",
            help="Folder or its URL, for a run; else a .parquet or .jsonl file or a folder.",
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

    From a run, level, alpha, variant and weights may change; a scored dataset is taken as it is.
    A run's --by also takes the selectors of 'selectit compare', some of which load a model.
    """
    _Stop()
    mirror = mirror_of(out)
    folder = options.run_folder(scored)
    if (folder / "plan.json").is_file():
        if out.suffix in (".parquet", ".jsonl"):
            raise SettingError("A run's selection is several files; name a folder with --out.")
        run_ = Run.open(folder)
        how = analysis.within(how, per)
        rows = rows_of(run_, data, split)
        if reader != Reader() and not analysis.is_selector(rows, how.by):
            raise SettingError(
                "--model, --device and --device-map are of a model that reads responses, for --by "
                "ifd, perplexity or length; leave them away."
            )
        rows, how = analysis.rank_by(run_, rows, how, cut, reader, seed)
        summary = run_.finish(rows, how, cut, out)[1]
        screen.show_summary(summary, mirror.url or out, as_json)
        return
    if how != Reflection(variant=how.variant, by=how.by) or per is not None or reader != Reader():
        raise SettingError(
            "--alpha, --weights, --per, --model, --device and --device-map need a run; a scored "
            "dataset has its scores already. Score it again, which rates nothing twice, or leave "
            "them away."
        )
    if mirror.url:
        raise SettingError(f"{mirror.url} can take what is selected from a run; give a file.")
    write = writer(out)
    rows, _ = sources.load(scored, split)
    check_writable(out, rows)
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
    screen.say(facts, as_json, f"{len(selection.selected)} of {len(rows)} rows are in {out}.")


@app.command()
@with_flags(card=options.card, settings=options.push, as_json=options.as_json)
def push(
    run: RunFolder,
    repo: Annotated[str, typer.Argument(help="As in user/selective-alpaca.")],
    card: CardSettings,
    settings: PushSettings,
    as_json: bool,
    yes: Annotated[
        bool, typer.Option("--yes", help="Push; without it nothing is written.")
    ] = False,
) -> None:
    """Publish a finished run as a dataset on the Hub, with a card, all scores and a manifest.

    Without --yes it prints what would be pushed. One commit, private unless --public, read back
    and compared. The login is that of 'hf auth login', or HF_TOKEN.
    """
    tell = screen.tell if as_json else print
    done = push_run(run, repo, yes=yes, card=card, settings=settings, tell=tell)
    if as_json:
        facts = asdict(done) if isinstance(done, Pushed) else {"repo": repo, "new": False}
        screen.say(facts, True, "")


@app.command()
@with_flags(as_json=options.as_json)
def demo(
    as_json: bool,
    out: Out = Path("selectit-demo"),
) -> None:
    """See it work in a minute: rate a bundled sample dataset with a bundled tiny model.

    No GPU, no login, no download. The sample has good rows and rows broken on purpose; the summary
    says how many broken ones were kept.
    """
    sample = files("selectit_hf").joinpath("data", "sample.jsonl")
    rows, source = sources.load(str(sample))
    scorers = [SentenceScore(TINY_RATER)]
    _run(rows, source, scorers, Reflection(), Cut(), out, None, as_json, Worker(), 1)
    mirror_of(out).fetch(out / "selected.parquet")
    screen.show_demo(rows, pq.read_table(out / "selected.parquet", columns=["defect"]))


@app.command(name="status")
@with_flags(as_json=options.as_json)
def status_command(run: RunNamed, as_json: bool) -> None:
    """Show how far a run is, how fast it goes, and what is wrong; also while it runs.

    Of a run in object storage no ratings are fetched.
    """
    screen.show_status(status(run), as_json)


@app.command()
@with_flags(
    how=options.formula,
    cut=options.cut,
    reader=options.reader,
    judge=options.judge,
    as_json=options.as_json,
)
def compare(
    run: RunFolder,
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
        str | None, typer.Option(help="Column of embeddings; default: of the rows' words.")
    ] = None,
) -> None:
    """Compare what selectors keep of a run's rows: overlap, rank correlation, contents, costs.

    What a selector measures is kept in the run folder and never paid for twice. For example:
    selectit compare RUN --by sentence --by ifd --by length --by random
    """
    _Stop()
    opened = Run.open(run)
    rows = rows_of(opened, data, split)
    found = analysis.compare_run(
        opened, rows, by, cut, how, reader, seed, judge, embeddings, screen.tell
    )
    screen.show_comparison(found.to_dict(), as_json)


@app.command()
@with_flags(as_json=options.as_json)
def report(
    run: RunFolder,
    as_json: bool,
    data: Data = None,
    split: Split = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=options.here, metavar="FOLDER", help="Folder. Default: report in the run."
        ),
    ] = None,
    embeddings: Annotated[
        str | None, typer.Option(help="Column of embeddings for the map; default: words.")
    ] = None,
) -> None:
    """Write a page that shows what was kept and why: report.html, which needs no network."""
    opened = Run.open(run)
    page = analysis.report_run(opened, rows_of(opened, data, split), out, embeddings)
    opened.mirror.send_rest()
    screen.say({"report": str(page)}, as_json, f"The report is {page}.")


# How a run runs


def _run(
    rows: Dataset,
    source: Source,
    scorers: Sequence[SentenceScore],
    how: Reflection,
    cut: Cut,
    out: Path,
    shard_size: int | None,
    as_json: bool,
    worker: Worker,
    count: int,
) -> None:
    started = Run.start(out, rows, source, scorers, shard_size)
    later = analysis.is_selector(rows, how.by)
    if later and worker.world > 1:
        raise SettingError(
            f"--by {how.by} is measured when all is rated: leave it away under a launcher, and run "
            f"'selectit select {out} --by {how.by}' afterwards, by as many processes as you like."
        )
    started.check(replace(how, by=None) if later else how, rows.column_names)
    stop = _Stop()
    try:
        with screen.progress(started, quiet=as_json) as shown:

            def progress(slug: str, prompts: int) -> None:
                stop.heed()
                shown(slug, prompts)

            if count > 1:
                supervisor.rate(started, rows, scorers, count, progress)
            else:
                started.rate(rows, scorers, progress, worker)
        stop.heed()
        if later:
            rows, how = analysis.rank_by(started, rows, how, cut, Reader.of(scorers[0]))
        summary = started.settle(rows, scorers, how, cut, worker)
    except KeyboardInterrupt:
        where = started.mirror.url or out
        screen.tell(f"Stopped. The same command goes on from the last full shard in {where}.")
        raise
    screen.show_summary(summary, started.mirror.url or out, as_json)
    _refuse_nothing_rated({m: facts["statuses"] for m, facts in summary["models"].items()})


def _survey(
    rows: Dataset, name: str, scorers: Sequence[SentenceScore], allow_unrated: bool
) -> None:
    """Read all rows before any model is loaded, and say what is read."""
    screen.tell(look(rows, scorers[0].reader, allow_unrated).words(name))


def _refuse_nothing_rated(statuses: Mapping[str, Mapping[str, int]]) -> None:
    """Let a model that rated no row at all be an error."""
    for slug, counts in statuses.items():
        if not any(counts.get(status) for status in RATED):
            raise InputError(
                f"{slug} rated none of the rows: {screen.counts(dict(counts))}. Rows of the status "
                "'oom' need a smaller --token-budget, and those of 'nonfinite' another --dtype."
            )


class _Stop:
    """Ctrl-C, and SIGTERM from a scheduler: leave in order, and give back what is claimed.

    Raised where the program is, and once more by `heed`: what is raised in a finalizer is dropped.
    """

    def __init__(self) -> None:
        self._asked: BaseException | None = None
        signal.signal(signal.SIGTERM, self._told)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background job
            signal.signal(signal.SIGINT, self._told)

    def _told(self, number: int, frame: Any) -> None:
        is_key = number == signal.SIGINT
        self._asked = KeyboardInterrupt() if is_key else SystemExit(128 + number)
        raise self._asked

    def heed(self) -> None:
        """Leave if that was asked."""
        if self._asked is not None:
            raise self._asked


def _count(worker: Worker, workers: int | None, scorers: Sequence[SentenceScore]) -> int:
    """How many worker processes to start; 1 for none but this. Refuses what has no place to run."""
    scorers[0].place(worker.local_rank)
    if worker.world > 1:
        if workers not in (None, 1):
            raise SettingError(
                f"--workers {workers} and a launcher of {worker.world} processes contradict each "
                "other; leave --workers away."
            )
        return 1
    if scorers[0].spread:
        return len(supervisor.shares(workers or 1))
    return workers or (1 if scorers[0].device else max(1, mapping.device_count()))


def _spooled(dataset: str, split: str | None, out: Path) -> tuple[Dataset, Source]:
    """A stream's rows, put into the run folder by one worker for all."""
    stream, source = sources.stream(dataset, split)
    check_folder(out)
    with claims.wait(out / "rows.claim"):
        return spool(stream, out / "rows", source)


def main() -> None:
    """Run the command; errors are a paragraph on stderr, with a traceback under ``--debug``."""
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        words, code = explained(error)
        screen.complain(words)
        sys.exit(code)
