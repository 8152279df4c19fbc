"""Groups of flags: the parameters of these functions, and the settings built from them."""

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from selectit_hf.analysis import JudgeSettings, Reader
from selectit_hf.cli import display
from selectit_hf.cli.flags import (
    Alpha,
    Attention,
    BaseModel,
    Device,
    DeviceMap,
    Formula,
    Quantization,
    Weights,
    in_panel,
)
from selectit_hf.errors import InputError, SettingError
from selectit_hf.hub import CardSettings, PushSettings
from selectit_hf.rating import DEFAULT_MODEL, RELEASED_TEMPLATE, Reflection, SentenceScore, is_local
from selectit_hf.selection import Cut

__all__ = [
    "as_json",
    "card",
    "cut",
    "formula",
    "judge",
    "push",
    "reader",
    "reflection",
    "scorers",
    "with_flags",
]


def scorers(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A base LLM: Hub name (name\\[@revision]), folder, GGUF file (its path, or "
            "NAME:FILE.gguf), or tiny-rater; an adapter is loaded with its base. Repeat it for the "
            "model level (the paper: Llama-2 7B, 13B and 70B). Default: SELECTIT_MODEL, else "
            f"{DEFAULT_MODEL}."
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Top of the scale; number of rating prompts.")] = 5,
    rating_prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, one rating prompt per line; {k} is the top of the scale."),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(help="Text file with {rating_prompt}, {instruction} and {response}."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Use the chat template (for instruct models).")
    ] = False,
    chat_kwarg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Argument of the chat template, as in enable_thinking=false. Repeatable.",
        ),
    ] = None,
    instruction_column: Annotated[str | None, typer.Option(help="Default: detected.")] = None,
    response_column: Annotated[str | None, typer.Option(help="Default: detected.")] = None,
    turns: Annotated[
        str | None, typer.Option(help="Rows with several turns: rate 'first' or 'all'.")
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KIND",
            help="Treat a role as user, assistant, system or tool, as in "
            "--role narrator=system. Repeatable.",
        ),
    ] = None,
    translation: Annotated[
        str | None, typer.Option(help="Languages of a translation column, as in de:en.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Longest prompt in tokens. Default: the model's context.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16 (or fp32, bf16, fp16). Default: auto, which is "
            "bfloat16 on CUDA, else float32."
        ),
    ] = None,
    base_model: BaseModel = None,
    quantization: Quantization = None,
    attn_implementation: Attention = None,
    device: Device = None,
    device_map: DeviceMap = None,
    token_budget: Annotated[
        int | None, typer.Option(help="Maximum padded tokens per forward pass.")
    ] = None,
) -> list[SentenceScore]:
    """One scorer for each model."""
    kwargs = _named_values(chat_kwarg or [])

    def scorer(name: str | None) -> SentenceScore:
        path, revision = _pinned(name)
        return SentenceScore(
            model=path,
            revision=revision,
            k=k,
            rating_prompts=rating_prompts,
            template=RELEASED_TEMPLATE if template is None else _text(template),
            chat=chat,
            chat_template_kwargs=kwargs,
            instruction_column=instruction_column,
            response_column=response_column,
            turns=cast(Any, turns),
            translation=translation,
            roles=tuple(role) if role else None,
            max_length=max_length,
            base_model=base_model,
            dtype=dtype,
            quantization=quantization,
            attn_implementation=attn_implementation,
            device=device,
            device_map=device_map,
            token_budget=token_budget,
        )

    return [scorer(name) for name in model] if model else [scorer(None)]


def reader(
    model: Annotated[
        str | None,
        typer.Option(help="Model for ifd, perplexity and length. Default: the run's first."),
    ] = None,
    base_model: BaseModel = None,
    quantization: Quantization = None,
    attn_implementation: Attention = None,
    device: Device = None,
    device_map: DeviceMap = None,
) -> Reader:
    """The model that reads responses, and where it runs."""
    path, revision = _pinned(model)
    weights = (base_model, quantization, attn_implementation)
    return Reader(path, revision, device, device_map, *weights)


def formula(alpha: Alpha = 0.2, variant: Formula = "paper", weights: Weights = None) -> Reflection:
    """How scores are computed from the ratings, whatever the rows are ranked by."""
    return Reflection(alpha, cast(Any, variant), _numbers(weights))


def reflection(
    alpha: Alpha = 0.2,
    variant: Formula = "paper",
    weights: Weights = None,
    by: Annotated[
        str | None,
        typer.Option(help="token, sentence, model, or a column. Default: the highest level."),
    ] = None,
) -> Reflection:
    """How scores are computed from the ratings, and what the rows are ranked by."""
    return replace(formula(alpha, variant, weights), by=by)


def _share(proportion: float | None) -> float | None:
    """Refuse what is no share before anything is read."""
    try:
        Cut(proportion)
    except SettingError as error:
        raise typer.BadParameter(str(error)) from error
    return proportion


def cut(
    proportion: Annotated[
        float | None,
        typer.Option(help="Share of all rows to keep. Default: 0.2.", callback=_share),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Number of rows to keep.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Keep every row with at least this score.")
    ] = None,
    variant: str = "paper",
) -> Cut:
    """How much is kept."""
    return Cut(proportion, n, threshold, cast(Any, variant))


def card(
    license: Annotated[
        str | None, typer.Option(help="Replaces the source's licence, as in cc-by-nc-4.0.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Language code of the rows, as in en. Repeatable.")
    ] = None,
    pretty_name: Annotated[str | None, typer.Option(help="Title of the card.")] = None,
    examples: Annotated[
        bool, typer.Option("--examples", help="Show the best and worst rows.")
    ] = False,
    derived: Annotated[
        bool,
        typer.Option(
            "--derived", help="The rows were made from the source, and are not its own rows."
        ),
    ] = False,
) -> CardSettings:
    """What the card of a push says in addition to the facts."""
    return CardSettings(license, tuple(language or ()), pretty_name, examples, derived)


def push(
    public: Annotated[bool, typer.Option("--public", help="Push to a public repository.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Replace an earlier push.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace whatever is there.")
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Push as a pull request.")] = False,
    timeout: Annotated[
        float, typer.Option(help="Time limit of the whole push, in seconds.", min=1)
    ] = PushSettings.timeout,
) -> PushSettings:
    """Where and how a push goes."""
    return PushSettings(public, update, overwrite, create_pr, timeout)


def judge(
    judge_model: Annotated[str | None, typer.Option(help="Judge model, for --by judge.")] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible base URL; token: SELECTIT_JUDGE_TOKEN.")
    ] = None,
    judge_provider: Annotated[
        str | None, typer.Option(help="Inference provider of the Hub, instead of a URL.")
    ] = None,
    judge_per_minute: Annotated[float | None, typer.Option(help="Requests a minute.")] = None,
    judge_concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 4,
    judge_prices: Annotated[
        str | None, typer.Option(help="Price per million prompt and answer tokens, as in 0.15,0.6.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start asking the judge.")] = False,
) -> JudgeSettings:
    """Who judges."""
    prices = _numbers(judge_prices, "--judge-prices")
    return JudgeSettings(
        judge_model, judge_url, judge_provider, judge_per_minute, judge_concurrency, prices, yes
    )


def as_json(
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and the libraries' logs.")
    ] = False,
) -> bool:
    """Whether the last line is JSON; also sets up logging."""
    display.quieten(debug)
    return as_json


def with_flags(
    **builders: Callable[..., Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of ``builders``, and call it with what they build."""
    flags = {name: inspect.signature(build).parameters for name, build in builders.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = {
            name: parameter
            for name, parameter in inspect.signature(command).parameters.items()
            if name not in builders
        }

        @functools.wraps(command)
        def command_with_flags(**given: Any) -> None:
            built = {
                name: build(**{flag: given[flag] for flag in flags[name]})
                for name, build in builders.items()
            }
            command(**{name: given[name] for name in own}, **built)

        merged: dict[str, inspect.Parameter] = {}
        for name, build in builders.items():
            for flag, parameter in in_panel(build.__name__, flags[name]).items():
                merged.setdefault(flag, parameter)
        merged |= own
        ordered = sorted(merged.values(), key=lambda p: p.name not in own)
        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in ordered]
        cast(Any, command_with_flags).__signature__ = inspect.Signature(keywords)
        command_with_flags.__annotations__ = {p.name: p.annotation for p in keywords}
        return command_with_flags

    return decorate


# Flags to values


def _pinned(name: str | None) -> tuple[str | None, str | None]:
    """A model's name and its ``@revision``, split; a folder's name may hold an ``@``."""
    if name is None or is_local(name):
        return name, None
    path, _, revision = name.partition("@")
    if revision and not path:
        raise SettingError(f"--model {name} names no model; write NAME{name}.")
    return path or None, revision or None


def _named_values(given: list[str]) -> dict[str, Any] | None:
    """``NAME=VALUE`` texts to a dict; a value is read as JSON if it is JSON, else as text."""
    values: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name or name in values:
            raise SettingError(
                f"--chat-kwarg {one!r} must be NAME=VALUE, each name once, as in "
                "enable_thinking=false."
            )
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values or None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The template file {path} cannot be read: {error}.") from error


def _numbers(text: str | None, flag: str = "--weights") -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(
            f"{flag} {text!r} must be comma-separated numbers, as in 7,13,70."
        ) from error
