"""The steps behind the commands of a run, from the survey to the summary."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from datasets import Dataset

from selectit_hf import runs
from selectit_hf.analysis import Reader, choices, dry_run
from selectit_hf.cli import display
from selectit_hf.cli.stop_signals import Stop
from selectit_hf.errors import InputError, RunError, SettingError
from selectit_hf.formats import Source, Survey, look, sources
from selectit_hf.rating import RATED, Reflection, SentenceScore, mapping
from selectit_hf.runs import Rank, Run, local
from selectit_hf.selection import Cut

__all__ = [
    "Settings",
    "check_trackers",
    "count_workers",
    "dry_run_all",
    "load_rows",
    "placed",
    "refuse_nothing_rated",
    "run_all",
    "tell_demo",
    "tell_next",
    "tell_of_check",
    "tell_survey",
]


@dataclass(frozen=True)
class Settings:
    """How a run is rated and selected from.

    Attributes:
        how, cut: see `runs.finish`.
        rank: which part this process rates.
        count: the number of worker processes; 1 for this process alone.
        wait: see `runs.wait_and_take_over`.
        allow_mixed: see `runs.rate_shard`.
        report_to: see `runs.tracking`.
    """

    how: Reflection = Reflection()  # noqa: RUF009  (frozen)
    cut: Cut = Cut()  # noqa: RUF009  (frozen)
    rank: Rank = Rank()  # noqa: RUF009  (frozen)
    count: int = 1
    wait: float = 600.0
    allow_mixed: bool = False
    report_to: tuple[str, ...] = ()


def run_all(
    rows: Dataset,
    source: Source,
    scorers: Sequence[SentenceScore],
    out: str,
    settings: Settings,
    as_json: bool,
    shard_size: int | None = None,
    data: str = "",
) -> None:
    """Plan, rate and finish; remember where ``data`` and the models are on this machine."""
    store, shared = runs.open_store(out), settings.rank.world > 1
    runs.check_folder(store)
    with nullcontext() if shared else local.alone(store):
        started = runs.plan(rows, source, scorers, out, shard_size)
        runs.remember_inputs(started, data, scorers)
        later = choices.is_selector(rows, settings.how.by)
        how = replace(settings.how, by=None) if later else settings.how
        runs.ranking_column(started.plan, how, rows.column_names)
        stop = Stop()
        try:
            with runs.tracking(settings.report_to, started) as trackers:
                _rate(started, rows, scorers, settings, stop, as_json, trackers)
                stop.heed()
                summary = _finished(started, rows, scorers, settings)
                if summary is not None:
                    trackers.tell_results(summary)
        except KeyboardInterrupt:
            where = started.where
            display.tell(f"Stopped. The same command resumes after the last full shard in {where}.")
            raise
    if summary is not None:
        display.show_summary(summary, started.where, as_json)
        if summary["selected"] and not as_json:
            tell_next(started.where)
        refuse_nothing_rated({m: facts["statuses"] for m, facts in summary["models"].items()})


def tell_next(where: str) -> None:
    """What is usually done with a finished run."""
    run = shlex.quote(where)
    display.tell("To see plots, rows and what is doubtful:")
    display.tell(f"selectit report {run}", whole=True)
    display.tell("To write the selected rows for a trainer:")
    display.tell(f"selectit export {run} --format messages --out kept.jsonl", whole=True)


def dry_run_all(
    rows: Dataset,
    source: Source,
    scorers: Sequence[SentenceScore],
    out: str,
    settings: Settings,
    survey: Survey,
    shard_size: int | None = None,
) -> dict[str, Any]:
    """What `run_all` would do; nothing is written into the run folder."""
    Stop()
    planned = runs.plan(rows, source, scorers, out, shard_size, write=False)
    how, cut = settings.how, settings.cut
    return dry_run(planned, rows, scorers, survey, how, cut, settings.count)


def _rate(
    started: Run,
    rows: Dataset,
    scorers: Sequence[SentenceScore],
    settings: Settings,
    stop: Stop,
    as_json: bool,
    trackers: runs.Trackers,
) -> None:
    rank, given = settings.rank, (started, rows, scorers)
    with display.progress(started, quiet=as_json) as shown:
        how: dict[str, Any] = {
            "progress": stop.heeding(trackers.following(shown)),
            "allow_mixed": settings.allow_mixed,
        }
        if settings.count > 1:
            local.rate(*given, settings.count, **how)
            return
        how["local_rank"] = rank.local_rank
        runs.rate(*given, rank.rank, rank.world, **how)
        if rank.world > 1 and rank.rank == 0:
            runs.wait_and_take_over(*given, settings.wait, rank.world, **how)


def _finished(
    started: Run, rows: Dataset, scorers: Sequence[SentenceScore], settings: Settings
) -> dict[str, Any] | None:
    """The summary; damaged shards are rated again first.

    Only one of several processes finishes; the others show nothing.
    """
    if settings.rank.rank > 0:
        return None
    mixed = settings.allow_mixed

    def finish() -> dict[str, Any]:
        reader = Reader.of(scorers[0])
        asked, cut = settings.how, settings.cut
        ranked, how = choices.rank_by(started, rows, asked, cut, reader)
        return runs.finish(started, ranked, how, cut, allow_mixed=mixed, asked=asked.by)

    try:
        return finish()
    except RunError:
        if not runs.pending(started):
            raise
    here = settings.rank.local_rank
    runs.rate(started, rows, scorers, local_rank=here, allow_mixed=mixed)
    return finish()


def check_trackers(names: Sequence[str], rank: Rank) -> None:
    """Refuse a tracker under a launcher, where each process would wait for the others."""
    if names and rank.world > 1:
        raise SettingError(
            f"--report-to {names[0]} follows a run of one process group; omit it under a launcher, "
            "and see 'selectit status'."
        )


def count_workers(rank: Rank, workers: int | None, scorers: Sequence[SentenceScore]) -> int:
    """How many worker processes to start, 1 for this one alone; refuse what cannot run here."""
    scorers[0].place(rank.local_rank)
    if rank.world > 1:
        if workers not in (None, 1):
            raise SettingError(
                f"--workers {workers} and a launcher of {rank.world} processes contradict each "
                "other; omit --workers."
            )
        return 1
    if scorers[0].spread:
        return len(mapping.shares(workers or 1))
    return workers or (1 if scorers[0].device else max(1, mapping.device_count()))


def load_rows(
    dataset: str, split: str | None, streaming: bool, out: str, dry_run: bool = False
) -> tuple[Dataset, Source]:
    """The rows of a dataset, pinned; those of a stream are kept in the run folder first.

    Raises:
        SettingError: a dry run of a stream, whose rows have no other place.
    """
    if streaming and dry_run:
        raise SettingError(
            "--dry-run writes nothing, but --streaming keeps the rows in RUN. Omit --streaming for "
            "the dry run, or try the stream with --limit instead."
        )
    if not streaming:
        return sources.load(dataset, split)
    stream, source = sources.stream(dataset, split)
    store = runs.open_store(out)
    runs.check_folder(store)
    return runs.spool(stream, store, source)


def tell_survey(
    rows: Dataset, name: str, scorers: Sequence[SentenceScore], allow_unrated: bool
) -> Survey:
    """Read all rows before any model is loaded, and say what is read.

    Raises:
        InputError: rating them would be useless; see `survey.look`.
    """
    found = look(rows, scorers[0].reader, allow_unrated)
    display.tell(found.words(name))
    return found


def tell_of_check(dataset: str, split: str | None, flags: str, out: str) -> None:
    """For a new run, say how to find out what its scores are worth; ``flags`` ask as it does."""
    store = runs.open_store(out)
    if store.exists("plan.json") or store.exists(runs.CHECK):
        return
    display.tell("To check, now or after the run, whether these models can rank these rows:")
    part = f" --split {shlex.quote(split)}" if split else ""
    words = f"selectit check {shlex.quote(dataset)} {flags}{part} --out {shlex.quote(out)}"
    display.tell(words, whole=True)


def placed(place: Mapping[str, Any]) -> str:
    """What a run was planned for, since this machine may not be the one that rates."""
    budget = f"{place['token_budget']:,} tokens a batch"
    words = f"Planned for {place['device']}: {place['dtype']}, {budget}."
    if place["device"] == "cpu":
        words += (
            " If GPUs will rate it, plan where one is visible, or give --dtype bfloat16, "
            "--token-budget and --shard-size."
        )
    return words


def refuse_nothing_rated(statuses: Mapping[str, Mapping[str, int]]) -> None:
    """Raise an error if a model rated no row at all.

    Raises:
        InputError: the message names the model and the statuses.
    """
    for slug, counts in statuses.items():
        if not any(counts.get(status) for status in RATED):
            raise InputError(
                f"{slug} rated none of the rows: {display.counts(dict(counts))}. Rows with the "
                "status 'oom' need a smaller --token-budget, and 'nonfinite' another --dtype; "
                "start another run with it, in another --out."
            )


def tell_demo(rows: Dataset, selected: pa.Table) -> None:
    """How many of the sample's broken rows were kept."""
    kept = sum(defect != "none" for defect in selected["defect"].to_pylist())
    broken = sum(defect != "none" for defect in rows["defect"])
    display.tell(
        f"{kept} of the {len(selected)} selected rows are broken on purpose "
        f"({kept / len(selected):.1%}), against {broken} of all {len(rows)} "
        f"({broken / len(rows):.1%}).\n\n"
        "The tiny model was trained to tell this sample's rows apart and knows nothing else. For "
        "your own data, use a real base model on a GPU:\n\n"
        "  selectit run vicgalle/alpaca-gpt4 --model Qwen/Qwen3-0.6B-Base --out RUN\n"
    )
