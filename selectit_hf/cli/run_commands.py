"""The commands of a run: plan, rate and finish, ``run`` for all three, and status."""

import shlex
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from datasets import Dataset

from selectit_hf import runs
from selectit_hf.analysis import NAMES as SELECTORS
from selectit_hf.analysis import Reader, choices
from selectit_hf.cli import display, options
from selectit_hf.cli.options import (
    AllowUnrated,
    Data,
    DatasetName,
    Out,
    Per,
    RunNamed,
    Split,
    with_flags,
)
from selectit_hf.errors import InputError, RunError, SettingError
from selectit_hf.formats import Source, check_ranking, check_space, look, sources
from selectit_hf.rating import RATED, Reflection, SentenceScore, mapping, model_name
from selectit_hf.runs import Rank, Run, local
from selectit_hf.selection import Cut

__all__ = [
    "AllowMixed",
    "Folders",
    "Settings",
    "Stop",
    "commands",
    "refuse_nothing_rated",
    "run_all",
    "tell_survey",
]

commands = typer.Typer()

Streaming = Annotated[
    bool,
    typer.Option("--streaming", help="Read the dataset once, row by row, into the run folder."),
]
ShardSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Rows in a shard. Default: few at first, then about a minute of work."
    ),
]
AllowMixed = Annotated[
    bool,
    typer.Option(
        "--allow-mixed",
        help="Go on where shards were rated with other versions of the libraries or on other "
        "hardware. Summary and card say so.",
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        min=0,
        help="Under a launcher: rank 0 rates the shards of others after so many seconds in which "
        "nobody finished one.",
    ),
]
Folders = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help="For a model that was a folder: that folder again. Repeat for several."
    ),
]
WAIT = 600.0


@commands.command()
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
    streaming: Streaming = False,
    shard_size: ShardSize = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes. Default: one for each visible GPU, else none."),
    ] = None,
    wait: Wait = WAIT,
    allow_mixed: AllowMixed = False,
    per: Per = None,
    allow_unrated: AllowUnrated = False,
) -> None:
    """Rate a dataset, score it and select the best rows, into a run folder.

    The same as 'plan', 'rate' and 'finish'. Stopped or killed, the same command goes on where it
    was. With more rows at the end of the dataset, or one more --model, it rates only what is new.
    Under torchrun, 'accelerate launch' and Slurm each process rates its part, and rank 0 finishes;
    'selectit launch' gives a planned run to a cluster. The raw ratings stay in the folder, so
    'selectit select RUN' with another level, alpha, variant or proportion takes seconds.
    """
    how = choices.within(how, per)
    rank = Rank.from_environment()
    if rank.rank > 0:
        display.hush()
    count = _count(rank, workers, scorers)
    rows, source = _rows(dataset, split, streaming, out)
    tell_survey(rows, source.name, scorers, allow_unrated)
    check_ranking(rows, how.by, cut.threshold, SELECTORS)
    if not runs.is_url(out):
        check_space(Path(out), rows, len(scorers), scorers[0].k, cut.proportion or 1.0)
    _tell_of_check(dataset, scorers, out)
    settings = Settings(how, cut, rank, count, wait, allow_mixed)
    run_all(rows, source, scorers, out, settings, as_json, shard_size)


@commands.command()
@with_flags(scorers=options.scorers, as_json=options.as_json)
def plan(
    dataset: DatasetName,
    out: Out,
    scorers: list[SentenceScore],
    as_json: bool,
    split: Split = None,
    streaming: Streaming = False,
    shard_size: ShardSize = None,
    allow_unrated: AllowUnrated = False,
) -> None:
    """Write the plan of a run: which rows, models and prompts, cut into shards. Nothing is rated.

    Then 'selectit launch RUN', or 'selectit rate RUN' as often as you like, and 'selectit finish'.
    """
    rows, source = _rows(dataset, split, streaming, out)
    tell_survey(rows, source.name, scorers, allow_unrated)
    planned = runs.plan(rows, source, scorers, out, shard_size)
    runs.prepare(planned, scorers)
    left, shards = len(runs.pending(planned)), len(planned.parts)
    facts = {"rows": len(rows), "models": planned.slugs, "shards": shards, "pending": left}
    display.say(
        facts,
        as_json,
        f"{out} is planned: {len(rows)} rows by {', '.join(planned.slugs)}, in {shards} shards, "
        f"{left} of which are to be rated.",
    )


@commands.command()
@with_flags(as_json=options.as_json)
def rate(
    run: RunNamed,
    as_json: bool,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Of this process. Default: the launcher's, or 0.")
    ] = None,
    world: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: the launcher's, or 1.")
    ] = None,
    model: Folders = None,
    data: Data = None,
    split: Split = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    allow_mixed: AllowMixed = False,
) -> None:
    """Rate the shards of a planned run that are this process's: every WORLDth from RANK on.

    Shards that are rated already are left as they are, so it can be killed and given again, with
    any rank, on any machine that sees RUN.
    """
    stop, opened = Stop(), runs.open_run(run)
    mine = Rank.from_environment()
    if rank is not None or world is not None:
        mine = Rank(rank or 0, world or 1, mine.local_rank)
    rows, scorers = runs.inputs(
        opened, data, split, model or (), device=device, device_map=device_map
    )
    with display.progress(opened, quiet=as_json, world=mine.world) as shown:
        runs.rate(
            opened, rows, scorers, mine.rank, mine.world,
            local_rank=mine.local_rank, progress=stop.heeding(shown), allow_mixed=allow_mixed,
        )  # fmt: skip
    left = len(runs.pending(opened))
    facts = {"rank": mine.rank, "world": mine.world, "pending": left}
    then = f"'selectit finish {run}' writes the results" if not left else f"{left} shards are left"
    display.say(facts, as_json, f"Rank {mine.rank} of {mine.world} is done; {then}.")


@commands.command()
@with_flags(how=options.reflection, cut=options.cut, as_json=options.as_json)
def finish(
    run: RunNamed,
    how: Reflection,
    cut: Cut,
    as_json: bool,
    data: Data = None,
    split: Split = None,
    allow_mixed: AllowMixed = False,
    per: Per = None,
) -> None:
    """Score and select from a run whose shards are all rated; exits with 1 naming missing ones.

    A shard that is not what was committed is set aside, so that 'selectit rate' rates it again.
    """
    Stop()
    opened = runs.open_run(run)
    rows = runs.rows_of(opened, data, split)
    rows, how = choices.rank_by(opened, rows, choices.within(how, per), cut)
    summary = runs.finish(opened, rows, how, cut, allow_mixed=allow_mixed)
    display.show_summary(summary, run, as_json)


@commands.command(name="status")
@with_flags(as_json=options.as_json)
def status_command(run: RunNamed, as_json: bool) -> None:
    """Show how far a run is, how fast it goes, and what is wrong; also while it runs.

    Of a run in object storage no ratings are fetched.
    """
    display.show_status(runs.status(run), as_json)


def _tell_of_check(dataset: str, scorers: Sequence[SentenceScore], out: str) -> None:
    """Say, of a run that is new, how to find out beforehand what its scores are worth."""
    store = runs.open_store(out)
    if store.exists("plan.json") or store.exists(runs.CHECK):
        return
    models = " ".join(shlex.join(["--model", model_name(one.model)]) for one in scorers)
    display.tell(
        "To see in minutes whether these models can rank these rows: selectit check "
        f"{shlex.quote(dataset)} {models} --out {shlex.quote(out)}"
    )


# How a run runs


@dataclass(frozen=True)
class Settings:
    """How a run is rated and selected from.

    Attributes:
        how, cut: see `runs.finish`.
        rank: which part is this process's.
        count: worker processes; 1 for none but this.
        wait: see `runs.wait_and_take_over`.
        allow_mixed: see `runs.rate_shard`.
    """

    how: Reflection = Reflection()  # noqa: RUF009  (frozen)
    cut: Cut = Cut()  # noqa: RUF009  (frozen)
    rank: Rank = Rank()  # noqa: RUF009  (frozen)
    count: int = 1
    wait: float = WAIT
    allow_mixed: bool = False


def run_all(
    rows: Dataset,
    source: Source,
    scorers: Sequence[SentenceScore],
    out: str,
    settings: Settings,
    as_json: bool,
    shard_size: int | None = None,
) -> None:
    """Plan, rate and finish."""
    store, shared = runs.open_store(out), settings.rank.world > 1
    runs.check_folder(store)
    with nullcontext() if shared else local.alone(store):
        started = runs.plan(rows, source, scorers, out, shard_size)
        later = choices.is_selector(rows, settings.how.by)
        how = replace(settings.how, by=None) if later else settings.how
        runs.ranking_column(started.plan, how, rows.column_names)
        stop = Stop()
        try:
            _rate(started, rows, scorers, settings, stop, as_json)
            stop.heed()
            summary = _finished(started, rows, scorers, settings)
        except KeyboardInterrupt:
            where = started.where
            display.tell(f"Stopped. The same command resumes after the last full shard in {where}.")
            raise
    if summary is not None:
        display.show_summary(summary, started.where, as_json)
        refuse_nothing_rated({m: facts["statuses"] for m, facts in summary["models"].items()})


def _rate(
    started: Run,
    rows: Dataset,
    scorers: Sequence[SentenceScore],
    settings: Settings,
    stop: "Stop",
    as_json: bool,
) -> None:
    rank, given = settings.rank, (started, rows, scorers)
    with display.progress(started, quiet=as_json) as shown:
        how: dict[str, Any] = {
            "progress": stop.heeding(shown),
            "allow_mixed": settings.allow_mixed,
        }
        if settings.count > 1:
            local.rate(*given, settings.count, **how)
            return
        how["local_rank"] = rank.local_rank
        runs.rate(*given, rank.rank, rank.world, **how)
        if rank.world > 1 and rank.rank == 0:
            runs.wait_and_take_over(*given, settings.wait, rank.world, **how)


def _finished(
    started: Run, rows: Dataset, scorers: Sequence[SentenceScore], settings: Settings
) -> dict[str, Any] | None:
    """The summary; shards that turn out to be damaged are rated again first.

    One of several processes finishes: the others have nothing to show.
    """
    if settings.rank.rank > 0:
        return None
    mixed = settings.allow_mixed

    def finish() -> dict[str, Any]:
        reader = Reader.of(scorers[0])
        ranked, how = choices.rank_by(started, rows, settings.how, settings.cut, reader)
        return runs.finish(started, ranked, how, settings.cut, allow_mixed=mixed)

    try:
        return finish()
    except RunError:
        if not runs.pending(started):
            raise
    here = settings.rank.local_rank
    runs.rate(started, rows, scorers, local_rank=here, allow_mixed=mixed)
    return finish()


def tell_survey(
    rows: Dataset, name: str, scorers: Sequence[SentenceScore], allow_unrated: bool
) -> None:
    """Read all rows before any model is loaded, and say what is read.

    Raises:
        InputError: rating them would be in vain; see `survey.look`.
    """
    display.tell(look(rows, scorers[0].reader, allow_unrated).words(name))


def refuse_nothing_rated(statuses: Mapping[str, Mapping[str, int]]) -> None:
    """Let a model that rated no row at all be an error.

    Raises:
        InputError: it names the model and the statuses.
    """
    for slug, counts in statuses.items():
        if not any(counts.get(status) for status in RATED):
            raise InputError(
                f"{slug} rated none of the rows: {display.counts(dict(counts))}. Rows of the "
                "status 'oom' need a smaller --token-budget, and 'nonfinite' another --dtype."
            )


class Stop:
    """Ctrl-C, and SIGTERM from a scheduler: leave in order.

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

    def heeding(self, progress: runs.Progress) -> runs.Progress:
        """``progress``, where what was asked is heeded."""

        def told(slug: str, prompts: int) -> None:
            self.heed()
            progress(slug, prompts)

        return told


def _count(rank: Rank, workers: int | None, scorers: Sequence[SentenceScore]) -> int:
    """How many worker processes to start; 1 for none but this. Refuses what has no place to run."""
    scorers[0].place(rank.local_rank)
    if rank.world > 1:
        if workers not in (None, 1):
            raise SettingError(
                f"--workers {workers} and a launcher of {rank.world} processes contradict each "
                "other; omit --workers."
            )
        return 1
    if scorers[0].spread:
        return len(mapping.shares(workers or 1))
    return workers or (1 if scorers[0].device else max(1, mapping.device_count()))


def _rows(dataset: str, split: str | None, streaming: bool, out: str) -> tuple[Dataset, Source]:
    if not streaming:
        return sources.load(dataset, split)
    stream, source = sources.stream(dataset, split)
    store = runs.open_store(out)
    runs.check_folder(store)
    return runs.spool(stream, store, source)
