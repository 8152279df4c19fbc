"""Trying the first rows: --limit and parts of splits, recorded as such, and grown afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import ROWS, Outcome
from datasets import Dataset, DatasetDict

from selectit_hf.errors import InputError
from selectit_hf.formats import first_rows, sources
from selectit_hf.formats.splits import start_of

MODEL = ("--model", "tiny-rater")


def planned(run: str) -> Any:
    return json.loads(Path(run, "plan.json").read_text())["input"]


@pytest.mark.parametrize("flags", [("--limit", 10), ("--split", "train[:10]")])
def test_the_first_rows_are_planned_as_such_and_grow_to_all(
    selectit: Callable[..., Outcome], data: Path, flags: tuple[Any, ...]
) -> None:
    first = selectit("run", data, *MODEL, "--out", "run", *flags)
    assert first.code == 0, first.err
    assert (planned("run")["rows"], planned("run")["split"]) == (10, "train[:10]")
    (before,) = Path("run/ratings/tiny_rater").glob("00000.json")
    rated = before.read_bytes()
    again = selectit("select", "run", "--data", data, "--n", 3, "--out", "three")
    assert again.code == 0, again.err

    assert selectit("run", data, *MODEL, "--out", "run").code == 0
    assert (planned("run")["rows"], planned("run")["split"]) == (30, "train")
    assert before.read_bytes() == rated
    whole = selectit("run", data, *MODEL, "--out", "whole")
    assert whole.code == 0
    grown, fresh = (pq.read_table(f"{run}/selected.parquet") for run in ("run", "whole"))
    assert grown["instruction"] == fresh["instruction"]

    fewer = selectit("run", data, *MODEL, "--out", "run", *flags)
    assert fewer.code == 1
    assert "more rows than are given now: omit --limit" in fewer.err
    assert selectit("run", data, *MODEL, "--out", "first", "--limit", 12).code == 0
    fewer = selectit("run", data, *MODEL, "--out", "first", "--limit", 10)
    assert "more rows than are given now: give --limit 12" in fewer.err


def test_plan_takes_a_limit_and_a_stream_keeps_only_the_first_rows(
    selectit: Callable[..., Outcome], data: Path
) -> None:
    for flags in ((), ("--streaming",)):
        done = selectit("plan", data, *MODEL, "--out", f"run{len(flags)}", "--limit", 4, *flags)
        assert done.code == 0, done.err
        said = planned(f"run{len(flags)}")
        assert (said["rows"], said["split"]) == (4, "train[:4]")


def test_more_rows_than_there_are_is_the_whole_split(data: Path) -> None:
    rows, source = sources.load(str(data), first_rows(None, 1000))
    assert (len(rows), source.split) == (30, "train")


def test_the_first_rows_of_any_split_of_a_folder(tmp_path: Path) -> None:
    rows = Dataset.from_list(ROWS)
    DatasetDict({"train": rows, "test": rows.select(range(20, 30))}).save_to_disk(tmp_path / "d")
    found, source = sources.load(str(tmp_path / "d"), first_rows("test", 2))
    assert found["instruction"][:] == ["Say 20.", "Say 21."]
    assert source.split == "test[:2]"
    rows.save_to_disk(tmp_path / "one")
    found, source = sources.load(str(tmp_path / "one"), first_rows(None, 2))
    assert (found["instruction"][:], source.split) == (["Say 0.", "Say 1."], "train[:2]")


def test_a_stream_gives_its_first_rows_and_no_other_part() -> None:
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    rows, called = start_of(stream, "train", "[:3]")
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in ROWS[:3]]
    assert called == "train[:3]"
    for part in ("[3:6]", "[:10%]", "[-5:]"):
        with pytest.raises(InputError, match="reads a split or its first rows"):
            start_of(stream, "train", part)


def test_two_names_of_a_part_contradict_each_other(
    selectit: Callable[..., Outcome], data: Path
) -> None:
    done = selectit("run", data, *MODEL, "--out", "r", "--limit", 3, "--split", "train[5:]")
    assert done.code == 1
    assert "omit one of them" in done.err
    assert not Path("r").exists()
