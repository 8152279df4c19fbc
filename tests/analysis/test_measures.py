"""Measuring the rows of a run: what is stored is not paid for again."""

from pathlib import Path
from typing import Any

import chaos
import pyarrow as pa
import pytest

from selectit_hf.analysis.measures import Cost, Measures
from selectit_hf.errors import RunError
from selectit_hf.runs import Run, open_run
from selectit_hf.selectors.selector import Measured

ROWS = chaos.make_rows()
STARTS = [f"Say {first}." for first in range(0, chaos.ROWS, chaos.SHARD_SIZE)]
"""The first instruction of each shard."""


class Lengths:
    """A measurement that notes which shards it is asked for."""

    column = "length"

    def __init__(self, unanswered: bool = False) -> None:
        self.asked: list[str] = []
        self.unanswered = unanswered

    def key(self) -> str:
        return "k" * 64

    def measure(self, batch: Any, progress: Any = None) -> Measured:
        self.asked.append(batch["instruction"][0])
        statuses = ["unanswered" if self.unanswered else "ok"] * len(batch["instruction"])
        if progress is not None:
            progress(len(statuses))
        lengths = [len(text) for text in batch["output"]]
        return Measured(pa.table({"status": statuses, "length": lengths}), len(statuses))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return chaos.start(tmp_path / "run", ROWS)[0]


def measure(run: Run, one: Lengths) -> tuple[Cost, int]:
    """What it paid, and how many rows its progress told of."""
    told: list[int] = []
    paid = Measures(open_run(run.where), ROWS).measure(one, told.append)
    return paid, sum(told)


def test_what_is_stored_is_not_measured_again(run: Run) -> None:
    first, second = Lengths(), Lengths()
    assert measure(run, first)[0].sequences == chaos.ROWS
    assert measure(run, second) == (Cost(), chaos.ROWS)
    assert (first.asked, second.asked) == (STARTS, [])
    stored = Measures(run, ROWS).table(first)
    assert stored["length"].to_pylist() == [len(text) for text in ROWS["output"]]
    assert Measures(run, ROWS).cost([first]).sequences == chaos.ROWS


def test_what_nobody_answered_is_asked_again(run: Run) -> None:
    measure(run, Lengths(unanswered=True))
    again = Lengths()
    assert measure(run, again)[1] == chaos.ROWS
    assert again.asked == STARTS
    assert set(Measures(run, ROWS).table(again)["status"].to_pylist()) == {"ok"}
    assert measure(run, Lengths()) == (Cost(), chaos.ROWS)


def test_a_damaged_shard_is_measured_again(run: Run) -> None:
    measure(run, Lengths())
    (table,) = Path(run.where).glob("measures/*/00002.*.parquet")
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    with pytest.raises(RunError, match="the rows 8 to 11"):
        Measures(open_run(run.where), ROWS).table(Lengths())
    again = Lengths()
    measure(run, again)
    assert again.asked == ["Say 8."]
    Measures(open_run(run.where), ROWS).table(again)


def test_other_rows_are_refused(run: Run) -> None:
    with pytest.raises(RunError, match="are not those of the run 'run'"):
        Measures(run, ROWS.map(lambda row: {"output": row["output"] + "!"}))
