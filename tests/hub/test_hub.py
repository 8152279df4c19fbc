"""The push against the local Hub: one commit or none, whatever goes wrong on the way."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from finished_runs import make_run
from hub_server import (
    STRANGER,
    TOKEN,
    Fault,
    HubServer,
    Repository,
    Response,
    cut,
    flip,
    meanwhile,
    status,
)
from huggingface_hub import HfApi, close_session, constants

from selectit_hf.analysis.finished_run import from_run
from selectit_hf.errors import HubError, SettingError
from selectit_hf.hub.card import Card, CardSettings, inherited, make_card
from selectit_hf.hub.push_commit import Pushed, push
from selectit_hf.hub.push_plan import PushPlan, PushSettings, plan_push
from selectit_hf.hub.staging import Staged, stage
from selectit_hf.redaction import redacted

# the client uploads its large files through a deprecated argument of its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "user/picked"
OURS = [
    "README.md",
    "data/train-00000-of-00001.parquet",
    "images/agreement.png",
    "images/lengths.png",
    "images/scores.png",
    "recipe.yaml",
    "scores/train-00000-of-00001.parquet",
    "selectit.json",
]


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real client in this process, which does not wait between attempts."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    close_session()
    yield
    close_session()


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


class Selection:
    """A staged selection and its card, pushed as often as a test likes."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        finished = from_run(make_run(folder / "run", seed=seed))
        (folder / "staged").mkdir()
        self.staged: Staged = stage(finished, folder / "staged")
        self.card: Card = make_card(
            finished.facts,
            NAME,
            licence=inherited({"license": "mit"}, CardSettings()),
            settings=CardSettings(),
            source_card={},
            datasets_data=self.staged.datasets_data,
            plots=self.staged.plots,
            version="0.1.0",
        )

    def plan(self, server: HubServer, token: str | None = TOKEN, **settings: bool) -> PushPlan:
        api = HfApi(endpoint=server.url, token=token)
        return plan_push(api, NAME, self.staged, self.card, PushSettings(**settings), "0.1.0")

    def push(self, server: HubServer, token: str | None = TOKEN, **settings: bool) -> Pushed:
        plan = self.plan(server, token, **settings)
        return push(HfApi(endpoint=server.url, token=token), plan)

    def files(self, repo: Repository, revision: str = "main") -> None:
        """Assert that a revision holds these files and no others."""
        there = repo.files(revision)
        there.pop(".gitattributes")
        assert sorted(there) == sorted([*self.staged.files, "README.md", "selectit.json"])
        manifest = json.loads(there["selectit.json"])
        for path, file in self.staged.files.items():
            assert there[path] == (self.staged.folder / path).read_bytes()
            assert manifest["files"][path]["sha256"] == file.sha256


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    return Selection(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    return Selection(tmp_path_factory.mktemp("second"), seed=7)


def repo_of(server: HubServer) -> Repository:
    return server.repo("dataset", NAME)


def commits(server: HubServer) -> list[str]:
    """The titles of the commits after the first."""
    return [commit.title for commit in repo_of(server).history()[:-1]]


def is_old(server: HubServer) -> bool:
    """Whether nothing was published: no repository, or an empty private one."""
    if ("dataset", NAME) not in server.repos:
        return True
    repo = repo_of(server)
    return repo.private and list(repo.files()) == [".gitattributes"]


def writes(server: HubServer, start: int = 0) -> list[str]:
    return [str(r) for r in server.requests[start:] if r.method not in ("GET", "HEAD")]


# What goes well


def test_a_plan_writes_nothing(server: HubServer, first: Selection) -> None:
    plan = first.plan(server)
    assert server.repos == {}
    assert writes(server) == []
    assert not plan.is_done
    assert plan.changed == OURS
    words = plan.describe()
    for path, file in plan.files.items():
        assert f"{file.sha256}  {file.size:>12,}  {path}" in words
    assert f"repository  {NAME} (will be created)" in words
    assert "visibility  private" in words
    assert "the card is new" in words
    assert "# Picked" in words
    assert "dataset_info" not in words
    assert "# Picked" not in plan.describe(with_card=False)


def test_a_push_is_one_private_commit(server: HubServer, first: Selection) -> None:
    done = first.push(server)
    repo = repo_of(server)
    assert done.new
    assert done.commit == repo.head
    assert repo.private
    assert len(commits(server)) == 1
    assert sorted(repo.files()) == [".gitattributes", *OURS]
    first.files(repo)


def test_a_public_push_is_asked_for(server: HubServer, first: Selection) -> None:
    first.push(server, public=True)
    assert not repo_of(server).private


def test_the_same_again_makes_no_commit(server: HubServer, first: Selection) -> None:
    before, start = first.push(server), len(server.requests)
    again = first.push(server)
    assert not again.new
    assert again.commit == before.commit
    assert writes(server, start) == []
    assert "the card stays as it is" in first.plan(server).describe()


def test_long_listings_are_read_to_the_end(server: HubServer, first: Selection) -> None:
    server.page_size = 2
    first.push(server)
    assert not first.push(server).new


def test_an_update_keeps_what_people_wrote(
    server: HubServer, first: Selection, second: Selection
) -> None:
    first.push(server)
    repo = repo_of(server)
    mine = repo.files()["README.md"] + b"\n## A word from me\n\nThank you.\n"
    repo.commit({"README.md": mine, "notes.txt": b"mine"}, "By hand")
    plan = second.plan(server, update=True)
    assert "-## A word from me" not in plan.describe()
    second.push(server, update=True)
    assert len(commits(server)) == 3
    files = repo.files()
    assert files["README.md"].count(b"Thank you.") == 1
    assert files.pop("notes.txt") == b"mine"
    data = files["data/train-00000-of-00001.parquet"]
    assert data == (second.staged.folder / "data/train-00000-of-00001.parquet").read_bytes()
    assert not second.push(server, update=True).new


def test_an_update_takes_away_what_it_no_longer_has(
    server: HubServer, first: Selection, second: Selection
) -> None:
    first.push(server)
    repo_of(server).commit({"images/mine.png": b"\0mine"}, "By hand")
    fewer = {p: f for p, f in second.staged.files.items() if "agreement" not in p}
    second_ = object.__new__(Selection)
    second_.staged, second_.card = replace(second.staged, files=fewer), second.card
    assert "  - images/agreement.png" in second_.plan(server, update=True).describe()
    second_.push(server, update=True)
    files = set(repo_of(server).files())
    assert "images/agreement.png" not in files
    assert "images/mine.png" in files
    assert len(commits(server)) == 3


def test_overwriting_leaves_nothing_else(server: HubServer, first: Selection) -> None:
    files = {"README.md": b"---\nlicense: mit\n---\nOld", "data/train-0.parquet": b"\0x", "a": b"b"}
    repo = server.add_repo("dataset", NAME, files, private=True)
    plan = first.plan(server, overwrite=True)
    assert plan.delete == ("a", "data/train-0.parquet")
    assert "-Old" in plan.describe()
    first.push(server, overwrite=True)
    first.files(repo)
    assert len(commits(server)) == 2


def test_a_pull_request_holds_everything_and_is_made_once(
    server: HubServer, first: Selection
) -> None:
    repo = server.add_repo("dataset", NAME, private=True)
    head = repo.head
    done = first.push(server, create_pr=True)
    assert (done.pull_request, done.new) == ("refs/pr/1", True)
    assert done.url.endswith("/discussions/1")
    first.files(repo, "refs/pr/1")
    again = first.push(server, create_pr=True)
    assert (again.pull_request, again.new, again.commit) == ("refs/pr/1", False, done.commit)
    assert repo.pull_requests == ["refs/pr/1"]
    assert repo.head == head


# What is refused


def refused(server: HubServer, words: str, selection: Selection, **settings: Any) -> None:
    """Assert that a push stops with these words and changes nothing at all."""
    before = {key: (repo.refs.copy(), repo.private) for key, repo in server.repos.items()}
    start = len(server.requests)
    with pytest.raises(HubError, match=words):
        selection.push(server, **settings)
    after = {key: (repo.refs, repo.private) for key, repo in server.repos.items()}
    assert after == before
    assert writes(server, start) == []


@pytest.mark.parametrize(
    "name",
    ["picked", "user/a/b", "user/a b", "user/..", "", "user/", "/x", "user/a--b", "ü/x", "u/x.git",
     "user/x\n", "https://huggingface.co/user/x", "user/" + "x" * 97],
)  # fmt: skip
def test_a_name_that_can_be_none_is_refused_before_any_request(
    server: HubServer, first: Selection, name: str
) -> None:
    api = HfApi(endpoint=server.url, token=TOKEN)
    with pytest.raises(SettingError, match="not a repository name"):
        plan_push(api, name, first.staged, first.card, PushSettings(), "0.1.0")
    assert server.requests == []


def test_a_push_needs_a_login(server: HubServer, first: Selection) -> None:
    refused(server, "needs a login", first, token=None)
    assert server.requests == []


def test_update_and_overwrite_contradict_each_other() -> None:
    with pytest.raises(SettingError, match="contradict"):
        PushSettings(update=True, overwrite=True)


def test_someone_elses_files_are_not_replaced(server: HubServer, first: Selection) -> None:
    server.add_repo("dataset", NAME, {"data.csv": b"mine"}, private=True)
    refused(server, "was not pushed by selectit", first)
    refused(server, "was not pushed by selectit", first, update=True)


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{", b'{"format": "selectit 1"}', b'{"format": "other", "files": {}}',
     b'{"format": "selectit 1", "files": {"a": 1}}', b"\xff\xfe"],
)  # fmt: skip
def test_a_manifest_must_be_one(server: HubServer, first: Selection, manifest: bytes) -> None:
    server.add_repo("dataset", NAME, {"selectit.json": manifest}, private=True)
    refused(server, "was not pushed by selectit", first, update=True)


def test_an_earlier_push_is_replaced_only_when_asked(
    server: HubServer, first: Selection, second: Selection
) -> None:
    first.push(server)
    refused(server, "--update", second)


def test_a_file_changed_by_hand_is_not_replaced(
    server: HubServer, first: Selection, second: Selection
) -> None:
    first.push(server)
    repo_of(server).commit({"data/train-00000-of-00001.parquet": b"\0mine"}, "By hand")
    refused(server, "was changed by someone", second, update=True)
    second.push(server, overwrite=True)
    second.files(repo_of(server))


def test_a_damaged_card_is_not_replaced(
    server: HubServer, first: Selection, second: Selection
) -> None:
    first.push(server)
    repo_of(server).commit({"README.md": b"---\nlicense: mit\n---\nAll mine now."}, "By hand")
    refused(server, "cannot be updated", second, update=True)


@pytest.mark.parametrize("public", [True, False])
def test_a_repository_keeps_its_visibility(
    server: HubServer, first: Selection, public: bool
) -> None:
    server.add_repo("dataset", NAME, private=public)
    refused(server, "already exists and is " + ("private" if public else "public"), first,
            public=public)  # fmt: skip


def test_a_pull_request_needs_a_repository(server: HubServer, first: Selection) -> None:
    refused(server, "no pull request can be opened", first, create_pr=True)


def test_a_gated_repository_of_someone_else_is_not_ours(
    server: HubServer, first: Selection
) -> None:
    server.add_repo("dataset", NAME, {"README.md": b"x"}, gated=True)
    refused(server, "gated and this login has no access", first, token=STRANGER)


def test_a_stranger_cannot_push(server: HubServer, first: Selection) -> None:
    with pytest.raises(HubError, match="could not be created; nothing was pushed"):
        first.push(server, token=STRANGER)
    assert server.repos == {}


@pytest.mark.parametrize("secret", ["hf_" + "a" * 34, f"{Path.home()}/data/rows.json"])
def test_no_token_and_no_path_leaves_the_machine(
    server: HubServer, first: Selection, secret: str
) -> None:
    leaky = object.__new__(Selection)
    leaky.staged, leaky.card = first.staged, Card(first.card.data, f"From {secret}.")
    refused(server, "access token or a path of this machine", leaky)
    named = object.__new__(Selection)
    finished = replace(first.staged.finished, facts=first.staged.finished.facts | {"x": secret})
    named.staged, named.card = replace(first.staged, finished=finished), first.card
    refused(server, "access token or a path of this machine", named)


def test_tokens_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "another-kind-of-token")
    text = redacted(f"x {TOKEN} y another-kind-of-token z")
    assert text == "x hf_*** y *** z"


# What goes wrong on the way


def test_a_repository_that_became_public_gets_nothing(server: HubServer, first: Selection) -> None:
    def publicly(server: HubServer, work: Callable[[], Response]) -> Response:
        response = work()
        repo_of(server).private = False
        return response

    server.at("POST /api/repos/create", publicly)
    with pytest.raises(HubError, match="is public, which is not what was asked for"):
        first.push(server)
    assert list(repo_of(server).files()) == [".gitattributes"]
    assert "PUT" not in {request.method for request in server.requests}


def test_a_repository_that_the_commit_made_public_is_said_loudly(
    server: HubServer, first: Selection
) -> None:
    def publicly(server: HubServer, work: Callable[[], Response]) -> Response:
        response = work()
        repo_of(server).private = False
        return response

    server.at("POST .*/commit/", publicly)
    with pytest.raises(HubError, match=f"IS PUBLIC NOW.*hf repos settings {NAME} --type dataset"):
        first.push(server)


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b'{"commitUrl": null}'])
@pytest.mark.parametrize("made", [True, False])
def test_an_odd_reply_to_a_commit_ends_with_what_is_there(
    server: HubServer, first: Selection, body: bytes, made: bool
) -> None:
    def odd(server: HubServer, work: Callable[[], Response]) -> Response:
        if made:
            work()
        return Response(200, [body], len(body), {"Content-Type": "application/json"})

    server.at("POST .*/commit/", odd)
    if made:
        assert first.push(server).commit == repo_of(server).head
        return
    with pytest.raises(HubError, match="Nothing was committed"):
        first.push(server)


def another_writer(server: HubServer) -> None:
    repo_of(server).commit({"theirs.txt": b"theirs"}, "Theirs")


@pytest.mark.parametrize("settings", [{}, {"create_pr": True}])
def test_a_commit_since_planning_stops_the_push(
    server: HubServer, first: Selection, settings: dict[str, bool]
) -> None:
    repo = server.add_repo("dataset", NAME, private=True)
    plan = first.plan(server, **settings)
    start = len(server.requests)
    another_writer(server)
    with pytest.raises(HubError, match=r"Someone else changed .* Nothing was committed"):
        push(HfApi(endpoint=server.url, token=TOKEN), plan)
    assert commits(server) == ["Theirs"]
    assert repo.pull_requests == []
    assert writes(server, start) == []


def test_a_commit_in_the_last_moment_stops_the_push(server: HubServer, first: Selection) -> None:
    server.at("POST .*/commit/", meanwhile(another_writer))
    with pytest.raises(HubError, match="Someone else changed"):
        first.push(server)
    assert commits(server) == ["Theirs"]
    assert set(repo_of(server).files()) == {".gitattributes", "theirs.txt"}


def test_someone_else_may_create_the_repository_first(server: HubServer, first: Selection) -> None:
    plan = first.plan(server)
    server.add_repo("dataset", NAME, {"theirs.txt": b"theirs"}, private=True)
    with pytest.raises(HubError, match="Someone else changed"):
        push(HfApi(endpoint=server.url, token=TOKEN), plan)
    assert commits(server) == ["Add files"]


def test_another_commit_on_top_of_a_lost_reply_is_told_apart(
    server: HubServer, first: Selection
) -> None:
    def lost(server: HubServer, work: Callable[[], Response]) -> Response:
        work()
        another_writer(server)
        return cut()(server, work)

    server.at("POST .*/commit/", lost)
    done = first.push(server)
    assert done.new
    assert len(commits(server)) == 2


@pytest.mark.parametrize(
    "fault", [cut(after=True), status(500, after=True), status(504, after=True)]
)
@pytest.mark.parametrize("settings", [{}, {"create_pr": True}])
def test_a_lost_reply_is_looked_up(
    server: HubServer, first: Selection, fault: Fault, settings: dict[str, bool]
) -> None:
    repo = server.add_repo("dataset", NAME, private=True)
    server.at("POST .*/commit/", fault)
    done = first.push(server, **settings)
    made = repo.at(done.pull_request or "main")
    assert (done.commit, done.new) == (made.sha, True)
    assert len(repo.history(made.sha)) == 2
    assert len(repo.pull_requests) == (1 if settings else 0)
    again = first.push(server, **settings)
    assert (again.commit, again.new) == (done.commit, False)


def test_a_lost_reply_that_cannot_be_looked_up_is_told(server: HubServer, first: Selection) -> None:
    server.add_repo("dataset", NAME, private=True)
    plan = first.plan(server)
    server.at("POST .*/commit/", cut(after=True))
    start = len(server.requests)
    server.at(lambda r: r.index > start + 6 and r.path.endswith(NAME), status(503), inf)
    with pytest.raises(HubError, match="not known whether the commit was made"):
        push(HfApi(endpoint=server.url, token=TOKEN), plan)
    assert len(commits(server)) == 1
    server.faults.clear()
    assert not first.push(server).new
    assert len(commits(server)) == 1


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("POST /api/repos/create", status(500)),
        ("POST /api/repos/create", status(500, after=True)),
        ("POST /api/repos/create", status(429, {"Retry-After": "1"})),
        ("POST /api/repos/create", cut(after=True)),
        ("POST /api/validate-yaml", status(502, body=b"<html>")),
        ("POST /api/validate-yaml", status(200, body=b"<html>")),
        ("POST .*/preupload/", status(503)),
        ("POST .*/preupload/", status(429, {"Retry-After": "1"})),
        ("POST .*/objects/batch", status(500)),
        ("PUT /lfs/", status(500)),
        ("POST .*/commit/", status(500)),
        ("POST .*/commit/", status(429, {"Retry-After": "1"})),
        ("GET .*/tree/", status(500)),
        ("GET /api/datasets/[^/]+/[^/]+$", status(503)),
        ("HEAD .*/resolve/", status(503)),
        ("GET .*/resolve/", status(503)),
        ("GET .*/resolve/", cut(sent=100)),
    ],
)
def test_a_passing_failure_is_ridden_out(
    server: HubServer, first: Selection, where: str, fault: Fault
) -> None:
    server.at(where, fault)
    done = first.push(server)
    assert done.commit == repo_of(server).head
    first.files(repo_of(server))
    assert len(commits(server)) == 1
    assert repo_of(server).private


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("POST /api/repos/create", "could not be created; nothing was pushed"),
        ("POST /api/validate-yaml", "Nothing was committed"),
        ("POST .*/preupload/", "Nothing was committed"),
        ("POST .*/objects/batch", "Nothing was committed"),
        ("PUT /lfs/", "Nothing was committed"),
        ("POST .*/commit/", "Nothing was committed"),
        ("GET /api/datasets/[^/]+/[^/]+$", "nothing was pushed"),
    ],
)
def test_a_lasting_failure_leaves_the_old(
    server: HubServer, first: Selection, where: str, words: str
) -> None:
    server.at(where, status(503, body=TOKEN.encode()), inf)
    with pytest.raises(HubError, match=words) as caught:
        first.push(server)
    assert is_old(server)
    assert TOKEN not in str(caught.value)
    server.faults.clear()
    first.push(server)
    assert len(commits(server)) == 1


@pytest.mark.parametrize("where", ["GET .*/tree/[0-9a-f]+", "HEAD .*/resolve/", "GET .*/resolve/"])
def test_a_push_that_cannot_be_read_back_is_no_success(
    server: HubServer, first: Selection, where: str
) -> None:
    server.add_repo("dataset", NAME, private=True)
    plan = first.plan(server)
    server.at(where, status(503), inf)
    with pytest.raises(HubError, match="could not be read back"):
        push(HfApi(endpoint=server.url, token=TOKEN), plan)
    first.files(repo_of(server))
    server.faults.clear()
    assert not first.push(server).new


def test_a_gitignore_that_drops_files_is_noticed(server: HubServer, first: Selection) -> None:
    repo = server.add_repo("dataset", NAME, private=True)
    repo.commit({".gitignore": b"*.parquet\n"}, "Ignore")
    plan = first.plan(server, overwrite=True)
    assert "has a .gitignore" in plan.describe()
    with pytest.raises(HubError, match=r"lacks data/train-00000-of-00001.parquet.*\.gitignore"):
        push(HfApi(endpoint=server.url, token=TOKEN), plan)
    assert len(commits(server)) == 2
    first.push(server, overwrite=True)  # the .gitignore is gone with the first
    first.files(repo)


@pytest.mark.parametrize("path", OURS)
def test_a_flipped_bit_on_the_way_back_is_noticed(
    server: HubServer, first: Selection, path: str
) -> None:
    server.at(f"GET .*/resolve/.*/{path}", flip())
    with pytest.raises(HubError, match=f"{path} came back with other bytes"):
        first.push(server)
    first.files(repo_of(server))
    assert not first.push(server).new


def test_a_file_that_rots_on_the_hub_is_noticed(server: HubServer, first: Selection) -> None:
    first.push(server)
    repo_of(server).corrupt("scores/train-00000-of-00001.parquet")
    with pytest.raises(HubError, match=r"scores/train-00000-of-00001\.parquet came back"):
        first.push(server)
    assert len(commits(server)) == 1


# Cuts at every request


def requests_of(
    selection: Selection, prepare: Callable[[HubServer], None], **how: bool
) -> list[str]:
    """The methods of the requests of an undisturbed push."""
    with HubServer() as server:
        prepare(server)
        selection.push(server, **how)
        return [request.method for request in server.requests]


def cuts(methods: list[str]) -> Iterator[tuple[int, bool]]:
    """Every request cut before its work, and those that write cut after it as well."""
    assert len(methods) > 20
    for index, method in enumerate(methods):
        yield index, False
        if method not in ("GET", "HEAD"):
            yield index, True


def again(selection: Selection, server: HubServer, **how: bool) -> None:
    """Push, unless everything is there."""
    plan = selection.plan(server, **how)
    if not plan.is_done:
        push(HfApi(endpoint=server.url, token=TOKEN), plan)


def test_a_first_push_cut_anywhere_is_the_old_or_the_new(first: Selection) -> None:
    for index, after in cuts(requests_of(first, lambda server: None)):
        with HubServer() as server:
            server.at(index, cut(after=after))
            done = None
            with suppress(HubError):
                done = first.push(server)
            if done is not None or not is_old(server):
                first.files(repo_of(server))
            again(first, server)
            assert len(commits(server)) == 1, server.requests[index]
            assert done is None or done.commit == repo_of(server).head
            assert repo_of(server).private


def test_an_update_cut_anywhere_is_the_old_or_the_new(
    server: HubServer, first: Selection, second: Selection
) -> None:
    first.push(server)
    old = {path: data for path, data in repo_of(server).files().items() if path in OURS}

    def prepare(server: HubServer) -> None:
        server.add_repo("dataset", NAME, old, private=True)

    for index, after in cuts(requests_of(second, prepare, update=True)):
        with HubServer() as server:
            prepare(server)
            server.at(index, cut(after=after))
            with suppress(HubError):
                second.push(server, update=True)
            (first if len(commits(server)) == 1 else second).files(repo_of(server))
            again(second, server, update=True)
            assert len(commits(server)) == 2, server.requests[index]


def test_a_pull_request_cut_anywhere_is_none_or_one(first: Selection) -> None:
    def prepare(server: HubServer) -> None:
        server.add_repo("dataset", NAME, private=True)

    for index, after in cuts(requests_of(first, prepare, create_pr=True)):
        with HubServer() as server:
            prepare(server)
            head = repo_of(server).head
            server.at(index, cut(after=after))
            with suppress(HubError):
                first.push(server, create_pr=True)
            again(first, server, create_pr=True)
            assert repo_of(server).pull_requests == ["refs/pr/1"], server.requests[index]
            assert repo_of(server).head == head
            first.files(repo_of(server), "refs/pr/1")
