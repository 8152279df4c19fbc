"""Files of a repository at a commit: all that are wanted, each as the Hub lists it, or an error.

The libraries treat a file that cannot be reached as missing, and may use an older commit from their
cache. So files are first downloaded here, by commit, and compared with the listing; the libraries
then load them from the disk without a request.
"""

import functools
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    RepoFile,
    constants,
    get_cached_repo_tree,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from selectit_hf.errors import in_short
from selectit_hf.hashes import file_sha256
from selectit_hf.patience import FAILURES, bounded, patiently
from selectit_hf.redaction import redacted

__all__ = ["COMMIT", "Unverified", "commit_of", "fetch", "listing", "place", "said"]

COMMIT = re.compile(r"[0-9a-f]{40}")

SAID = (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError)

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
AT_ONCE = 8


class Unverified(OSError):
    """Files that cannot be verified against the Hub's listing."""


def commit_of(
    kind: str, name: str, revision: str | None, api: HfApi | None = None
) -> tuple[str, set[str]]:
    """The sha of a revision, and the paths that the Hub names there.

    Raises:
        Unverified: the Hub answers without a commit.
        GatedRepoError, RepositoryNotFoundError, ...: see `selectit_hf.patience.FAILURES`.
    """
    bounded()
    client = api or HfApi()
    info: Any = patiently(lambda: client.repo_info(name, repo_type=kind, revision=revision))
    if not COMMIT.fullmatch(str(info.sha)):
        raise Unverified(f"the Hub answered {info.sha!r} instead of a commit")
    return str(info.sha), {file.rfilename for file in info.siblings or ()}


def listing(kind: str, name: str, sha: str, known: Collection[str] = ()) -> Mapping[str, RepoFile]:
    """Every file of a repository at a commit, by its path; cached, since it never changes.

    ``known`` are paths that the Hub named in another answer.

    Raises:
        Unverified: it is not cached and the Hub cannot be reached, or its answers disagree.
        GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError: as the Hub says.
    """
    where: dict[str, Any] = {"repo_type": kind, "revision": sha}
    try:
        found = get_cached_repo_tree(name, **where)
    except CachedRepoTreeNotFoundError:
        found = _listed_now(name, where)
    paths = {file.path: file for file in found}
    if not paths or not set(known) <= set(paths):
        _kept_listing(kind, name, sha).unlink(missing_ok=True)
        raise Unverified(
            f"the Hub lists {len(paths)} files of {name} at the commit {sha} in one answer and "
            f"{len(known)} in another; repeat the command later"
        )
    return paths


def _listed_now(name: str, where: dict[str, Any]) -> list[RepoFile]:
    bounded()
    try:
        patiently(lambda: snapshot_download(name, allow_patterns=[], **where))
        return get_cached_repo_tree(name, **where)
    except SAID:
        raise
    except FAILURES as error:
        raise Unverified(
            f"the files of {name} at the commit {where['revision']} cannot be listed, so the "
            f"cached files cannot be compared ({said(error)}); repeat the command when the Hub "
            "answers"
        ) from error


def fetch(kind: str, name: str, sha: str, paths: Iterable[str]) -> Path:
    """The folder that holds these files, downloaded if need be, and compared with the listing.

    Raises:
        Unverified: a file is not listed, cannot be downloaded, or has other contents.
        GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError: as the Hub says.
    """
    listed, wanted = listing(kind, name, sha), list(paths)
    if strange := [path for path in wanted if path not in listed]:
        raise Unverified(f"{name} has no {strange[0]} at the commit {sha}")
    bounded()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(functools.partial(_fetch_one, kind, name, sha), map(listed.get, wanted)):
            pass
    return _folder(kind, name, sha)


def said(error: BaseException) -> str:
    """A failure in a few words, without tokens."""
    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {redacted(in_short(error))[:200]}"


def place(kind: str, name: str) -> Path:
    """Where the local cache has a repository."""
    repo = "--".join([f"{kind}s", *name.split("/")])
    return Path(constants.HF_HUB_CACHE).expanduser().resolve() / repo


def _folder(kind: str, name: str, sha: str) -> Path:
    return place(kind, name) / "snapshots" / sha


def _kept_listing(kind: str, name: str, sha: str) -> Path:
    return place(kind, name) / "trees" / f"{sha}.json"


def _fetch_one(kind: str, name: str, sha: str, file: RepoFile) -> None:
    where: dict[str, Any] = {"repo_type": kind, "revision": sha}
    path = try_to_load_from_cache(name, file.path, **where)
    if not isinstance(path, str):
        try:
            path = patiently(lambda: hf_hub_download(name, file.path, **where))
        except SAID:
            raise
        except FAILURES as error:
            raise Unverified(
                f"{file.path} of {name} at the commit {sha} cannot be downloaded ({said(error)}); "
                "repeat the command when the Hub answers"
            ) from error
    there = _folder(kind, name, sha) / file.path
    if not (there.exists() and Path(path).exists() and there.samefile(path)):
        raise Unverified(f"{file.path} of {name} came from another commit than {sha}")
    if not _is_as_listed(there, file):
        raise Unverified(
            f"{file.path} of {name} in the cache is not what the Hub lists at the commit {sha}; "
            f"delete it with 'hf cache rm {kind}/{name}' and repeat the command"
        )


def _is_as_listed(path: Path, file: RepoFile) -> bool:
    stat = path.stat()
    if stat.st_size != file.size:
        return False
    return _is_called(str(path.resolve()), stat.st_size, stat.st_mtime_ns, file.blob_id)


@functools.lru_cache(maxsize=4096)
def _is_called(path: str, size: int, modified: int, wanted: str) -> bool:
    """Whether a file has the wanted git id, of its bytes or of the pointer to a large file."""
    file = Path(path)
    if size < SMALL and _git_id(file.read_bytes()) == wanted:
        return True
    digest = file_sha256(file)
    return digest == file.name or _git_id(POINTER.format(digest, size).encode()) == wanted


SMALL = 64 << 20
"""Bytes up to which a file may lie in git itself; the Hub takes 10 MB."""


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
