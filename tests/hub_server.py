"""A small Hub on 127.0.0.1: enough of the protocol for the real clients, and faults on demand.

    with HubServer() as server:
        server.add_repo("model", "user/tiny", {"config.json": b"{}"}, private=True)
        server.at("POST .*/commit/", status(500, after=True))  # it commits, and answers 500
        server.at(7, cut())  # the request that becomes server.requests[7] gets no reply
        subprocess.run([...], env=server.environment(tmp_path))
        print(server.requests, server.repo("dataset", "user/pushed").head)

Tokens name users (`TOKENS`), and a user owns the repositories of the same namespace. A private
repository does not exist for others; the files of a gated one are refused to others. New
repositories start with one commit that holds `.gitattributes`, as on the Hub.
"""

import base64
import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Self, cast
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

import yaml

TOKEN, STRANGER = "hf_test_token_of_user", "hf_test_token_of_stranger"
TOKENS = {TOKEN: "user", STRANGER: "stranger"}
MAIN = "refs/heads/main"
PIECE = 1 << 20
LFS_ABOVE = 10 << 20
LFS_TYPES = ("arrow", "bin", "gz", "jpg", "npy", "npz", "parquet", "png", "safetensors", "zip")
ATTRIBUTES = "".join(f"*.{type_} filter=lfs diff=lfs merge=lfs -text\n" for type_ in LFS_TYPES)
NONE: Mapping[str, str] = MappingProxyType({})
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


# Requests, responses and errors


@dataclass
class Request:
    """One request, as the log keeps it; `status` is None where no whole reply was sent."""

    method: str
    path: str  # as sent, still quoted, without the query
    query: dict[str, str]
    headers: "Message[str, str]" = field(repr=False)  # whatever the case of a name
    body: IO[bytes] = field(repr=False)  # closed once the request is handled
    index: int = -1
    status: int | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status}"

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None


@dataclass
class Response:
    status: int
    body: Iterable[bytes]
    length: int
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """What the Hub answers instead, with the code the clients look at."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: Mapping[str, str] = NONE
    ) -> None:
        super().__init__(message)
        coded = {"X-Error-Code": code} if code else {}
        line = " ".join(message.encode("ascii", "replace").decode().split())
        headers = {"X-Error-Message": line, **coded, **headers}
        self.response = reply({"error": message}, status, headers)


def reply(value: object, status: int = 200, headers: Mapping[str, str] = NONE) -> Response:
    body = json.dumps(value, default=str).encode()
    return Response(status, [body], len(body), {"Content-Type": "application/json", **headers})


# Faults: each takes the server and the work it replaces or wraps, and returns the response to send

Work = Callable[[], Response]
Fault = Callable[["HubServer", Work], Response]


class Cut(Exception):
    """Close the connection here, with no more bytes."""


def status(
    code: int, headers: Mapping[str, str] = NONE, body: bytes = b"", after: bool = False
) -> Fault:
    """Answer `code` with `body` (not JSON); `after` does the work first and hides its result."""

    def fault(server: "HubServer", work: Work) -> Response:
        if after:
            work()
        return Response(code, [body], len(body), dict(headers))

    return fault


def hang(seconds: float) -> Fault:
    """Wait, then work; a server that closes does not wait."""

    def fault(server: "HubServer", work: Work) -> Response:
        server.closing.wait(seconds)
        return work()

    return fault


def cut(after: bool = False, sent: int = 0) -> Fault:
    """Cut the connection: before the work, `after` it, or once `sent` bytes of the body left."""

    def truncated(body: Iterable[bytes]) -> Iterator[bytes]:
        left = sent
        for chunk in body:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                raise Cut

    def fault(server: "HubServer", work: Work) -> Response:
        response = work() if after or sent else None
        if response is None or not sent:
            raise Cut
        return dataclasses.replace(response, body=truncated(response.body))

    return fault


def flip(offset: int | None = None) -> Fault:
    """Flip the lowest bit of one byte of the reply's body: the middle one, unless told."""

    def flipped(body: Iterable[bytes], at: int) -> Iterator[bytes]:
        for chunk in body:
            if 0 <= at < len(chunk):
                chunk = chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]
            at -= len(chunk)
            yield chunk

    def fault(server: "HubServer", work: Work) -> Response:
        response = work()
        at = response.length // 2 if offset is None else offset
        return dataclasses.replace(response, body=flipped(response.body, at))

    return fault


def meanwhile(action: Callable[["HubServer"], object]) -> Fault:
    """Do something just before the request is handled: another writer's commit, say."""

    def fault(server: "HubServer", work: Work) -> Response:
        action(server)
        return work()

    return fault


# Blobs and repositories


@dataclass(frozen=True)
class Blob:
    file: Path
    size: int
    sha: str  # what the client compares: git's sha1, or sha256 for LFS
    lfs: bool

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        left = (self.size if stop is None else stop) - start
        with self.file.open("rb") as file:
            file.seek(start)
            while left > 0 and (chunk := file.read(min(PIECE, left))):
                left -= len(chunk)
                yield chunk

    def data(self) -> bytes:
        return b"".join(self.read())

    def describe(self) -> dict[str, Any]:
        if not self.lfs:
            return {"oid": self.sha, "blobId": self.sha, "size": self.size}
        pointer = POINTER.format(self.sha, self.size).encode()
        lfs = {"oid": self.sha, "sha256": self.sha, "size": self.size, "pointerSize": len(pointer)}
        sha = git_sha(pointer)
        return {"oid": sha, "blobId": sha, "size": self.size, "lfs": lfs}


Changes = dict[str, Blob | bytes | None]


def git_sha(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Store:
    """Blobs in a folder, named after what they hold, so that a large push stays out of memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, data: bytes, lfs: bool = False) -> Blob:
        sha = hashlib.sha256(data).hexdigest() if lfs else git_sha(data)
        file = self.folder / sha
        if not file.exists():
            file.write_bytes(data)
        return Blob(file, len(data), sha, lfs)

    def receive(self, body: IO[bytes], sha256: str) -> bool:
        """Keep an uploaded LFS file, if it is what its name says."""
        digest = hashlib.sha256()
        while chunk := body.read(PIECE):
            digest.update(chunk)
        if digest.hexdigest() != sha256:
            return False
        body.seek(0)
        with (self.folder / sha256).open("wb") as file:
            shutil.copyfileobj(body, file, PIECE)
        return True

    def find(self, sha256: str) -> Blob | None:
        file = self.folder / sha256
        return Blob(file, file.stat().st_size, sha256, lfs=True) if file.exists() else None


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    date: str
    tree: dict[str, Blob]

    def under(self, path: str) -> dict[str, Blob]:
        """The file at a path, or all files of the folder at it."""
        inside = f"{path}/" if path else ""
        return {p: blob for p, blob in self.tree.items() if p == path or p.startswith(inside)}

    def text(self, path: str) -> str:
        return self.tree[path].data().decode() if path in self.tree else ""


class Repository:
    """One repository: commits, each with a whole tree, and references to them."""

    def __init__(self, store: Store, kind: str, name: str, private: bool, gated: bool) -> None:
        self.store, self.kind, self.name = store, kind, name
        self.private, self.gated = private, gated
        self.refs: dict[str, str] = {}
        self.objects: dict[str, Commit] = {}
        self.commit({".gitattributes": ATTRIBUTES.encode()}, "initial commit")

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    @property
    def web(self) -> str:
        """Where its pages are, below the server's address."""
        return self.name if self.kind == "model" else f"{self.kind}s/{self.name}"

    @property
    def head(self) -> str:
        return self.refs[MAIN]

    @property
    def pull_requests(self) -> list[str]:
        return [ref for ref in self.refs if ref.startswith("refs/pr/")]

    def ref(self, revision: str) -> str | None:
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def at(self, revision: str = "main") -> Commit:
        """The commit at a branch, tag, pull request or (short) sha."""
        sha = self.refs.get(self.ref(revision) or "", revision)
        found = next((full for full in self.objects if full.startswith(sha)), None)
        if found is None or len(sha) < 7:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.objects[found]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.data() for path, blob in self.at(revision).tree.items()}

    def history(self, revision: str = "main") -> list[Commit]:
        """Its commits, newest first."""
        commits = [self.at(revision)]
        while parent := commits[-1].parent:
            commits.append(self.objects[parent])
        return commits

    def commit(
        self,
        changes: "Changes | Mapping[str, bytes | None]",
        title: str = "Update",
        ref: str = MAIN,
        parent: str | None = None,
    ) -> Commit:
        """Add files (or delete, where None) in one commit and move the reference to it."""
        parent = parent or self.refs.get(ref)
        tree = dict(self.objects[parent].tree) if parent else {}
        for path, change in changes.items():
            if change is None:
                del tree[path]
            elif isinstance(change, Blob):
                tree[path] = change
            else:
                tree[path] = self.store.add(change, self.uses_lfs(path, len(change), change[:512]))
        content = json.dumps([self.web, parent, title, [(p, tree[p].sha) for p in sorted(tree)]])
        sha = hashlib.sha1(content.encode()).hexdigest()
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.objects[sha] = Commit(sha, parent, title, date, tree)
        self.refs[ref] = sha
        return self.objects[sha]

    def uses_lfs(self, path: str, size: int, sample: bytes) -> bool:
        attributes = self.at().text(".gitattributes") if MAIN in self.refs else ""
        rules = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        return size > LFS_ABOVE or b"\0" in sample or any(matches(rule, path) for rule in rules)

    def corrupt(self, path: str, revision: str = "main", offset: int | None = None) -> None:
        """Flip a bit of a stored file, whose recorded hashes stay as they were."""
        blob = self.at(revision).tree[path]
        with blob.file.open("r+b") as file:
            file.seek(blob.size // 2 if offset is None else offset)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))


def matches(rule: str, path: str) -> bool:
    """Whether a gitignore or gitattributes pattern (without character classes) covers a path."""
    globs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    body = re.sub(
        r"\*\*/|\*\*|\*|\?|[^*?]+", lambda m: globs.get(m[0], re.escape(m[0])), rule.strip("/")
    )
    start = "" if "/" in rule.rstrip("/") else "(?:.*/)?"
    end = "/.+" if rule.endswith("/") else "(?:/.*)?"
    return re.fullmatch(start + body + end, path) is not None


def ignored(gitignore: str, path: str) -> bool:
    """The last rule that matches decides, as git does."""
    verdict = False
    for rule in map(str.strip, gitignore.splitlines()):
        if rule and not rule.startswith("#") and matches(rule.removeprefix("!"), path):
            verdict = not rule.startswith("!")
    return verdict


def card_data(text: str) -> dict[str, Any]:
    """The front matter of a card; ValueError says what the Hub would not take."""
    block = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML: {error}") from error
    if not isinstance(data or {}, dict):
        raise ValueError("The metadata must be a mapping")
    data = data or {}
    for key in ("language", "license", "tags", "task_categories", "size_categories", "pretty_name"):
        values = data.get(key, [])
        values = values if isinstance(values, list) else [values]
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f'"{key}" must be a string')
    return data


# The protocol: functions that answer one kind of request each

API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
WEB = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)"
REVISION = r"/(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)"
PATH = r"/(?P<path>.+)"


@dataclass
class Call:
    """A request being answered, with what its route found in the path."""

    hub: "HubServer"
    request: Request
    user: str | None
    args: dict[str, str]  # kind, name, revision, path, sha256

    @cached_property
    def repo(self) -> Repository:
        kind = self.args["kind"].rstrip("s") or "model"
        return self.hub.open(kind, self.args["name"], self.user)

    @cached_property
    def commit(self) -> Commit:
        return self.repo.at(self.args["revision"] or "main")

    @cached_property
    def wanted(self) -> Any:
        return json.loads(self.request.body.read())

    def may_write(self, owner: str | None) -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if self.user != owner:
            raise HubError(403, f"You have no right to write in {owner}")

    def page(self, entries: list[dict[str, Any]], size: int) -> Response:
        """One page of a list, with a link to the next."""
        start, size = int(self.request.query.get("cursor", 0)), self.hub.page_size or size
        stop, headers = start + size, {}
        if stop < len(entries):
            query = urlencode(self.request.query | {"cursor": str(stop)})
            headers["Link"] = f'<{self.hub.url}{self.request.path}?{query}>; rel="next"'
        return reply(entries[start:stop], headers=headers)


Route = Callable[[Call], Response]
ROUTES: list[tuple[str, re.Pattern[str], bool, Route]] = []


def route(method: str, pattern: str, write: bool = False) -> Callable[[Route], Route]:
    """Answer such requests with the decorated function; `write` is for a repository's owner."""

    def register(function: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), write, function))
        return function

    return register


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Response:
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    access = {"accessToken": {"displayName": "test", "role": "write"}}
    return reply({"type": "user", "name": call.user, "orgs": [], "auth": access})


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Response:
    try:
        data = card_data(call.wanted["content"])
    except ValueError as error:
        return reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
    warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
    return reply({"errors": [], "warnings": warnings})


@route("POST", "/api/repos/create")
def create_repo(call: Call) -> Response:
    kind, owner = call.wanted.get("type", "model"), call.wanted["organization"] or call.user
    call.may_write(owner)
    if not re.fullmatch(r"[\w-][\w.-]{0,95}", call.wanted["name"]):
        raise HubError(400, f"Invalid repository name: {call.wanted['name']}")
    name = f"{owner}/{call.wanted['name']}"
    exists = (kind, name) in call.hub.repos
    private = call.wanted.get("visibility") == "private"
    repo = call.hub.repos[kind, name] if exists else call.hub.add_repo(kind, name, private=private)
    error = {"error": f"You already created this {kind} repo"} if exists else {}
    answer = {"url": f"{call.hub.url}/{repo.web}", "name": name}
    return reply(answer | error, 409 if exists else 200)


@route("DELETE", "/api/repos/delete")
def delete_repo(call: Call) -> Response:
    owner, kind = call.wanted["organization"] or call.user, call.wanted.get("type", "model")
    repo = call.hub.open(kind, f"{owner}/{call.wanted['name']}", call.user)
    call.may_write(repo.owner)
    del call.hub.repos[repo.kind, repo.name]
    return reply({})


@route("PUT", f"{API}/settings", write=True)
def update_settings(call: Call) -> Response:
    if "visibility" in call.wanted:
        call.repo.private = call.wanted["visibility"] == "private"
    call.repo.gated = bool(call.wanted.get("gated", call.repo.gated))
    return reply({})


@route("GET", f"{API}(?:/revision{REVISION})?")
def repo_info(call: Call) -> Response:
    repo, blobs = call.repo, "blobs" in call.request.query
    siblings = [
        {"rfilename": path, **(blob.describe() if blobs else {})}
        for path, blob in sorted(call.commit.tree.items())
    ]
    info = {
        "id": repo.name,
        "author": repo.owner,
        "sha": call.commit.sha,
        "createdAt": repo.history()[-1].date,
        "lastModified": call.commit.date,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "cardData": card_data(call.commit.text("README.md")),
        "siblings": siblings,
    }
    return reply(info)


@route("GET", f"{API}/refs")
def list_refs(call: Call) -> Response:
    def those(start: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(start), "ref": ref, "targetCommit": sha}
            for ref, sha in call.repo.refs.items()
            if ref.startswith(start)
        ]

    starts = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
    return reply({"converts": []} | {kind: those(start) for kind, start in starts.items()})


@route("GET", f"{API}/tree{REVISION}(?:{PATH})?")
def list_tree(call: Call) -> Response:
    top, found = call.args["path"], set[str]()
    depth = top.count("/") + 1 if top else 0
    for file in call.commit.under(top):
        parts = file.split("/")
        deepest = len(parts) if call.request.query.get("recursive") == "true" else depth + 1
        found.update("/".join(parts[:end]) for end in range(depth + 1, deepest + 1))
    if top in call.commit.tree:
        found = {top}
    if top and not found:
        raise HubError(404, f"{top} does not exist", "EntryNotFound")
    expand = call.request.query.get("expand") == "true"
    entries = [describe(call.repo, call.commit, path, expand) for path in sorted(found)]
    return call.page(entries, 50 if expand else 1000)


@route("POST", f"{API}/paths-info{REVISION}")
def paths_info(call: Call) -> Response:
    form = parse_qs(call.request.body.read().decode())
    paths = [path for path in form.get("paths", []) if call.commit.under(path)]
    expand = form.get("expand") == ["true"]
    return reply([describe(call.repo, call.commit, path, expand) for path in paths])


@route("POST", f"{API}/preupload{REVISION}", write=True)
def preupload(call: Call) -> Response:
    gitignore = call.wanted.get("gitIgnore", call.commit.text(".gitignore"))

    def plan(file: dict[str, Any]) -> dict[str, Any]:
        path, sample = file["path"], base64.b64decode(file["sample"])
        mode = "lfs" if call.repo.uses_lfs(path, file["size"], sample) else "regular"
        blob = call.commit.tree.get(path)
        known = {"oid": blob.sha} if blob else {}
        return {"path": path, "uploadMode": mode, "shouldIgnore": ignored(gitignore, path)} | known

    return reply({"files": [plan(file) for file in call.wanted["files"]]})


@route("POST", rf"{WEB}\.git/info/lfs/objects/batch", write=True)
def lfs_batch(call: Call) -> Response:
    objects = [{"oid": file["oid"], "size": file["size"]} for file in call.wanted["objects"]]
    for file in objects:
        if not call.hub.store.find(file["oid"]):
            file["actions"] = {"upload": {"href": f"{call.hub.url}/lfs/{file['oid']}"}}
    return reply({"transfer": "basic", "objects": objects})


@route("PUT", r"/lfs/(?P<sha256>[0-9a-f]{64})")
def lfs_upload(call: Call) -> Response:
    if not call.hub.store.receive(call.request.body, call.args["sha256"]):
        raise HubError(400, "The content does not match its sha256")
    return reply({})


@route("POST", f"{API}/commit{REVISION}", write=True)
def commit(call: Call) -> Response:
    header, *operations = [json.loads(line) for line in call.request.body.read().splitlines()]
    summary, parent = header["value"]["summary"], header["value"].get("parentCommit")
    repo, base, ref = call.repo, call.commit, call.repo.ref(call.args["revision"])
    if pull_request := call.request.query.get("create_pr") == "1":
        base, ref = repo.at(parent or base.sha), f"refs/pr/{len(repo.pull_requests) + 1}"
    elif ref is None:
        raise HubError(400, "The revision is not a branch")
    elif not base.sha.startswith(parent or base.sha):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    made = repo.commit(changes(call.hub.store, base, operations), summary, ref, base.sha)
    page = f"{call.hub.url}/{repo.web}"
    answer = {"success": True, "commitOid": made.sha, "commitUrl": f"{page}/commit/{made.sha}"}
    if pull_request:
        answer["pullRequestUrl"] = f"{page}/discussions/{len(repo.pull_requests)}"
    return reply(answer)


@route("GET", f"{WEB}/resolve{REVISION}{PATH}")
def download(call: Call) -> Response:
    if call.repo.gated and call.user != call.repo.owner:
        raise HubError(403 if call.user else 401, "Access to it is restricted", "GatedRepo")
    headers = {"X-Repo-Commit": call.commit.sha, "Accept-Ranges": "bytes"}
    if (blob := call.commit.tree.get(call.args["path"])) is None:
        raise HubError(404, "Entry not found", "EntryNotFound", headers)
    headers["ETag"] = f'"{blob.sha}"'
    if blob.lfs:
        headers |= {"X-Linked-ETag": f'"{blob.sha}"', "X-Linked-Size": str(blob.size)}
    asked = call.request.headers.get("Range")
    start, stop = span(asked, blob.size)
    if asked:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    return Response(206 if asked else 200, blob.read(start, stop), stop - start, headers)


def span(asked: str | None, size: int) -> tuple[int, int]:
    """The bytes that a Range header asks for, as a slice."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "bytes=0-")
    first, last = match.groups() if match else ("", "")
    start = int(first) if first else max(0, size - int(last or 0))
    stop = min(size, int(last) + 1) if first and last else size
    if asked and start >= stop:
        headers = {"Content-Range": f"bytes */{size}"}
        raise HubError(416, "Range not satisfiable", headers=headers)
    return start, stop


def changes(store: Store, base: Commit, operations: list[dict[str, Any]]) -> Changes:
    """What the operations of a commit do to each path, checked before anything changes."""
    found: Changes = {}
    for operation in operations:
        key, value = operation["key"], operation["value"]
        path = value["path"].rstrip("/")
        if key == "file":
            found[path] = store.add(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            found[path] = store.find(value["oid"])
            if found[path] is None:
                raise HubError(400, f"LFS file was not uploaded: {path}")
        elif doomed := base.under(path):
            found |= dict.fromkeys(doomed)
        else:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    if isinstance(card := found.get("README.md"), Blob):
        try:
            card_data(card.data().decode())
        except ValueError as error:
            raise HubError(400, f"Invalid metadata in README.md: {error}") from error
    return found


def describe(repo: Repository, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    blobs = commit.under(path)
    if path in blobs:
        entry = {"type": "file", "path": path} | blobs[path].describe()
    else:
        sha = git_sha(repr(sorted((p, blob.sha) for p, blob in blobs.items())).encode())
        entry = {"type": "directory", "path": path, "oid": sha, "size": 0}
    if expand:
        for last in repo.history(commit.sha):
            if not last.parent or repo.objects[last.parent].under(path) != blobs:
                break
        entry["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
    return entry


# The server


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one(self) -> None:
        target, server = urlsplit(self.path), cast(HubServer, self.server)
        with tempfile.SpooledTemporaryFile(PIECE) as body:
            for chunk in self.read_body():
                body.write(chunk)
            body.seek(0)
            query = dict(parse_qsl(target.query))
            request = Request(self.command, target.path, query, self.headers, body)
            try:
                response = server.answer(request)
                request.status = response.status
                self.send(response)
            except Cut:
                request.status = None
                self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def read_body(self) -> Iterator[bytes]:
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            if not (chunk := self.rfile.read(min(PIECE, left))):
                raise ConnectionResetError
            left -= len(chunk)
            yield chunk

    def send(self, response: Response) -> None:
        self.send_response(response.status)
        for key, value in (response.headers | {"Content-Length": str(response.length)}).items():
            self.send_header(key, value)
        self.end_headers()
        for chunk in response.body if self.command != "HEAD" else ():
            self.wfile.write(chunk)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the server keeps its own log."""


class HubServer(ThreadingHTTPServer):
    """The server: `with HubServer() as server:`; its bugs are raised when the block ends."""

    daemon_threads = False  # closing waits for every thread, so that no socket outlives it
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.folder = tempfile.TemporaryDirectory(prefix="hub-")
        self.store = Store(Path(self.folder.name))
        self.repos: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.page_size: int | None = None  # a smaller page makes clients follow more of them
        self.closing = threading.Event()
        self.errors: list[Exception] = []
        self.lock = threading.RLock()
        self.faults: list[tuple[Callable[[Request], bool], Fault, list[float]]] = []
        self.connections: set[Any] = set()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.closing.set()
        self.shutdown()
        self.thread.join()
        with self.lock:
            for connection in self.connections:
                with suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self.folder.cleanup()
        if self.errors and error is None:
            raise self.errors[0]

    # What a test asks and arranges

    def add_repo(
        self,
        kind: str,
        name: str,
        files: Mapping[str, bytes] | None = None,
        private: bool = False,
        gated: bool = False,
        card: Mapping[str, Any] | None = None,
    ) -> Repository:
        """A repository with these files in one commit after the first; `card` is front matter."""
        repo = self.repos[kind, name] = Repository(self.store, kind, name, private, gated)
        readme = {"README.md": f"---\n{yaml.safe_dump(dict(card))}---\n".encode()} if card else {}
        if files or readme:
            repo.commit({**readme, **(files or {})}, "Add files")
        return repo

    def repo(self, kind: str, name: str) -> Repository:
        return self.repos[kind, name]

    def at(
        self, when: int | str | Callable[[Request], bool], fault: Fault, times: float = 1
    ) -> None:
        """Arrange a fault for the next `times` requests that match (`inf` for all of them).

        `when` is an index into `requests`, a pattern found in "METHOD /path", or a predicate.
        """

        def matches_request(request: Request) -> bool:
            if callable(when):
                return when(request)
            if isinstance(when, int):
                return request.index == when
            return re.search(when, f"{request.method} {request.path}") is not None

        self.faults.append((matches_request, fault, [times]))

    def environment(self, home: Path | str) -> dict[str, str]:
        """The variables for a process that shall talk to this server, with its caches in `home`."""
        ours = re.compile(r"(HF|HUGGING\w*|TRANSFORMERS|\w+_PROXY)(_|$)", re.IGNORECASE)
        kept = {key: value for key, value in os.environ.items() if not ours.match(key)}
        disabled = ("XET", "TELEMETRY", "UPDATE_CHECK", "PROGRESS_BARS")
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else each load asks a host far away
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            **{f"HF_HUB_DISABLE_{what}": "1" for what in disabled},
        }

    # What the protocol asks

    def user(self, request: Request) -> str | None:
        if request.token and request.token not in TOKENS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return TOKENS.get(request.token or "")

    def open(self, kind: str, name: str, user: str | None) -> Repository:
        """The repository, if this user may know of it."""
        repo = self.repos.get((kind, name))
        if repo is None or (repo.private and user != repo.owner):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def answer(self, request: Request) -> Response:
        """Log the request and do its work, or what a fault makes of it."""
        with self.lock:
            request.index = len(self.requests)
            self.requests.append(request)
            fault = self.next_fault(request)
        work = partial(self.work, request)
        return fault(self, work) if fault else work()

    def next_fault(self, request: Request) -> Fault | None:
        for matches_request, fault, left in self.faults:
            if left[0] > 0 and matches_request(request):
                left[0] -= 1
                return fault
        return None

    def work(self, request: Request) -> Response:
        with self.lock:
            try:
                return self.dispatch(request)
            except HubError as error:
                return error.response
            except Exception as error:
                self.errors.append(error)
                return reply({"error": repr(error)}, 500)

    def dispatch(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, write, function in ROUTES:
            if wanted == method and (match := pattern.fullmatch(request.path)):
                args = {key: unquote(value or "") for key, value in match.groupdict().items()}
                call = Call(self, request, self.user(request), args)
                # who may read may propose a change
                if write and call.repo and request.query.get("create_pr") != "1":
                    call.may_write(call.repo.owner)
                return function(call)
        raise HubError(404, f"No such page: {request.path}")

    # Sockets

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would look its own name up

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self.connections.discard(request)
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            self.errors.append(error)  # a client that goes away is no bug
