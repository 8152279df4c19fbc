"""Launching a planned run with datatrove's executors for Slurm, Ray, Jobs, or this machine.

Two executors are built. The first has a task for each part of the shards. The second has one task,
which finishes the run; it starts when all tasks of the first have succeeded. Their logging folder
is next to the run and is new for each launch: datatrove marks completed tasks there, and the marks
of an earlier launch would skip shards that are new or missing again.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selectit_hf.errors import RunError, SettingError
from selectit_hf.hashes import is_content_hash
from selectit_hf.privacy import shown
from selectit_hf.rating import Reflection, was_folder
from selectit_hf.redaction import redacted
from selectit_hf.runs import rate_shards
from selectit_hf.runs.engines.executor_options import check_required, need, parse
from selectit_hf.runs.results import ranking_column
from selectit_hf.runs.run import Run
from selectit_hf.runs.run_inputs import inputs, is_streamed
from selectit_hf.runs.store import Store, is_url, open_store
from selectit_hf.selection import Cut

__all__ = ["ENGINES", "Engine", "Launch", "datatrove_steps"]

Engine = Literal["local", "slurm", "ray", "jobs"]
ENGINES = {
    "local": "LocalPipelineExecutor",
    "slurm": "SlurmPipelineExecutor",
    "ray": "RayPipelineExecutor",
    "jobs": "JobsPipelineExecutor",
}
"""Where a run can be launched, and the class of `datatrove.executor` that does it."""
FOR_MANY = ("workers", "tasks_per_job", "gpus_per_task", "flavor")
"""Options that the single finishing task does not need."""
ARRAY_VARIABLES = {"slurm": "SLURM_ARRAY_TASK_ID", "jobs": "DATATROVE_JOB_ARRAY_INDEX"}
"""Variables that tell an executor that it is inside a task, where it would rate, not launch."""


def datatrove_steps(
    run: Run | str | Path,
    *,
    how: Reflection | None = None,
    cut: Cut | None = None,
    allow_mixed: bool = False,
    **opened: Any,
) -> tuple[Any, Any]:
    """The two `datatrove` pipeline steps of a planned run, for pipelines of your own.

    The first rates its rank's pending shards and lets documents pass; any number of tasks may run
    it. The second finishes; give it to an executor of one task with ``depends=`` the first. Both
    executors need ``skip_completed=False``.

    Args:
        run: the run, its path or its URL; tasks must see it under the same path.
        how, cut, allow_mixed: see `selectit_hf.runs.finish`.
        opened: the arguments of `selectit_hf.runs.inputs` other than the run.

    Raises:
        SettingError: datatrove is not installed.

    Example:
        >>> rate, finish = datatrove_steps("s3://bucket/run")  # doctest: +SKIP
        >>> first = SlurmPipelineExecutor([rate], tasks=16, skip_completed=False, ...)
        ... # doctest: +SKIP
        >>> SlurmPipelineExecutor([finish], tasks=1, skip_completed=False, depends=first, ...).run()
        ... # doctest: +SKIP
    """
    need("datatrove")
    from selectit_hf.runs.engines.datatrove_steps import Finish, Rate

    where = _address(open_store(run.where if isinstance(run, Run) else run))
    opened["models"] = [_absolute(one) for one in opened.get("models", ())]
    rows = {"data": _absolute(opened.get("data")), "split": opened.get("split")}
    rate = Rate(where, opened | rows, allow_mixed)
    return rate, Finish(where, rows, how or Reflection(), cut or Cut(), allow_mixed)


@dataclass(frozen=True)
class Launch:
    """A launch of a run on an engine, built but not started.

    Attributes:
        on: the engine.
        logs: the folder of this launch, or its URL.
        rate, finish: the two executors.
        options: the options of both, JSON-able.
    """

    on: Engine
    logs: str
    rate: Any
    finish: Any
    options: dict[str, Any]

    @classmethod
    def of(
        cls,
        run: Run,
        on: Engine,
        tasks: int,
        settings: list[str] | tuple[str, ...] = (),
        logs: str | None = None,
        **steps: Any,
    ) -> "Launch":
        """Build the executors; check rows, models and settings before anything is submitted.

        Args:
            run: a planned run.
            on: ``"local"``, ``"slurm"``, ``"ray"`` or ``"jobs"``.
            tasks: how many tasks share the shards.
            settings: the executor's own options, each as ``key=value``; as ``finish.key=value`` for
                the one task that finishes.
            logs: a folder or URL in which a new folder is made for this launch; by default RUN's
                name followed by ``.launches``.
            steps: the arguments of `datatrove_steps` other than the run.

        Raises:
            SettingError: an option is unknown, missing or has a wrong value; datatrove or the
                engine is not available; the engine cannot see the run.
            ModelError, RunError: see `inputs` and `prepare`; the run is not as planned.
        """
        where = _fresh_logs(run.store, logs)
        _check_engine(on, where)
        if on == "jobs":
            _check_visible(run, where, steps)
        opened = {name: steps[name] for name in ("data", "split", "models") if name in steps}
        rows, scorers = inputs(run, **opened)
        rate_shards.prepare(run, scorers)
        ranking_column(run.plan, steps.get("how") or Reflection(), rows.column_names)
        kind = getattr(importlib.import_module("datatrove.executor"), ENGINES[on])
        given = parse(kind, on, settings)
        alone = {name: value for name, value in given.common.items() if name not in FOR_MANY}
        many, one = _defaults(on, given.common), _defaults(on, alone | given.finish, "-finish")
        check_required(kind, on, many)
        many |= {"tasks": tasks, "logging_dir": f"{where}/rate", "skip_completed": False}
        one |= {"tasks": 1, "logging_dir": f"{where}/finish", "skip_completed": False}
        first, last = datatrove_steps(run, **steps)
        rate = kind([first], **many)
        finish = kind([last], depends=rate, **one)
        return cls(on, where, rate, finish, {"rate": many, "finish": one})

    def describe(self, as_json: bool = False) -> str:
        """What would be submitted, without secrets; nothing is written.

        That is, the options as JSON, and the scripts for Slurm: after them, or with ``as_json`` in
        ``scripts``.
        """
        facts = {"executor": ENGINES[self.on], **self.options}
        both = (self.rate, self.finish) if self.on == "slurm" else ()
        scripts = [redacted(_slurm_script(one)) for one in both]
        if as_json:
            return shown(facts | {"scripts": scripts})
        return "\n".join([shown(facts), *scripts])

    def start(self) -> dict[str, Any]:
        """Submit to Slurm and return; on this machine, Ray or Jobs, run until all tasks end.

        Returns:
            ``on``, ``tasks``, ``logs``, and for Slurm ``jobs``, the ids of the two jobs.

        Raises:
            RunError: a task failed, or Slurm refused the job; whole shards stay.
            Any exception of a task on this machine.
        """
        done = {"on": self.on, "tasks": self.rate.world_size, "logs": self.logs}
        if self.on == "slurm":
            return done | {"jobs": self._submit()}
        if self.on == "ray":
            _join_ray()
        for name, executor in (("rate", self.rate), ("finish", self.finish)):
            executor.run()  # Ray and Jobs return even where tasks failed
            executor.logging_dir.fs.invalidate_cache()
            failed = executor.get_incomplete_ranks(skip_completed=True)
            if failed:
                raise RunError(
                    f"{len(failed)} of {executor.world_size} {name} tasks failed; {self.logs} "
                    "has their logs. Whole shards stay: launch again for the others."
                )
        return done

    def _submit(self) -> list[str]:
        if shutil.which("sbatch") is None:
            raise SettingError("sbatch is not found; launch from a login node of the cluster.")
        try:
            self.finish.run()  # submits what it depends on first
        except subprocess.CalledProcessError as error:
            job = self.rate.job_id
            there = f" The tasks that rate are submitted: scancel {job}." if job else ""
            raise RunError(
                f"sbatch refused a job (exit code {error.returncode}); its message is above. "
                f"Correct the options with --set; --dry-run shows the scripts.{there}"
            ) from error
        return [str(one.job_id) for one in (self.rate, self.finish)]


# Building


def _defaults(on: Engine, given: dict[str, Any], suffix: str = "") -> dict[str, Any]:
    """``given`` with useful defaults: a name, and for Slurm this Python and a clean end."""
    given = dict(given)
    if on in ("slurm", "jobs"):
        given["job_name"] = (given.get("job_name") or "selectit") + suffix
    if on == "slurm":
        if not {"env_command", "condaenv", "venv_path"} & given.keys():
            given["env_command"] = (
                f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
            )
        # If a task failed, the finishing job would otherwise wait forever.
        given["sbatch_args"] = {"kill-on-invalid-dep": "yes", **(given.get("sbatch_args") or {})}
    return given


def _fresh_logs(store: Store, logs: str | None) -> str:
    """A folder for this launch alone, outside the run."""
    at = _address(store)
    scheme, _, path = at.partition("://")
    if logs is None and not store.is_local and path.count("/") < (3 if scheme == "hf" else 1):
        raise SettingError(f"There is no place for logs next to {at}; name a folder with --logs.")
    inside = logs and (logs if is_url(logs) else os.path.abspath(logs))
    if inside and f"{inside}/".startswith(f"{at}/"):
        raise SettingError(f"--logs {logs} is in the run; logs hold paths, so keep them elsewhere.")
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return f"{inside or f'{at}.launches'}/{stamp}-{os.urandom(3).hex()}"


def _slurm_script(executor: Any) -> str:
    """The script that the executor's `launch_job` would write, without creating its folder."""
    count = -(-executor.world_size // executor.tasks_per_job)
    limit = count if executor.max_array_size == -1 else min(count, executor.max_array_size)
    logs = executor.slurm_logs_folder
    with tempfile.TemporaryDirectory() as empty:
        executor.slurm_logs_folder = empty
        arguments = {
            key: str(value).replace(empty, logs)
            for key, value in executor.get_sbatch_args(limit).items()
        }
        executor.slurm_logs_folder = logs
    srun = "".join(f"--{key}={value} " for key, value in (executor.srun_args or {}).items())
    program = f"launch_pickled_pipeline {executor.logging_dir.resolve_paths('executor.pik')}"
    if executor.with_srun:
        program = f"srun {srun.rstrip()} -l -n {executor.nodes_per_task} {program}"
    return str(executor.get_launch_file_contents(arguments, program))


# Checks before a launch


def _check_engine(on: Engine, logs: str) -> None:
    if on not in ENGINES:
        raise SettingError(f"--on {on} is unknown; choose {', '.join(ENGINES)}.")
    for package in ("datatrove", "ray") if on == "ray" else ("datatrove",):
        need(package)
    variable = ARRAY_VARIABLES.get(on, "")
    if os.environ.get(variable):
        raise SettingError(
            f"{variable} is set: this is already a task of a job. Launch from a login node or your "
            "own machine; in a task, use 'selectit rate'."
        )
    if on == "slurm" and re.search(r"\s", logs):
        raise SettingError(
            f"The logs would be in {logs!r}; datatrove's scripts break at the space. Name another "
            "folder with --logs."
        )


def _check_visible(run: Run, logs: str, steps: dict[str, Any]) -> None:
    """Refuse what only this machine has."""
    given = (logs, steps.get("data"), *steps.get("models", ()))
    here = [one for one in given if one and not is_url(one)]
    here += [str(run.store)] if run.store.is_local else []
    here += [
        model["model"]
        for model in run.plan["models"]
        if was_folder(model["model"], model["revision"])
    ]
    rows = run.plan["input"]
    if is_content_hash(rows["revision"]) and not (steps.get("data") or is_streamed(run)):
        here.append(rows["name"])
    if here:
        raise SettingError(
            f"Jobs cannot see {here[0]!r} of this machine. Plan the run in a bucket, as in --out "
            "hf://buckets/user/name/run, with --streaming, which puts the rows there; use "
            "models from the Hub."
        )


def _join_ray() -> None:
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        return
    try:
        ray.init(address="auto", logging_level="ERROR")
    except ConnectionError as error:
        raise SettingError(
            "No Ray cluster is running here; start one with 'ray start --head', or set RAY_ADDRESS."
        ) from error


def _address(store: Store) -> str:
    return str(store.path()) if store.is_local else str(store)


def _absolute(path: str | None) -> str | None:
    """A path that tasks in other folders can find; a Hub name is unchanged."""
    return os.path.abspath(path) if path and Path(path).exists() else path
