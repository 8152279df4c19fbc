"""Pushing to the Hub: one commit or none, and a clear word on which of the two it was.

A push has three steps: `plan_push` reads what is there and decides, `PushPlan.describe` tells a
person, `push` does it and reads all of it back. Only this module writes to the Hub.
"""

import difflib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from selectit_hf.errors import HubError, SettingError
from selectit_hf.hub.card import Card, merged
from selectit_hf.hub.remote import (
    KIND,
    Remote,
    downloaded,
    exists,
    failure,
    is_ours,
    is_same,
    read_remote,
    state,
    tree,
)
from selectit_hf.hub.staging import CARD, MANIFEST, File, Staged, describe_file
from selectit_hf.hub_files import COMMIT
from selectit_hf.patience import (
    FAILURES,
    WAITS,
    is_transient,
    patiently,
    pause,
    seconds_left,
    sleep,
    time_limit,
)
from selectit_hf.privacy import private_place, private_words
from selectit_hf.redaction import holds_token, redacted

__all__ = ["PushPlan", "PushSettings", "Pushed", "check_repo", "plan_push", "push"]

T = TypeVar("T")

EMPTY = {".gitattributes"}
GRACE = 15.0
"""Seconds to look up whether a commit was made, where the time is over."""


@dataclass(frozen=True)
class PushSettings:
    """What a push may do.

    Attributes:
        public: to a public repository; else to a private one.
        update: replace what an earlier push of this package left there; hand-written text of the
            card stays.
        overwrite: replace whatever is there; other files are deleted.
        create_pr: as one pull request.
        timeout: seconds that all of it may take, planning and reading back included.

    Raises:
        SettingError: both ``update`` and ``overwrite``, or no time at all.
    """

    public: bool = False
    update: bool = False
    overwrite: bool = False
    create_pr: bool = False
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        if self.update and self.overwrite:
            raise SettingError("update and overwrite contradict each other; give one of them.")
        if not 0 < self.timeout < float("inf"):
            raise SettingError(f"A timeout of {self.timeout} seconds is none; give 60 or more.")


@dataclass(frozen=True)
class PushPlan:
    """A push that is decided on and not yet done.

    Attributes:
        repo: its name.
        settings: what it may do.
        folder: where the files lie until the push.
        card: the text of README.md.
        files: each file as it shall be, by its path.
        delete: files to take away.
        remote: what was there.
        proposed: the pull request that holds all this already.
        notes: what a person should know.
    """

    repo: str
    settings: PushSettings
    folder: Path
    card: str
    files: Mapping[str, File]
    delete: tuple[str, ...]
    remote: Remote
    proposed: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> list[str]:
        """The files that are not there yet as they shall be."""
        there = self.remote.files
        return [
            path
            for path, file in sorted(self.files.items())
            if path not in there or not is_same(file, there[path])
        ]

    @property
    def is_done(self) -> bool:
        """Whether all of it is there already."""
        return self.proposed is not None or not (self.changed or self.delete)

    def describe(self) -> str:
        """What a person wants to see before it happens."""
        lines = [
            f"repository  {self.repo} ({self._fate()})",
            f"visibility  {'public' if self.settings.public else 'private'}",
            "files",
        ]
        changed = set(self.changed)
        for path, file in sorted(self.files.items()):
            mark = "+" if path in changed else "="
            lines.append(f"  {mark} {file.sha256}  {file.size:>12,}  {path}")
        lines += [f"  - {path}" for path in self.delete]
        lines += [f"note: {note}" for note in self.notes]
        return redacted("\n".join([*lines, *self._card_changes()]))

    def _fate(self) -> str:
        if self.remote.head is None:
            return "will be created"
        if self.is_done:
            return f"holds all of it already, at {self.proposed or self.remote.head}"
        step = "a pull request" if self.settings.create_pr else "one commit"
        return f"{step} on top of {self.remote.head}"

    def _card_changes(self) -> list[str]:
        if self.card == self.remote.card:
            return ["the card stays as it is"]
        sides = (self.remote.card.splitlines(), self.card.splitlines())
        return ["the card", *difflib.unified_diff(*sides, "there", "new", lineterm="")]


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub after a push, read back and compared.

    Attributes:
        repo: its name.
        commit: the commit that holds it.
        url: where to look at it.
        new: whether this push made the commit.
        pull_request: its reference, such as ``refs/pr/1``.
    """

    repo: str
    commit: str
    url: str
    new: bool
    pull_request: str | None = None


# Planning


def check_repo(repo: str) -> str:
    """``repo`` itself, if it can be a repository's whole name.

    Raises:
        SettingError: it cannot.
    """
    try:
        validate_repo_id(repo)
        known = repo.count("/") == 1
    except HFValidationError:
        known = False
    if not known:
        raise SettingError(
            f"{redacted(repo)!r} is no repository name; write user/name, with letters, digits, "
            "'-', '_' and '.'."
        )
    return repo


def plan_push(
    api: HfApi,
    repo: str,
    staged: Staged,
    card: Card,
    settings: PushSettings,
    version: str,
    notes: tuple[str, ...] = (),
) -> PushPlan:
    """Read what is there and decide what a push would do; nothing is written to the Hub.

    Raises:
        SettingError: the name can be none.
        HubError: the Hub cannot be read, or what is there must not be replaced.
    """
    check_repo(repo)
    if not api.token:
        raise HubError(
            "Pushing needs a login: run 'hf auth login', or set HF_TOKEN to a token that may write."
        )
    remote = read_remote(api, repo)
    keep = remote.manifest is not None and not settings.overwrite
    text = merged(card, remote.card) if keep and remote.card else card.text()
    _check_private(text)
    files = staged.with_card(text, version)
    _check_private((staged.folder / MANIFEST).read_text("utf-8"))
    _check_private_files(staged.folder, files, api)
    if ".gitignore" in remote.files:
        notes += ("the repository has a .gitignore; the Hub leaves out the files that it names",)
    delete = _leftovers(remote, files, settings)
    plan = PushPlan(repo, settings, staged.folder, text, files, delete, remote, notes=notes)
    _check_visibility(plan)
    if settings.create_pr and remote.head and not plan.is_done:
        plan = replace(plan, proposed=_find_proposal(api, plan))
    if not plan.is_done:
        _check_allowed(plan)
    return plan


def _leftovers(
    remote: Remote, files: Mapping[str, File], settings: PushSettings
) -> tuple[str, ...]:
    """Files to delete: what an earlier push left and this one lacks, or all with overwrite."""
    others = sorted(set(remote.files) - set(files) - EMPTY)
    return tuple(path for path in others if settings.overwrite or is_ours(path, remote))


def _check_visibility(plan: PushPlan) -> None:
    if plan.remote.head is None or plan.remote.private != plan.settings.public:
        return
    if plan.settings.public:
        raise HubError(
            f"{plan.repo} is there already and private; nothing was pushed. Make it public in its "
            "settings, or omit --public."
        )
    raise HubError(
        f"{plan.repo} is there already and public; nothing was pushed. Add --public if everybody "
        "may see the rows, or make it private in its settings."
    )


def _check_allowed(plan: PushPlan) -> None:
    remote, settings = plan.remote, plan.settings
    if remote.head is None:
        if settings.create_pr:
            raise HubError(
                f"There is no dataset {plan.repo} that this login can see, so there is nothing to "
                "make a pull request to; omit --create-pr."
            )
        return
    if settings.overwrite or set(remote.files) <= EMPTY:
        return
    if remote.manifest is None:
        raise HubError(
            f"{plan.repo} is not empty and was not pushed by selectit; nothing was pushed. Name "
            "another repository, or replace everything in it with --overwrite."
        )
    if not settings.update:
        raise HubError(
            f"{plan.repo} holds an earlier push; nothing was pushed. Replace it with --update, "
            "which keeps what people wrote into its card."
        )
    foreign = [p for p in plan.changed if p in remote.files and not is_ours(p, remote)]
    foreign = [path for path in foreign if path not in (CARD, MANIFEST)]
    if foreign:
        raise HubError(
            f"{foreign[0]} in {plan.repo} was changed by someone after the last push; nothing was "
            "pushed. Restore it, or replace everything with --overwrite."
        )


def _check_private(text: str) -> None:
    """Stop before a token or a path of this machine leaves it."""
    home = f"{Path.home()}{os.sep}"
    if holds_token(text) or (len(home) > 2 and home in text):
        raise HubError(
            "The card or the manifest would hold an access token or a path of this machine; "
            "nothing was pushed. Look for it in the names of the dataset and the models, in the "
            "rating prompts and the template."
        )


def _check_private_files(folder: Path, files: Mapping[str, File], api: HfApi) -> None:
    words = private_words(api.token if isinstance(api.token, str) else None)
    for path in files:
        place = private_place(folder / path, words)
        if place:
            raise HubError(
                f"{path} would hold the access token or a path of this machine's home folder, in "
                f"{place}; nothing was pushed. Remove it from the rows and run again."
            )


# Pushing


def push(api: HfApi, plan: PushPlan) -> Pushed:
    """Do what was planned, read it back, and compare every byte.

    Raises:
        HubError: it was stopped, failed or did not arrive whole; the message says what is there.
    """
    if plan.is_done:
        commit, new, reference = plan.remote.head or "", False, plan.proposed
        if plan.proposed:
            commit = _reading(plan, lambda: state(api, plan.repo, plan.proposed)[0])
    else:
        head = _ready(api, plan)
        (commit, reference), new = _commit(api, plan, head), True
    _check_seen_by(api, plan, commit)
    _verify(api, plan, commit)
    page = f"{api.endpoint}/datasets/{plan.repo}"
    number = (reference or "").rpartition("/")[2]
    url = f"{page}/discussions/{number}" if reference else page
    return Pushed(plan.repo, commit, url, new, reference)


def _ready(api: HfApi, plan: PushPlan) -> str:
    """The commit to build on, in a repository that is as planned and seen by whom it should."""
    if plan.remote.head is None:
        _create(api, plan)
    head, private, names = _reading(plan, lambda: state(api, plan.repo))
    if private == plan.settings.public:
        is_now = "private" if private else "public"
        raise HubError(
            f"{plan.repo} is {is_now}, which is not what was asked for; nothing was uploaded. "
            "Change it in its settings on the Hub and push again."
        )
    if plan.remote.head is None:
        if not names | set(_reading(plan, lambda: tree(api, plan.repo, head))) <= EMPTY:
            _stop_for_another(plan, head)
    elif head != plan.remote.head:
        _stop_for_another(plan, head)
    return head


def _create(api: HfApi, plan: PushPlan) -> None:
    """Make the repository, also where a reply is lost on the way."""
    for wait in (*WAITS, None):
        try:
            api.create_repo(plan.repo, private=not plan.settings.public, **KIND)
            return
        except FAILURES as error:
            if _reading(plan, lambda: exists(api, plan.repo)):
                return
            if wait is None or not is_transient(error):
                raise failure(
                    error, f"{plan.repo} could not be created; nothing was pushed."
                ) from None
            sleep(pause(error, wait))


def _commit(api: HfApi, plan: PushPlan, head: str) -> tuple[str, str | None]:
    """One commit, or none: its id, and the reference of its pull request."""
    add = [CommitOperationAdd(path, str(plan.folder / path)) for path in plan.changed]
    operations: list[Any] = [*add, *(CommitOperationDelete(path) for path in plan.delete)]
    for wait in (*WAITS, None):
        try:
            made = api.create_commit(
                plan.repo,
                operations,
                commit_message="Publish a selection made with SelectIT",
                parent_commit=head,
                create_pr=plan.settings.create_pr,
                **KIND,
            )
            if not COMMIT.fullmatch(str(made.oid)) or plan.settings.create_pr > bool(made.pr_url):
                raise LookupError("the answer does not say what was made")
            return str(made.oid), made.pr_revision
        except FAILURES as error:
            landed = _find_late(api, plan, head)
            if landed:
                return landed
            if wait is None or not is_transient(error):
                raise failure(
                    error,
                    f"Nothing was committed: {plan.repo} is still at {head}. Run the same command "
                    "again.",
                ) from None
            sleep(pause(error, wait))
    raise AssertionError("the last attempt returns or raises")


def _find_late(api: HfApi, plan: PushPlan, head: str) -> tuple[str, str | None] | None:
    """As `_find`, with a little more time where there is none left."""
    left = seconds_left()
    if left is None or left > GRACE:
        return _find(api, plan, head)
    with time_limit(GRACE):
        return _find(api, plan, head)


def _find(api: HfApi, plan: PushPlan, head: str) -> tuple[str, str | None] | None:
    """After a failure: the commit that was made all the same, if there is one."""
    if plan.settings.create_pr:
        reference = _reading(plan, lambda: _find_proposal(api, plan), unsure=True)
        if reference is None:
            return None
        where = _reading(plan, lambda: state(api, plan.repo, reference)[0], unsure=True)
        return where, reference
    now = _reading(plan, lambda: state(api, plan.repo)[0], unsure=True)
    if now == head:
        return None
    if _reading(plan, lambda: _holds_manifest(api, plan, now), unsure=True):
        return now, None
    _stop_for_another(plan, now)


def _find_proposal(api: HfApi, plan: PushPlan) -> str | None:
    """The pull request with this manifest, which names every byte of a push."""
    found = patiently(
        lambda: api.list_repo_refs(plan.repo, include_pull_requests=True, **KIND)
    ).pull_requests
    for request in reversed(found or []):
        if _holds_manifest(api, plan, str(request.ref)):
            return str(request.ref)
    return None


def _holds_manifest(api: HfApi, plan: PushPlan, revision: str) -> bool:
    found = patiently(lambda: api.get_paths_info(plan.repo, [MANIFEST], revision=revision, **KIND))
    return any(isinstance(f, RepoFile) and is_same(plan.files[MANIFEST], f) for f in found)


def _stop_for_another(plan: PushPlan, now: str) -> NoReturn:
    raise HubError(
        f"Someone else changed {plan.repo} in the meantime: it is at {now}, and this push was "
        "planned for what was there before. Nothing of it was committed; look at what is there and "
        "push again."
    )


def _verify(api: HfApi, plan: PushPlan, commit: str) -> None:
    """Compare listing and contents at a commit with what was to be pushed."""
    try:
        there = tree(api, plan.repo, commit)
        if not there:
            raise LookupError("it lists no file there")
        missing = [path for path in plan.files if path not in there]
        wrong = [p for p, file in plan.files.items() if p in there and not is_same(file, there[p])]
        wrong += [path for path in plan.delete if path in there]
        wrong += [
            path
            for path, file in plan.files.items()
            if path not in (*missing, *wrong) and _arrived(api, plan.repo, commit, path) != file
        ]
    except FAILURES as error:
        raise failure(
            error,
            f"The commit {commit} is in {plan.repo}, but it could not be read back to compare; run "
            "the same command again, which pushes nothing twice.",
        ) from None
    if missing:
        raise HubError(
            f"The commit {commit} is in {plan.repo}, but lacks {', '.join(missing)}: a .gitignore "
            "in the repository makes the Hub leave files out. Delete it and push again with "
            "--update."
        )
    if wrong:
        raise HubError(
            f"The commit {commit} is in {plan.repo}, but {', '.join(wrong)} came back with other "
            "bytes than were sent. Run the same command again; if it stays so, push anew with "
            "--overwrite."
        )


def _check_seen_by(api: HfApi, plan: PushPlan, commit: str) -> None:
    """Ask again, after the commit, who may see it."""
    try:
        private = patiently(lambda: api.dataset_info(plan.repo)).private
    except FAILURES as error:
        raise failure(
            error,
            f"The commit {commit} is in {plan.repo}, but whether it is private could not be read; "
            "run the same command again, which pushes nothing twice.",
        ) from None
    if private is None:
        raise HubError(
            f"The commit {commit} is in {plan.repo}, but the Hub does not say whether it is "
            "private; look at its settings there."
        )
    if not private and not plan.settings.public:
        raise HubError(
            f"{plan.repo} IS PUBLIC NOW, which was not asked for: everybody may read the commit "
            f"{commit}. Make it private with 'hf repos settings {plan.repo} --type dataset "
            "--private'."
        )


def _arrived(api: HfApi, repo: str, commit: str, path: str) -> File | None:
    with tempfile.TemporaryDirectory(prefix="selectit-verify-") as folder:
        try:
            return describe_file(downloaded(api, repo, commit, path, folder))
        except ValueError:  # no parquet any more
            return None


# Failures


def _reading(plan: PushPlan, work: Callable[[], T], unsure: bool = False) -> T:
    try:
        return work()
    except FAILURES as error:
        state = "it is not known whether the commit was made" if unsure else "nothing was uploaded"
        raise failure(
            error,
            f"{plan.repo} cannot be read on the Hub, and {state}. Run the same command again, "
            "which pushes nothing twice.",
        ) from None
