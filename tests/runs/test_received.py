"""A run folder that somebody else made or changed: nothing outside is touched, nothing false told.

The short form of ``scripts/checks/fuzz_folders.py``, and what it or a person found, one by one.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import make_rows, make_run
from folder_mutations import seal

from selectit_hf import runs, whole_files
from selectit_hf.analysis.finished_run import from_run
from selectit_hf.errors import RunError
from selectit_hf.hub import publishing
from selectit_hf.hub.card import CardSettings
from selectit_hf.json_files import json_object, misfit
from selectit_hf.report import page
from selectit_hf.selection.selection import Cut

ROOT = Path(__file__).resolve().parents[2]


def fuzz(*flags: object) -> dict[str, Any]:
    command = [sys.executable, ROOT / "scripts" / "checks" / "fuzz_folders.py", *flags]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_changed_folders_touch_nothing_outside() -> None:
    found = fuzz("--count", 100, "--workers", 2)
    assert found["violations"] == 0, found["examples"]
    assert found["folders"] == 100
    assert found["push: exit 0"] > 5
    assert found["push: exit 1"] > 30


@pytest.mark.parametrize("mutant", ["follow-links", "any-type"])
def test_checks_that_let_all_pass_are_caught(mutant: str) -> None:
    assert fuzz("--count", 40, "--workers", 2, "--mutant", mutant)["violations"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def write_json(path: Path, change: Callable[[Any], object]) -> None:
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    seal(path.parent, path)


@pytest.mark.parametrize("name", ["report", "report/images", "report/images/scores.png"])
def test_a_report_does_not_follow_a_link(run: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (outside / "images").mkdir(parents=True)
    (outside / "scores.png").write_bytes(b"theirs")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(outside / "scores.png" if name.endswith("png") else outside)
    with pytest.raises(RunError, match="links are not followed"):
        page.write_report(run, make_rows())
    assert sorted(p.name for p in outside.rglob("*")) == ["images", "scores.png"]
    assert (outside / "scores.png").read_bytes() == b"theirs"


@pytest.mark.parametrize("name", ["summary.json", "scores.parquet", "selected.parquet"])
@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(RunError, match=name):
        from_run(run)


@pytest.mark.parametrize("note", [{"at": ""}, {"at": 4e9, "rows": "x"}, {"at": None, "rows": 1}])
def test_odd_notes_of_progress_are_no_notes(run: Path, note: dict[str, Any]) -> None:
    (run / "progress").mkdir()
    (run / "progress" / "small.00000.json").write_text(json.dumps(note))
    assert runs.status(run)["models"]["small"]["in_progress"] == []


@pytest.mark.parametrize("number", [10**400, 2**63, float("nan"), float("inf")])
def test_numbers_without_bound_are_no_numbers(number: float) -> None:
    assert misfit({"a": number}, {"a": float}) == "a"
    assert misfit({"a": number}, {"a": int}) == "a"


def test_half_a_surrogate_pair_is_no_text() -> None:
    assert json_object(rb'{"a": "\ud83d\ude00"}') == {"a": "\U0001f600"}
    assert json_object(rb'{"a": "\ud83d"}') is None
    assert json_object(rb'{"a": "\\ud83d"}') == {"a": r"\ud83d"}


CONTRASTS: list[Callable[[Any], object]] = [
    lambda contrast: contrast["response_characters"]["edges"].pop(),
    lambda contrast: contrast["response_characters"]["selected"].pop(),
    lambda contrast: contrast["response_characters"].update(edges=[0] * 40),
    lambda contrast: contrast["selected"].pop("numeric_share"),
    lambda contrast: contrast.pop("response_characters"),
]


@pytest.mark.parametrize("change", CONTRASTS)
def test_a_summary_that_cannot_be_drawn(run: Path, change: Callable[[Any], object]) -> None:
    write_json(run / "summary.json", lambda facts: change(facts["contrast"]))
    with pytest.raises(RunError, match=r"summary\.json.*contrast"):
        from_run(run)


def retyped(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


TABLES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no rows": lambda table: table.slice(0, 0),
    "twice the rows": lambda table: pa.concat_tables([table, table]),
    "a column less": lambda table: table.drop_columns(["status__small"]),
    "scores that are texts": lambda table: retyped(
        table, "sentence_score__small", pa.array(["x"] * len(table))
    ),
    "ratings that are numbers": lambda table: retyped(
        table, "rating_logprobs__small", pa.array([1.0] * len(table))
    ),
    "metadata of another table": lambda table: table.replace_schema_metadata(
        {"huggingface": '{"info": {"features": {"x": {"_type": "Nope"}}}}'}
    ),
    "metadata that are no JSON": lambda table: table.replace_schema_metadata(
        {"huggingface": "[" * 100_000}
    ),
}


@pytest.mark.parametrize("name", ["scores.parquet", "selected.parquet"])
@pytest.mark.parametrize("kind", TABLES)
def test_results_of_another_schema(run: Path, name: str, kind: str) -> None:
    """The hashes fit, whoever computed them."""
    path = run / name
    pq.write_table(TABLES[kind](pq.read_table(path)), path)
    seal(run, path)
    with pytest.raises(RunError, match=name):
        from_run(run)


@pytest.mark.parametrize("status", ["", "nope", None])
def test_ratings_of_another_type_are_rated_again(run: Path, status: str | None) -> None:
    (path,) = (run / "ratings" / "small").glob("*.parquet")
    table = pq.read_table(path)
    pq.write_table(retyped(table, "status", pa.array([status] * len(table), pa.string())), path)
    seal(run, path)
    with pytest.raises(RunError, match="damaged"):
        runs.finish(runs.open_run(run), make_rows())
    assert runs.pending(runs.open_run(run)) == [("small", 0)]


def test_one_flipped_bit_of_any_file_is_not_published(run: Path) -> None:
    whole = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    assert len(whole) == 4 + 1 + 4
    for path, data in whole.items():
        for at in (len(data) // 3, len(data) // 2, len(data) - 9):
            flipped = bytearray(data)
            flipped[at] ^= 4
            path.write_bytes(flipped)
            with pytest.raises(RunError):
                from_run(run)
        path.write_bytes(data)
    from_run(run)


def test_a_selection_while_files_of_a_push_are_made(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole and consistent as it is, it is not the one that was begun with."""
    stage, pushed = publishing.stage, []

    def selected_meanwhile(*given: Any) -> Any:
        runs.finish(runs.open_run(run), make_rows(), cut=Cut(n=3))
        return stage(*given)

    monkeypatch.setattr(publishing, "stage", selected_meanwhile)
    monkeypatch.setattr(publishing, "_source_card", lambda api, source: {})
    monkeypatch.setattr(publishing, "plan_push", lambda *given: _Plan())
    monkeypatch.setattr(publishing, "push", lambda api, plan: pushed.append(plan))
    with pytest.raises(RunError, match="Another selection was written"):
        publishing.push_run(run, "user/picked", yes=True, card=CardSettings(), api=object())  # type: ignore[arg-type]
    assert not pushed


class _Plan:
    def describe(self) -> str:
        return ""


def test_a_selection_while_a_report_is_drawn(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render = page.render

    def selected_meanwhile(*given: Any, **how: Any) -> str:
        html = render(*given, **how)
        runs.finish(runs.open_run(run), make_rows(), cut=Cut(n=3))
        return html

    monkeypatch.setattr(page, "render", selected_meanwhile)
    with pytest.raises(RunError, match="Another selection was written"):
        page.write_report(run, make_rows())
    assert not (run / "report").exists()


def test_two_selections_at_once_are_never_mixed(run: Path) -> None:
    """Either all files are of one of them, or one says that the other was at work."""
    rows = make_rows()

    def select(n: int) -> bool:
        try:
            runs.finish(runs.open_run(run), rows, cut=Cut(n=n))
        except RunError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        done = [*pool.map(select, [3, 5] * 20)]
    assert any(done)
    assert from_run(run).facts["selection"]["selected"] in (3, 5)


def test_a_selection_while_another_places_its_files(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any file that one has placed, a whole other selection is refused."""
    said = []

    def another(point: str) -> None:
        if point == "file placed":
            monkeypatch.undo()
            with pytest.raises(RunError, match="is writing results"):
                runs.finish(runs.open_run(run), make_rows(), cut=Cut(n=5))
            said.append(point)
            monkeypatch.setattr(whole_files, "reached", another)

    monkeypatch.setattr(whole_files, "reached", another)
    runs.finish(runs.open_run(run), make_rows(), cut=Cut(n=3))
    monkeypatch.undo()
    assert len(said) == 4
    assert not [*run.rglob(".*.partial")]
    assert from_run(run).facts["selection"]["selected"] == 3


@pytest.mark.parametrize("number", range(4))
def test_a_kill_between_two_results(
    run: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the last one is placed nothing is published, and the same command makes all of them."""
    code = (
        "import os, signal, sys\n"
        "from finished_runs import make_rows\n"
        "from selectit_hf import runs, whole_files\n"
        "from selectit_hf.selection.selection import Cut\n"
        "placed = []\n"
        "def reached(point):\n"
        "    if point == 'file placed':\n"
        "        placed.append(point)\n"
        f"        if len(placed) == {number + 1}:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "whole_files.reached = reached\n"
        "runs.finish(runs.open_run(sys.argv[1]), make_rows(), cut=Cut(n=3))\n"
    )
    places = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)],
        env={**os.environ, "PYTHONPATH": places},
        timeout=200,
    )
    assert done.returncode == -signal.SIGKILL
    if number < 3:
        with pytest.raises(RunError, match="has no results yet"):
            from_run(run)
    else:
        assert from_run(run).facts["selection"]["selected"] == 3
    runs.finish(runs.open_run(run), make_rows(), cut=Cut(n=3))
    assert from_run(run).facts["selection"]["selected"] == 3
