"""The printed flags select the same rows again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from selectit_hf.json_files import json_object
from selectit_hf.selection.select_flags import cut_flags, ranking_flags


@pytest.mark.parametrize(
    "flags",
    [
        ("--by", "length", "--n", 7),
        ("--by", "diverse:length", "--n", 7),
        ("--alpha", 0.7000000001, "--threshold", 0.01),
        ("--by", "token", "--variant", "released", "--proportion", 0.29),
    ],
)
def test_the_same_rows_are_selected_again(
    flags: tuple[Any, ...],
    selectit: Callable[..., Any],
    data: Path,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    assert selectit("run", data, "--model", checkpoint, "--out", "run").code == 0
    assert selectit("select", "run", "--data", data, "--out", "one", *flags).code == 0
    chosen = json_object((tmp_path / "one" / "selection.json").read_bytes())
    assert chosen is not None
    again = [*ranking_flags(chosen), *cut_flags(chosen["cut"])]
    done = selectit("select", "run", "--data", data, "--out", "two", *again)
    assert done.code == 0, done.err
    one, two = (pq.read_table(tmp_path / name / "selected.parquet") for name in ("one", "two"))
    assert one.equals(two)
    shutil.rmtree(tmp_path / "run")
    refused = selectit("report", "one")
    assert refused.code == 1
    assert f"--out RUN {' '.join(again)}" in " ".join(refused.err.split())
