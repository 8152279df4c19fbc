"""Shards: committed whole, found out when they are not, never read when they are bad."""

import errno
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selectit_hf import storage
from selectit_hf.errors import RunError
from selectit_hf.shards import Shards

ROWS, SIZE = 11, 4


class Killed(BaseException):
    pass


def rows_of(rows: range) -> pa.Table:
    return pa.table({"row": list(rows), "value": np.asarray(rows, dtype=np.float32) / 7})


def shards_in(folder: Path, **settings: Any) -> Shards:
    return Shards(folder, **{"rows": ROWS, "size": SIZE, "key": "k1", **settings})


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    shards = shards_in(tmp_path / "slug")
    for number, rows in enumerate(shards.ranges()):
        shards.commit(number, rows_of(rows), {"seconds": 0.5})
    return shards


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def make_all(shards: Shards) -> None:
    for number in shards.missing():
        shards.commit(number, rows_of(shards.rows_of(number)), {"seconds": 0.5})


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 100])
@pytest.mark.parametrize("size", [1, 4, 8192])
def test_ranges_cover_every_row_once(tmp_path: Path, rows: int, size: int) -> None:
    ranges = shards_in(tmp_path, rows=rows, size=size).ranges()
    assert [row for part in ranges for row in part] == list(range(rows))
    assert all(len(part) == size for part in ranges[:-1])
    assert len(shards_in(tmp_path, rows=rows, size=size)) == len(ranges)


def test_what_is_committed_is_read(shards: Shards) -> None:
    assert shards.missing() == []
    shards.check()
    for number, rows in enumerate(shards.ranges()):
        assert shards.table(number).equals(rows_of(rows))
        facts = shards.facts(number)
        path = shards.folder / f"{number:05d}.parquet"
        assert facts is not None
        assert facts["rows"] == [rows.start, rows.stop]
        assert facts["key"] == "k1"
        assert facts["seconds"] == 0.5
        assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(files(shards.folder)) == [
        f"0000{n}.{ending}" for n in range(3) for ending in ("json", "parquet")
    ]


def test_a_flipped_bit_is_found(shards: Shards) -> None:
    random = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        number, ending = random.integers(3), random.choice(["json", "parquet"])
        path = shards.folder / f"{number:05d}.{ending}"
        whole = path.read_bytes()
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(data)
        fresh = shards_in(shards.folder)
        assert fresh.missing() == fresh.bad() == shards.missing() == [number]
        with pytest.raises(RunError, match=f"rows {number * 4} to "):
            fresh.table(number)
        with pytest.raises(RunError, match=f"rows {number * 4} to "):
            fresh.check()
        path.write_bytes(whole)
        found += 1
    assert found == 100
    assert shards_in(shards.folder).missing() == []


def test_a_file_of_the_same_size_and_time_is_hashed_when_it_is_read(shards: Shards) -> None:
    assert shards.facts(1) is not None
    path = shards.folder / "00001.parquet"
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(RunError, match="rows 4 to 7"):
        shards.table(1)


@pytest.mark.parametrize("damage", ["cut", "empty", "no table", "sidecar of another", "other key"])
def test_a_bad_shard_is_set_aside_and_made_again(
    shards: Shards, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = files(shards.folder)
    table, sidecar = shards.folder / "00001.parquet", shards.folder / "00001.json"
    if damage == "cut":
        table.write_bytes(table.read_bytes()[:-9])
    elif damage == "empty":
        table.write_bytes(b"")
    elif damage == "no table":
        table.unlink()
    elif damage == "sidecar of another":
        shutil.copy(shards.folder / "00000.json", sidecar)
        shutil.copy(shards.folder / "00000.parquet", table)
    else:
        shutil.rmtree(shards.folder)
        make_all(shards_in(shards.folder, key="k2"))
    bad = [0, 1, 2] if damage == "other key" else [1]
    fresh = shards_in(shards.folder)
    assert fresh.bad() == fresh.missing() == bad
    with caplog.at_level(logging.WARNING):
        make_all(fresh)
    assert files(shards.folder) == before
    assert "rows 4 to 7 in slug is not what was committed; it is set aside" in caplog.text
    aside = sorted(path.name for path in shards.folder.glob(".bad-*-00001.*"))
    assert len(aside) == (1 if damage == "no table" else 2)


@pytest.mark.parametrize("gone", ["00001.json", "00001.parquet"])
def test_a_missing_file_is_a_missing_shard(shards: Shards, gone: str) -> None:
    before = files(shards.folder)
    (shards.folder / gone).unlink()
    assert shards.missing() == [1]
    make_all(shards)
    assert files(shards.folder) == before


def test_files_of_other_shards_are_named_and_set_aside(
    shards: Shards, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("00003.parquet", "00003.json", "000001.json", "notes.txt", "1.parquet"):
        shutil.copy(shards.folder / "00000.json", shards.folder / name)
    for ours in ("00002.claim", "00002.retry", ".00002.json.x-1-0.partial"):
        (shards.folder / ours).touch()
    strays = ["000001.json", "00003.json", "00003.parquet", "1.parquet", "notes.txt"]
    assert shards.strays() == strays
    with pytest.raises(RunError, match=r"'000001\.json' and 4 more, which is no shard"):
        shards.check()
    shards.set_strays_aside()
    shards.check()
    assert "notes.txt in slug is no shard of the plan" in caplog.text
    assert len(list(shards.folder.glob(".bad-*"))) == 5


def test_fewer_rows_make_strays_of_the_rest(shards: Shards) -> None:
    fewer = shards_in(shards.folder, rows=8)
    assert fewer.missing() == []
    assert fewer.strays() == ["00002.json", "00002.parquet"]
    longer = shards_in(shards.folder, size=6)
    assert longer.bad() == [0, 1]


def test_a_whole_shard_is_not_written_again(shards: Shards) -> None:
    before = files(shards.folder)
    shards.commit(1, rows_of(range(4, 8)), {"seconds": 99.0})
    assert files(shards.folder) == before


@pytest.mark.parametrize("number", range(13))
def test_stopped_at_any_point_nothing_half_is_there(
    tmp_path: Path, shards: Shards, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[str] = []

    def reached(point: str) -> None:
        passed.append(point)
        if len(passed) == number + 1:
            raise Killed

    other = shards_in(tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "reached", reached)
        with pytest.raises(Killed):
            other.commit(0, rows_of(range(4)), {"seconds": 0.5})
    fresh = shards_in(other.folder)
    committed = passed.count("file renamed") == 2  # the second file is the sidecar
    assert (fresh.facts(0) is not None) == committed
    make_all(fresh)
    assert files(other.folder) == files(shards.folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", range(4))
def test_a_failing_disk_commits_nothing_false(
    tmp_path: Path, call: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, calls, sync = shards_in(tmp_path), 0, os.fsync

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", failing)
        with pytest.raises(OSError, match=os.strerror(code)):
            shards.commit(0, rows_of(range(4)), {})
    if shards.facts(0) is not None:
        assert shards.table(0).equals(rows_of(range(4)))
    make_all(shards)
    shards.check()


def test_a_sidecar_must_say_what_is_expected(shards: Shards) -> None:
    assert shards_in(shards.folder, shape={"seconds": float}).missing() == []
    assert shards_in(shards.folder, shape={"rater": {"model": str}}).bad() == [0, 1, 2]


def first_format(folder: Path, **change: Any) -> Shards:
    """A shard as format 1 wrote it: no hash of the sidecar's facts, the key in its rater."""
    folder.mkdir()
    pq.write_table(rows_of(range(4)), folder / "00000.parquet")
    rater = {"model": "m", "revision": "r", "parameters": 5, "rating_key": "k1"}
    facts = {
        "rows": [0, 4],
        "sha256": hashlib.sha256((folder / "00000.parquet").read_bytes()).hexdigest(),
        "rater": rater,
        "oom_splits": 0,
        "seconds": 1,
    }
    (folder / "00000.json").write_text(json.dumps(facts | change))
    return shards_in(folder, rows=4)


def test_shards_of_format_1_are_read(tmp_path: Path) -> None:
    assert first_format(tmp_path / "a").table(0).equals(rows_of(range(4)))
    assert first_format(tmp_path / "b", rater={"rating_key": "k1"}).bad() == [0]
    assert first_format(tmp_path / "c", oom_splits="0").bad() == [0]
    assert first_format(tmp_path / "d", more=1).bad() == [0]


def test_a_table_of_other_length_is_a_fault(shards: Shards) -> None:
    with pytest.raises(AssertionError, match="3 rows for shard 0"):
        shards.commit(0, rows_of(range(3)), {})
