"""Reading the Hub, with retries: what is there, and how to report requests that fail."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, RepoFile
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from selectit_hf.errors import HubError
from selectit_hf.hub.staging import CARD, MANIFEST, File
from selectit_hf.hub_files import COMMIT
from selectit_hf.patience import FAILURES, patiently
from selectit_hf.redaction import redacted

__all__ = [
    "EMPTY",
    "KIND",
    "Remote",
    "downloaded",
    "exists",
    "failure",
    "find_proposal",
    "is_ours",
    "is_same",
    "is_there",
    "read_remote",
    "state",
    "tree",
]

T = TypeVar("T")

KIND: dict[str, Any] = {"repo_type": "dataset"}
EMPTY = {".gitattributes"}
"""What is in a repository that nobody has put a file in."""


@dataclass(frozen=True)
class Remote:
    """What is on the Hub before a push.

    Attributes:
        head: the commit of the main branch; ``None`` without a repository.
        private: whether it is private.
        files: each file by its path.
        manifest: the manifest of an earlier push of this package.
        card: the text of its README.md.
    """

    head: str | None = None
    private: bool = True
    files: Mapping[str, RepoFile] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None
    card: str = ""


def read_remote(api: HfApi, repo: str) -> Remote:
    """What is in a repository now.

    Raises:
        HubError: it cannot be read.
    """
    try:
        head, private, names = state(api, repo)
        files = tree(api, repo, head)
        if not names <= set(files):
            raise LookupError(f"one answer lists {len(files)} files, another {len(names)}")
        texts = {
            path: _download(api, repo, head, path).decode("utf-8", "replace")
            for path in (CARD, MANIFEST)
            if path in files
        }
    except GatedRepoError as error:
        raise failure(error, f"{repo} is gated and this login has no access to it.") from None
    except RepositoryNotFoundError:
        return Remote()
    except FAILURES as error:
        raise failure(error, f"{repo} cannot be read on the Hub; nothing was pushed.") from None
    manifest = _manifest(texts.get(MANIFEST, ""))
    return Remote(head, private, files, manifest, texts.get(CARD, ""))


def state(api: HfApi, repo: str, revision: str | None = None) -> tuple[str, bool, set[str]]:
    """The commit, whether it is private, and the paths that are there.

    Raises:
        LookupError: the Hub answered without one of them.
        HTTPError, OSError, ...: see `FAILURES`.
    """
    info = patiently(lambda: api.dataset_info(repo, revision=revision))
    names = {file.rfilename for file in info.siblings or ()}
    if not COMMIT.fullmatch(str(info.sha)) or not isinstance(info.private, bool) or not names:
        raise LookupError("its answer lacks the commit, the files or the visibility")
    return str(info.sha), info.private, names


def tree(api: HfApi, repo: str, revision: str) -> dict[str, RepoFile]:
    """Every file at a revision, by its path."""
    found = patiently(
        lambda: list(api.list_repo_tree(repo, recursive=True, revision=revision, **KIND))
    )
    return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}


def _manifest(text: str) -> Mapping[str, Any] | None:
    """A manifest that this package wrote."""
    try:
        manifest = json.loads(text)
    except ValueError:
        return None
    known = isinstance(manifest, dict) and manifest.get("format") == "selectit 1"
    files = manifest.get("files") if known else None
    if not isinstance(files, dict) or not all(isinstance(f, dict) for f in files.values()):
        return None
    return dict(manifest)


def is_same(file: File, there: RepoFile) -> bool:
    """Whether a file on the Hub has these bytes, by the hash that the Hub recorded."""
    if there.lfs is not None:
        return bool(there.lfs.sha256 == file.sha256)
    return bool(there.blob_id == file.git)


def is_ours(path: str, remote: Remote) -> bool:
    """Whether a file is exactly as the earlier push left it."""
    recorded = (remote.manifest or {}).get("files", {}).get(path, {})
    hashes = (recorded.get("sha256", ""), recorded.get("git", ""))
    return path in remote.files and is_same(File(0, *hashes), remote.files[path])


def is_there(api: HfApi, repo: str, revision: str, path: str, file: File) -> bool:
    """Whether a revision has these bytes at a path."""
    found = patiently(lambda: api.get_paths_info(repo, [path], revision=revision, **KIND))
    return any(isinstance(f, RepoFile) and is_same(file, f) for f in found)


def find_proposal(api: HfApi, repo: str, manifest: File) -> str | None:
    """The pull request with this manifest, whose hashes cover every byte of the push."""
    refs = patiently(lambda: api.list_repo_refs(repo, include_pull_requests=True, **KIND))
    for request in reversed(refs.pull_requests or []):
        if is_there(api, repo, str(request.ref), MANIFEST, manifest):
            return str(request.ref)
    return None


def exists(api: HfApi, repo: str) -> bool:
    """Whether there is a dataset repository of this name that the login can see."""
    try:
        patiently(lambda: api.dataset_info(repo))
    except RepositoryNotFoundError:
        return False
    return True


def _download(api: HfApi, repo: str, commit: str, path: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="selectit-read-") as folder:
        return downloaded(api, repo, commit, path, folder).read_bytes()


def downloaded(api: HfApi, repo: str, commit: str, path: str, folder: str) -> Path:
    """Download a file again, past every cache."""
    where: dict[str, Any] = {"revision": commit, "local_dir": folder, **KIND}
    return Path(patiently(lambda: api.hf_hub_download(repo, path, **where)))


def failure(error: BaseException, words: str) -> HubError:
    """What to raise for a failed request: ``words`` and its reason, redacted.

    Raise it ``from None``, since the request's own traceback may hold a token.
    """
    root = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    detail = redacted(" ".join(str(root).split()))[:300]
    return HubError(f"{words} ({type(root).__name__}: {detail})")
