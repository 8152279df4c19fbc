"""A run on datatrove's executors: here in full; for Slurm and Jobs, what would be asked of them.

The engines themselves, with processes that are killed, are in scripts/checks/check_engines.py.
"""

import io
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dill
import fsspec
import huggingface_hub
import pytest
from datasets import Dataset
from datatrove.executor import LocalPipelineExecutor
from huggingface_hub.hf_api import api
from typer.testing import CliRunner

from selectit_hf import SentenceScore, runs
from selectit_hf.cli.app import app
from selectit_hf.errors import RunError, SettingError
from selectit_hf.formats import sources
from selectit_hf.runs import Run
from selectit_hf.runs.engines.datatrove_launch import Launch
from selectit_hf.runs.engines.executor_options import parse

SLURM = ("partition=gpu", "time=1:00:00")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps([{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(9)]))
    return path


@pytest.fixture
def rows(file: Path) -> Dataset:
    return sources.load(str(file))[0]


def planned(file: Path, out: str | Path) -> Run:
    rows, source = sources.load(str(file))
    return runs.plan(rows, source, [SentenceScore("tiny-rater")], out, shard_size=2)


@pytest.fixture
def run(file: Path, tmp_path: Path) -> Run:
    return planned(file, tmp_path / "run")


def tables(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.parquet")
        if not path.name.startswith(".")
    }


@pytest.fixture
def expected(run: Run, rows: Dataset, tmp_path: Path) -> dict[str, bytes]:
    """What one process makes of the run."""
    alone = runs.open_run(shutil.copytree(run.where, tmp_path / "alone"))
    runs.rate(alone, rows, [SentenceScore("tiny-rater")])
    runs.finish(alone, rows)
    return tables(Path(alone.where))


def test_the_local_executor_makes_the_same_bytes_and_what_is_lost_again(
    run: Run, file: Path, expected: dict[str, bytes]
) -> None:
    def launch() -> dict[str, Any]:
        return Launch.of(run, "local", 2, ["workers=1"], data=str(file)).start()

    first = launch()
    folder = Path(run.where)
    assert tables(folder) == expected
    for name in ("00001.json", "00003.json"):  # of two ranks, both marked as completed
        next(folder.rglob(name)).unlink()
    (folder / "selection.json").unlink()
    second = launch()
    assert tables(folder) == expected
    assert (folder / "selection.json").exists()
    assert first["logs"] != second["logs"]
    assert folder not in Path(first["logs"]).parents
    assert not list(folder.rglob("*.pik"))


def test_a_task_that_fails_stops_the_launch_before_it_finishes(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **settings: Any) -> bool:
        raise RunError("this shard cannot be rated")

    launch = Launch.of(run, "local", 2, ["workers=1"], data=str(file))
    monkeypatch.setattr("selectit_hf.runs.rate_shards.rate_shard", broken)
    with pytest.raises(RunError, match="this shard"):
        launch.start()
    assert not (Path(run.where) / "selection.json").exists()


def test_the_steps_let_documents_of_ones_own_pipeline_pass(
    run: Run, file: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    rate, finish = runs.datatrove_steps(run.where, data=str(file))
    seen: list[Any] = []

    def collect(data: Any, rank: int, world_size: int) -> Any:
        for one in data:
            seen.append(one)
            yield one

    own: dict[str, Any] = {"workers": 1, "skip_completed": False}
    first = LocalPipelineExecutor(
        [["a", "b"], rate, collect], tasks=1, logging_dir=str(tmp_path / "rate"), **own
    )
    LocalPipelineExecutor(
        [finish], tasks=1, logging_dir=str(tmp_path / "finish"), depends=first, **own
    ).run()
    assert seen == ["a", "b"]
    assert tables(Path(run.where)) == expected


# Slurm


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name which writes down its arguments and says a job's number."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "sbatch.log"
    program = folder / "sbatch"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\necho Submitted batch job $(wc -l < {log})\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return log


def test_what_a_dry_run_shows_is_what_slurm_gets(run: Run, file: Path, sbatch: Path) -> None:
    settings = (*SLURM, "gpus-per-task=2", "sbatch_args=account=me", "finish.mem_per_cpu_gb=9")
    built = Launch.of(run, "slurm", 5, settings, data=str(file))
    shown = built.describe()
    assert not sbatch.exists()
    assert not Path(built.logs).parent.exists()
    done = built.start()
    scripts = [
        (Path(done["logs"]) / part / "launch_script.slurm").read_text()
        for part in ("rate", "finish")
    ]
    assert all(script in shown for script in scripts)
    rate, finish = scripts
    assert "#SBATCH --array=0-4\n" in rate
    assert "#SBATCH --gpus=2\n" in rate
    assert "--gpus" not in finish
    assert "#SBATCH --mem-per-cpu=9G\n" in finish
    assert all("--kill-on-invalid-dep=yes\n" in one and "--account=me\n" in one for one in scripts)
    submitted = sbatch.read_text().splitlines()
    assert len(submitted) == 4  # each with a job that merges datatrove's own statistics
    assert f"--dependency=afterok:{done['jobs'][0]} " in submitted[2]
    assert done["jobs"] == ["1", "3"]


def test_a_dry_run_leaves_secrets_out(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ["hf_abcdefghijkl", "s3cr3t-of-aws", "passw0rd", "hf_inthecommand", "tok3nofgit"]
    secrets += ["pass phrase", "an0ther"]
    monkeypatch.setenv("HF_TOKEN", secrets[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secrets[1])
    command = f"export DB_PASSWORD={secrets[2]} X={secrets[1]} Y={secrets[3]} Z={secrets[0]}"
    command += f""" A_PASSWD="{secrets[5]}" B_ACCESS_KEY='{secrets[6]}'"""
    url = f"sbatch_args=comment=https://{secrets[4]}@example.com/x"
    settings = (*SLURM, f"env_command={command}", url)
    arguments = [part for one in settings for part in ("--set", one)]
    command_line = ["launch", run.where, "--on", "slurm", "--tasks", "2", "--dry-run"]
    done = CliRunner().invoke(app, [*command_line, "--data", str(file), *arguments])
    assert done.exit_code == 0, done.output
    assert "example.com/x" in done.output
    assert "#SBATCH --time=1:00:00" in done.output
    assert [secret for secret in secrets if secret in done.output] == []
    done = CliRunner().invoke(app, [*command_line, "--data", str(file), *arguments, "--json"])
    said = json.loads(done.stdout)
    assert [script.startswith("#!/bin/bash") for script in said["scripts"]] == [True, True]
    assert [secret for secret in secrets if secret in done.output] == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["partion=gpu"], "Did you mean 'partition'"),
        (["partition=gpu"], "--set time="),
        ([*SLURM, "workers=many"], "whole number"),
        ([*SLURM, "requeue=perhaps"], "true or false"),
        ([*SLURM, "sbatch_args=account"], "NAME=VALUE"),
        ([*SLURM, "skip_completed=true"], "omit it"),
        ([*SLURM, "finish.depends=1"], "omit it"),
        ([*SLURM, "job_id_retriever=len"], "datatrove_steps"),
        ([*SLURM, "workers"], "KEY=VALUE"),
        ([*SLURM, "tasks_per_job=0"], "at least 1"),
        ([*SLURM, "max_array_size=-2"], "at least 1"),
    ],
)
def test_a_wrong_option_is_refused_with_a_remedy(
    run: Run, file: Path, settings: list[str], says: str
) -> None:
    with pytest.raises(SettingError, match=says):
        Launch.of(run, "slurm", 2, settings, data=str(file))


def test_options_have_the_types_that_the_executor_declares(run: Run, file: Path) -> None:
    settings = ["time=1:30", "partition=7", "workers=3", "requeue=false", "qos="]
    settings += ["requeue_signals=SIGUSR2", "sbatch_args=a=1", 'sbatch_args={"b": 2}']
    built = Launch.of(run, "slurm", 2, settings, data=str(file)).rate
    found = (built.time, built.partition, built.workers, built.requeue, built.qos)
    assert found == ("1:30", "7", 3, False, "")
    assert built.requeue_signals == ("SIGUSR2",)
    assert built._sbatch_args == {"a": "1", "b": 2, "kill-on-invalid-dep": "yes"}
    assert built.skip_completed is False

    class Executor:
        def __init__(self, memory: float = 2, time: float | None = None) -> None: ...

    found = parse(Executor, "ray", ["memory=1", "time=1.5"]).common
    assert found == {"memory": 1.0, "time": 1.5}
    assert type(found["memory"]) is float


def test_a_launch_from_inside_a_task_or_with_logs_in_the_run_is_refused(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match="break at the space"):
        Launch.of(run, "slurm", 2, SLURM, logs="/tmp/my logs", data=str(file))
    with pytest.raises(SettingError, match="keep them elsewhere"):
        Launch.of(run, "local", 2, logs=f"{run.where}/logs", data=str(file))
    with pytest.raises(SettingError, match="mars"):
        Launch.of(run, "mars", 2, data=str(file))  # type: ignore[arg-type]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    with pytest.raises(SettingError, match="in a task"):
        Launch.of(run, "slurm", 2, SLURM, data=str(file))


# Jobs


class Jobs(BaseHTTPRequestHandler):
    """Takes jobs as the Hub does, and does what a job would: it runs the pickled executor."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({**body, "path": self.path, "auth": self.headers["Authorization"]})
        pickled = body["command"][-1]
        os.environ["DATATROVE_JOB_ARRAY_INDEX"] = body["environment"]["DATATROVE_JOB_ARRAY_INDEX"]
        try:
            dill.load(io.BytesIO(fsspec.open(pickled).open().read())).run()
        finally:
            del os.environ["DATATROVE_JOB_ARRAY_INDEX"]
        self.answer(f"job{len(self.asked)}")

    def do_GET(self) -> None:
        self.answer(self.path.rpartition("/")[2])

    def answer(self, job: str) -> None:
        owner = {"id": "1", "name": "user", "type": "user"}
        said = json.dumps({"id": job, "status": {"stage": "COMPLETED"}, "owner": owner})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    asked: list[dict[str, Any]] = []
    handler = type("Recorded", (Jobs,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(api, "endpoint", f"http://127.0.0.1:{server.server_port}")
    # The script goes to a bucket by Xet, which no local server speaks.
    monkeypatch.setattr(huggingface_hub.HfApi, "_upload_scripts_to_bucket", lambda *a, **k: [])
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("ignore:.*run_uv_job.*experimental:UserWarning")
def test_the_calls_of_jobs_rate_and_finish_a_remote_run(
    file: Path, jobs: list[dict[str, Any]], expected: dict[str, bytes]
) -> None:
    url = "memory://bucket/run"
    stream, source = sources.stream(str(file))
    rows, source = runs.spool(stream, url, source)
    run = runs.plan(rows, source, [SentenceScore("tiny-rater")], url, shard_size=2)
    settings = ["dependencies=selectit-hf[datatrove]", "token=hf_secretsecret", "poll_interval=0"]
    settings += ["namespace=user", "flavor=a10g-small", "secrets=AWS_SECRET_ACCESS_KEY=qwertyuiop"]
    built = Launch.of(run, "jobs", 3, settings)
    assert not [one for one in ("hf_secretsecret", "qwertyuiop") if one in built.describe()]
    done = built.start()
    assert [job["flavor"] for job in jobs] == ["a10g-small"] * 3 + ["cpu-basic"]
    assert {job["path"] for job in jobs} == {"/api/jobs/user"}
    assert {job["auth"] for job in jobs} == {"Bearer hf_secretsecret"}
    for job in jobs:
        assert job["secrets"] == {
            "HF_TOKEN": "hf_secretsecret",
            "AWS_SECRET_ACCESS_KEY": "qwertyuiop",
        }
        assert "hf_secretsecret" not in json.dumps(job["environment"])
        assert job["command"][:4] == ["uv", "run", "--with", "selectit-hf[datatrove]"]
    files = fsspec.filesystem("memory")
    there = {name: files.cat_file(name) for name in files.find("/bucket")}
    found = {
        name.removeprefix("/bucket/run/"): data
        for name, data in there.items()
        if name.endswith(".parquet")
    }
    assert found == expected
    assert any(done["logs"].removeprefix("memory:/") in name for name in there)
    assert not [name for name, data in there.items() if b"hf_secretsecret" in data]
    assert not [name for name in there if name.startswith("/bucket/run/") and ".pik" in name]


def test_jobs_need_a_remote_run_and_a_build(file: Path, run: Run) -> None:
    with pytest.raises(SettingError, match="bucket"):
        Launch.of(run, "jobs", 2, data=str(file))
    remote = planned(file, "memory://bucket/other")
    with pytest.raises(SettingError, match="--streaming"):
        Launch.of(remote, "jobs", 2, data=str(file))
