"""The command that submits a planned run to a cluster."""

from typing import Annotated, Any, cast

import typer

from selectit_hf import runs
from selectit_hf.cli import display, flag_groups
from selectit_hf.cli.flag_groups import with_flags
from selectit_hf.cli.flags import (
    AllowMixed,
    Data,
    DeviceMap,
    Folders,
    RunNamed,
    Split,
)
from selectit_hf.cli.stop_signals import Stop
from selectit_hf.rating import Reflection
from selectit_hf.runs import Launch
from selectit_hf.selection import Cut
from selectit_hf.terminal import write_out

__all__ = ["launching"]

launching = typer.Typer()


@launching.command()
@with_flags(how=flag_groups.reflection, cut=flag_groups.cut, as_json=flag_groups.as_json)
def launch(
    run: RunNamed,
    on: Annotated[
        str,
        typer.Option(
            help="slurm, ray (a running cluster), jobs (Hugging Face Jobs), or local (processes on "
            "this machine, to try it out)."
        ),
    ],
    tasks: Annotated[int, typer.Option(min=1, help="Tasks that share the shards.")],
    how: Reflection,
    cut: Cut,
    as_json: bool,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An option of datatrove's executor, as in partition=gpu, time=4:00:00, "
            "gpus_per_task=1, workers=8, flavor=a10g-small. finish.KEY=VALUE is for the "
            "finishing task. Repeatable.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be submitted; secrets are left out.")
    ] = False,
    logs: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Folder for logs. Default: RUN.launches."),
    ] = None,
    model: Folders = None,
    data: Data = None,
    split: Split = None,
    device_map: DeviceMap = None,
    allow_mixed: AllowMixed = False,
) -> None:
    """Rate a planned run with many tasks on an engine, then finish it in one more task.

    First run 'selectit plan DATASET --model MODEL --out RUN'. All tasks must see RUN, in a shared
    folder or object storage. Needs datatrove: pip install datatrove. If tasks fail or are
    killed, launch again to rate what is left. For example: selectit launch RUN --on slurm
    --tasks 16 --set partition=gpu --set time=4:00:00 --set gpus_per_task=1
    """
    Stop()
    opened = runs.open_run(run)
    built = Launch.of(
        opened, cast(Any, on), tasks, settings or (), logs,
        models=model or (), data=data, split=split, device_map=device_map, how=how, cut=cut,
        allow_mixed=allow_mixed,
    )  # fmt: skip
    if dry_run:
        write_out(built.describe(as_json))
        return
    done = built.start()
    if "jobs" in done:
        words = f"Submitted as the jobs {' and '.join(done['jobs'])}; 'selectit status {run}' shows"
        display.say(done, as_json, f"{words} how far they are, and {done['logs']} has their logs.")
        return
    display.say(done, as_json, f"{run} is rated and finished; the logs are in {done['logs']}.")
