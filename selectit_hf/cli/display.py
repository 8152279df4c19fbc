"""Output of the command: progress and messages on stderr, results on stdout."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from selectit_hf.analysis import duration
from selectit_hf.quiet_libraries import quiet_libraries
from selectit_hf.redaction import redacted
from selectit_hf.report import PAGE
from selectit_hf.runs import Progress, Run, open_store
from selectit_hf.selection import LOW_RATING_MASS
from selectit_hf.terminal import SafeConsole, as_line

__all__ = [
    "bars",
    "complain",
    "counts",
    "hush",
    "progress",
    "quieten",
    "say",
    "show_comparison",
    "show_dry_run",
    "show_status",
    "show_summary",
    "steps",
    "tell",
]

CONTENTS = {
    "rows": "kept",
    "chars": "mean_response_characters",
    "tokens": "mean_response_tokens",
    "digits": "digit_share",
    "code": "code_share",
    "dupl.": "duplicate_share",
    "divers.": "diversity",
}

_words = SafeConsole(stderr=True)
_log = SafeConsole(stderr=True)


def quieten(debug: bool) -> None:
    """Show the log lines of this package, and those of the libraries only with ``debug``."""
    _words.quiet = False
    handler = RichHandler(console=_log, show_time=False, show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    handler.setFormatter(_Redacting("%(message)s"))
    logging.captureWarnings(True)  # they may quote a row, and would be written unescaped
    logging.getLogger("selectit_hf").setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        quiet_libraries()


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def hush() -> None:
    """Show only warnings and errors: another process reports for all."""
    _words.quiet = True
    logging.getLogger("selectit_hf").setLevel(logging.WARNING)


def tell(words: str | Text, whole: bool = False) -> None:
    """A paragraph for a person; ``whole`` is not broken into lines, so that it can be copied."""
    _words.print(Text(words) if isinstance(words, str) else words, soft_wrap=whole)


def complain(words: str) -> None:
    """An error, in red."""
    _log.print(Text(redacted(words), style="red"))


def say(facts: dict[str, Any], as_json: bool, words: str) -> None:
    """The result: as JSON on stdout, or in words."""
    if as_json:
        _print_json(facts)
    else:
        tell(words)


def _print_json(facts: dict[str, Any]) -> None:
    if not _words.quiet:
        print(as_line(facts))


def counts(statuses: dict[str, int]) -> str:
    """As in ``30 ok, 2 empty``."""
    return ", ".join(f"{count} {status}" for status, count in statuses.items())


# Progress

EVERY = 60.0
"""Seconds between two lines of progress where there is no terminal."""
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.fields[said]}"),
    TimeRemainingColumn(compact=True),
    TextColumn("left"),
)


@contextmanager
def progress(run: Run, quiet: bool, rank: int = 0, world: int = 1) -> Iterator[Progress]:
    """What is done and left, for each model, in this process's part of the run."""
    k, rows = run.plan["rating"]["k"], sum(len(part.rows) for part in run.parts[rank::world])
    with bars(run.slugs, rows, k, quiet, run.rating_mass) as shown:
        yield shown


@contextmanager
def bars(
    slugs: Sequence[str],
    rows: int,
    k: int,
    quiet: bool,
    mass: Callable[[str], float | None] = lambda slug: None,
) -> Iterator[Progress]:
    """Rows done, rows a second, time left and the rating mass so far, for each model."""
    with Bar(*COLUMNS, console=_words, disable=quiet or _words.quiet) as bar:
        tasks = {slug: bar.add_task(escape(slug), total=rows * k, said="") for slug in slugs}
        judged, log = set[str](), _Log(bar)

        def advance(slug: str, prompts: int) -> None:
            bar.advance(tasks[slug], prompts)
            task = bar.tasks[tasks[slug]]
            speed = "" if task.speed is None else f", {task.speed / k:.1f} rows/s"
            found = mass(slug)
            heavy = "" if found is None else f", rating mass {found:.2g}"
            if found is not None and slug not in judged:  # early enough to stop
                judged.add(slug)
                _warn_of_low_mass(slug, found)
            log.say(slug, task, f"{task.completed / k:.0f}/{rows} rows{speed}{heavy}")

        yield advance


@contextmanager
def steps(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each name, which shows how many of how many prompts are done."""
    with Bar(*COLUMNS, console=_words, disable=quiet or _words.quiet) as bar:
        tasks: dict[str, TaskID] = {}
        log = _Log(bar)

        def told(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(escape(name), total=total, said="")
            bar.update(tasks[name], completed=done)
            log.say(name, bar.tasks[tasks[name]], f"{done:,}/{total:,} prompts")

        yield told


class _Log:
    """What is done, behind the bar; in a log file, which shows no bar, as a line each minute."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._last = bar, time.monotonic()

    def say(self, name: str, task: Task, said: str) -> None:
        self._bar.update(task.id, said=said)
        hidden = self._bar.disable or _words.is_terminal
        if not hidden and time.monotonic() - self._last >= EVERY:
            self._last, left = time.monotonic(), task.time_remaining
            tell(f"{name} {said}" + (f", {duration(left)} left" if left else ""))


# Results


def show_summary(summary: dict[str, Any], out: Path | str, as_json: bool) -> None:
    """A finished run: its counts, its best and worst rows, and what is doubtful."""
    if as_json:
        _print_json(summary)
        return
    console = SafeConsole(quiet=_words.quiet)
    console.print(_table(_summary_lines(summary)))
    for title, key in (("best", "best"), ("worst", "worst")):
        console.print(f"\n[bold]{title}[/bold]")
        for row in summary[key]:
            console.print(Text(f"  {row['score']:.4f}  row {row['row']}: {row['instruction']}"))
            console.print(Text(f"          → {row['response']}", style="dim"))
    for slug, facts in summary["models"].items():
        _warn_of_low_mass(slug, facts["rating_mass"])
    count = summary["selected"]
    tell(f"\n{count} selected {'row is' if count == 1 else 'rows are'} in")
    tell(f"{out}/selected.parquet", whole=True)
    if not count:
        tell("Nothing was kept: raise --proportion or --n, lower --threshold, or add rows.")
    if open_store(out).exists(PAGE):
        tell(f"{out}/{PAGE} still shows an earlier selection; 'selectit report' writes it again.")


def _warn_of_low_mass(slug: str, mass: float | None) -> None:
    if mass is not None and mass < LOW_RATING_MASS:
        words = (
            f"Warning: {slug} gives all ratings together a probability of {mass:.4f} on average "
            f"(under {LOW_RATING_MASS}): it hardly understood the question, and its scores mean "
            "little. Try --chat if the model has a chat template, a stronger base model, another "
            "ending of the template (--template), or other rating prompts (--rating-prompts)."
        )
        tell(Text(words, style="yellow"))


def show_dry_run(facts: dict[str, Any], as_json: bool) -> None:
    """What a run would do and take."""
    if as_json:
        _print_json(facts)
        return
    SafeConsole(quiet=_words.quiet).print(_table(_dry_run_lines(facts)))
    for model in facts["models"]:
        _warn_of_low_mass(model["name"], model["rating_mass"])
    tell("\nNothing was written. The same command without --dry-run starts or resumes the run.")


def _dry_run_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    given = facts["input"]
    lost = f", {given['cannot_be_rated']} of them cannot be rated" * bool(given["cannot_be_rated"])
    yield "rows", f"{given['rows']:,} of {given['name']}, {given['split']}{lost}"
    for one in facts["models"]:
        left = f"{one['rows_left']:,} rows to rate, {one['prompts']:,} prompts"
        if one["tokens"] is not None:
            left += (
                f" of {one['tokens_per_prompt']:,.0f} tokens on average (longest "
                f"{one['longest_prompt']:,} in {one['sample']} rows), {one['tokens']:,} tokens, "
                f"about {one['batches']:,} batches"
            )
        yield f"model {one['name']}", left
        took = one["unknown"] and f"unknown: {one['unknown']}"
        took = took or f"about {duration(one['seconds'])} on {one['device']} in {one['dtype']}"
        mass = one["rating_mass"]
        yield "time", took + ("" if mass is None else f"; rating mass {mass:.4f} on a few rows")
    if len(facts["models"]) > 1 or facts["workers"] > 1:
        whole = facts["seconds"]
        yield "in all", "unknown" if whole is None else f"about {duration(whole)}"
    chosen = facts["selected"]
    count = f"rows that score {chosen['threshold']} or more"
    count = count if chosen["rows"] is None else f"{chosen['rows']:,} rows"
    yield "selected", f"{count}, by {chosen['by']}"
    yield "disk", f"about {max(facts['bytes'] / 1e6, 0.1):,.1f} MB in {facts['out']}"


def show_comparison(found: dict[str, Any], as_json: bool) -> None:
    """Selectors side by side, then how alike they are."""
    if as_json:
        _print_json(found)
        return
    console = SafeConsole(quiet=_words.quiet)
    names = [one["name"] for one in found["selectors"]]
    contents = Table("kept", *CONTENTS, "s", "passes", "new", box=None, pad_edge=False)
    for one in found["selectors"]:
        asked = (str(one[key]["sequences"]) for key in ("cost", "paid"))
        contents.add_row(Text(one["name"]), *_cells(one), f"{one['cost']['seconds']:.1f}", *asked)
    contents.add_row("all rows", *_cells(found["everything"]))
    console.print(contents)
    titles = {"jaccard": "kept by both / kept by either", "spearman": "rank correlation"}
    for key, title in titles.items():
        console.print(f"\n[bold]{title}[/bold]")
        matrix = Table("", *(Column(Text(name)) for name in names), box=None, pad_edge=False)
        for name, row in zip(names, found[key], strict=True):
            matrix.add_row(Text(name), *map(_number, row))
        console.print(matrix)
    for one in found["selectors"]:
        if one["note"]:
            console.print(Text(f"{one['name']}: {one['note']}"))


def _cells(facts: dict[str, Any]) -> Iterator[str]:
    return (_number(facts[key]) for key in CONTENTS.values())


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.3f}"


def _table(lines: Iterator[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in lines:
        table.add_row(name, Text(value))
    return table


def _summary_lines(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "rows", f"{summary['rows']}"
    yield "selected", f"{summary['selected']}, by {summary['by']}"
    if summary["threshold"] is not None:
        yield "threshold", f"{summary['threshold']:.6f}"
    names = ("min", "25 %", "median", "75 %", "max")
    quantiles = zip(names, summary["score_quantiles"], strict=False)
    yield "scores", ", ".join(f"{name} {value:.4f}" for name, value in quantiles)
    lengths = summary["mean_response_characters"]
    yield "mean response", f"{lengths['selected']} characters selected, {lengths['all']} in all"
    for slug, facts in summary["models"].items():
        statuses = counts(facts["statuses"])
        mass = facts["rating_mass"]
        said = "" if mass is None else f"; rating mass {mass:.4f}"
        mixed = len(facts.get("made_with", ()))
        said += f"; rated with {mixed} different versions or kinds of hardware" * (mixed > 1)
        yield f"model {slug}", f"{facts['parameters']:,} parameters; {statuses}{said}"


def show_status(facts: dict[str, Any], as_json: bool) -> None:
    """A run in progress: its shards, its speed, and what is wrong."""
    if as_json:
        _print_json(facts)
        return
    console = SafeConsole()
    console.print(_table(_status_lines(facts)))
    for words in facts["wrong"]:
        console.print(Text(f"wrong: {words}", style="yellow"))


def _status_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for slug, model in facts["models"].items():
        parts = [
            f"{model['rows_done']} of {facts['rows']} rows",
            f"{model['done']} of {model['shards']} shards done",
            f"{len(model['in_progress'])} in progress",
            f"{len(model['bad'])} bad",
        ]
        if model["rows_per_second"] is not None:
            parts.append(f"{model['rows_per_second']:.1f} rows/s")
        if model["seconds_left"] is not None:
            parts.append(f"{duration(model['seconds_left'])} left")
        yield f"model {slug}", ", ".join(parts)
    yield "results", "written" if facts["finished"] else "not written yet"
