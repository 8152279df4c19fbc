"""The command as a person uses it: flags, files, errors, exit codes, Ctrl-C."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import ROWS, Outcome
from datasets import Dataset, DatasetDict

from selectit_hf import runs
from selectit_hf.cli import app, display
from selectit_hf.formats import sources
from selectit_hf.rating.engine.engine import Engine
from selectit_hf.runs.engines import local


def test_run_writes_the_folder_and_says_what_came_out(
    selectit: Callable[..., Outcome], data: Path, checkpoint: Path
) -> None:
    done = selectit("run", data, "--model", checkpoint, "--out", "run", "--proportion", 0.1)
    assert done.code == 0, done.err
    assert pq.read_table("run/selected.parquet").num_rows == 3
    for word in ("rows", "selected", "threshold", "median", "30 ok", "best", "worst"):
        assert word in done.out
    assert "30 rows of rows.json, read as Alpaca: instruction, output, input" in done.err
    assert "hardly understood the question" in done.err


def test_run_json_is_for_machines(
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    second = make_checkpoint(tmp_path / "second", seed=2)
    models = ("--model", checkpoint, "--model", second)
    done = selectit("run", data, *models, "--out", "run", "--n", 4, "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["selected"] == 4
    assert summary["by"] == "model_score"
    assert set(summary["models"]) == {"random_llama", "second"}
    table = pq.read_table("run/scores.parquet")
    assert {"model_score", "selectit_status", "sentence_score__second"} < set(table.column_names)


def test_select_again_without_a_model(
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    selectit("run", data, "--model", checkpoint, "--out", "run")
    monkeypatch.setattr(Engine, "__init__", lambda *args: pytest.fail("a model was loaded"))
    again = ("select", "run", "--out", "other", "--alpha", 2, "--by", "token", "--n", 7)
    assert selectit(*again, "--data", data).code == 0
    assert pq.read_table("other/selected.parquet").num_rows == 7
    assert json.loads(Path("other/selection.json").read_text())["reflection"]["alpha"] == 2
    assert pq.read_table("run/selected.parquet").num_rows == 6
    unread = selectit(*again, "--data", data, "--device", "cpu")
    assert unread.code == 1
    assert "apply only to --by ifd" in unread.err
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)  # nothing is remembered
    missing = selectit(*again)
    assert missing.code == 1
    assert "give it again with --data" in missing.err
    data.write_text(json.dumps(ROWS[:-1]))
    changed = selectit(*again, "--data", data)
    assert changed.code == 1
    assert "has changed since it was rated" in changed.err


def test_a_run_with_a_device_map_is_the_same_run(
    selectit: Callable[..., Outcome], data: Path, checkpoint: Path
) -> None:
    """The same plan and bytes as a run that has none, and gone on with without it."""
    command = ("run", data, "--model", checkpoint, "--shard-size", 20, "--out")
    assert selectit(*command, "plain").code == 0
    done = selectit(*command, "spread", "--device-map", "auto")
    assert done.code == 0, done.err
    names = ("plan.json", "scores.parquet", "selected.parquet", "selection.json")
    for name in names:
        assert Path("spread", name).read_bytes() == Path("plain", name).read_bytes(), name
    Path("spread/ratings/random_llama/00001.json").unlink()
    assert selectit(*command, "spread").code == 0


WITHOUT_A_MODEL = """
import sys
from selectit_hf.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
assert not {"torch", "accelerate"} & set(sys.modules)
"""


def test_what_asks_no_model_does_not_wait_for_torch(
    selectit: Callable[..., Outcome], data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    selectit("run", data, "--model", checkpoint, "--out", "run")
    select = ("select", "run", "--data", str(data), "--n", "3", "--out", "three")
    for command in (("status", "run"), select):
        given = [sys.executable, "-c", WITHOUT_A_MODEL, *command]
        subprocess.run(given, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert pq.read_table("three/selected.parquet").num_rows == 3


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ""])
def test_score_then_select(
    selectit: Callable[..., Outcome], data: Path, checkpoint: Path, ending: str
) -> None:
    scored, kept = f"scored{ending}", f"kept{ending}"
    assert selectit("score", data, "--model", checkpoint, "--out", scored).code == 0
    done = selectit("select", scored, "--out", kept, "--proportion", 0.5, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["selected"] == 15
    loaded = Dataset.load_from_disk(kept) if not ending else None
    if ending == ".parquet":
        loaded = Dataset.from_parquet(kept)
    if ending == ".jsonl":
        loaded = Dataset.from_json(kept)
    assert loaded is not None
    assert len(loaded) == 15
    assert {"instruction", "sentence_score__random_llama"} < set(loaded.column_names)
    for flags in (("--alpha", 1), ("--device", "cpu")):
        refused = selectit("select", scored, "--out", kept, *flags)
        assert refused.code == 1
        assert "need a run" in refused.err


def test_scoring_a_scored_file_again_rates_nothing(
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    selectit("score", data, "--model", checkpoint, "--out", "scored.parquet")
    monkeypatch.setattr(Engine, "next_token_logprobs", lambda *a: pytest.fail("a model was asked"))
    again = ("score", "scored.parquet", "--model", checkpoint, "--alpha", 1, "--out", "b.parquet")
    assert selectit(*again).code == 0
    name = "sentence_score__random_llama"
    assert pq.read_table("b.parquet")[name] != pq.read_table("scored.parquet")[name]


MODEL = "MODEL"
ERRORS: dict[str, tuple[list[Any], str]] = {
    "missing file": (["run", "no.json", "--out", "r"], "There is no file 'no.json'"),
    "unknown ending": (["run", "rows.txt", "--out", "r"], "'rows.txt' is not one of .json"),
    "bad name": (["run", "a b", "--out", "r"], "There is no dataset 'a b'"),
    "split of a file": (["run", "DATA", "--split", "test", "--out", "r"], "no split 'test'"),
    "k": (["run", "DATA", "--model", MODEL, "--k", 12, "--out", "r"], "2 to 9"),
    "variant": (["run", "DATA", "--model", MODEL, "--variant", "new", "--out", "r"], "'released'"),
    "both cuts": (["run", "DATA", "--n", 3, "--proportion", 0.5, "--out", "r"], "contradict"),
    "weights": (["run", "DATA", "--weights", "a,b", "--out", "r"], "as in 7,13,70"),
    "device": (["run", "DATA", "--model", MODEL, "--device", "tpu9", "--out", "r"], "tpu9"),
    "device map": (
        ["run", "DATA", "--model", MODEL, "--device-map", "all", "--out", "r"],
        "choose one of auto, balanced",
    ),
    "device and map": (
        ["score", "DATA", "--device", "cpu", "--device-map", "auto", "--out", "r.jsonl"],
        "contradict each other",
    ),
    "dtype": (["run", "DATA", "--model", MODEL, "--dtype", "int3", "--out", "r"], "float32"),
    "prompt file": (
        ["run", "DATA", "--model", MODEL, "--rating-prompts", "none.txt", "--out", "r"],
        "none.txt",
    ),
    "few prompts": (
        ["run", "DATA", "--model", MODEL, "--rating-prompts", "two.txt", "--out", "r"],
        "2 rating prompts given and k=5 needs 5",
    ),
    "template file": (["run", "DATA", "--template", "none.txt", "--out", "r"], "none.txt"),
    "columns": (["run", "other.csv", "--model", MODEL, "--out", "r"], "--instruction-column"),
    "one column": (
        ["run", "DATA", "--model", MODEL, "--instruction-column", "input", "--out", "r"],
        "go together",
    ),
    "no such column": (
        [
            *["run", "DATA", "--model", MODEL, "--out", "r"],
            *["--instruction-column", "input", "--response-column", "answer"],
        ],
        "'answer' is not in the dataset",
    ),
    "empty": (["run", "empty.json", "--model", MODEL, "--out", "r"], "empty.json"),
    "broken json": (["run", "broken.json", "--model", MODEL, "--out", "r"], "broken.json"),
    "no checkpoint": (["run", "DATA", "--model", "folder", "--out", "r"], "no config.json"),
    "several turns": (["run", "talk.jsonl", "--model", MODEL, "--out", "r"], "--turns first"),
    "translation": (["run", "pairs.jsonl", "--model", MODEL, "--out", "r"], "--translation de:en"),
    "out taken": (["run", "DATA", "--model", MODEL, "--out", "folder"], "no plan.json"),
    "no run": (["select", "folder", "--out", "r.parquet"], "folder"),
    "ending of out": (["score", "DATA", "--model", MODEL, "--out", "a.csv"], ".parquet or .jsonl"),
    "released with one model": (
        ["run", "DATA", "--model", MODEL, "--variant", "released", "--by", "model", "--out", "r"],
        "no model score",
    ),
    "released with k": (
        ["run", "DATA", "--model", MODEL, "--variant", "released", "--k", 3, "--out", "r"],
        "k=5 only",
    ),
    "alpha": (["run", "DATA", "--model", MODEL, "--alpha", -1, "--out", "r"], "at least 0"),
    "weights of one": (
        ["run", "DATA", "--model", MODEL, "--weights", "1,2", "--out", "r"],
        "this run has only one",
    ),
    "turns of score": (["score", "talk.jsonl", "--model", MODEL, "--out", "r"], "--turns first"),
    "out is a file": (["run", "DATA", "--model", MODEL, "--out", "two.txt"], "is a file"),
    "out in a file": (["run", "DATA", "--model", MODEL, "--out", "two.txt/r"], "Check the path"),
    "out in the cloud": (
        ["run", "DATA", "--model", MODEL, "--out", "nothing://bucket/run"],
        "mount the storage",
    ),
    "no scores": (["select", "DATA", "--out", "r.parquet"], "score the dataset first"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_a_paragraph_with_a_remedy(
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Engine, "__init__", lambda *args: pytest.fail("a model was loaded"))
    Path("rows.txt").write_text("x")
    Path("two.txt").write_text("1 to 5?\n1 to 5!\n")
    Path("other.csv").write_text("text\na\n")
    Path("empty.json").write_text("[]")
    Path("broken.json").write_text('[{"instruction": "a", ')
    Path("folder").mkdir()
    Path("folder/file").write_text("x")
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    Path("talk.jsonl").write_text(json.dumps({"messages": turn * 2}))
    Path("pairs.jsonl").write_text(json.dumps({"translation": {"de": "a", "en": "b"}}))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments, message = ERRORS[case]
    given = [{"DATA": data, MODEL: checkpoint}.get(word, word) for word in arguments]
    done = selectit(*given)
    assert done.code == 1, done
    assert "Error: " in done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert not Path("r/ratings").exists()
    assert not Path("r/selected.parquet").exists()


def test_select_again_from_a_split_of_a_saved_dataset(
    selectit: Callable[..., Outcome], checkpoint: Path
) -> None:
    rows = Dataset.from_list(ROWS)
    DatasetDict({"train": rows, "test": rows}).save_to_disk("saved")
    assert (
        selectit("run", "saved", "--split", "train", "--model", checkpoint, "--out", "run").code
        == 0
    )
    done = selectit("select", "run", "--data", "saved", "--n", 3, "--out", "three")
    assert done.code == 0, done.err
    assert pq.read_table("three/selected.parquet").num_rows == 3
    refused = selectit("select", "run", "--data", "saved", "--out", "three.parquet")
    assert "name a folder" in refused.err


def test_a_fault_of_ours_says_so(
    selectit: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(sources, "load", broken)
    done = selectit("run", "x.json", "--out", "r")
    assert done.code == 70
    assert "--debug" in done.err
    assert "Traceback" not in done.err


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["selectit", "run", "no.json", "--out", "r", "--debug"])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_wrong_usage_is_code_2(selectit: Callable[..., Outcome]) -> None:
    assert selectit("run").code == 2
    assert selectit("run", "x.json", "--out", "r", "--k", "five").code == 2
    assert selectit("run", "x.json", "--out", "r", "--proportion", "2").code == 2


def test_status_of_a_run_and_of_a_damaged_one(
    selectit: Callable[..., Outcome], data: Path, checkpoint: Path
) -> None:
    selectit("run", data, "--model", checkpoint, "--out", "run", "--shard-size", 12)
    done = selectit("status", "run")
    assert "30 of 30 rows, 3 of 3 shards done, 0 in progress, 0 bad" in done.out
    assert "written" in done.out
    (table,) = Path("run/ratings/random_llama").glob("00001.*.parquet")
    table.write_bytes(b"")
    done = selectit("status", "run", "--json")
    facts = json.loads(done.out)
    assert facts["models"]["random_llama"]["bad"] == [1]
    assert "rows 12 to 23" in facts["wrong"][0]
    assert "wrong: the rows 12 to 23" in selectit("status", "run").out
    again = selectit("run", data, "--model", checkpoint, "--out", "run", "--json")
    assert again.code == 0, again.err
    assert json.loads(selectit("status", "run", "--json").out)["wrong"] == []
    plan = json.loads(Path("run/plan.json").read_text())
    del plan["input"]["rows"]
    Path("run/plan.json").write_text(json.dumps(plan))
    refused = selectit("status", "run")
    assert refused.code == 1
    assert "plan.json was changed after it was written" in refused.err


def test_plan_rate_and_finish_are_what_run_does(
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)  # nothing is remembered
    flags = ("--model", checkpoint, "--shard-size", 7, "--out")
    assert selectit("run", data, *flags, "straight").code == 0
    done = selectit("plan", data, *flags, "run", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["pending"] == 5
    again = ("--data", data)
    refused = selectit("finish", "run", *again)
    assert refused.code == 1
    assert "the rows 0 to 6, the rows 7 to 13" in refused.err
    needed = selectit("rate", "run", *again)
    assert "'random-llama' was a folder" in needed.err
    models = ("--model", checkpoint)
    assert "--world" in selectit("rate", "run", "--rank", 1, *models, *again).err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "7")
    for given, rank, left in (((), 1, 3), (("--rank", 0), 0, 0)):
        done = selectit("rate", "run", *given, "--world", 2, *models, *again, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out) == {"rank": rank, "world": 2, "pending": left}
    done = selectit("finish", "run", *again)
    assert done.code == 0, done.err
    assert run_of(Path("run")) == run_of(Path("straight"))


def test_a_second_run_in_the_same_folder_is_kept_out(
    selectit: Callable[..., Outcome], data: Path, checkpoint: Path
) -> None:
    command = ("run", data, "--model", checkpoint, "--out", "run")
    with local.alone(runs.open_store("run")):
        child = os.fork()
        if child == 0:
            os._exit(selectit(*command).code)
        assert exit_codes([child]) == [1]
        refused = selectit(*command)
        assert "selectit launch" in refused.err
        assert "selectit rate" in refused.err
    assert selectit(*command).code == 0


def test_a_stream_is_put_into_the_run_folder_once(
    selectit: Callable[..., Outcome], data: Path, checkpoint: Path
) -> None:
    flags = ("run", data, "--model", checkpoint, "--n", 3)
    assert selectit(*flags, "--out", "plain").code == 0
    done = selectit(*flags, "--out", "run", "--streaming")
    assert done.code == 0, done.err
    assert len(list(Path("run/rows").glob("*.arrow"))) == 1
    for name in ("scores.parquet", "selected.parquet", "selection.json", "summary.json"):
        assert Path("run", name).read_bytes() == Path("plain", name).read_bytes(), name
    again = selectit("select", "run", "--out", "run", "--n", 4)  # its rows are there
    assert again.code == 0, again.err
    Path("other").mkdir()
    Path("other/notes.txt").write_text("mine")
    refused = selectit(*flags, "--out", "other", "--streaming")
    assert "no plan.json" in refused.err
    assert [path.name for path in Path("other").iterdir()] == ["notes.txt"]


# Launchers, by the environment they set; the processes are forked here, which is quick


def launched(environment: dict[str, str], arguments: list[object], out: Path) -> int:
    """Run the command in a child process; its pid."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.environ.update(environment)
        sys.stdout = sys.stderr = out.open("w")
        sys.argv = ["selectit", *map(str, arguments)]
        app.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def torchrun(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}


def array(task: int) -> dict[str, str]:
    return {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "3"}


def run_of(folder: Path) -> dict[str, bytes]:
    paths = [*folder.rglob("*.parquet"), folder / "selection.json", folder / "summary.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def exit_codes(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.fixture
def straight(selectit: Callable[..., Outcome], data: Path, checkpoint: Path) -> dict[str, bytes]:
    flags = ("--model", checkpoint, "--shard-size", 2, "--out", "straight")
    assert selectit("run", data, *flags).code == 0
    return run_of(Path("straight"))


def test_ranks_of_which_one_is_killed_and_comes_back(
    straight: dict[str, bytes], data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ["run", data, "--model", checkpoint, "--shard-size", 2, "--out", "many"]
    arguments += ["--wait", "60"]
    logs = [tmp_path / f"{name}.log" for name in ("zero", "one", "again")]
    zero = launched(torchrun(0), arguments, logs[0])
    one = launched(torchrun(1), arguments, logs[1])
    deadline = time.monotonic() + 60
    while not list(Path("many").rglob("0000[1357].json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(one, signal.SIGKILL)
    again = launched(torchrun(1), arguments, logs[2])
    assert exit_codes([zero, one, again]) == [0, -signal.SIGKILL, 0], logs[0].read_text()
    assert run_of(Path("many")) == straight
    assert "6 selected rows are in" in logs[0].read_text()
    assert logs[1].read_text() == logs[2].read_text() == ""


def test_rank_0_takes_over_from_a_task_that_never_comes(
    straight: dict[str, bytes], data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ["run", data, "--model", checkpoint, "--shard-size", 2, "--out", "many"]
    arguments += ["--wait", "0.2"]
    logs = [tmp_path / f"{task}.log" for task in range(3)]
    children = [launched(array(task), arguments, logs[task]) for task in (2, 0)]
    assert exit_codes(children) == [0, 0], logs[0].read_text()
    assert run_of(Path("many")) == straight
    assert "30/30 rows" in logs[0].read_text()


def test_an_error_of_any_rank_is_shown(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ["run", data, "--model", checkpoint, "--out", tmp_path / "r", "--workers", 4]
    assert exit_codes([launched(torchrun(1), arguments, log)]) == [1]
    text = " ".join(log.read_text().split())
    assert "--workers 4 and a launcher of 2 processes contradict each other" in text


@pytest.mark.parametrize("command", ["", "run", "score", "select", "demo", "status", "rate"])
def test_help_teaches(selectit: Callable[..., Outcome], command: str) -> None:
    done = selectit(*command.split(), "--help")
    assert done.code == 0
    words = ("--debug",) if command in ("status", "rate") else ("--out", "--debug")
    for word in ("run", "score", "select", "demo", "status") if not command else words:
        assert word in done.out


def test_values_of_rows_are_not_markup(
    selectit: Callable[..., Outcome], checkpoint: Path, tmp_path: Path
) -> None:
    rows = [{"instruction": "[bold]x[/bold] [/]", "output": "[red]y"}] * 3
    (tmp_path / "markup.json").write_text(json.dumps(rows))
    done = selectit("run", "markup.json", "--model", checkpoint, "--out", "run")
    assert done.code == 0, done.err
    assert "[bold]x[/bold] [/]" in done.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_finalizer_dropped_is_heeded_at_the_next_batch(
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    original = Engine.next_token_logprobs

    def dropping(self: Engine, *arguments: Any, **others: Any) -> Any:
        with suppress(KeyboardInterrupt, SystemExit):
            signal.raise_signal(number)
        return original(self, *arguments, **others)

    monkeypatch.setattr(Engine, "next_token_logprobs", dropping)
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    try:
        done = selectit("run", data, "--model", checkpoint, "--out", "run")
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert done.code == code
    assert not Path("run/selected.parquet").exists()
    assert not list(Path("run").rglob("*.partial"))


def test_a_run_in_object_storage_by_its_url_from_any_machine(
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, there = "memory://bucket/run", runs.open_store("memory://bucket")
    done = selectit("run", data, "--model", checkpoint, "--out", url)
    assert done.code == 0, done.err
    assert f"6 selected rows are in\n{url}/selected.parquet\n" in done.err
    assert there.exists("run/selected.parquet")
    monkeypatch.setattr(Engine, "next_token_logprobs", lambda *_: pytest.fail("rated again"))
    done = selectit("status", url, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["finished"]
    done = selectit("select", url, "--out", f"{url}-3", "--n", 3, "--data", data, "--json")
    assert done.code == 0, done.err
    with there.parquet("run-3/selected.parquet") as file:
        assert file.read().num_rows == 3
    again = ("--data", data, "--model", checkpoint)
    done = selectit("compare", url, "--by", "sentence", "--by", "random", *again, "--json")
    assert done.code == 0, done.err
    done = selectit("report", url, "--data", data, "--json")
    assert done.code == 0, done.err
    assert there.exists("run/report/report.html")
    doubts = json.loads(done.out)["cautions"]
    assert doubts  # of a model with random weights
    page = " ".join(html.unescape(there.read("run/report/report.html").decode()).split())
    assert all(words in page for words in doubts)
    said = selectit("report", url, "--data", data).err
    assert all(words in " ".join(said.split()) for words in doubts)

    done = selectit("select", data, "--out", url, "--n", 3)
    assert done.code == 1
    assert "give a file" in done.err
    done = selectit("status", "memory://bucket/nothing")
    assert done.code == 1
    assert "is not a run folder: it has no plan.json" in done.err


@pytest.mark.parametrize("command", [["score", "x.json"], ["report", "run"]])
def test_what_is_written_to_this_machine_takes_no_url(
    selectit: Callable[..., Outcome], command: list[str]
) -> None:
    Path("run").mkdir()
    done = selectit(*command, "--out", "s3://bucket/out")
    assert done.code == 2
    assert "s3://bucket/out is a URL" in done.err
    assert not Path("s3:").exists()


def test_ctrl_c_leaves_whole_shards_and_the_same_command_goes_on(
    selectit: Callable[..., Outcome], data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    command = ["run", str(data), "--model", str(checkpoint), "--shard-size", "1", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "selectit_hf", *command, str(tmp_path / "stopped")],
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores the signal, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    shard = tmp_path / "stopped" / "ratings" / "random_llama" / "00000.json"
    deadline = time.monotonic() + 100
    while not shard.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "The same command resumes" in err
    assert "Traceback" not in err
    assert not (tmp_path / "stopped" / "selected.parquet").exists()
    for folder in ("stopped", "straight"):
        done = selectit(*command, tmp_path / folder)
        assert done.code == 0, done.err
    files = [
        {p.name: p.read_bytes() for p in (tmp_path / folder).rglob("*.parquet")}
        for folder in ("stopped", "straight")
    ]
    assert len(files[0]) == 32
    assert files[0] == files[1]


def test_without_a_terminal_progress_is_told_line_by_line(
    selectit: Callable[..., Outcome],
    data: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ("--model", checkpoint, "--shard-size", 10)
    monkeypatch.setattr(display, "EVERY", 0.0)
    done = selectit("run", data, *flags, "--out", "run")
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("random_llama ")]
    assert len(lines) > 3
    assert any("10/30 rows" in line and "rows/s" in line for line in lines)
    assert "selectit export run --format messages" in " ".join(done.err.split())
    checked = selectit("check", data, "--model", checkpoint, "--rows", 4)
    lines = [line for line in checked.err.splitlines() if line.startswith("random_llama ")]
    done, all_prompts = re.findall(r"(\d+)/(\d+) prompts", lines[-1])[0]
    assert done == all_prompts
    (Path("run") / "selection.json").unlink()
    early = selectit("report", "run")
    assert (early.code, "has no results yet" in early.err) == (1, True)
