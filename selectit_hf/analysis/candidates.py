"""From the selector names that people type to the scores of every row of a run.

    token[:MODEL] sentence[:MODEL] model  the levels of SelectIT, from the stored ratings
    expected                              the mean rating, from the same ratings
    random, random-rest[:NAME]            a seeded draw; among the rows that NAME does not keep
    length ifd perplexity                 the response's tokens; what a model makes of the response
    judge                                 a language model behind an endpoint
    diverse[:NAME]                        NAME without the rows that repeat a better one
    per:COLUMN[:NAME]                     NAME within each group of rows with the same COLUMN
    hub:DATASET                           the rows that a published subset holds
    COLUMN                                any column of numbers of the dataset itself

Without NAME the rows are ranked by the model level, or the only model's sentence level.
"""

import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from selectit_hf.analysis.comparison import Candidate
from selectit_hf.analysis.measures import Cost, Measures
from selectit_hf.errors import InputError, SettingError, did_you_mean
from selectit_hf.formats import READING, Pair, RowReader, sources, worst
from selectit_hf.rating import OF_THE_WEIGHTS, Ratings, Variant, reflection, was_folder
from selectit_hf.runs import model_folder, ratings_of
from selectit_hf.selection import Cut, decide, kept_rows
from selectit_hf.selectors import (
    IFD,
    Diverse,
    Expected,
    Judge,
    Length,
    Perplexity,
    Progress,
    Random,
    ResponseScorer,
    Scores,
    Selector,
    embed,
    numbers,
    rank_in_group,
)

__all__ = ["NAMES", "Candidates"]

ROWS = 1000
NAMES = (
    "token",
    "sentence",
    "model",
    "expected",
    "random",
    "random-rest",
    "length",
    "ifd",
    "perplexity",
    "judge",
    "diverse",
    "per:COLUMN",
    "hub:DATASET",
)
"""What `Candidates.score` takes in addition to columns."""


@dataclass(frozen=True)
class Candidates:
    """Scores the rows of a run by any selector; stored measurements are used again.

    Attributes:
        measures: the run and its rows.
        model: the model that reads responses and counts tokens: a Hub name or a folder; ``None``
            for the run's first model, which must be on the Hub, or where it was on this machine.
        revision: the revision of ``model``.
        device, device_map: where ``model`` runs; see `selectit_hf.TokenScore`.
        base_model, quantization, attn_implementation: settings of ``model``; see
            `selectit_hf.TokenScore`. The run's first model takes the last two from the run.
        cut: how much is kept, where one selector builds on what another keeps.
        alpha, variant, weights: see `selectit_hf.ModelScore`.
        seed: the seed of ``random``.
        diverse: the settings of ``diverse``.
        judge: the judge for ``judge``.
        embeddings: (n, d) vectors for ``diverse``; by default made from the rows' words.
        progress: called with how many sequences or answers are done.

    Example:
        >>> made = Candidates(Measures(run, dataset)).score("ifd")  # doctest: +SKIP
    """

    measures: Measures
    model: str | None = None
    revision: str | None = None
    device: str | None = None
    device_map: str | None = None
    base_model: str | None = None
    quantization: str | None = None
    attn_implementation: str | None = None
    cut: Cut = Cut()  # noqa: RUF009  (frozen)
    alpha: float = 0.2
    variant: Variant = "paper"
    weights: tuple[float, ...] | None = None
    seed: int = 0
    diverse: Diverse = Diverse()  # noqa: RUF009  (frozen)
    judge: Judge | None = None
    embeddings: NDArray[np.float32] | None = None
    progress: Progress | None = None

    def score(self, by: str) -> Candidate:
        """The rows' scores by one of the names in this module's docstring.

        Raises:
            SettingError: a name that is not known, or ambiguous, or lacks its settings.
            RunError: the rows are not all rated, where ratings are needed.
            ModelError: a model or an endpoint cannot be asked.
        """
        name, _, argument = by.partition(":")
        started = time.perf_counter()
        if name in ("token", "sentence", "model", "expected"):
            made = self._from_ratings(by, name, argument)
        elif name in ("length", "ifd", "perplexity", "judge"):
            return self._measured(by, self._selector(name))
        elif name == "random":
            made = Candidate(by, Random(self.seed).draw(range(self.measures.run.rows)))
        elif name in ("random-rest", "diverse"):
            made = self._built(by, name, argument)
        elif name == "per":
            made = self._within(by, argument)
        elif name == "hub":
            made = self._published(by, argument)
        else:
            made = self._column(by)
        took = time.perf_counter() - started
        return replace(made, cost=made.cost.plus(Cost(round(took, 3))))

    def lengths(self) -> NDArray[np.float64]:
        """(n) tokens of each response, NaN for none."""
        one = self._selector("length").measurements()[0]
        self.measures.measure(one, self.progress)
        return numbers(self.measures.table(one), "tokens")

    @cached_property
    def pairs(self) -> list[Pair | str]:
        """(n) the rows as the run reads them."""
        return _pairs(self.measures.dataset, self.measures.run.reader)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """(n, d) embeddings of the rows."""
        return embed(self._texts()) if self.embeddings is None else self.embeddings

    def _texts(self) -> list[str]:
        return ["\n".join(pair) if isinstance(pair, Pair) else "" for pair in self.pairs]

    # From ratings

    @cached_property
    def _ratings(self) -> dict[str, Ratings]:
        run = self.measures.run
        return {slug: ratings_of(run, slug) for slug in run.slugs}

    def _from_ratings(self, by: str, name: str, slug: str) -> Candidate:
        ratings = self._ratings
        if slug and slug not in ratings:
            raise SettingError(f"{by!r}: the run has no model {slug!r}, only {', '.join(ratings)}.")
        chosen = {slug: ratings[slug]} if slug else ratings
        if name in ("token", "sentence") and len(chosen) > 1:
            raise SettingError(
                f"{name!r} needs a model; write {name}:NAME with one of {', '.join(ratings)}."
            )
        cost = Cost()
        for one in chosen:
            cost = cost.plus(self._rating_cost(one, 1 if name == "token" else None))
        return Candidate(by, self._level(name, chosen), cost)

    def _level(self, name: str, ratings: dict[str, Ratings]) -> Scores:
        if name == "expected":
            return Expected(weights=self.weights).combine(ratings)
        statuses = [worst(row) for row in zip(*(r.statuses for r in ratings.values()), strict=True)]
        tokens = [reflection.token_score(r.logprobs, self.variant) for r in ratings.values()]
        if name == "token":
            return Scores(tokens[0][:, 0], statuses)
        sentences = [reflection.sentence_score(one, self.alpha) for one in tokens]
        if len(sentences) == 1:
            return Scores(sentences[0], statuses)
        parameters = [int(r.rater["parameters"]) for r in ratings.values()]
        weights = reflection.model_weights(parameters, self.variant, self.weights)
        return Scores(reflection.model_score(np.stack(sentences, axis=-1), weights), statuses)

    def _rating_cost(self, slug: str, prompts: int | None) -> Cost:
        """The cost of the stored ratings, or of its share for the first prompt alone."""
        shards = self.measures.run.shards(slug)
        k = int(self.measures.run.plan["rating"]["k"])
        asked = prompts or k
        seconds = sum(facts.get("seconds", 0.0) for facts in shards.committed().values())
        return Cost(seconds * asked / k, int(self._ratings[slug].rated.sum()) * asked)

    # Measured

    def _selector(self, name: str) -> Selector:
        if name == "judge":
            if self.judge is None:
                raise SettingError("'judge' needs judge=, an endpoint and its model.")
            return self.judge
        rating = self.measures.run.plan["rating"]
        reading: dict[str, Any] = {name: rating.get(name) for name in READING}
        model, revision = self._reader_model()
        who: dict[str, Any] = {
            "model": model,
            "revision": revision,
            "base_model": self.base_model,
        }
        if name == "length":
            return Length(**who, **reading)
        kind: Callable[..., ResponseScorer] = IFD if name == "ifd" else Perplexity
        budget = int(self.measures.run.plan["models"][0]["token_budget"])
        dtype = self.measures.run.plan["models"][0]["dtype"]
        length = rating["max_length"]
        place = {"device": self.device, "device_map": self.device_map, "token_budget": budget}
        first = self.measures.run.plan["models"][0] if self.model is None else {}
        weights = {name: getattr(self, name) or first.get(name) for name in OF_THE_WEIGHTS}
        return kind(**who, **reading, **place, **weights, max_length=length, dtype=dtype)

    def _reader_model(self) -> tuple[str, str | None]:
        if self.model is not None:
            return self.model, self.revision
        first = self.measures.run.plan["models"][0]
        if was_folder(first["model"], first["revision"]):
            found = model_folder(self.measures.run, first["revision"])
            if found is not None:
                return found, first["revision"]
            raise SettingError(
                f"The run's model {first['model']!r} was a folder, and the plan does not store "
                "its path; give it again with model= (--model)."
            )
        return first["model"], first["revision"]

    def _measured(self, by: str, selector: Selector) -> Candidate:
        paid = Cost()
        for one in selector.measurements():
            paid = paid.plus(self.measures.measure(one, self.progress))
        scores = selector.scores([self.measures.table(one) for one in selector.measurements()])
        return Candidate(by, scores, self.measures.cost(selector.measurements()), paid)

    # Built on others

    def _built(self, by: str, name: str, base: str) -> Candidate:
        under = self.score(base or self._best_level())
        if name == "diverse":
            vectors = self.vectors if self.diverse.cap is not None else None
            made = self.diverse.scores(under.scores, self._texts(), vectors)
            left = {s: made.statuses.count(s) for s in ("near_duplicate", "too_similar")}
            note = f"{left['near_duplicate']} near duplicates, {left['too_similar']} too similar"
            return replace(under, name=by, scores=made, note=note)
        kept = kept_rows(decide(under.scores.values, under.cut or self.cut, under.scores.statuses))
        return Candidate(by, Random(self.seed).draw_outside(kept), note=f"not kept by {under.name}")

    def _within(self, by: str, argument: str) -> Candidate:
        column, _, base = argument.partition(":")
        if column not in self.measures.dataset.column_names:
            meant = did_you_mean(column, self.measures.dataset.column_names)
            raise SettingError(f"{by!r}: there is no column {column!r} to group by.{meant}")
        under = self.score(base or self._best_level())
        groups = list(self.measures.dataset[column])
        try:
            made = rank_in_group(under.scores, groups)
        except TypeError as error:
            raise InputError(f"{by!r}: the column {column!r} holds no groups: {error}.") from error
        return replace(under, name=by, scores=made, note=f"{len(set(groups))} groups")

    def _best_level(self) -> str:
        return "model" if len(self.measures.run.slugs) > 1 else "sentence"

    def _published(self, by: str, dataset: str) -> Candidate:
        rows, source = sources.load(dataset)
        theirs = set(map(_normalised, _pairs(rows, RowReader(turns="first")))) - {()}
        mine = [_normalised(pair) for pair in self.pairs]
        inside = np.array([one in theirs for one in mine], dtype=np.bool_)
        found = len(theirs.intersection(mine))
        return Candidate(
            by,
            Scores(
                np.where(inside, 1.0, np.nan),
                ["ok" if one else "not in the subset" for one in inside.tolist()],
            ),
            cut=Cut(threshold=1.0),
            note=f"{found} of {len(theirs)} distinct rows of {source.name} are in the run",
        )

    def _column(self, by: str) -> Candidate:
        dataset = self.measures.dataset
        if by not in dataset.column_names:
            raise SettingError(
                f"{by!r} is neither a selector nor a column of the dataset. Selectors: "
                f"{', '.join(NAMES)}. Columns: {', '.join(dataset.column_names)}."
            )
        values = dataset.with_format("arrow").select_columns([by])[:][by]
        if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
            raise InputError(f"The column {by!r} holds {values.type}, not scores.")
        scores = values.cast(pa.float64()).to_numpy()
        return Candidate(by, Scores(np.asarray(scores), ["no score"] * len(scores)))


def _pairs(dataset: Dataset, reader: RowReader) -> list[Pair | str]:
    wanted = dataset.select_columns(list(reader.columns(dataset.column_names)))
    found: list[Pair | str] = []
    for start in range(0, len(wanted), ROWS):
        found += reader.pairs(wanted[start : start + ROWS])
    return found


def _normalised(pair: Pair | str) -> tuple[str, ...]:
    """Instruction and response without differences of Unicode form, case and white space."""
    if isinstance(pair, str):
        return ()
    forms = (unicodedata.normalize("NFKC", text).casefold() for text in pair)
    return tuple(" ".join(text.split()) for text in forms)
