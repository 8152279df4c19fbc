"""The plan of a push: what would be written, whether it may be, and how a person is told."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from selectit_hf.errors import HubError, SettingError
from selectit_hf.hub.card import BEGIN, END, Card, merged
from selectit_hf.hub.remote import EMPTY, Remote, find_proposal, is_ours, is_same, read_remote
from selectit_hf.hub.staging import CARD, MANIFEST, File, Staged
from selectit_hf.privacy import private_place, private_words
from selectit_hf.redaction import holds_token, redacted

__all__ = ["PushPlan", "PushSettings", "check_repo", "plan_push"]


@dataclass(frozen=True)
class PushSettings:
    """What a push may do.

    Attributes:
        public: push to a public repository; else to a private one.
        update: replace an earlier push of this package; hand-written text in the card stays.
        overwrite: replace whatever is there; other files are deleted.
        create_pr: open a pull request instead of committing.
        timeout: seconds that the whole push may take, including planning and reading back.

    Raises:
        SettingError: both ``update`` and ``overwrite``, or a timeout of 0 or less.
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
            raise SettingError(f"timeout={self.timeout} must be above 0; give 60 seconds or more.")


@dataclass(frozen=True)
class PushPlan:
    """A push that is planned and not yet done.

    Attributes:
        repo: the repository's name.
        settings: what the push may do.
        folder: where the files are until the push.
        card: the text of README.md.
        files: each file as it will be, by its path.
        delete: files to delete.
        remote: what was in the repository.
        proposed: the pull request that already holds all this.
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
        """The files that are missing or different on the Hub."""
        there = self.remote.files
        return [
            path
            for path, file in sorted(self.files.items())
            if path not in there or not is_same(file, there[path])
        ]

    @property
    def is_done(self) -> bool:
        """Whether the Hub already holds everything."""
        return self.proposed is not None or not (self.changed or self.delete)

    def describe(self, with_card: bool = True) -> str:
        """What a person wants to see before it happens; ``with_card``, what the card will say."""
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
        return redacted("\n".join([*lines, *self._card_changes(with_card)]))

    def _fate(self) -> str:
        if self.remote.head is None:
            return "will be created"
        if self.is_done:
            return f"holds all of it already, at {self.proposed or self.remote.head}"
        step = "a pull request" if self.settings.create_pr else "one commit"
        return f"{step} on top of {self.remote.head}"

    def _card_changes(self, shown: bool) -> list[str]:
        """The generated text of a new card, or the changed lines of one that is there."""
        old, new = self.remote.card, self.card
        if new == old:
            return ["the card stays as it is"]
        if not old:
            text = new.partition(BEGIN)[2].partition(END)[0].strip().splitlines()
            return [f"the card is new, {len(text)} lines", *(["", *text] if shown else [])]
        changes = [
            line
            for line in difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
            if not line.startswith(("---", "+++", "@@"))
        ]
        return [f"the card changes in {len(changes)} lines", *(changes if shown else [])]


def check_repo(repo: str) -> str:
    """``repo`` itself, if it is a valid full name of a repository.

    Raises:
        SettingError: it is not.
    """
    try:
        validate_repo_id(repo)
        known = repo.count("/") == 1
    except HFValidationError:
        known = False
    if not known:
        raise SettingError(
            f"{redacted(repo)!r} is not a repository name; write user/name, with letters, digits, "
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
        SettingError: the name is not valid.
        HubError: the Hub cannot be read, or what is there must not be replaced.
    """
    check_repo(repo)
    if not api.token:
        raise HubError(
            "Pushing needs a login: run 'hf auth login', or set HF_TOKEN to one with write access."
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
        plan = replace(plan, proposed=find_proposal(api, repo, files[MANIFEST]))
    if not plan.is_done:
        _check_allowed(plan)
    return plan


def _leftovers(
    remote: Remote, files: Mapping[str, File], settings: PushSettings
) -> tuple[str, ...]:
    """Files to delete: those of an earlier push that this one lacks, or all with overwrite."""
    others = sorted(set(remote.files) - set(files) - EMPTY)
    return tuple(path for path in others if settings.overwrite or is_ours(path, remote))


def _check_visibility(plan: PushPlan) -> None:
    if plan.remote.head is None or plan.remote.private != plan.settings.public:
        return
    if plan.settings.public:
        raise HubError(
            f"{plan.repo} already exists and is private; nothing was pushed. Make it public in its "
            "settings, or omit --public."
        )
    raise HubError(
        f"{plan.repo} already exists and is public; nothing was pushed. Add --public if everybody "
        "may see the rows, or make it private in its settings."
    )


def _check_allowed(plan: PushPlan) -> None:
    remote, settings = plan.remote, plan.settings
    if remote.head is None:
        if settings.create_pr:
            raise HubError(
                f"There is no dataset {plan.repo} that this login can see, so no pull request can "
                "be opened; omit --create-pr."
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
            "which keeps what people wrote in its card."
        )
    foreign = [p for p in plan.changed if p in remote.files and not is_ours(p, remote)]
    foreign = [path for path in foreign if path not in (CARD, MANIFEST)]
    if foreign:
        raise HubError(
            f"{foreign[0]} in {plan.repo} was changed by someone after the last push; nothing was "
            "pushed. Restore it, or replace everything with --overwrite."
        )


def _check_private(text: str) -> None:
    """Stop before a token or a local path leaves this machine."""
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
