"""Shards: committed whole, found out when they are not, never read when they are bad."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from failing_disk import failing_at

from selectit_hf import whole_files
from selectit_hf.errors import RunError
from selectit_hf.hashes import sha256
from selectit_hf.runs.shards import Part, Shards
from selectit_hf.runs.store import Store, open_store

RANGES = [range(4), range(4, 8), range(8, 11)]


class Killed(BaseException):
    pass


def rows_of(rows: range, more: float = 0) -> pa.Table:
    values = np.asarray(rows, dtype=np.float32) / 7 + more
    return pa.table({"row": list(rows), "value": values})


def shards_in(folder: Path | Store, of: str = "f1", key: str = "k1", **settings: Any) -> Shards:
    parts = [Part(rows, of) for rows in RANGES]
    return Shards(open_store(folder), "ratings/slug", parts, key, **settings)


def make_all(shards: Shards) -> None:
    for number in shards.missing():
        assert shards.commit(number, rows_of(RANGES[number]), {"seconds": 0.5})


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    shards = shards_in(tmp_path)
    make_all(shards)
    return shards


def files(folder: Path) -> dict[str, bytes]:
    there = (folder / "ratings" / "slug").iterdir()
    return {p.name: p.read_bytes() for p in there if not p.name.startswith(".")}


def table_of(folder: Path, number: int) -> Path:
    (path,) = (folder / "ratings" / "slug").glob(f"{number:05d}.*.parquet")
    return path


def whole(shards: Shards) -> list[int]:
    """The shards that are committed and whose tables are read."""
    return [n for n, facts in shards.committed().items() if shards.table(facts) is not None]


def test_what_is_committed_is_read(shards: Shards, tmp_path: Path) -> None:
    assert shards.missing() == []
    for number, facts in enumerate(shards.all_facts()):
        assert shards.table(facts).equals(rows_of(RANGES[number]))
        digest = hashlib.sha256(table_of(tmp_path, number).read_bytes()).hexdigest()
        assert facts["table"] == f"{number:05d}.{digest[:12]}.parquet"
        assert facts["sha256"] == digest
        assert facts["rows"] == [RANGES[number].start, RANGES[number].stop]
        assert (facts["key"], facts["of"], facts["seconds"]) == ("k1", "f1", 0.5)
    assert len(files(tmp_path)) == 6


def test_a_shard_that_another_commits_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = shards_in(tmp_path), shards_in(tmp_path)
    look = ours._committed_now

    def look_too_early(number: int) -> bool | None:
        found = look(number)
        assert theirs.commit(number, rows_of(RANGES[number]), {"seconds": 0.5})
        return found

    monkeypatch.setattr(ours, "_committed_now", look_too_early)
    assert not ours.commit(0, rows_of(RANGES[0], more=1), {"seconds": 0.5})
    assert shards_in(tmp_path).table(theirs.committed()[0]).equals(rows_of(RANGES[0]))
    assert not list((tmp_path / "ratings" / "slug").glob(".bad*"))


def test_a_flipped_bit_is_found(shards: Shards, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = sorted(files(tmp_path))
    for _ in range(100):
        name = str(random.choice(names))
        path = tmp_path / "ratings" / "slug" / name
        before = path.read_bytes()
        data = bytearray(before)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(data)
        assert whole(shards_in(tmp_path)) == [n for n in range(3) if n != int(name[:5])]
        path.write_bytes(before)
    assert whole(shards_in(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize("damage", ["sidecar cut", "no table", "of another shard", "forged table"])
def test_a_bad_sidecar_is_set_aside_and_made_again(
    shards: Shards, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = files(tmp_path)
    sidecar = tmp_path / "ratings" / "slug" / "00001.json"
    if damage == "sidecar cut":
        sidecar.write_bytes(sidecar.read_bytes()[:-9])
    elif damage == "no table":
        table_of(tmp_path, 1).unlink()
    elif damage == "of another shard":
        sidecar.write_bytes((sidecar.with_name("00000.json")).read_bytes())
    else:
        facts = json.loads(sidecar.read_text()) | {"table": "../../../etc/passwd"}
        del facts["facts_sha256"]
        digest = sha256(json.dumps(facts, sort_keys=True).encode())
        sidecar.write_text(json.dumps(facts | {"facts_sha256": digest}))
    fresh = shards_in(tmp_path)
    assert fresh.missing() == [1]
    with pytest.raises(RunError, match=r"the rows 4 to 7 are not rated by 'slug'"):
        fresh.all_facts()
    fresh.commit(1, rows_of(RANGES[1]), {"seconds": 0.5})
    assert files(tmp_path) == before
    if damage != "no table":  # which is whole again when it is written
        assert "4 to 7, by slug, differs from what was committed; it is set aside" in caplog.text


@pytest.mark.parametrize("other", [{"key": "k2"}, {"of": "f2"}])
def test_shards_of_other_settings_or_rows_are_not_taken(
    shards: Shards, other: dict[str, str], tmp_path: Path
) -> None:
    fresh = shards_in(tmp_path, **other)
    assert fresh.missing() == [0, 1, 2]
    make_all(fresh)
    assert whole(fresh) == [0, 1, 2]
    assert shards_in(tmp_path).missing() == [0, 1, 2]


def test_the_first_sidecar_stays_and_both_tables(shards: Shards, tmp_path: Path) -> None:
    before = files(tmp_path)
    assert not shards.commit(1, rows_of(RANGES[1], 0.1), {"seconds": 9.0})
    after = files(tmp_path)
    assert after.items() > before.items()
    assert len(after) == 7
    assert not shards.commit(1, rows_of(RANGES[1]), {"seconds": 9.0})
    assert files(tmp_path) == after
    assert shards.commit(1, rows_of(RANGES[1], 0.1), {"seconds": 9.0}, replace=True)
    assert shards_in(tmp_path).committed()[1]["seconds"] == 9.0


def test_who_commits_between_the_last_look_and_the_sidecar_is_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that slept through another's commit does not take its place."""
    late, other = shards_in(tmp_path), shards_in(tmp_path)

    def reached(point: str) -> None:
        if point == "looked again":
            monkeypatch.setattr(whole_files, "reached", lambda point: None)
            assert other.commit(0, rows_of(RANGES[0]), {"seconds": 1.0})

    monkeypatch.setattr(whole_files, "reached", reached)
    assert not late.commit(0, rows_of(RANGES[0], 0.1), {"seconds": 2.0})
    assert shards_in(tmp_path).committed()[0]["seconds"] == 1.0


def test_a_damaged_table_is_written_again(shards: Shards, tmp_path: Path) -> None:
    before = files(tmp_path)
    table_of(tmp_path, 2).write_bytes(b"PAR1")
    shards.set_aside(2)
    make_all(shards)
    assert files(tmp_path).keys() == before.keys()
    assert table_of(tmp_path, 2).read_bytes() == before[table_of(tmp_path, 2).name]


def test_what_results_pin_comes_before_what_was_committed_later(
    shards: Shards, tmp_path: Path
) -> None:
    pins = [facts["sha256"] for facts in shards.all_facts()]
    shards.commit(1, rows_of(RANGES[1], 0.1), {"seconds": 9.0}, replace=True)
    pinned = shards_in(tmp_path, pinned=pins)
    assert pinned.table(pinned.committed()[1]).equals(rows_of(RANGES[1]))
    table = next(p for p in (tmp_path / "ratings" / "slug").glob(f"00001.{pins[1][:12]}.*"))
    table.write_bytes(b"x")  # then the later one is better than none
    pinned = shards_in(tmp_path, pinned=pins)
    assert pinned.table(pinned.committed()[1]).equals(rows_of(RANGES[1], 0.1))


@pytest.mark.parametrize("number", range(14))
def test_stopped_at_any_point_nothing_half_is_there(
    tmp_path: Path, shards: Shards, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[str] = []

    def reached(point: str) -> None:
        passed.append(point)
        if len(passed) == number + 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "reached", reached)
        try:
            shards_in(tmp_path / "other").commit(0, rows_of(RANGES[0]), {"seconds": 0.5})
        except Killed:
            assert number < 13
        else:
            assert number == 13  # there is no such point any more
    other = shards_in(tmp_path / "other")
    assert (other.missing() != [0, 1, 2]) == (passed.count("file placed") == 2)
    make_all(other)
    assert files(tmp_path / "other") == files(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", range(4))
def test_a_failing_disk_commits_nothing_false(
    tmp_path: Path, call: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_in(tmp_path)

    with failing_at(call, code, monkeypatch), pytest.raises(OSError, match=os.strerror(code)):
        shards.commit(0, rows_of(RANGES[0]), {})
    assert whole(shards_in(tmp_path)) == shards_in(tmp_path).missing()[:0] or call == 3
    make_all(shards)
    assert whole(shards_in(tmp_path)) == [0, 1, 2]


def test_a_table_of_other_length_is_a_fault(shards: Shards) -> None:
    with pytest.raises(AssertionError, match="3 rows for shard 0"):
        shards.commit(0, rows_of(range(3)), {})
