"""Streams put on the disk: every row, in order, with the types of all rows, or nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, IterableDataset, List, Value

from selectit_hf.errors import InputError, RunError
from selectit_hf.formats import sources
from selectit_hf.formats.fingerprints import fingerprint
from selectit_hf.formats.sources import Source
from selectit_hf.runs import spool, streamed_rows
from selectit_hf.runs.store import Store

SOURCE = Source("org/rows", None, "train", "0")


def streamed(rows: list[dict[str, Any]], features: Features | None = None) -> IterableDataset:
    return IterableDataset.from_generator(rows.__iter__, features=features)


def plain(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Say {i}.", "output": f"{i}" * (i % 7)} for i in range(count)]


@pytest.mark.parametrize("count", [1, 999, 1000, 2001])
@pytest.mark.parametrize("typed", [True, False])
def test_every_row_in_order(tmp_path, count, typed):
    rows = plain(count)
    features = Features({name: Value("string") for name in rows[0]}) if typed else None
    dataset, source = spool(streamed(rows, features), tmp_path)
    assert dataset.to_list() == rows
    assert dataset.features == Dataset.from_list(rows).features
    assert source == Source("stream", None, "train", fingerprint(Dataset.from_list(rows)))
    endings = sorted(path.suffix for path in (tmp_path / "rows").iterdir())
    assert endings == [".arrow", ".json"]


def test_types_that_become_clear_late(tmp_path):
    """Nulls before texts, whole numbers before fractions, fields that come later."""
    rows = [
        {
            "late": None if i < 1500 else f"text {i}",
            "number": i if i < 2200 else i + 0.5,
            "nested": {"a": [i]} if i < 1200 else {"a": None, "b": "x"},
        }
        for i in range(3100)
    ]
    dataset, _ = spool(streamed(rows), tmp_path)
    expected = [{**row, "nested": {"b": None, **row["nested"]}} for row in rows]
    assert dataset.to_list() == expected
    assert dataset.features == Features(
        {
            "late": Value("string"),
            "number": Value("float64"),
            "nested": {"a": List(Value("int64")), "b": Value("string")},
        }
    )


def test_types_that_do_not_go_together(tmp_path):
    rows = [{"a": {"b": 1} if i < 1000 else "text"} for i in range(1500)]
    with pytest.raises(InputError, match=r"incompatible types.*stream\.cast"):
        spool(streamed(rows), tmp_path)
    assert not list((tmp_path / "rows").iterdir())


def test_a_stream_that_breaks_leaves_nothing_and_is_read_again(tmp_path):
    def breaks() -> Iterator[dict[str, Any]]:
        yield from plain(1500)
        raise OSError("the line went dead")

    with pytest.raises(InputError, match="the line went dead"):
        spool(IterableDataset.from_generator(breaks), tmp_path, SOURCE)
    assert streamed_rows.streamed(Store(tmp_path), SOURCE) is None
    assert not list((tmp_path / "rows").iterdir())
    assert spool(streamed(plain(7)), tmp_path, SOURCE)[0].to_list() == plain(7)


def test_an_empty_stream_is_refused(tmp_path):
    with pytest.raises(InputError, match="'org/rows' has no rows"):
        spool(streamed([]), tmp_path, SOURCE)


def test_the_same_source_is_not_read_twice(tmp_path):
    def never() -> Iterator[dict[str, Any]]:
        raise AssertionError
        yield

    spool(streamed(plain(9)), tmp_path, SOURCE)
    again, source = spool(IterableDataset.from_generator(never), tmp_path, SOURCE)
    assert again.to_list() == plain(9)
    assert source == SOURCE
    other = Source("org/rows", None, "train", "1")
    assert spool(streamed(plain(12)), tmp_path, other)[0].to_list() == plain(12)
    assert streamed_rows.streamed(Store(tmp_path), SOURCE).to_list() == plain(9)  # still there


@pytest.mark.parametrize("damage", ["no sidecar", "no json", "a row less", "garbage", "one bit"])
def test_half_a_spool_is_none(tmp_path, damage):
    spool(streamed(plain(9)), tmp_path, SOURCE)
    (sidecar,) = (tmp_path / "rows").glob("*.json")
    (arrow,) = (tmp_path / "rows").glob("*.arrow")
    if damage == "no sidecar":
        sidecar.unlink()
    elif damage == "no json":
        sidecar.write_text("{")
    elif damage == "garbage":
        arrow.write_bytes(b"garbage")
    elif damage == "one bit":
        data = bytearray(arrow.read_bytes())
        data[len(data) // 2] ^= 1
        arrow.write_bytes(data)
    else:
        facts = json.loads(sidecar.read_text())
        sidecar.write_text(json.dumps(facts | {"rows": 8}))
    if damage in ("garbage", "one bit"):
        with pytest.raises(RunError, match="its hash differs"):
            streamed_rows.streamed(Store(tmp_path), SOURCE)
    else:
        assert streamed_rows.streamed(Store(tmp_path), SOURCE) is None
    assert spool(streamed(plain(9)), tmp_path, SOURCE)[0].to_list() == plain(9)


def test_rows_of_a_remote_run_lie_there(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    spool(streamed(plain(9)), "memory://bucket/run", SOURCE)
    assert len(Store("memory://bucket/run").sizes("rows")) == 2
    (kept,) = (tmp_path / "selectit_hf").glob("*.arrow")
    kept.unlink()  # another machine
    found = streamed_rows.streamed(Store("memory://bucket/run"), SOURCE)
    assert found.to_list() == plain(9)


# Local files


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.parquet", "rows.csv", "saved"])
def test_files_stream_as_they_load(tmp_path, name):
    path, rows = tmp_path / name, Dataset.from_list(plain(30)[1:])
    if name == "rows.parquet":
        pq.write_table(rows.data.table, path)
    elif name == "rows.csv":
        rows.to_csv(path)
    elif name == "saved":
        rows.save_to_disk(path)
    else:
        rows.to_json(path, lines=name.endswith("l"))
    loaded, expected = sources.load(str(path))
    stream, source = sources.stream(str(path))
    assert isinstance(stream, IterableDataset)
    assert source == expected
    dataset, _ = spool(stream, tmp_path / "spooled", source)
    assert dataset.to_list() == loaded.to_list()
    assert fingerprint(dataset) == fingerprint(loaded)
    assert dataset.features == loaded.features


def test_what_cannot_be_read_says_so_when_it_is_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": "b"}\n{"a": ')
    with pytest.raises(InputError, match=r"'rows\.jsonl', line 2, character 7"):
        spool(*_reordered(tmp_path, *sources.stream(str(tmp_path / "rows.jsonl"))))
    with pytest.raises(InputError, match="no file"):
        sources.stream(str(tmp_path / "none.jsonl"))


def _reordered(folder: Path, stream: IterableDataset, source: Source) -> tuple[Any, ...]:
    return stream, folder / "spooled", source
