"""What else a rated run can show: a comparison with other selectors, and the report.

This is the logic of ``selectit compare``, ``selectit report`` and ``selectit select --by``.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub.constants import HF_HOME
from numpy.typing import NDArray

from selectit_hf.analysis.ablation import ablate
from selectit_hf.analysis.candidates import NAMES, Candidates
from selectit_hf.analysis.comparison import Comparison, compare
from selectit_hf.analysis.measures import Measures
from selectit_hf.analysis.verified_results import check_written
from selectit_hf.errors import InputError, SettingError
from selectit_hf.hashes import sha256
from selectit_hf.rating import RatingScorer, Reflection
from selectit_hf.runs import Run, ratings_of
from selectit_hf.selection import Cut
from selectit_hf.selectors import Endpoint, Judge, to_columns

__all__ = [
    "JudgeSettings",
    "Reader",
    "ablate_run",
    "compare_run",
    "is_selector",
    "rank_by",
    "within",
]

LEVELS = ("token", "sentence", "model")
JOURNAL = "measures/answers.jsonl"
ROWS = 1000


@dataclass(frozen=True)
class JudgeSettings:
    """Who judges, and what it costs.

    Attributes:
        model, url, provider, per_minute, concurrency: see `Endpoint`.
        prices: for a million prompt tokens and for a million answer tokens.
        yes: ask the judge, which costs money.
    """

    model: str | None = None
    url: str | None = None
    provider: str | None = None
    per_minute: float | None = None
    concurrency: int = 4
    prices: tuple[float, ...] | None = None
    yes: bool = False


@dataclass(frozen=True)
class Reader:
    """The model that reads responses for ``ifd``, ``perplexity`` and ``length``, and where it runs.

    Attributes:
        model: a Hub name or a folder; ``None`` for the run's first model.
        revision: the revision of ``model``.
        device, device_map, base_model, quantization, attn_implementation: see
            `selectit_hf.TokenScore`.
    """

    model: str | None = None
    revision: str | None = None
    device: str | None = None
    device_map: str | None = None
    base_model: str | None = None
    quantization: str | None = None
    attn_implementation: str | None = None

    @classmethod
    def of(cls, scorer: RatingScorer) -> "Reader":
        """The model that rates, at the same commit and place."""
        pinned = None if scorer.checkpoint.is_local else scorer.checkpoint.revision
        return cls(
            scorer.model,
            pinned,
            scorer.device,
            scorer.device_map,
            scorer.base_model,
            scorer.quantization,
            scorer.attn_implementation,
        )


def compare_run(
    run: Run,
    rows: Dataset,
    names: Sequence[str],
    cut: Cut,
    how: Reflection,
    reader: Reader = Reader(),
    seed: int = 0,
    judge: JudgeSettings | None = None,
    embeddings: str | None = None,
    tell: Callable[[str], None] = print,
) -> Comparison:
    """Score a run's rows by each selector and compare what they keep.

    Args:
        run: the run; measurements are kept in its folder.
        rows: its rows; see `selectit_hf.runs.rows_of`.
        names: selectors, as `selectit_hf.analysis.candidates` names them.
        cut: how much each keeps.
        how: how scores are computed from the ratings.
        reader: the model that reads responses.
        seed: the seed of ``random``.
        judge: the judge for ``judge``.
        embeddings: a column of vectors, instead of the rows' words.
        tell: called with a sentence on what the judge will cost.

    Raises:
        SettingError: a selector that is not known or lacks its settings.
    """
    journal = _journal(run) if judge is not None and judge.model else None
    made = _candidates(run, rows, cut, how, reader, seed, judge, embeddings, journal)
    if "judge" in names:
        _agree_to_pay(made, judge or JudgeSettings(), tell)
    found = [made.score(name) for name in names]
    return compare(found, made.pairs, cut, made.lengths(), made.vectors)


def is_selector(rows: Dataset, by: str | None) -> bool:
    """Whether ``by`` is a selector that has to be measured: no level of SelectIT, and no column.

    A judge needs settings of its own, so only `compare_run` takes it.
    """
    if by is None or by in (*LEVELS, "judge", *rows.column_names):
        return False
    return by.partition(":")[0] in {name.partition(":")[0] for name in NAMES}


def within(how: Reflection, per: str | None) -> Reflection:
    """``how``, ranking within each group of rows with the same value in the column ``per``."""
    if per is None:
        return how
    base = "" if how.by is None else f":{how.by}"
    return replace(how, by=f"per:{per}{base}")


def rank_by(
    run: Run,
    rows: Dataset,
    how: Reflection,
    cut: Cut,
    reader: Reader = Reader(),
    seed: int = 0,
) -> tuple[Dataset, Reflection]:
    """Rows and reflection for ``how.by``: a selector's scores become a column of the rows.

    A level or a column is left as it is.
    """
    if how.by is None or not is_selector(rows, how.by):
        return rows, how
    made = _candidates(run, rows, cut, how, reader, seed, None, None)
    name = "".join(c if c.isalnum() else "_" for c in how.by)
    scores = made.score(how.by).scores
    for column, values in to_columns(name, scores).items():
        rows = rows.add_column(column, values)
    return rows, replace(how, by=f"score__{name}")


def ablate_run(run: Run) -> dict[str, Any]:
    """What a finished run would have kept with other settings.

    See `selectit_hf.analysis.ablation.Ablation.to_dict`.
    """
    how, cut = _as_selected(run)
    ratings = {slug: ratings_of(run, slug) for slug in run.slugs}
    return ablate(ratings, cut, how.alpha, how.variant, how.weights).to_dict()


def _as_selected(run: Run) -> tuple[Reflection, Cut]:
    facts = check_written(run)
    weights = facts["reflection"]["weights"]
    how = {name: facts["reflection"][name] for name in ("alpha", "variant")}
    return Reflection(**how, weights=weights and tuple(weights)), Cut(**facts["cut"])


def _candidates(
    run: Run,
    rows: Dataset,
    cut: Cut,
    how: Reflection,
    reader: Reader,
    seed: int,
    judge: JudgeSettings | None,
    embeddings: str | None,
    journal: Path | None = None,
) -> Candidates:
    return Candidates(
        Measures(run, rows),
        **asdict(reader),
        cut=cut,
        alpha=how.alpha,
        variant=how.variant,
        weights=how.weights,
        seed=seed,
        judge=_judge(run, judge, journal) if judge is not None and journal is not None else None,
        embeddings=None if embeddings is None else _vectors(rows, embeddings),
    )


def _journal(run: Run) -> Path:
    """Where a judge's answers are kept: in the run folder, or in the cache for a remote run."""
    if run.store.is_local:
        return run.store.path(JOURNAL)
    return Path(HF_HOME).expanduser() / "selectit_hf" / f"{sha256(run.where.encode())[:16]}.jsonl"


def _judge(run: Run, settings: JudgeSettings, journal: Path) -> Judge:
    endpoint = Endpoint(
        settings.model or "",
        settings.url,
        settings.provider,
        concurrency=settings.concurrency,
        per_minute=settings.per_minute,
    )
    return Judge(endpoint, journal, reader=run.reader)


def _agree_to_pay(made: Candidates, settings: JudgeSettings, tell: Callable[[str], None]) -> None:
    if made.judge is None:
        raise SettingError("'judge' needs --judge-model, and --judge-url or --judge-provider.")
    rows = made.measures.dataset
    batches = (rows[i : i + ROWS] for i in range(0, len(rows), ROWS))
    prices = settings.prices or (None, None)
    if len(prices) != 2:
        raise SettingError("--judge-prices takes two numbers: for prompt and for answer tokens.")
    found = made.judge.estimate(batches, *prices)
    cost = "" if found.cost is None else f", at most {found.cost:,.2f} in the unit of the prices"
    tell(
        f"The judge will be asked {found.requests:,} times ({found.stored:,} answers are stored): "
        f"about {found.prompt_tokens:,} tokens in, at most {found.answer_tokens:,} out{cost}."
    )
    if found.requests and not settings.yes:
        raise SettingError("The judge was not asked. Add --yes to ask it.")


def _vectors(rows: Dataset, column: str) -> NDArray[np.float32]:
    """(n, d) of length 1."""
    if column not in rows.column_names:
        raise InputError(f"There is no column {column!r} of embeddings.")
    vectors = np.asarray(rows[column], dtype=np.float32)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise InputError(f"The column {column!r} must hold vectors of one length, without nulls.")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)
