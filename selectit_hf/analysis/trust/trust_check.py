"""The trust check: can these models tell good rows of this dataset from broken copies of them?

Defects are planted in copies of the user's own rows, and clean and broken rows are rated as a run
would rate them. No label and no other model is needed. What it cannot see: a score that notices
planted defects may still say little about which of two good rows teaches more.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from selectit_hf.analysis.comparison import spearman
from selectit_hf.analysis.trust.auc import separation
from selectit_hf.analysis.trust.defects import DEFECTS, Defect, Planted, plant
from selectit_hf.analysis.trust.verdict import advice, verdict
from selectit_hf.errors import InputError, SettingError
from selectit_hf.formats import READING, Pair, RowReader, Source
from selectit_hf.rating import (
    Batch,
    ModelScore,
    Ratings,
    SentenceScore,
    Template,
    TokenScore,
    encoders_by_end,
    reflection,
    settings_of,
)
from selectit_hf.selectors import IFD, Expected, Length, Perplexity, Random, Selector

__all__ = ["SELECTORS", "Check", "check", "duration"]

SELECTORS = ("length", "perplexity", "ifd", "random")
"""What ``by`` takes by name, beside the levels and ``expected``, which are always there."""

PROBE = 8
BESIDE = 100
"""Characters that a rating prompt adds to a pair, roughly, for estimates of time."""
MASS_TO_IMPROVE = 0.5
PAIRS_OF_AN_END = 4
COLUMNS: dict[str, Any] = {
    **dict.fromkeys(READING),
    "instruction_column": "instruction",
    "response_column": "response",
}

Floats = NDArray[np.float64]
Tell = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Check:
    """What a trust check found, all of it JSON-able.

    Attributes:
        input: name, split and revision of the dataset, where they are known, and its ``rows``.
        rows: source rows that were used.
        seed: of rows, defects and bootstrap.
        defects: copies with each defect.
        models: of each one ``name``, ``model``, ``revision``, ``parameters``, ``rating_key``,
            ``rating_mass`` (mean probability of any rating at all, on clean rows), ``ratings`` (how
            often each is the likeliest), ``prompt_correlation`` (mean of Spearman's correlations of
            each two rating prompts), ``other_ends`` of the template with the mass they would have,
            ``chat`` (whether it was asked through a chat template), ``has_chat_template``,
            ``seconds``, and ``whole_seconds``, what the whole dataset would take.
        selectors: of each level and selector ``name``, ``all`` and ``defects`` (each an
            `selectit_hf.analysis.trust.auc.Auc` as a dict), and ``unscored``, rows without a score.
        level: the one that a run would rank by.
        verdict: ``kind`` and ``words``; see `selectit_hf.analysis.trust.verdict`.
        advice: what to do, in sentences.
        seconds: what it took.
    """

    input: dict[str, Any]
    rows: int
    seed: int
    defects: dict[str, int]
    models: list[dict[str, Any]]
    selectors: list[dict[str, Any]]
    level: str
    verdict: dict[str, str]
    advice: list[str]
    seconds: float

    @property
    def used(self) -> dict[str, Any]:
        """What was found of the level that a run would rank by."""
        return next(one for one in self.selectors if one["name"] == self.level)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        return dict(vars(self))


def check(
    dataset: Dataset,
    scorers: SentenceScore | Sequence[SentenceScore],
    *,
    by: Sequence[str | Selector] = (),
    rows: int = 100,
    seed: int = 0,
    defects: Mapping[str, Defect] | None = None,
    bad: Sequence[str] = (),
    weights: Sequence[float] | None = None,
    source: Source | None = None,
    tell: Tell | None = None,
    progress: Progress | None = None,
) -> Check:
    """Ask whether models can tell good rows of a dataset from broken copies of them.

    Args:
        dataset: rows in any layout that is rated.
        scorers: one for each model.
        by: other selectors to look at: names of `SELECTORS`, which the first model reads for, or
            objects such as `IFD` that read the columns ``instruction`` and
            ``response``.
        rows: source rows, drawn with the seed; those that cannot be read are passed over.
        seed: of rows, defects and bootstrap.
        defects: by name, in place of `DEFECTS`: functions of a pair, another
            row's pair and a generator that give the broken pair, or ``None``.
        bad: columns with a worse response to the same instruction, as ``rejected``; each is one
            more defect.
        weights: of the models; see `selectit_hf.rating.scorers.ModelScore`.
        source: where the rows came from, to be written down.
        tell: told what will take how long.
        progress: told a model's name, and how many of how many rating prompts are done.

    Raises:
        InputError: fewer than two rows can be read, or a column is not there.
        SettingError: an unknown selector, a model named twice, or fewer than two rows asked for.
        ModelError: a model cannot be loaded, or cannot rate.

    Example:
        >>> found = check(ds, SentenceScore("tiny-rater"), rows=40)  # doctest: +SKIP
        >>> found.verdict["words"]  # doctest: +SKIP
    """
    started = time.perf_counter()
    scorers = [scorers] if isinstance(scorers, SentenceScore) else list(scorers)
    _check_settings(scorers, rows, by)
    sample = _sample(dataset, scorers[0].reader, rows, seed, bad)
    planted = plant(
        sample.pairs, sample.rows, DEFECTS if defects is None else defects, sample.bad, seed
    )
    bench = _Bench(planted, len(dataset), tell or _silent, progress)
    for scorer in scorers:
        bench.rate(scorer, len(scorers) == 1)
    if len(scorers) > 1:
        bench.combine(scorers[0], weights)
    for one in by:
        bench.measure(one, scorers[0], seed)
    level = "model" if len(scorers) > 1 else "sentence"
    found = [bench.found(name, seed) for name in bench.scores]
    used = next(one for one in found if one["name"] == level)
    facts = {
        "name": source.name if source else "",
        "split": source.split if source else "",
        "revision": source.revision if source else "",
        "rows": len(dataset),
    }
    return Check(
        facts,
        planted.clean,
        seed,
        {name: int((planted.defect == i).sum()) for i, name in enumerate(planted.names)},
        bench.models,
        found,
        level,
        verdict(used),
        advice(used, found, bench.models, planted.clean, len(dataset)),
        round(time.perf_counter() - started, 1),
    )


def _silent(words: str) -> None:
    pass


def _check_settings(
    scorers: Sequence[SentenceScore], rows: int, by: Sequence[str | Selector]
) -> None:
    if rows < 2:
        raise SettingError(f"rows={rows} (--rows) must be at least 2; 100 is the default.")
    slugs = [scorer.slug for scorer in scorers]
    if not slugs or len(set(slugs)) < len(slugs):
        raise SettingError(f"Name each model once, and at least one: {', '.join(slugs)}.")
    for one in by:
        if isinstance(one, str) and one not in SELECTORS:
            raise SettingError(
                f"--by {one!r} is no selector of the check, which always has the levels and "
                f"'expected', and on demand {', '.join(SELECTORS)}."
            )


# The rows


@dataclass(frozen=True)
class _Sample:
    rows: list[int]
    pairs: list[Pair]
    bad: dict[str, list[Pair | None]]


def _sample(
    dataset: Dataset, reader: RowReader, count: int, seed: int, bad: Sequence[str]
) -> _Sample:
    """Different rows that can be read, in a random order that the seed decides."""
    names = dataset.column_names
    columns, response = list(reader.columns(names)), _response_column(reader, names)
    for column in bad:
        if column not in names or column == response:
            raise InputError(
                f"--bad {column!r} must be a column with worse responses than {response!r}; the "
                f"dataset has {names}."
            )
    read = dataset.with_format(None).select_columns(list(dict.fromkeys([*columns, *bad])))
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    found = _Sample([], [], {column: [] for column in bad})
    seen: set[Pair] = set()
    for start in range(0, len(order), count):
        numbers = order[start : start + count]
        batch = read[numbers]
        good = {column: batch[column] for column in columns}
        pairs = reader.pairs(good)
        worse = {c: reader.pairs({**good, response: batch[c]}) for c in bad}
        for i, pair in enumerate(pairs):
            if isinstance(pair, Pair) and pair not in seen and len(found.rows) < count:
                seen.add(pair)
                found.rows.append(numbers[i])
                found.pairs.append(pair)
                for column in bad:
                    other = worse[column][i]
                    found.bad[column].append(other if isinstance(other, Pair) else None)
        if len(found.rows) == count:
            break
    if len(found.rows) < 2:
        raise InputError(
            f"{len(found.rows)} of {len(dataset)} rows can be read, and the check needs at least "
            "2 different ones."
        )
    return found


def _response_column(reader: RowReader, names: Sequence[str]) -> str:
    """The column that holds the response, or the whole conversation."""
    layout, columns = reader.layout(names), reader.columns(names)
    own = columns[: len(layout.columns[0]) if layout.columns else 2]
    return next((column for column in own if column.lower() == "chosen"), own[-1])


# Rating


class _Bench:
    """The good rows and their copies, scored by one after another."""

    def __init__(self, planted: Planted, whole: int, tell: Tell, progress: Progress | None) -> None:
        self.planted, self._whole, self._tell, self._progress = planted, whole, tell, progress
        self.batch: Batch = {
            "instruction": [pair.instruction for pair in planted.pairs],
            "response": [pair.response for pair in planted.pairs],
        }
        self._sizes = np.array([BESIDE + sum(map(len, pair)) for pair in planted.pairs])
        self._ratings: dict[str, Ratings] = {}
        self._tables: dict[tuple[str, str], pa.Table] = {}
        self.scores: dict[str, Floats] = {}
        self.models: list[dict[str, Any]] = []

    def rate(self, scorer: SentenceScore, alone: bool) -> None:
        """Let a model rate all, as `Dataset.map` and runs do."""
        slug, named = scorer.slug, replace(scorer, **COLUMNS)
        named.prepare()
        took = self._probe(named)
        self._tell(
            f"{slug} rates {self.planted.clean} rows and {len(self._sizes) - self.planted.clean} "
            f"broken copies in about {duration(took)}, as measured on {self._some().size} of them."
        )
        started = time.perf_counter()
        ratings = named.rate(self.batch, progress=self._counted(slug, named))
        seconds = time.perf_counter() - started
        self._ratings[slug] = ratings
        values = named.values(ratings)
        suffix = "" if alone else f":{slug}"
        for level in ("token", "sentence"):
            self.scores[f"{level}{suffix}"] = _floats(values[f"{level}_score__{slug}"])
        self.scores[f"expected{suffix}"] = Expected().combine({slug: ratings}).values
        rows = self._sizes[: self.planted.clean].mean() * self._whole
        whole = {"seconds": round(seconds, 1), "whole_seconds": round(self._share(seconds, rows))}
        self.models.append(self._facts(scorer, named, ratings) | whole)

    def _share(self, seconds: float, size: float) -> float:
        return float(seconds * size / self._sizes.sum())

    def _some(self) -> NDArray[np.int64]:
        """Rows of all lengths to measure the speed on."""
        order = np.argsort(self._sizes, kind="stable")
        places = np.linspace(0, len(order) - 1, min(PROBE, len(order))).round().astype(int)
        return np.asarray(order[places], np.int64)

    def _probe(self, scorer: SentenceScore) -> float:
        """Seconds that all will take, from a few and fewer of them, once the model is loaded.

        The engine compares some sequences of every call with plain passes, so a call has a cost of
        its own, which the difference of two calls leaves out.
        """
        some = self._some()
        few = some[1::3]
        scorer.rate(_part(self.batch, some[:1]))
        (little, short), (much, long) = (self._timed(scorer, rows) for rows in (few, some))
        speed = max((long - short) / max(much - little, 1.0), long / much / 4)
        return max(long - speed * much, 0.0) + speed * float(self._sizes.sum())

    def _timed(self, scorer: SentenceScore, rows: NDArray[np.int64]) -> tuple[float, float]:
        """How much some rows are, and how long they take."""
        started = time.perf_counter()
        scorer.rate(_part(self.batch, rows))
        return float(self._sizes[rows].sum()), time.perf_counter() - started

    def _counted(self, slug: str, scorer: SentenceScore) -> Callable[[int], None] | None:
        if self._progress is None:
            return None
        progress, total, done = self._progress, len(self._sizes) * scorer.k, 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            progress(slug, min(done, total), total)

        return told

    def _facts(
        self, scorer: SentenceScore, named: SentenceScore, ratings: Ratings
    ) -> dict[str, Any]:
        clean = slice(0, self.planted.clean)
        logprobs = ratings.logprobs[clean][ratings.rated[clean]]
        rater, k = ratings.rater, scorer.k
        tokens = reflection.token_score(logprobs, scorer.variant)
        pairs = [(i, j) for i in range(k) for j in range(i)]
        alike = [spearman(tokens[:, i], tokens[:, j]) for i, j in pairs]
        known = [one for one in alike if one is not None]
        mass = float(reflection.rating_mass(logprobs).mean()) if len(logprobs) else None
        likeliest = np.bincount(logprobs.argmax(axis=-1).reshape(-1), minlength=k)
        return {
            "name": scorer.slug,
            **{key: rater[key] for key in ("model", "revision", "parameters")},
            "rating_key": scorer.rating_key(),
            "rating_mass": mass,
            "ratings": (likeliest / max(likeliest.sum(), 1)).round(4).tolist(),
            "prompt_correlation": float(np.mean(known)) if known else None,
            "other_ends": self._other_ends(named, mass),
            "chat": scorer.chat,
            "has_chat_template": bool(scorer.checkpoint.tokenizer().chat_template),
        }

    def _other_ends(self, scorer: SentenceScore, mass: float | None) -> dict[str, float]:
        """The rating mass that other ends of the template would have, on a few rows."""
        if scorer.chat or mass is None or mass >= MASS_TO_IMPROVE:
            return {}
        settings = settings_of(scorer)
        few = _part(self.batch, np.arange(min(PAIRS_OF_AN_END, self.planted.clean)))

        def make(template: Template) -> TokenScore:
            made = TokenScore(**settings | {"template": template.text})
            made.prepare()
            return made

        found = {}
        for template, made in encoders_by_end(Template(scorer.template), make).items():
            ratings = made.rate(few)
            if ratings.rated.any():
                masses = reflection.rating_mass(ratings.logprobs[ratings.rated])
                found[template.suffix] = round(float(masses.mean()), 4)
        return found

    # What follows from the ratings, and other selectors

    def combine(self, scorer: SentenceScore, weights: Sequence[float] | None) -> None:
        """The model level, and the expected rating of all models."""
        level = ModelScore(weights=weights, alpha=scorer.alpha, variant=scorer.variant)
        self.scores["model"] = _floats(level.combine(self._ratings)["model_score"])
        self.scores["expected"] = Expected(weights=weights).combine(self._ratings).values

    def measure(self, by: str | Selector, scorer: SentenceScore, seed: int) -> None:
        """Another selector's scores; what two of them need is measured once."""
        if by == "random":
            self.scores["random"] = Random(seed).draw(range(len(self._sizes))).values
            return
        selector = _selector(by, scorer) if isinstance(by, str) else by
        name = by if isinstance(by, str) else selector.name
        tables = []
        for one in selector.measurements():
            key = (one.column, one.key())
            if key not in self._tables:
                self._tables[key] = one.measure(self.batch).table
            tables.append(self._tables[key])
        self.scores[name] = selector.scores(tables).values

    def found(self, name: str, seed: int) -> dict[str, Any]:
        """How well the scores of this name put good rows above broken ones."""
        scores, at = self.scores[name], self.planted.clean
        clean, copies = scores[:at], scores[at:]
        source, defect = self.planted.source[at:], self.planted.defect[at:]
        each = {}
        for i, one in enumerate(self.planted.names):
            mine = defect == i
            each[one] = separation(clean, copies[mine], source[mine], seed)._asdict()
        return {
            "name": name,
            "all": separation(clean, copies, source, seed, matched=False)._asdict(),
            "defects": each,
            "unscored": int(np.isnan(scores).sum()),
        }


def _selector(name: str, scorer: SentenceScore) -> Selector:
    """A selector for which this scorer's model reads, at the same place."""
    who = ("model", "revision", "base_model")
    settings = {key: getattr(scorer, key) for key in who} | COLUMNS
    if name == "length":
        return Length(**settings)
    where = (
        "max_length", "dtype", "quantization", "attn_implementation", "device", "device_map",
        "token_budget",
    )  # fmt: skip
    settings |= {key: getattr(scorer, key) for key in where}
    return IFD(**settings) if name == "ifd" else Perplexity(**settings)


def _part(batch: Batch, rows: NDArray[np.int64]) -> Batch:
    return {name: [values[i] for i in rows.tolist()] for name, values in batch.items()}


def _floats(values: Sequence[Any]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def duration(seconds: float) -> str:
    """As in ``40 s``, ``3 min`` or ``2 h 10 min``."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
