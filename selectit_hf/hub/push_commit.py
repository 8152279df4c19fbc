"""One commit or none, and a clear word on which of the two it was: what a plan says, done.

`push` does it and reads all of it back. Only this module writes datasets to the Hub.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from selectit_hf.errors import HubError
from selectit_hf.hub.push_plan import PushPlan
from selectit_hf.hub.remote import (
    EMPTY,
    KIND,
    downloaded,
    exists,
    failure,
    find_proposal,
    is_same,
    is_there,
    state,
    tree,
)
from selectit_hf.hub.staging import MANIFEST, File, describe_file
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

__all__ = ["Pushed", "push"]

T = TypeVar("T")

GRACE = 15.0
"""Seconds to look up whether a commit was made, once the time limit is reached."""


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub after a push, read back and compared.

    Attributes:
        repo: the repository's name.
        commit: the commit that holds the files.
        url: where to look at it.
        new: whether this push made the commit.
        pull_request: the pull request's reference, such as ``refs/pr/1``.
    """

    repo: str
    commit: str
    url: str
    new: bool
    pull_request: str | None = None


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
    """The commit to build on, in a repository that is unchanged and has the right visibility."""
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
    """Create the repository, even if a reply is lost on the way."""
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
    """Like `_find`, with a little more time if none is left."""
    left = seconds_left()
    if left is None or left > GRACE:
        return _find(api, plan, head)
    with time_limit(GRACE):
        return _find(api, plan, head)


def _find(api: HfApi, plan: PushPlan, head: str) -> tuple[str, str | None] | None:
    """After a failure: the commit that was made anyway, if there is one."""
    manifest = plan.files[MANIFEST]
    if plan.settings.create_pr:
        reference = _reading(plan, lambda: find_proposal(api, plan.repo, manifest), unsure=True)
        if reference is None:
            return None
        where = _reading(plan, lambda: state(api, plan.repo, reference)[0], unsure=True)
        return where, reference
    now = _reading(plan, lambda: state(api, plan.repo)[0], unsure=True)
    if now == head:
        return None
    if _reading(plan, lambda: is_there(api, plan.repo, now, MANIFEST, manifest), unsure=True):
        return now, None
    _stop_for_another(plan, now)


def _stop_for_another(plan: PushPlan, now: str) -> NoReturn:
    raise HubError(
        f"Someone else changed {plan.repo} in the meantime: it is at {now}, and this push was "
        "planned for what was there before. Nothing was committed; look at what is there and push "
        "again."
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
            "bytes than were sent. Run the same command again; if that does not help, push with "
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
        except ValueError:  # no longer a parquet file
            return None


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
