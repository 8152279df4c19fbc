"""The local Hub of the tests, shown to the real clients."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hub_server import (
    STRANGER,
    TOKEN,
    Fault,
    HubServer,
    cut,
    flip,
    hang,
    ignored,
    meanwhile,
    status,
)
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    RepoFolder,
    close_session,
    constants,
    get_session,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# the client uploads its large files through a deprecated argument of its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "user/data"
PARQUET = b"PAR1" + bytes(range(256)) * 8 + b"PAR1"


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def api(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    """A client in this process, for what does not depend on when the environment is read."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield HfApi(endpoint=server.url, token=TOKEN)
    close_session()


def push(api: HfApi, files: dict[str, bytes | None], **options: Any) -> Any:
    operations = [
        CommitOperationDelete(path) if content is None else CommitOperationAdd(path, content)
        for path, content in files.items()
    ]
    options = {"repo_type": "dataset", "commit_message": "Push"} | options
    return api.create_commit(NAME, operations, **options)


def fetch(api: HfApi, path: str, folder: Path, **options: Any) -> bytes:
    where: Any = {"repo_type": "dataset", "cache_dir": folder, **options}
    return Path(api.hf_hub_download(NAME, path, **where)).read_bytes()


def methods(server: HubServer, start: int = 0) -> list[str]:
    return [request.method for request in server.requests[start:]]


def run(server: HubServer, home: Path, code: str) -> Any:
    """What a fresh process with fresh caches prints as JSON on its last line."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = server.environment(home)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Repositories


def test_a_repository_is_created_shown_hidden_and_deleted(server: HubServer, api: HfApi) -> None:
    url = api.create_repo(NAME, repo_type="dataset", private=True)
    assert (url.repo_id, url.repo_type) == (NAME, "dataset")
    assert server.repo("dataset", NAME).private
    assert api.dataset_info(NAME).private is True
    assert not api.repo_exists(NAME, repo_type="model")
    api.update_repo_settings(NAME, repo_type="dataset", visibility="public", gated="auto")
    info = api.dataset_info(NAME)
    assert (info.private, info.gated) == (False, "auto")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(NAME, repo_type="dataset")
    api.create_repo(NAME, repo_type="dataset", exist_ok=True, private=True)
    assert not server.repo("dataset", NAME).private  # an existing repository keeps its visibility
    api.delete_repo(NAME, repo_type="dataset")
    assert server.repos == {}
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(NAME, repo_type="dataset")


def test_a_repository_is_public_unless_asked_and_not_quite_empty(
    server: HubServer, api: HfApi
) -> None:
    assert api.create_repo("model").repo_id == "user/model"
    repo = server.repo("model", "user/model")
    assert not repo.private
    assert list(repo.files()) == [".gitattributes"]
    assert len(repo.history()) == 1


@pytest.mark.parametrize("name", ["stranger/data", "user/a b", "user/.hidden"])
def test_a_name_must_be_ours_and_plain(server: HubServer, api: HfApi, name: str) -> None:
    owner, rest = name.split("/")
    body = {"name": rest, "organization": owner, "type": "dataset"}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    reply = get_session().post(f"{server.url}/api/repos/create", json=body, headers=headers)
    assert reply.status_code == (403 if owner == "stranger" else 400)
    assert server.repos == {}


def test_whoami_knows_the_token(api: HfApi) -> None:
    assert api.whoami()["name"] == "user"
    assert api.whoami(token=STRANGER)["name"] == "stranger"
    assert get_session().get(f"{api.endpoint}/api/whoami-v2").status_code == 401
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_wrong")


# Who may do what


def test_a_private_repository_is_missing_for_others(server: HubServer, api: HfApi) -> None:
    server.add_repo("dataset", NAME, {"a.txt": b"a"}, private=True)
    assert api.dataset_info(NAME).id == NAME
    for token, code in ((STRANGER, 404), (False, 401)):
        with pytest.raises(RepositoryNotFoundError) as caught:
            api.dataset_info(NAME, token=token)
        assert caught.value.response.status_code == code
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("user/nowhere")
    with pytest.raises(HfHubHTTPError) as wrong:
        api.dataset_info(NAME, token="hf_wrong")
    assert not isinstance(wrong.value, RepositoryNotFoundError)


def test_a_gated_repository_shows_itself_but_not_its_files(
    server: HubServer, api: HfApi, tmp_path: Path
) -> None:
    server.add_repo("dataset", NAME, {"a.txt": b"a"}, gated=True)
    assert api.dataset_info(NAME, token=STRANGER).gated == "auto"
    for token, code in ((STRANGER, 403), (False, 401)):
        with pytest.raises(GatedRepoError) as caught:
            fetch(api, "a.txt", tmp_path, token=token)
        assert caught.value.response.status_code == code
    assert fetch(api, "a.txt", tmp_path) == b"a"


def test_only_the_owner_writes(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME)
    for token, code in ((STRANGER, 403), (False, 401)):
        with pytest.raises(HfHubHTTPError) as caught:
            push(api, {"a.txt": b"a"}, token=token)
        assert caught.value.response.status_code == code
    assert len(repo.history()) == 1
    assert push(api, {"a.txt": b"a"}, token=STRANGER, create_pr=True).pr_num == 1


# Commits


def test_one_commit_adds_replaces_and_deletes(server: HubServer, api: HfApi) -> None:
    before = {"old.txt": b"old", "data/1.parquet": PARQUET, "data/2.parquet": b"2", "keep": b"k"}
    repo = server.add_repo("dataset", NAME, before)
    made = push(api, {"data/": None, "old.txt": None, "new.txt": b"new", "b.parquet": PARQUET * 2})
    assert made.oid == repo.head == api.dataset_info(NAME).sha
    assert made.repo_url.repo_id == NAME
    files = repo.files()
    del files[".gitattributes"]
    assert files == {"keep": b"k", "new.txt": b"new", "b.parquet": PARQUET * 2}
    assert [commit.title for commit in repo.history()] == ["Push", "Add files", "initial commit"]
    assert repo.files(repo.history()[1].sha)["old.txt"] == b"old"


def test_large_files_are_uploaded_once_and_others_inline(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME)
    push(api, {"a.parquet": PARQUET, "b.png": b"png", "c.txt": b"c", "d": b"\0", "e.bin": b""})
    assert methods(server).count("PUT") == 3
    assert {path for path, blob in repo.at().tree.items() if blob.lfs} == {
        "a.parquet",
        "b.png",
        "d",
    }
    push(api, {"again.parquet": PARQUET})
    assert methods(server).count("PUT") == 3
    assert repo.files()["again.parquet"] == PARQUET


def test_the_same_files_make_no_commit(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME, {"a.parquet": PARQUET, "b.txt": b"b"})
    start = len(server.requests)
    assert push(api, {"a.parquet": PARQUET, "b.txt": b"b"}).oid == repo.head
    assert len(repo.history()) == 2
    assert not any("/commit/" in request.path for request in server.requests[start:])


def test_a_stale_parent_is_refused(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME)
    parent = repo.head
    head = repo.commit({"theirs.txt": b"theirs"}).sha
    with pytest.raises(HfHubHTTPError) as caught:
        push(api, {"ours.txt": b"ours"}, parent_commit=parent)
    assert caught.value.response.status_code == 412
    assert repo.head == head
    push(api, {"ours.txt": b"ours"}, parent_commit=head)
    assert set(repo.files()) == {".gitattributes", "theirs.txt", "ours.txt"}


def test_a_pull_request_leaves_main_alone(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    repo = server.add_repo("dataset", NAME)
    head = repo.head
    made = push(api, {"a.txt": b"a"}, create_pr=True, parent_commit=head)
    assert (made.pr_num, made.pr_revision, repo.head) == (1, "refs/pr/1", head)
    assert push(api, {"b.txt": b"b"}, create_pr=True).pr_num == 2
    push(api, {"c.txt": b"c"}, revision="refs/pr/1")
    assert fetch(api, "c.txt", tmp_path, revision="refs/pr/1") == b"c"
    assert set(repo.files("refs/pr/1")) == {".gitattributes", "a.txt", "c.txt"}
    refs = api.list_repo_refs(NAME, repo_type="dataset", include_pull_requests=True)
    assert [ref.target_commit for ref in refs.branches] == [head]
    assert [ref.ref for ref in refs.pull_requests or []] == repo.pull_requests


def test_deleting_what_is_not_there_changes_nothing(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME)
    with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
        push(api, {"a.txt": b"a", "gone.txt": None})
    assert len(repo.history()) == 1


def test_a_branch_must_exist(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME)
    with pytest.raises(RevisionNotFoundError):
        push(api, {"a.txt": b"a"}, revision="elsewhere")
    with pytest.raises(HfHubHTTPError, match="not a branch"):
        push(api, {"a.txt": b"a"}, revision=repo.head)
    assert len(repo.history()) == 1


def test_ignored_files_are_dropped_in_silence(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME, {".gitignore": b"*.parquet\n"})
    push(api, {"a.parquet": PARQUET, "a.txt": b"a"})
    assert "a.parquet" not in repo.files()
    push(api, {".gitignore": b"*.txt\n", "b.parquet": PARQUET, "b.txt": b"b"})
    assert set(repo.files()) == {".gitattributes", ".gitignore", "a.txt", "b.parquet"}


@pytest.mark.parametrize(
    ("rules", "path", "expected"),
    [
        ("*.csv", "a/b.csv", True),
        ("*.csv", "a.csv.gz", False),
        ("/a.csv", "b/a.csv", False),
        ("data/", "x/data/a.csv", True),
        ("data/", "data", False),
        ("a/*.csv", "a/b/c.csv", False),
        ("a/**/c.csv", "a/c.csv", True),
        ("a/**", "a/b/c", True),
        ("# a", "# a", False),
        ("*.csv\n!keep.csv", "keep.csv", False),
        ("!keep.csv\n*.csv", "keep.csv", True),
        ("fil?.txt", "file.txt", True),
        ("a.txt", "a-txt", False),
    ],
)
def test_gitignore_rules(rules: str, path: str, expected: bool) -> None:
    assert ignored(rules, path) is expected


def test_an_upload_must_match_its_name_and_a_commit_its_upload(
    server: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = server.add_repo("dataset", NAME)
    reply = get_session().put(f"{server.url}/lfs/{'0' * 64}", content=b"not zero")
    assert reply.status_code == 400
    monkeypatch.setattr("huggingface_hub._commit_api._upload_lfs_files", lambda **_: None)
    with pytest.raises(HfHubHTTPError, match="not uploaded"):
        push(api, {"a.parquet": PARQUET})
    assert len(repo.history()) == 1


def test_a_large_push_and_download_stay_small_in_memory(
    server: HubServer, api: HfApi, tmp_path: Path
) -> None:
    repo = server.add_repo("dataset", NAME)
    large = tmp_path / "large.parquet"
    with large.open("wb") as file:
        file.truncate(128 << 20)
    tracemalloc.start()
    api.upload_file(
        path_or_fileobj=large, path_in_repo="large.parquet", repo_id=NAME, repo_type="dataset"
    )
    path = api.hf_hub_download(NAME, "large.parquet", repo_type="dataset", cache_dir=tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert Path(path).stat().st_size == repo.at().tree["large.parquet"].size == 128 << 20
    assert peak < 64 << 20


# Cards


@pytest.mark.parametrize(
    "metadata", ["license: [", "- a list", "language: no", "license: {a: b}", "tags: [1]"]
)
def test_a_broken_card_is_refused_before_and_at_the_commit(
    server: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch, metadata: str
) -> None:
    repo = server.add_repo("dataset", NAME)
    card = f"---\n{metadata}\n---\n# Data\n".encode()
    with pytest.raises(ValueError, match="Invalid metadata in README"):
        push(api, {"README.md": card})
    assert methods(server) == ["POST"]
    monkeypatch.setattr(HfApi, "_validate_yaml", lambda *args, **options: None)
    with pytest.raises(HfHubHTTPError, match="Invalid metadata in README"):
        push(api, {"README.md": card})
    assert len(repo.history()) == 1


def test_a_card_without_metadata_draws_a_warning(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(api, {"README.md": b"# Data\n"})
    assert repo.files()["README.md"] == b"# Data\n"


# Reading


def test_info_describes_a_revision(server: HubServer, api: HfApi) -> None:
    files = {"a.parquet": PARQUET, "b.txt": b"b"}
    repo = server.add_repo("dataset", NAME, files, card={"license": "mit"})
    repo.refs["refs/tags/v1"] = first = repo.head
    repo.commit({"b.txt": None})
    info = api.dataset_info(NAME, revision="v1", files_metadata=True)
    assert info.sha == first == api.dataset_info(NAME, revision=first[:8]).sha
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    assert info.created_at is not None
    assert info.last_modified is not None
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    assert set(siblings) == {".gitattributes", "README.md", "a.parquet", "b.txt"}
    assert siblings["b.txt"].size == 1
    assert siblings["b.txt"].lfs is None
    lfs = siblings["a.parquet"].lfs
    assert lfs is not None
    assert (lfs.size, lfs.sha256) == (len(PARQUET), sha(repo, "a.parquet"))
    for revision in ("v2", "0" * 40, first[:4]):
        with pytest.raises(RevisionNotFoundError):
            api.dataset_info(NAME, revision=revision)


def sha(repo: Any, path: str) -> str:
    return str(repo.at().tree[path].sha)


def test_the_tree_is_listed_by_folder_and_page(server: HubServer, api: HfApi) -> None:
    paths = ["a/b/1.txt", "a/b/2.txt", "a/3.txt", "a.txt"]
    repo = server.add_repo("dataset", NAME, {path: path.encode() for path in paths})
    server.page_size = 2

    def listed(folder: str | None = None, recursive: bool = True) -> set[str]:
        tree = api.list_repo_tree(NAME, folder, repo_type="dataset", recursive=recursive)
        return {f"{e.path}/" if isinstance(e, RepoFolder) else e.path for e in tree}

    assert listed() == {".gitattributes", "a/", "a/b/", *paths}
    assert len(server.requests) == 4
    assert listed(recursive=False) == {".gitattributes", "a.txt", "a/"}
    assert listed("a", recursive=False) == {"a/b/", "a/3.txt"}
    assert listed("a/b") == {"a/b/1.txt", "a/b/2.txt"}
    assert listed("a.txt") == {"a.txt"}
    with pytest.raises(EntryNotFoundError):
        listed("nothing")
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree(NAME, repo_type="dataset", revision="nothing"))
    assert set(api.list_repo_files(NAME, repo_type="dataset")) == set(repo.files())


def test_an_expanded_listing_names_the_last_commit(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME, {"a/1.txt": b"1", "a/2.parquet": PARQUET, "b": b"b"})
    repo.commit({"a/1.txt": b"one"}, "Change one")
    tree = api.list_repo_tree(NAME, repo_type="dataset", recursive=True, expand=True)
    titles = {entry.path: entry.last_commit.title for entry in tree if entry.last_commit}
    one = {"a": "Change one", "a/1.txt": "Change one"}
    others = {"a/2.parquet": "Add files", "b": "Add files", ".gitattributes": "initial commit"}
    assert titles == one | others
    wanted = ["a", "a/1.txt", "a/2.parquet", "missing"]
    folder, small, large = api.get_paths_info(NAME, wanted, repo_type="dataset")
    assert isinstance(folder, RepoFolder)
    assert isinstance(small, RepoFile)
    assert small.blob_id == sha(repo, "a/1.txt")
    assert isinstance(large, RepoFile)
    assert large.lfs is not None
    assert large.lfs.sha256 == sha(repo, "a/2.parquet") != large.blob_id


def test_files_come_with_their_hash_size_and_commit(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME, {"a.parquet": PARQUET, "a b/ü.txt": b"u"})
    for path, blob in repo.at().tree.items():
        url = f"{server.url}/datasets/{NAME}/resolve/main/{path}"
        metadata = api.get_hf_file_metadata(url=url)
        assert (metadata.etag, metadata.size) == (blob.sha, blob.size)
        assert metadata.commit_hash == repo.head
    with pytest.raises(RemoteEntryNotFoundError) as caught:
        api.get_hf_file_metadata(url=f"{server.url}/datasets/{NAME}/resolve/main/none")
    assert caught.value.response.headers["X-Repo-Commit"] == repo.head


def test_a_snapshot_is_the_repository(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    files = {"a.parquet": PARQUET, "b/c d.txt": b"cd", "empty": b""}
    repo = server.add_repo("model", NAME, files)
    folder = Path(api.snapshot_download(NAME, cache_dir=tmp_path))
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    assert folder.name == repo.head
    assert {name: p.read_bytes() for name, p in found.items() if p.is_file()} == repo.files()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-3", slice(0, 4)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-6", slice(-6, None)),
        ("bytes=10-99999", slice(10, None)),
        ("bytes=0-0", slice(0, 1)),
    ],
)
def test_ranges(server: HubServer, api: HfApi, asked: str, expected: slice) -> None:
    server.add_repo("dataset", NAME, {"a.parquet": PARQUET})
    url = f"{server.url}/datasets/{NAME}/resolve/main/a.parquet"
    reply = get_session().get(url, headers={"Range": asked})
    start, stop, _ = expected.indices(len(PARQUET))
    assert (reply.status_code, reply.content) == (206, PARQUET[expected])
    assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(PARQUET)}"


def test_a_range_beyond_the_end(server: HubServer, api: HfApi) -> None:
    server.add_repo("dataset", NAME, {"a.txt": b"abc"})
    url = f"{server.url}/datasets/{NAME}/resolve/main/a.txt"
    assert get_session().get(url, headers={"Range": "bytes=3-"}).status_code == 416


# Faults


def test_a_status_replaces_the_work(server: HubServer, api: HfApi) -> None:
    server.at("POST /api/repos/create", status(503))
    with pytest.raises(HfHubHTTPError, match="503"):
        api.create_repo(NAME)
    assert server.repos == {}
    api.create_repo(NAME)  # once, unless told
    assert [request.status for request in server.requests] == [503, 200]


def test_a_status_may_hide_the_work(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME)
    server.at("POST .*/commit/", status(500, after=True))
    with pytest.raises(HfHubHTTPError, match="500"):
        push(api, {"a.txt": b"a"})
    assert repo.files()["a.txt"] == b"a"


def test_a_rate_limit_is_waited_for(server: HubServer, api: HfApi) -> None:
    server.add_repo("dataset", NAME)
    server.at("/tree/", status(429, {"Retry-After": "0"}))
    start = time.monotonic()
    assert api.list_repo_files(NAME, repo_type="dataset") == [".gitattributes"]
    assert time.monotonic() - start > 0.9  # the client adds a second to what it is told
    assert [request.status for request in server.requests] == [429, 200]


def test_an_error_body_need_not_be_json(server: HubServer, api: HfApi) -> None:
    server.add_repo("dataset", NAME)
    server.at("validate-yaml", status(502, {"Content-Type": "text/html"}, b"<h1>Bad gateway"))
    with pytest.raises(json.JSONDecodeError):
        push(api, {"README.md": b"---\nlicense: mit\n---\n"})


def test_a_hang_outlasts_the_client(server: HubServer, api: HfApi) -> None:
    server.add_repo("dataset", NAME)
    server.at(lambda request: request.method == "GET", hang(0.5))
    with pytest.raises(httpx2.ReadTimeout):
        api.dataset_info(NAME, timeout=0.1)
    start = time.monotonic()
    server.at("GET", hang(0.3))
    api.dataset_info(NAME)
    assert time.monotonic() - start >= 0.3


def test_a_server_that_closes_does_not_wait_for_a_hang(api: HfApi) -> None:
    start = time.monotonic()
    with HubServer() as server:
        server.at("GET", hang(60))
        with pytest.raises(httpx2.ReadTimeout):
            get_session().get(f"{server.url}/api/whoami-v2", timeout=0.1)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("after", [False, True])
def test_a_cut_before_or_after_the_work(server: HubServer, api: HfApi, after: bool) -> None:
    repo = server.add_repo("dataset", NAME)
    server.at("POST .*/commit/", cut(after))
    with pytest.raises(httpx2.RemoteProtocolError, match="without sending a response"):
        push(api, {"a.txt": b"a"})
    assert ("a.txt" in repo.files()) is after
    assert server.requests[-1].status is None


def test_a_cut_may_come_within_the_reply(server: HubServer) -> None:
    server.add_repo("dataset", NAME, {"a.parquet": PARQUET})
    server.at("GET", cut(sent=7))
    url, got = f"{server.url}/datasets/{NAME}/resolve/main/a.parquet", list[bytes]()
    with httpx2.Client(trust_env=False) as client, client.stream("GET", url) as reply:
        pieces = reply.iter_bytes()
        with pytest.raises(httpx2.RemoteProtocolError):
            got.extend(pieces)
    assert b"".join(got) == PARQUET[:7]
    assert server.requests[0].status is None


def test_a_cut_download_is_resumed(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    content, whole = PARQUET * 6000, constants.DOWNLOAD_CHUNK_SIZE
    server.add_repo("dataset", NAME, {"a.parquet": content})
    server.at("GET .*/resolve/", cut(sent=whole + 100))
    assert fetch(api, "a.parquet", tmp_path) == content
    head, broken, rest = server.requests
    assert (head.status, broken.status, rest.status) == (200, None, 206)
    assert rest.headers["Range"] == f"bytes={whole}-"  # the client keeps only whole chunks


def test_every_request_of_a_push_can_be_cut(server: HubServer, api: HfApi) -> None:
    """By its index in the log; the client repeats what it may and stops at the rest."""
    server.add_repo("dataset", NAME)
    push(api, {"a.parquet": PARQUET})
    count = len(server.requests)
    assert [str(request).split()[0] for request in server.requests] == [
        *["POST"] * 2,
        "PUT",
        "POST",
    ]
    outcomes = []
    for index in range(count):
        repo = server.add_repo("dataset", NAME)
        server.requests.clear()
        server.faults.clear()
        server.at(index, cut())
        try:
            push(api, {"a.parquet": PARQUET + bytes([index])})
        except httpx2.RemoteProtocolError:
            assert list(repo.files()) == [".gitattributes"]
        assert server.requests[index].status is None
        outcomes.append("a.parquet" in repo.files())
    assert outcomes == [True, True, True, False]


def test_a_flipped_bit_reaches_the_client_unnoticed(
    server: HubServer, api: HfApi, tmp_path: Path
) -> None:
    server.add_repo("dataset", NAME, {"a.parquet": PARQUET})
    server.at("GET .*/resolve/", flip(1))
    expected = bytes([PARQUET[0], PARQUET[1] ^ 1]) + PARQUET[2:]
    assert fetch(api, "a.parquet", tmp_path) == expected
    assert fetch(api, "a.parquet", tmp_path, force_download=True) == PARQUET


def test_a_corrupt_blob_keeps_its_recorded_hash(
    server: HubServer, api: HfApi, tmp_path: Path
) -> None:
    repo = server.add_repo("dataset", NAME, {"a.parquet": PARQUET})
    recorded = sha(repo, "a.parquet")
    repo.corrupt("a.parquet", offset=0)
    assert fetch(api, "a.parquet", tmp_path) == bytes([PARQUET[0] ^ 1]) + PARQUET[1:]
    [entry] = api.get_paths_info(NAME, "a.parquet", repo_type="dataset")
    assert isinstance(entry, RepoFile)
    assert entry.lfs is not None
    assert entry.lfs.sha256 == recorded


def test_another_writer_slips_in(server: HubServer, api: HfApi) -> None:
    repo = server.add_repo("dataset", NAME)
    server.at("POST .*/commit/", meanwhile(lambda server: repo.commit({"theirs": b"t"}, "Theirs")))
    with pytest.raises(HfHubHTTPError, match="412"):
        push(api, {"ours": b"o"}, parent_commit=repo.head)
    assert [commit.title for commit in repo.history()] == ["Theirs", "initial commit"]


def test_a_fault_lasts_as_often_as_told(server: HubServer, api: HfApi) -> None:
    server.add_repo("dataset", NAME)
    server.at("GET", status(500), times=2)
    server.at(lambda request: request.path.endswith("/data"), status(501), times=inf)
    codes = [get_session().get(f"{server.url}/api/datasets/{NAME}").status_code for _ in range(5)]
    assert codes == [500, 500, 501, 501, 501]


# The server itself


def test_the_log_names_method_path_status_and_token(server: HubServer, api: HfApi) -> None:
    server.add_repo("dataset", NAME)
    api.dataset_info(NAME)
    [request] = server.requests
    assert str(request) == "GET /api/datasets/user/data -> 200"
    assert (request.token, request.index) == (TOKEN, 0)


def post_what_is_not_json(fault: Fault | None = None) -> None:
    with HubServer() as server:
        if fault:
            server.at("POST", fault)
        url = f"{server.url}/api/repos/create"
        with suppress(httpx2.RemoteProtocolError):
            assert httpx2.post(url, content=b"", trust_env=False).status_code == 500


@pytest.mark.parametrize("fault", [None, meanwhile(lambda server: json.loads(""))])
def test_bugs_of_the_server_are_raised_when_it_ends(fault: Fault | None) -> None:
    with pytest.raises(json.JSONDecodeError):
        post_what_is_not_json(fault)


def test_a_client_that_dies_within_its_request_changes_nothing() -> None:
    with HubServer() as server:
        with socket.create_connection(("127.0.0.1", int(server.url.split(":")[-1]))) as client:
            client.sendall(b"POST /api/repos/create HTTP/1.1\r\nContent-Length: 99\r\n\r\n{")
        assert httpx2.get(server.url, trust_env=False).status_code == 404  # by then it is accepted
    assert [request.method for request in server.requests] == ["GET"]


def test_nothing_is_left_when_it_ends() -> None:
    threads = threading.active_count()
    with httpx2.Client(trust_env=False) as client, HubServer() as server:
        client.get(server.url)
        assert threading.active_count() == threads + 2  # it listens, and keeps a connection
    assert threading.active_count() == threads
    assert not Path(server.folder.name).exists()


def test_the_environment_is_this_server_alone(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", "/elsewhere")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    environment = server.environment(tmp_path)
    assert not environment.keys() & {"HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "https_proxy"}
    assert environment["HF_ENDPOINT"] == server.url
    assert environment["PATH"] == os.environ["PATH"]


# Whole clients, each in a process of its own, since they read the environment when imported


def test_datasets_and_cards_come_back_by_name(server: HubServer, tmp_path: Path) -> None:
    pushed = run(
        server,
        tmp_path / "push",
        """
        import json
        from datasets import Dataset
        from huggingface_hub import DatasetCard

        rows = Dataset.from_dict({"text": list("abcdef"), "score": [0.5, None, 1, 2, 3, 4]})
        rows.push_to_hub("user/data", private=True, num_shards=2)
        last = rows.select([5, 0]).push_to_hub("user/data", "top")
        card = DatasetCard.load("user/data")
        card.data.license = "mit"
        card.text = "\\n# Rows"
        card.push_to_hub("user/data", commit_message="Card")
        print(json.dumps(last.oid))
        """,
    )
    repo = server.repo("dataset", NAME)
    assert repo.private
    assert repo.history()[1].sha == pushed
    assert set(repo.files()) == {
        ".gitattributes",
        "README.md",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "top/train-00000-of-00001.parquet",
    }
    loaded = run(
        server,
        tmp_path / "load",
        """
        import json
        from datasets import load_dataset
        from huggingface_hub import DatasetCard

        print(json.dumps({
            "plain": load_dataset("user/data", split="train").to_dict(),
            "top": load_dataset("user/data", "top", split="train")["text"][:],
            "streamed": [row["text"] for row in load_dataset(
                "user/data", split="train", streaming=True
            )],
            "license": DatasetCard.load("user/data").data.license,
        }))
        """,
    )
    assert loaded == {
        "plain": {"text": list("abcdef"), "score": [0.5, None, 1, 2, 3, 4]},
        "top": ["f", "a"],
        "streamed": list("abcdef"),
        "license": "mit",
    }


def test_the_first_rows_of_a_split_by_name(server: HubServer, tmp_path: Path) -> None:
    found = run(
        server,
        tmp_path,
        """
        import json
        from datasets import Dataset
        from selectit_hf.errors import InputError
        from selectit_hf.formats import first_rows, sources

        Dataset.from_dict({"text": list("abcdef")}).push_to_hub("user/data")
        first, whole = first_rows(None, 2), first_rows("train", 9)
        found = {}
        for split in (first, whole, "train[:50%]"):
            rows, source = sources.load("user/data", split)
            found[str(split)] = [rows["text"][:], source.split]
        rows, source = sources.stream("user/data", first)
        found["stream"] = [[row["text"] for row in rows], source.split]
        try:
            sources.stream("user/data", "train[2:4]")
        except InputError as error:
            found["refused"] = str(error)
        print(json.dumps(found))
        """,
    )
    assert "omit --streaming" in found.pop("refused")
    assert found == {
        "[:2]": [["a", "b"], "train[:2]"],
        "train[:9]": [list("abcdef"), "train"],
        "train[:50%]": [["a", "b", "c"], "train[:50%]"],
        "stream": [["a", "b"], "train[:2]"],
    }


def test_a_tiny_model_comes_back_by_name(server: HubServer, tmp_path: Path) -> None:
    answer = run(
        server,
        tmp_path,
        """
        import json, os, tempfile
        import torch
        from huggingface_hub import HfApi
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, "[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        config = LlamaConfig(vocab_size=3, hidden_size=8, intermediate_size=8,
                             num_hidden_layers=1, num_attention_heads=2)
        model, api = LlamaForCausalLM(config).eval(), HfApi()
        api.create_repo("user/tiny")
        with tempfile.TemporaryDirectory() as folder:
            PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
            model.save_pretrained(folder)
            first = api.upload_folder(folder_path=folder, repo_id="user/tiny").oid
        api.delete_file("config.json", "user/tiny")

        options = {"revision": first, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained("user/tiny", **options)
        again = AutoModelForCausalLM.from_pretrained("user/tiny", use_safetensors=True, **options)
        ids = tokenizer("two one zero", return_tensors="pt").input_ids
        print(json.dumps({
            "first": first,
            "hidden": AutoConfig.from_pretrained("user/tiny", **options).hidden_size,
            "ids": ids.tolist(),
            "equal": torch.equal(model(ids).logits, again(ids).logits),
        }))
        """,
    )
    first = server.repo("model", "user/tiny").history()[1].sha
    assert answer == {"first": first, "hidden": 8, "ids": [[2, 1, 0]], "equal": True}
    assert server.repo("model", "user/tiny").at().tree.keys() & {"config.json"} == set()


def test_load_dataset_names_what_is_gated_missing_or_unknown(
    server: HubServer, tmp_path: Path
) -> None:
    server.add_repo("dataset", "other/gated", {"a.jsonl": b'{"a": 1}\n'}, gated=True)
    server.add_repo("dataset", "other/private", {"a.jsonl": b'{"a": 1}\n'}, private=True)
    server.add_repo("dataset", "other/open", {"a.jsonl": b'{"a": 1}\n'})
    answer = run(
        server,
        tmp_path,
        """
        import json
        from datasets import load_dataset

        def error(name, **options):
            try:
                return load_dataset(name, split="train", **options)["a"][:]
            except Exception as error:
                return f"{type(error).__name__}: {error}"

        names = ["other/gated", "other/private", "other/missing", "other/open"]
        unknown = error("other/open", revision="v9")
        print(json.dumps([*map(error, names), unknown]))
        """,
    )
    gated, private, missing, rows, unknown = answer
    assert gated.startswith("DatasetNotFoundError")
    assert "is a gated dataset" in gated
    assert private.startswith("DatasetNotFoundError")
    assert "doesn't exist" in private
    assert missing == private.replace("private", "missing")
    assert rows == [1]
    assert unknown.startswith("DatasetNotFoundError")
    assert "Revision 'v9'" in unknown
