"""Files that are whole or not there, whatever the disk does and whoever is killed."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from selectit_hf import storage
from selectit_hf.errors import RunError

OF_A_FILE = [p for p in storage.POINTS if p.startswith(("partial", "file", "folder"))]


class Killed(BaseException):
    """Stands for a SIGKILL: nothing between it and the test handles it."""


def partials(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if storage.is_partial(path)]


def dead_process() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


@pytest.mark.parametrize("point", OF_A_FILE)
def test_stopped_at_any_point_a_file_is_the_old_or_the_new(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    storage.write(path, b"old")

    def reached(name: str) -> None:
        if name == point:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(storage, "reached", reached)
        with pytest.raises(Killed):
            storage.write(path, b"new")
    renamed = OF_A_FILE.index(point) >= OF_A_FILE.index("file renamed")
    assert path.read_bytes() == (b"new" if renamed else b"old")


def test_all_points_of_a_file_are_passed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[str] = []
    monkeypatch.setattr(storage, "reached", passed.append)
    storage.write(tmp_path / "file", b"x")
    assert passed == OF_A_FILE


def failing(call: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.os, call, fail)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_fsync_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    storage.write(path, b"old")
    with monkeypatch.context() as patch:
        failing("fsync", code, patch)
        with pytest.raises(OSError, match=os.strerror(code)):
            storage.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert not partials(tmp_path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fill(partial: Path) -> None:
        partial.write_bytes(b"half of i")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"), storage.replacing(path) as partial:
        fill(partial)
    assert path.read_bytes() == b"old"
    assert not partials(tmp_path)


def test_other_bytes_from_the_disk_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda self: b"nex")
        with pytest.raises(OSError, match="other bytes"):
            storage.write(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_of_many_who_create_a_file_one_does(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        failing("link", errno.EPERM, monkeypatch)
    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            os._exit(int(storage.create(tmp_path / "file", b"%d" % number)))
        children.append(child)
    created = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(created) == [0] * 7 + [1]
    assert (tmp_path / "file").read_bytes() == b"%d" % created.index(1)
    assert not storage.create(tmp_path / "file", b"again")
    assert not partials(tmp_path)


def test_sweeping_takes_what_the_dead_left(tmp_path: Path) -> None:
    machine, dead = storage.machine(), dead_process()
    names = {
        f".a.{machine}-{dead}-0.partial": False,
        f".a.{machine}-{os.getpid()}-0.partial": True,
        f".a.0123456789ab-{dead}-0.partial": True,  # of another machine, where it may live
        ".plan.json.partial": True,
        "00000.parquet": True,
    }
    for name in names:
        (tmp_path / name).touch()
    storage.sweep(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


@pytest.mark.parametrize("text", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b"null"])
def test_what_is_no_object_is_refused_by_name(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(RunError, match=r"plan\.json of the run"):
        storage.read_json(tmp_path / "plan.json")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    facts = {"rows": [0, 4], "text": "ö", "none": None, "score": 0.1}
    storage.write_json(tmp_path / "facts.json", facts)
    assert storage.read_json(tmp_path / "facts.json") == facts


def test_age_goes_by_the_last_touch(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert storage.age(path) is None
    path.touch()
    before = path.stat().st_mtime - 1000
    os.utime(path, (before, before))
    assert storage.age(path) == pytest.approx(1000, abs=60)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_machine_is_told_apart_and_not_told_of() -> None:
    assert socket.gethostname() not in storage.machine()
    assert len(storage.machine()) == 12
    assert storage.owner_is_dead(storage.machine(), dead_process())
    assert not storage.owner_is_dead(storage.machine(), os.getpid())
    assert not storage.owner_is_dead("another", dead_process())


def test_who_has_ended_is_dead_though_nobody_asked_how() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and stays as it is
    assert storage.owner_is_dead(storage.machine(), child)
    os.waitpid(child, 0)
