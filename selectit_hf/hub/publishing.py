"""From a finished run, or a selection made in Python, to a dataset on the Hub."""

import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from selectit_hf.analysis import (
    Finished,
    check_unchanged,
    for_training,
    from_run,
    from_selection,
)
from selectit_hf.errors import InputError
from selectit_hf.formats import Source, sources
from selectit_hf.hub.card import CardSettings, as_dict, inherited, make_card
from selectit_hf.hub.card_code import is_local_source
from selectit_hf.hub.push_commit import Pushed, push
from selectit_hf.hub.push_plan import PushPlan, PushSettings, check_repo, plan_push
from selectit_hf.hub.remote import failure
from selectit_hf.hub.source_check import compared, rows_of_hub, rows_of_run
from selectit_hf.hub.staging import stage
from selectit_hf.hub_files import commit_of
from selectit_hf.patience import FAILURES, patiently, time_limit
from selectit_hf.rating import ModelScore, RatingScorer
from selectit_hf.runs import open_results
from selectit_hf.selection import Selection

__all__ = ["publish", "push_run"]

logger = logging.getLogger(__name__)

SOURCE = re.compile(r"([^:@]+)(?::([^@]+))?(?:@(.+))?")
NO_LICENCE = (
    "the source names no licence to inherit, so the card says 'other'; give --license if you know "
    "it"
)


def push_run(
    run: str | Path,
    repo: str,
    *,
    yes: bool = False,
    card: CardSettings | None = None,
    settings: PushSettings | None = None,
    form: str | None = None,
    with_scores: bool = False,
    tell: Callable[[str], None] = print,
    api: HfApi | None = None,
) -> Pushed | PushPlan:
    """Push a finished run to a dataset repository, or say what that would do.

    Args:
        run: the run folder, or its URL.
        repo: ``user/name``.
        yes: push; otherwise nothing is written.
        card: what a person adds to the card.
        settings: what the push may do.
        form: publish the kept rows as a trainer reads them; see `selectit_hf.export`.
        with_scores: with ``form``, keep their score columns.
        tell: called with each message for a person.
        api: the client, with a token; by default the login's.

    Raises:
        SettingError, RunError, HubError: see `push_plan`, `push_commit` and `finished`.
    """
    check_repo(repo)
    api, settings = api or _client(), settings or PushSettings()
    opened = open_results(run)
    verified = finished = from_run(opened)
    load = partial(rows_of_run, opened, api)
    notes: Callable[[], list[str]] = list
    if form is not None:
        rows, notes = for_training(verified, form, with_scores=with_scores)
        facts = verified.facts | {"form": {"name": form, "with_scores": with_scores}}
        finished = replace(verified, selected=rows, facts=facts)
    with (
        time_limit(settings.timeout),
        _planned(api, finished, repo, card or CardSettings(), settings, load, notes) as plan,
    ):
        check_unchanged(opened, verified)
        tell(plan.describe(with_card=not yes))
        if not yes:
            tell("nothing pushed; add --yes")
            return plan
        done = push(api, plan)
    tell(_words(done))
    return done


def publish(
    selection: Selection,
    repo: str,
    *,
    source: str,
    scorers: Sequence[RatingScorer | ModelScore] = (),
    split: str = "train",
    license: str | None = None,
    language: Sequence[str] = (),
    pretty_name: str | None = None,
    examples: bool = False,
    derived: bool = False,
    public: bool = False,
    update: bool = False,
    overwrite: bool = False,
    create_pr: bool = False,
    timeout: float = PushSettings.timeout,
    dry_run: bool = False,
    api: HfApi | None = None,
) -> Pushed | PushPlan:
    """Publish a selection as a dataset on the Hub, with a card, all scores and a manifest.

    It makes one commit, by default in a private repository, and reads it back. The rows must hold
    the columns that the scorers wrote. They are compared with ``scorers``, or with the default
    settings, and with the rows of ``source``. The card says if the source cannot be loaded.

    Args:
        selection: made by `selectit_hf.select` from a `Dataset`.
        repo: ``user/name``.
        source: where the rows came from: ``name[:config][@revision]`` on the Hub, or a local file.
            Without a revision, the source's current commit is recorded.
        scorers: the scorers that were mapped, if their settings are not the defaults.
        split: the source's split.
        license, language, pretty_name, examples, derived: see `selectit_hf.hub.CardSettings`.
        public, update, overwrite, create_pr, timeout: see `selectit_hf.hub.PushSettings`.
        dry_run: plan only, and write nothing to the Hub.
        api: the client, with a token; by default the login's.

    Returns:
        What is on the Hub now; with ``dry_run``, the plan.

    Raises:
        SettingError, RatingsError, InputError: the selection cannot be published as it is; or its
            rows are not the source's, and ``derived`` was not given.
        HubError: the push was refused, stopped or found wrong.
    """
    check_repo(repo)
    card = CardSettings(license, tuple(language), pretty_name, examples, derived)
    settings = PushSettings(public, update, overwrite, create_pr, timeout)
    api = api or _client()
    pinned, load = _pinned(api, source, split)
    finished = from_selection(selection, pinned, scorers)
    with time_limit(timeout), _planned(api, finished, repo, card, settings, load) as plan:
        for note in plan.notes:
            logger.warning("%s", note)
        return plan if dry_run else push(api, plan)


@contextmanager
def _planned(
    api: HfApi,
    finished: Finished,
    repo: str,
    card: CardSettings,
    settings: PushSettings,
    load: Callable[[], Dataset],
    more_notes: Callable[[], list[str]] = list,
) -> Iterator[PushPlan]:
    """A plan whose files lie in a folder that is gone afterwards."""
    finished, notes = compared(finished, load, card.derived)
    source_card = _source_card(api, finished.facts["input"])
    licence = inherited(source_card, card)
    notes += (NO_LICENCE,) if licence.said_by == "nobody" else ()
    release = version("selectit-hf")
    with tempfile.TemporaryDirectory(prefix="selectit-push-") as folder:
        staged = stage(finished, Path(folder))
        made = make_card(
            finished.facts,
            repo,
            licence=licence,
            settings=card,
            source_card=source_card,
            datasets_data=staged.datasets_data,
            plots=staged.plots,
            examples=finished.examples,
            version=release,
        )
        said = (*notes, *more_notes())
        yield plan_push(api, repo, staged, made, settings, release, said)


def _source_card(api: HfApi, source: dict[str, Any]) -> dict[str, Any]:
    """The front matter of the source's card, at the revision that was rated."""
    if is_local_source(source):
        return {}
    try:
        info = patiently(lambda: api.dataset_info(source["name"], revision=source["revision"]))
        if info.sha != source["revision"]:
            raise LookupError(f"the answer is about the commit {info.sha}")
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return {}
    except FAILURES as error:
        raise failure(
            error, f"The licence of {source['name']} cannot be read; nothing was pushed."
        ) from None
    return as_dict(info.card_data) if info.card_data else {}


def _pinned(api: HfApi, source: str, split: str) -> tuple[Source, Callable[[], Dataset]]:
    """A source by name, and how to load it; on the Hub, at the commit named or there now."""
    if Path(source).expanduser().exists():
        rows, found = sources.load(source, split if split != "train" else None)
        return found, lambda: rows
    match = SOURCE.fullmatch(source)
    if match is None:
        raise InputError(
            f"{source!r} is not a dataset; write name[:config][@revision], as on the Hub, or the "
            "path of a local file."
        )
    name, config, revision = match.groups()
    try:
        sha, _ = commit_of("dataset", name, revision, api)
    except FAILURES as error:
        raise failure(error, f"The source {source} cannot be found; nothing was pushed.") from None
    found = Source(name, config, split, sha)
    return found, partial(rows_of_hub, found, api)


def _client() -> HfApi:
    return HfApi(token=get_token(), library_name="selectit-hf")


def _words(done: Pushed) -> str:
    what = "pushed" if done.new else "already there"
    return f"{what} and read back: {done.url} at {done.commit}"
