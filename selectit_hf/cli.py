"""The ``selectit`` command. Thin: it reads flags, calls the package, and shows what came out."""

import functools
import inspect
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, cast

import datasets
import transformers
import typer
from datasets import Dataset
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from selectit_hf import sources
from selectit_hf.card import CardSettings
from selectit_hf.checkpoints import DEFAULT_MODEL, TINY_RATER
from selectit_hf.errors import InputError, RunError, SelectItError, SettingError
from selectit_hf.hub import Pushed, PushSettings
from selectit_hf.prompts import RELEASED_TEMPLATE
from selectit_hf.publishing import push_run
from selectit_hf.report import LOW_RATING_MASS
from selectit_hf.runs import Reflection, Run, survey
from selectit_hf.scorers import ModelScore, SentenceScore
from selectit_hf.selection import Cut, Selection, select
from selectit_hf.sources import Source

__all__ = ["app", "main"]

app = typer.Typer(
    name="selectit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Let base LLMs rate an instruction dataset and keep the best fifth (SelectIT, "
    "arXiv 2402.16705). Start with [bold]selectit demo[/bold], then "
    "[bold]selectit run DATASET --model MODEL --out RUN[/bold].",
    epilog="Exit codes: 0 done, 1 an error with its remedy, 2 wrong usage, 70 a fault of selectit, "
    "130 stopped by Ctrl-C.",
)
screen = Console(stderr=True)


# Flags that several commands share: the parameters of these functions.


def _scorers(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A base LLM: Hub name (name\\[@revision]), folder, or tiny-rater. Repeat it for "
            "the model level (the paper: Llama-2 7B, 13B and 70B). Default: SELECTIT_MODEL, else "
            f"{DEFAULT_MODEL}."
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Top of the scale; number of rating prompts.")] = 5,
    rating_prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, one rating prompt a line; {k} stands for the scale's top."),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(help="Text file with {rating_prompt}, {instruction} and {response}."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask through the chat template (instruct models).")
    ] = False,
    instruction_column: Annotated[str | None, typer.Option(help="Instead of detection.")] = None,
    response_column: Annotated[str | None, typer.Option(help="Instead of detection.")] = None,
    turns: Annotated[
        str | None, typer.Option(help="Rows with several turns: rate 'first' or 'all'.")
    ] = None,
    translation: Annotated[
        str | None, typer.Option(help="Languages of a translation column, as in de:en.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Longest prompt in tokens. Default: the model's context.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16. Default: bfloat16 on CUDA, else float32."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda:0, ... Default: a GPU if there is one.")
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(help="Padded tokens in a forward pass.")
    ] = None,
) -> list[SentenceScore]:
    def scorer(name: str | None) -> SentenceScore:
        is_folder = name is not None and Path(name).expanduser().is_dir()
        path, _, revision = (name or "", "", "") if is_folder else (name or "").partition("@")
        return SentenceScore(
            model=path or None,
            revision=revision or None,
            k=k,
            rating_prompts=rating_prompts,
            template=RELEASED_TEMPLATE if template is None else _text(template),
            chat=chat,
            instruction_column=instruction_column,
            response_column=response_column,
            turns=cast(Any, turns),
            translation=translation,
            max_length=max_length,
            dtype=dtype,
            device=device,
            token_budget=token_budget,
        )

    return [scorer(name) for name in model] if model else [scorer(None)]


def _reflection(
    alpha: Annotated[
        float, typer.Option(help="Weight of the disagreement between rating prompts.")
    ] = 0.2,
    variant: Annotated[
        str, typer.Option(help="paper, or released: the arithmetic of the authors' code.")
    ] = "paper",
    weights: Annotated[
        str | None, typer.Option(help="Of the models, as in 7,13,70. Default: parameter counts.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="token, sentence, model, or a column. Default: the highest level."),
    ] = None,
) -> Reflection:
    return Reflection(alpha, cast(Any, variant), _numbers(weights), by)


def _cut(
    proportion: Annotated[
        float | None, typer.Option(help="Share of all rows to keep. Default: 0.2.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Number of rows to keep.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Keep every row with at least this score.")
    ] = None,
    variant: str = "paper",
) -> Cut:
    return Cut(proportion, n, threshold, cast(Any, variant))


def _card(
    license: Annotated[
        str | None, typer.Option(help="Instead of the source's, as in cc-by-nc-4.0.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Code of the rows' language, as in en. Repeatable.")
    ] = None,
    pretty_name: Annotated[str | None, typer.Option(help="Title of the card.")] = None,
    examples: Annotated[
        bool, typer.Option("--examples", help="Show the best and worst rows.")
    ] = False,
) -> CardSettings:
    return CardSettings(license, tuple(language or ()), pretty_name, examples)


def _push(
    public: Annotated[bool, typer.Option("--public", help="To a public repository.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Replace an earlier push.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace whatever is there.")
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="As one pull request.")] = False,
) -> PushSettings:
    return PushSettings(public, update, overwrite, create_pr)


def _screen(
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and the libraries' logs.")
    ] = False,
) -> bool:
    _quieten(debug)
    return as_json


def _with(**builders: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of ``builders``, and call it with what they build."""
    flags = {name: inspect.signature(build).parameters for name, build in builders.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = {
            name: parameter
            for name, parameter in inspect.signature(command).parameters.items()
            if name not in builders
        }

        @functools.wraps(command)
        def with_flags(**given: Any) -> None:
            built = {
                name: build(**{flag: given[flag] for flag in flags[name]})
                for name, build in builders.items()
            }
            command(**{name: given[name] for name in own}, **built)

        merged = {**{k: v for taken in reversed(flags.values()) for k, v in taken.items()}, **own}
        ordered = sorted(merged.values(), key=lambda p: p.name not in own)
        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in ordered]
        cast(Any, with_flags).__signature__ = inspect.Signature(keywords)
        with_flags.__annotations__ = {p.name: p.annotation for p in keywords}
        return with_flags

    return decorate


# Commands

DatasetName = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="Hub name (name\\[:config]\\[@revision]), a json, jsonl, parquet or csv file, or a "
        "folder written by save_to_disk.",
    ),
]
Split = Annotated[str | None, typer.Option(help="Which split, where there are several.")]


@app.command()
@_with(scorers=_scorers, how=_reflection, cut=_cut, as_json=_screen)
def run(
    dataset: DatasetName,
    out: Annotated[Path, typer.Option(help="Run folder.")],
    scorers: list[SentenceScore],
    how: Reflection,
    cut: Cut,
    as_json: bool,
    split: Split = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Rows in a shard. Default: 8192.")
    ] = None,
) -> None:
    """Rate a dataset, score it and select the best rows, into a run folder.

    Stopped or killed, the same command goes on where it was. The raw ratings stay in the folder, so
    'selectit select RUN' with another level, alpha, variant or proportion takes seconds.
    """
    rows, source = sources.load(dataset, split)
    _run(rows, source, scorers, how, cut, out, shard_size, as_json)


@app.command()
@_with(scorers=_scorers, how=_reflection, as_json=_screen)
def score(
    dataset: DatasetName,
    out: Annotated[Path, typer.Option(help="A .parquet or .jsonl file, or a folder to save to.")],
    scorers: list[SentenceScore],
    how: Reflection,
    as_json: bool,
    split: Split = None,
) -> None:
    """Add score columns to a dataset and write all its rows.

    Rows that carry ratings by the same model and settings are not rated again. For long jobs prefer
    'selectit run', which loses nothing when it is stopped.
    """
    if how.by is not None:
        raise SettingError("--by chooses what to select by; 'selectit score' writes every score.")
    write = _writer(out)
    rows, _ = sources.load(dataset, split)
    survey(rows, scorers[0].reader)
    if not as_json:
        datasets.enable_progress_bars()
    for scorer in scorers:
        scorer = replace(scorer, alpha=how.alpha, variant=how.variant)
        rows = rows.map(scorer, batched=True, features=scorer.features(rows), desc=scorer.slug)
    if len(scorers) > 1:
        combine = ModelScore(weights=how.weights, alpha=how.alpha, variant=how.variant)
        rows = rows.map(combine, batched=True, features=combine.features(rows))
    elif how.weights is not None:
        raise SettingError("--weights combine several models, and there is one.")
    write(rows)
    statuses = {s.slug: dict(Counter(rows[f"status__{s.slug}"])) for s in scorers}
    counted = "; ".join(f"{slug}: {_counts(found)}" for slug, found in statuses.items())
    facts = {"rows": len(rows), "statuses": statuses, "out": str(out)}
    _say(facts, as_json, f"{len(rows)} rows with score columns are in {out} ({counted}).")


@app.command(name="select")
@_with(how=_reflection, cut=_cut, as_json=_screen)
def select_command(
    scored: Annotated[
        str, typer.Argument(metavar="SCORED", help="Run folder, or a dataset with score columns.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder, for a run; else a .parquet or .jsonl file or a folder.")
    ],
    how: Reflection,
    cut: Cut,
    as_json: bool,
    data: Annotated[
        str | None, typer.Option(help="For a run over a local file: that file again.")
    ] = None,
    split: Split = None,
) -> None:
    """Select again, from a run's stored ratings or from a scored dataset; no model is loaded.

    From a run, level, alpha, variant and weights may change; a scored dataset is taken as it is.
    """
    if (Path(scored) / "plan.json").is_file():
        if out.suffix in (".parquet", ".jsonl"):
            raise SettingError("A run's selection is several files; name a folder with --out.")
        run_ = Run.open(Path(scored))
        rows = _rows_of(run_, data, split)
        _show(*run_.finish(rows, how, cut, out), out, as_json)
        return
    if how != Reflection(variant=how.variant, by=how.by):
        raise SettingError(
            "--alpha and --weights need the raw ratings of a run folder; a scored dataset has its "
            "scores already. Score it again, which rates nothing twice, or leave them away."
        )
    write = _writer(out)
    rows, _ = sources.load(scored, split)
    selection = select(
        rows, by=how.by, proportion=cut.proportion, n=cut.n, threshold=cut.threshold,
        variant=cut.variant,
    )  # fmt: skip
    write(selection.selected)
    facts = {
        "rows": len(rows),
        "selected": len(selection.selected),
        "by": selection.by,
        "threshold": selection.threshold,
        "reasons": selection.reasons,
        "out": str(out),
    }
    _say(facts, as_json, f"{len(selection.selected)} of {len(rows)} rows are in {out}.")


@app.command()
@_with(card=_card, settings=_push, as_json=_screen)
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    repo: Annotated[str, typer.Argument(help="As in user/selective-alpaca.")],
    card: CardSettings,
    settings: PushSettings,
    as_json: bool,
    yes: Annotated[
        bool, typer.Option("--yes", help="Push; without it nothing is written.")
    ] = False,
) -> None:
    """Publish a finished run as a dataset on the Hub, with a card, all scores and a manifest.

    Without --yes it prints what would be pushed. One commit, private unless --public, read back
    and compared. The login is that of 'hf auth login', or HF_TOKEN.
    """
    tell = screen.out if as_json else print
    done = push_run(run, repo, yes=yes, card=card, settings=settings, tell=tell)
    if as_json:
        facts = asdict(done) if isinstance(done, Pushed) else {"repo": repo, "new": False}
        print(json.dumps(facts, ensure_ascii=False))


@app.command()
@_with(as_json=_screen)
def demo(
    as_json: bool,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("selectit-demo"),
) -> None:
    """See it work in a minute: rate a bundled sample dataset with a bundled tiny model.

    No GPU, no login, no download. The sample has good rows and rows broken on purpose; the summary
    says how many broken ones were kept.
    """
    sample = files("selectit_hf").joinpath("data", "sample.jsonl")
    rows, source = sources.load(str(sample))
    scorers = [SentenceScore(TINY_RATER)]
    selection = _run(rows, source, scorers, Reflection(), Cut(), out, None, as_json)
    screen.print(_demo_words(rows, selection, out))


def _run(
    rows: Dataset,
    source: Source,
    scorers: Sequence[SentenceScore],
    how: Reflection,
    cut: Cut,
    out: Path,
    shard_size: int | None,
    as_json: bool,
) -> Selection:
    reader = scorers[0].reader
    layout, columns = reader.layout_name(rows.column_names), reader.columns(rows.column_names)
    words = f"{len(rows)} rows of {source.name}, read as {layout}: {', '.join(columns)}"
    screen.print(Text(words))
    started = Run.start(out, rows, source, scorers, shard_size)
    started.check(how, rows.column_names)
    with _progress(started, quiet=as_json) as progress:
        try:
            started.rate(rows, scorers, progress)
        except KeyboardInterrupt:
            screen.print(f"Stopped. The same command goes on from the last full shard in {out}.")
            raise
    selection, summary = started.finish(rows, how, cut)
    _show(selection, summary, out, as_json)
    return selection


def _rows_of(run_: Run, data: str | None, split: str | None) -> Dataset:
    source = run_.plan["input"]
    if data is None and source["revision"].startswith("sha256:"):
        raise RunError(
            f"The run rated the local file {source['name']!r}; give it again with --data, so that "
            "the selected rows can be written with all their columns."
        )
    config = f":{source['config']}" if source["config"] else ""
    name = data or f"{source['name']}{config}@{source['revision']}"
    several = data is None or (Path(data) / "dataset_dict.json").is_file()
    rows, found = sources.load(name, split or (source["split"] if several else None))
    if found.revision != source["revision"]:
        raise RunError(
            f"{found.name!r} has changed since it was rated: {found.revision}, not "
            f"{source['revision']}. Give the file the run was made from."
        )
    return rows


# What is shown


def _show(selection: Selection, summary: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _summary_lines(summary):
        table.add_row(name, Text(value))
    console = Console()
    console.print(table)
    for title, key in (("best", "best"), ("worst", "worst")):
        console.print(f"\n[bold]{title}[/bold]")
        for row in summary[key]:
            console.print(Text(f"  {row['score']:.4f}  row {row['row']}: {row['instruction']}"))
            console.print(Text(f"          → {row['response']}", style="dim"))
    for slug, facts in summary["models"].items():
        if facts["rating_mass"] is not None and facts["rating_mass"] < LOW_RATING_MASS:
            words = (
                f"Warning: {slug} gives all ratings together a probability of "
                f"{facts['rating_mass']:.4f} on average (under {LOW_RATING_MASS}): it hardly "
                "understood the question, and its scores mean little. Try a stronger base model, "
                "or other rating prompts."
            )
            screen.print(Text(words, style="yellow"))
    screen.print(f"\n{len(selection.selected)} selected rows are in {out / 'selected.parquet'}.")


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
        statuses = _counts(facts["statuses"])
        mass = facts["rating_mass"]
        said = "" if mass is None else f"; rating mass {mass:.4f}"
        yield f"model {slug}", f"{facts['parameters']:,} parameters; {statuses}{said}"


def _counts(statuses: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in statuses.items())


def _demo_words(rows: Dataset, selection: Selection, out: Path) -> Text:
    broken, kept = (
        sum(defect != "none" for defect in part["defect"]) for part in (rows, selection.selected)
    )
    return Text(
        f"{kept} of the {len(selection.selected)} selected rows are broken on purpose "
        f"({kept / len(selection.selected):.1%}), against {broken} of all {len(rows)} "
        f"({broken / len(rows):.1%}).\n\n"
        "The tiny model was trained to tell this sample's rows apart, and knows nothing else. For "
        "your own data take a real base model, on a GPU:\n\n"
        "  selectit run vicgalle/alpaca-gpt4 --model Qwen/Qwen3-0.6B-Base --out RUN\n"
    )


def _say(facts: dict[str, Any], as_json: bool, words: str) -> None:
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        screen.print(Text(words))


@contextmanager
def _progress(run_: Run, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """Rows done, rows a second and time left, for each model."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]}"),
        TimeRemainingColumn(),
        console=screen,
        disable=quiet,
    )
    with bar:
        k = run_.plan["rating"]["k"]
        tasks = {slug: bar.add_task(slug, total=run_.rows * k, rows="") for slug in run_.slugs}

        def advance(slug: str, prompts: int) -> None:
            bar.advance(tasks[slug], prompts)
            task = bar.tasks[tasks[slug]]
            speed = "" if task.speed is None else f", {task.speed / k:.1f} rows/s"
            bar.update(task.id, rows=f"{task.completed / k:.0f}/{run_.rows} rows{speed}")

        yield advance


def _writer(out: Path) -> Callable[[Dataset], Any]:
    """How a dataset is written to ``out``; refused before any work if it cannot be."""
    if out.suffix == ".parquet":
        return lambda rows: rows.to_parquet(out)
    if out.suffix == ".jsonl":
        return lambda rows: rows.to_json(out, force_ascii=False)
    if out.suffix:
        raise SettingError(f"--out {out.name} must end in .parquet or .jsonl, or be a folder.")
    if out.exists():
        raise SettingError(f"The folder {out.name!r} is there already; name another with --out.")
    return lambda rows: rows.save_to_disk(out)


# Flags to values


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The template file {path} cannot be read: {error}.") from error


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(f"--weights {text!r} must be numbers, as in 7,13,70.") from error


def _quieten(debug: bool) -> None:
    """Our own log lines, on stderr; the libraries' only with ``--debug``."""
    handler = RichHandler(console=screen, show_time=False, show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("selectit_hf").setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        for library in (datasets, transformers):
            cast(Any, library.utils.logging).set_verbosity_error()
        cast(Any, transformers.utils.logging).disable_progress_bar()
        datasets.disable_progress_bars()


def main() -> None:
    """Run the command; errors are a paragraph on stderr, with a traceback under ``--debug``."""
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        if isinstance(error, SelectItError):
            screen.print(Text(f"Error: {error}", style="red"))
            sys.exit(1)
        if isinstance(error, OSError):
            words = f"Error: {error}. Check the path, its permissions, and the room on the disk."
            screen.print(Text(words, style="red"))
            sys.exit(1)
        screen.print(
            Text(
                f"Unexpected {type(error).__name__}: {error}\nThis is a fault of selectit; run the "
                "command again with --debug and report what it shows.",
                style="red",
            )
        )
        sys.exit(70)
