"""Files of a run folder: whole or not there, on a disk and in storage that only puts."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from failing_disk import failing_at

from selectit_hf import whole_files
from selectit_hf.errors import RunError
from selectit_hf.runs.store import Store, open_store

OF_A_FILE = whole_files.POINTS


class Killed(BaseException):
    """Stands for a SIGKILL: nothing between it and the test handles it."""


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(tmp_path / "run" if request.param == "disk" else "memory://bucket/run")


def test_what_is_written_is_read(folder: Store) -> None:
    assert folder.sizes() == folder.sizes("a") == {}
    assert folder.read_many(["a/b.json"]) == {}
    with pytest.raises(FileNotFoundError):
        folder.read("a/b.json")
    folder.write("a/b.json", b"{}")
    folder.write("a/c.json", b"123")
    assert folder.exists("a/b.json")
    assert not folder.exists("a")
    assert folder.sizes("a") == {"b.json": 2, "c.json": 3}
    assert folder.read_many(["a/c.json", "a/x", "a/b.json"]) == {
        "a/b.json": b"{}",
        "a/c.json": b"123",
    }
    folder.write("a/b.json", b"[]")
    assert folder.read("a/b.json") == b"[]"
    with pytest.raises(RunError, match=r"a/b\.json of the run is not a JSON object"):
        folder.read_json("a/b.json")
    folder.remove("a/b.json")
    folder.remove("a/b.json")
    assert list(folder.sizes("a")) == ["c.json"]


def test_the_first_to_create_stays(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder.create("a.json", b"first")
    for _ in range(2):
        assert not folder.create("a.json", b"second")
        assert folder.read("a.json") == b"first"
        assert list(folder.sizes()) == ["a.json"]
        monkeypatch.setattr(Store, "exists", lambda *_: False)  # another creates it just now


def test_without_hard_links_a_file_is_created_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*args: Any) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", link)
    assert Store(tmp_path).create("a", b"1")
    assert not Store(tmp_path).create("a", b"2")
    assert Store(tmp_path).read("a") == b"1"


def test_a_file_that_is_set_aside_is_kept(folder: Store) -> None:
    folder.write("a/b.json", b"bad")
    folder.set_aside("a/b.json")
    folder.set_aside("a/b.json")
    (name,) = folder.sizes("a")
    assert name.startswith(".bad-")
    assert folder.read(f"a/{name}") == b"bad"


def test_a_large_file_is_written_whole_or_not_at_all(folder: Store) -> None:
    folder.write("x.parquet", b"old")
    with pytest.raises(ValueError, match="stopped"):  # noqa: PT012, SIM117
        with folder.replacing("x.parquet") as path:
            path.write_bytes(b"half")
            raise ValueError("stopped")
    assert folder.read("x.parquet") == b"old"
    with folder.replacing("x.parquet") as path:
        path.write_bytes(b"whole")
    assert folder.read("x.parquet") == b"whole"
    assert list(folder.sizes()) == ["x.parquet"]


@pytest.mark.parametrize("point", OF_A_FILE)
def test_stopped_at_any_point_a_file_is_the_old_or_the_new(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, passed = Store(tmp_path), []
    folder.write("file", b"old")

    def reached(name: str) -> None:
        passed.append(name)
        if name == point:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "reached", reached)
        with pytest.raises(Killed):
            folder.write("file", b"new")
    assert tuple(passed) == OF_A_FILE[: len(passed)]
    placed = OF_A_FILE.index(point) >= OF_A_FILE.index("file placed")
    assert folder.read("file") == (b"new" if placed else b"old")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", [0, 1])
def test_a_failing_disk_leaves_what_was_there_and_says_which_file(
    tmp_path: Path, call: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Store(tmp_path)
    folder.write("file", b"old")

    with (
        failing_at(call, code, monkeypatch),
        pytest.raises(OSError, match=os.strerror(code)) as caught,
    ):
        folder.write("file", b"new")
    assert "file was being written" in caught.value.__notes__[0]
    assert folder.read("file") == (b"old" if call == 0 else b"new")
    assert list(folder.sizes()) == ["file"]


@pytest.mark.parametrize("name", ["inside/file", "file", "../beyond/file"])
def test_links_and_paths_out_of_the_folder_are_not_followed(tmp_path: Path, name: str) -> None:
    beyond, folder = tmp_path / "beyond", Store(tmp_path / "run")
    beyond.mkdir()
    (beyond / "file").write_bytes(b"theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/inside").symlink_to(beyond)
    (tmp_path / "run/file").symlink_to(beyond / "file")
    for use in (folder.read, folder.size, folder.parquet, folder.remove, folder.set_aside):
        with pytest.raises(RunError, match="links are not followed"):
            use(name)
    for act in (lambda: folder.write(name, b"ours"), lambda: folder.read_many([name])):
        with pytest.raises(RunError, match="links are not followed"):
            act()
    with pytest.raises(RunError, match="links are not followed"), folder.replacing(name):
        pass
    assert (beyond / "file").read_bytes() == b"theirs"
    assert [path.name for path in beyond.iterdir()] == ["file"]


@pytest.mark.parametrize("said", [b'{"a": NaN}', b"[1]", b"", b'{"a":' * 100_000, b"\xff"])
def test_what_is_no_json_object_is_named(tmp_path: Path, said: bytes) -> None:
    folder = Store(tmp_path)
    folder.write("plan.json", said)
    with pytest.raises(RunError, match=r"plan\.json of the run is not a JSON object"):
        folder.read_json("plan.json")


def test_a_chain_of_urls_is_no_folder() -> None:
    with pytest.raises(RunError, match="name the folder itself"):
        Store("simplecache::s3://bucket/run")


def test_only_what_was_abandoned_is_swept(tmp_path: Path) -> None:
    (tmp_path / "ratings" / "llama").mkdir(parents=True)
    abandoned = (".a.x.partial", "a.partial", "ratings/llama/.a.x.partial")
    for name in (".b.x.partial", *abandoned):
        (tmp_path / name).write_bytes(b"x")
    old = time.time() - whole_files.ABANDONED - 60
    for name in abandoned:
        os.utime(tmp_path / name, (old, old))
    Store(tmp_path).sweep()
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == [".b.x.partial", "a.partial"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "names no folder"),
        ("s3://bucket/run[1]", "without brackets"),
        ("sftp://me:secret@host/run", "holds a password"),
        ("hf://datasets/me/run", "each file that a worker writes is a commit"),
        ("nosuch://bucket/run", "cannot be reached from here"),
        ("s3:/bucket/run", "is a URL that became a Path"),
    ],
)
def test_what_is_no_place_for_a_run_is_refused(url: str, words: str) -> None:
    with pytest.raises(RunError, match=words) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_a_client_that_fails_is_told_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_store("memory://bucket/run")

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError("access denied")

    monkeypatch.setattr(type(folder._files), "cat_file", fails)
    with pytest.raises(
        RunError, match=r"failed at 'plan\.json' \(PermissionError: access denied\)"
    ):
        folder.read("plan.json")
