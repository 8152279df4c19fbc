"""The commands of a run: plan, rate and finish, ``run`` for all three, and status."""

from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

from selectit_hf import runs
from selectit_hf.analysis import NAMES as SELECTORS
from selectit_hf.analysis import choices
from selectit_hf.cli import display, flag_groups, recipes
from selectit_hf.cli.flag_groups import with_flags
from selectit_hf.cli.flags import (
    AllowMixed,
    AllowUnrated,
    Data,
    DatasetName,
    Device,
    DeviceMap,
    Folders,
    Limit,
    Out,
    Per,
    RunNamed,
    Split,
    here,
)
from selectit_hf.cli.recipes import RecipeCommand
from selectit_hf.cli.run_steps import (
    Settings,
    check_trackers,
    count_workers,
    dry_run_all,
    load_rows,
    placed,
    refuse_nothing_rated,
    run_all,
    tell_next,
    tell_of_check,
    tell_survey,
)
from selectit_hf.cli.stop_signals import Stop
from selectit_hf.errors import InputError, SettingError
from selectit_hf.formats import check_ranking, check_space, first_rows
from selectit_hf.rating import Reflection, SentenceScore, model_name
from selectit_hf.runs import Rank
from selectit_hf.selection import Cut

__all__ = ["commands"]

commands = typer.Typer()

CHECKED = {
    *signature(flag_groups.scorers).parameters,
    *signature(flag_groups.formula).parameters,
}
"""What a check of a run is asked with, too."""

Streaming = Annotated[
    bool,
    typer.Option("--streaming", help="Read the dataset once, row by row, into the run folder."),
]
ShardSize = Annotated[
    int | None,
    typer.Option(min=1, help="Rows per shard. Default: few at first, then about a minute of work."),
]
Wait = Annotated[
    float,
    typer.Option(
        min=0,
        help="Under a launcher: rank 0 rates the others' shards when none was finished for this "
        "many seconds.",
    ),
]


@commands.command(cls=RecipeCommand)
@with_flags(
    scorers=flag_groups.scorers,
    how=flag_groups.reflection,
    cut=flag_groups.cut,
    as_json=flag_groups.as_json,
)
def run(
    ctx: typer.Context,
    dataset: DatasetName,
    out: Out,
    scorers: list[SentenceScore],
    how: Reflection,
    cut: Cut,
    as_json: bool,
    split: Split = None,
    limit: Limit = None,
    streaming: Streaming = False,
    shard_size: ShardSize = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes. Default: one for each visible GPU, else none."),
    ] = None,
    wait: Wait = Settings.wait,
    allow_mixed: AllowMixed = False,
    per: Per = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            help="Log rows per second, rating mass and results to tensorboard, trackio or wandb, "
            "which must be installed. Repeatable.",
        ),
    ] = None,
    allow_unrated: AllowUnrated = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only show what would be done: rows, tokens, batches, time measured on a few "
            "rows, disk. Nothing is written to RUN.",
        ),
    ] = False,
    save_recipe: Annotated[
        Path | None,
        typer.Option(
            parser=here,
            metavar="FILE.yaml",
            help="Write dataset, models and the flags given as a recipe.",
        ),
    ] = None,
) -> None:
    """Rate a dataset, score it and select the best rows, into a run folder.

    The same as 'plan', 'rate' and 'finish'. To resume a stopped or killed run, repeat the command.
    With more rows at the end of the dataset, or one more --model, it rates only what is new.
    Under torchrun, 'accelerate launch' and Slurm, each process rates its part, and rank 0 finishes;
    'selectit launch' gives a planned run to a cluster. The raw ratings stay in the folder, so
    'selectit select RUN' with another level, alpha, variant or proportion takes seconds.
    To try first: --dry-run says what it will take, and --limit 100 rates the first 100 rows.
    Instead of DATASET, give a recipe.yaml that holds all this: see docs/runs.md.
    """
    how = choices.within(how, per)
    rank = Rank.from_environment()
    if rank.rank > 0:
        display.hush()
    models = list(ctx.params["model"] or [model_name(scorers[0].model)])
    if rank.rank == 0 and save_recipe is not None:
        recipes.save(save_recipe, ctx, models)
    check_trackers(report_to or (), rank)
    count = count_workers(rank, workers, scorers)
    part = first_rows(split, limit)
    rows, source = load_rows(dataset, part, streaming, out, dry_run)
    survey = tell_survey(rows, source.name, scorers, allow_unrated)
    ours = [c for one in scorers for c in one.columns if "_score__" in c] + ["model_score"]
    try:
        check_ranking(rows, how.by, cut.threshold, [*SELECTORS, *ours])
    except (InputError, SettingError) as error:
        raise typer.BadParameter(str(error)) from error
    if not runs.is_url(out):
        check_space(Path(out), rows, len(scorers), scorers[0].k, cut.proportion or 1.0)
    settings = Settings(how, cut, rank, count, wait, allow_mixed, tuple(report_to or ()))
    if dry_run:
        found = dry_run_all(rows, source, scorers, out, settings, survey, shard_size)
        display.show_dry_run(found, as_json)
        return
    tell_of_check(dataset, part, recipes.as_words(ctx, models, CHECKED), out)
    run_all(rows, source, scorers, out, settings, as_json, shard_size, dataset)


@commands.command()
@with_flags(scorers=flag_groups.scorers, as_json=flag_groups.as_json)
def plan(
    dataset: DatasetName,
    out: Out,
    scorers: list[SentenceScore],
    as_json: bool,
    split: Split = None,
    limit: Limit = None,
    streaming: Streaming = False,
    shard_size: ShardSize = None,
    allow_unrated: AllowUnrated = False,
) -> None:
    """Write the plan of a run: which rows, models and prompts, cut into shards. Nothing is rated.

    Next, run 'selectit launch RUN'; or 'selectit rate RUN', in as many processes as you like, and
    then 'selectit finish RUN'.
    """
    rows, source = load_rows(dataset, first_rows(split, limit), streaming, out)
    tell_survey(rows, source.name, scorers, allow_unrated)
    planned = runs.plan(rows, source, scorers, out, shard_size)
    runs.remember_inputs(planned, dataset, scorers)
    runs.prepare(planned, scorers)
    left, shards = len(runs.pending(planned)), len(planned.parts)
    model, device = planned.plan["models"][0], scorers[0].place(None).device
    place = {"device": device, "dtype": model["dtype"], "token_budget": model["token_budget"]}
    facts = {"rows": len(rows), "models": planned.slugs, "shards": shards, "pending": left, **place}
    display.say(
        facts,
        as_json,
        f"{out} is planned: {len(rows)} rows by {', '.join(planned.slugs)}, in {shards} shards, "
        f"{left} of them still to be rated.",
    )
    if not as_json:
        display.tell(placed(place))


@commands.command()
@with_flags(as_json=flag_groups.as_json)
def rate(
    run: RunNamed,
    as_json: bool,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Rank of this process. Default: the launcher's, or 0.")
    ] = None,
    world: Annotated[
        int | None, typer.Option(min=1, help="Number of processes. Default: the launcher's, or 1.")
    ] = None,
    model: Folders = None,
    data: Data = None,
    split: Split = None,
    device: Device = None,
    device_map: DeviceMap = None,
    allow_mixed: AllowMixed = False,
) -> None:
    """Rate this process's shards of a planned run: every WORLDth shard, starting at RANK.

    Shards that are already rated are skipped, so the command can be killed and repeated, with any
    rank, on any machine that sees RUN.
    """
    stop, opened = Stop(), runs.open_run(run)
    found = Rank.from_environment()
    mine = Rank(
        found.rank if rank is None else rank,
        found.world if world is None else world,
        found.local_rank,
    )
    rows, scorers = runs.inputs(
        opened, data, split, model or (), device=device, device_map=device_map
    )
    with display.progress(opened, quiet=as_json, rank=mine.rank, world=mine.world) as shown:
        runs.rate(
            opened, rows, scorers, mine.rank, mine.world,
            local_rank=mine.local_rank, progress=stop.heeding(shown), allow_mixed=allow_mixed,
        )  # fmt: skip
    left = len(runs.pending(opened))
    facts = {"rank": mine.rank, "world": mine.world, "pending": left}
    then = f"'selectit finish {run}' writes the results" if not left else f"{left} shards are left"
    display.say(facts, as_json, f"Rank {mine.rank} of {mine.world} is done; {then}.")


@commands.command()
@with_flags(how=flag_groups.reflection, cut=flag_groups.cut, as_json=flag_groups.as_json)
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
    """Score a fully rated run and select from it; exits with 1 and names missing shards.

    A shard that differs from what was committed is set aside; 'selectit rate' rates it again.
    """
    Stop()
    opened = runs.open_run(run)
    rows = runs.rows_of(opened, data, split)
    asked = choices.within(how, per)
    rows, how = choices.rank_by(opened, rows, asked, cut)
    summary = runs.finish(opened, rows, how, cut, allow_mixed=allow_mixed, asked=asked.by)
    display.show_summary(summary, run, as_json)
    if summary["selected"] and not as_json:
        tell_next(run)
    refuse_nothing_rated({m: facts["statuses"] for m, facts in summary["models"].items()})


@commands.command(name="status")
@with_flags(as_json=flag_groups.as_json)
def status_command(run: RunNamed, as_json: bool) -> None:
    """Show a run's progress, speed and problems, even while it runs.

    For a run in object storage, no ratings are downloaded.
    """
    display.show_status(runs.status(run), as_json)
