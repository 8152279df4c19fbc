"""Measuring the rows of a run, by one and by several at once."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chaos
import pyarrow as pa
import pytest

from selectit_hf import claims
from selectit_hf.errors import RunError
from selectit_hf.fingerprint import fingerprint
from selectit_hf.measures import Cost, Measures
from selectit_hf.runs import Run
from selectit_hf.selectors import Measured

STARTS = [f"Say {first}." for first in range(0, chaos.ROWS, chaos.SHARD_SIZE)]
"""The first instruction of each shard."""


class Slow:
    """A measurement that notes which shards it is asked for; and before the first meets others."""

    column = "length"

    def __init__(self, meet: Callable[[], object], unanswered: bool = False) -> None:
        self.asked: list[str] = []
        self.meet, self.unanswered = meet, unanswered

    def key(self) -> str:
        return "k" * 64

    def measure(self, batch: Any, progress: Any = None) -> Measured:
        self.asked.append(batch["instruction"][0])
        if len(self.asked) == 1:
            self.meet()
        statuses = ["unanswered" if self.unanswered else "ok"] * len(batch["instruction"])
        if progress is not None:
            progress(len(statuses))
        lengths = [len(text) for text in batch["output"]]
        return Measured(pa.table({"status": statuses, "length": lengths}), len(statuses))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    started, _ = chaos.start(tmp_path / "run", chaos.make_rows())
    started.plan["input"]["fingerprint"] = fingerprint(chaos.make_rows())
    return started


def at_once(run: Run, *measurements: Slow) -> list[tuple[Cost, int]]:
    """What each paid, and how many rows its progress told of."""
    found: list[tuple[Cost, int]] = []

    def one(measurement: Slow) -> None:
        told: list[int] = []
        measures = Measures(run, chaos.make_rows())
        found.append((measures.measure(measurement, told.append), sum(told)))

    threads = [threading.Thread(target=one, args=(each,)) for each in measurements]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_two_at_once_share_the_shards(run: Run) -> None:
    meet = threading.Barrier(2, timeout=30)
    both = [Slow(meet.wait), Slow(meet.wait)]
    found = at_once(run, *both)
    assert all(each.asked for each in both)
    assert sorted(both[0].asked + both[1].asked) == sorted(STARTS)
    assert sum(paid.sequences for paid, _ in found) == chaos.ROWS
    assert [rows for _, rows in found] == [chaos.ROWS] * 2
    stored = Measures(run, chaos.make_rows()).table(both[0])
    assert stored["length"].to_pylist() == [len(t) for t in chaos.make_rows()["output"]]


def test_two_at_once_ask_again_together(run: Run) -> None:
    (first,) = at_once(run, Slow(lambda: None, unanswered=True))
    assert first[0].sequences == chaos.ROWS
    meet = threading.Barrier(2, timeout=30)
    both = [Slow(meet.wait), Slow(meet.wait)]
    found = at_once(run, *both)
    assert all(each.asked for each in both)
    assert sorted(both[0].asked + both[1].asked) == sorted(STARTS)
    assert [rows for _, rows in found] == [chaos.ROWS] * 2
    assert set(Measures(run, chaos.make_rows()).table(both[0])["status"].to_pylist()) == {"ok"}


def test_what_nobody_answers_is_asked_once_by_two_and_once_more_by_the_next(run: Run) -> None:
    for _ in range(2):
        meet = threading.Barrier(2, timeout=30)
        both = [Slow(meet.wait, unanswered=True), Slow(meet.wait, unanswered=True)]
        at_once(run, *both)
        assert sorted(both[0].asked + both[1].asked) == sorted(STARTS)


def test_a_shard_that_is_just_replaced_is_waited_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, measures = Slow(lambda: None), Measures(run, chaos.make_rows())
    measures.measure(one)
    expected = measures.table(one)
    (sidecar,) = run.folder.glob("measures/*/00002.json")
    said = sidecar.read_bytes()
    claim = claims.take(sidecar.with_suffix(".claim"))
    assert claim is not None
    with claim:
        sidecar.write_bytes(b"{}")
        there = SimpleNamespace(sleep=lambda seconds: sidecar.write_bytes(said))
        monkeypatch.setattr("selectit_hf.measures.time", there)
        assert measures.table(one).equals(expected)
    sidecar.write_bytes(b"{}")
    with pytest.raises(RunError, match="The rows 8 to 11"):
        measures.table(one)
