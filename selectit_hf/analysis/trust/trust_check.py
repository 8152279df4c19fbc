"""The trust check: can these models tell good rows of this dataset from broken copies of them?

Defects are planted in copies of the user's own rows, and clean and broken rows are rated as a run
would rate them. No label and no other model is needed. The check has a limit: a score that notices
planted defects may still say little about which of two good rows teaches more.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from selectit_hf.analysis.trust.bench import Bench, Progress, Tell
from selectit_hf.analysis.trust.defects import DEFECTS, Defect, plant
from selectit_hf.analysis.trust.sample import draw
from selectit_hf.analysis.trust.verdict import advice, verdict
from selectit_hf.errors import SettingError
from selectit_hf.formats import Source
from selectit_hf.rating import SentenceScore, model_weights
from selectit_hf.selectors import Selector

__all__ = ["SELECTORS", "Check", "check"]

SELECTORS = ("length", "perplexity", "ifd", "random")
"""The names that ``by`` takes; the levels and ``expected`` are always included."""


@dataclass(frozen=True)
class Check:
    """What a trust check found, all of it JSON-able.

    Attributes:
        input: name, config, split and revision of the dataset, where known, and its ``rows``.
        rows: the number of source rows that were used.
        seed: the seed of rows, defects and bootstrap.
        defects: the number of copies with each defect.
        models: for each one ``name``, ``model``, ``revision``, ``parameters``, ``rating_key``,
            ``rating_mass`` (mean probability of any rating at all, on clean rows), ``ratings`` (how
            often each is the likeliest), ``truncated`` (rows and copies that were cut to fit),
            ``prompt_correlation`` (mean Spearman correlation of all
            pairs of rating prompts), ``other_ends`` of the template with the mass they would have,
            ``chat`` (whether it was asked through a chat template), ``has_chat_template``,
            ``seconds``, and ``whole_seconds``, what the whole dataset would take.
        selectors: for each level and selector ``name``, ``all`` and ``defects`` (each an
            `selectit_hf.analysis.trust.auc.Auc` as a dict), and ``unscored``, rows without a score.
        level: the level that a run ranks by, unless it is told otherwise.
        formula: ``alpha``, ``variant`` and ``weights`` of the levels.
        verdict: ``kind`` and ``words``; see `selectit_hf.analysis.trust.verdict`.
        advice: what to do, in sentences.
        seconds: how long it took.
    """

    input: dict[str, Any]
    rows: int
    seed: int
    defects: dict[str, int]
    models: list[dict[str, Any]]
    selectors: list[dict[str, Any]]
    level: str
    formula: dict[str, Any]
    verdict: dict[str, str]
    advice: list[str]
    seconds: float

    @property
    def used(self) -> dict[str, Any]:
        """The findings for the level that a run would rank by."""
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
        by: other selectors to look at: names in `SELECTORS`, computed with the first model, or
            objects such as `IFD` that read the columns ``instruction`` and ``response``.
        rows: how many source rows to draw with the seed; rows that cannot be read are skipped.
        seed: the seed of rows, defects and bootstrap.
        defects: by name, in place of `DEFECTS`: functions that take a pair, another row's pair and
            a generator, and return the broken pair or ``None``.
        bad: columns with a worse response to the same instruction, such as ``rejected``; each
            counts as one more defect.
        weights: the weights of the models; see `selectit_hf.rating.scorers.ModelScore`.
        source: where the rows came from, to be recorded.
        tell: called with a sentence on what will take how long.
        progress: called with a model's name, and how many of how many rating prompts are done.

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
    _check_settings(scorers, rows, by, weights)
    sample = draw(dataset, scorers[0].reader, rows, seed, bad)
    planted = plant(
        sample.pairs, sample.rows, DEFECTS if defects is None else defects, sample.bad, seed
    )
    bench = Bench(planted, len(dataset), tell or _silent, progress)
    for i, scorer in enumerate(scorers):
        bench.rate(scorer, len(scorers) == 1, () if i else by)
    if len(scorers) > 1:
        bench.combine(scorers[0], weights)
    for one in by:
        bench.measure(one, scorers[0], seed)
    level = "model" if len(scorers) > 1 else "sentence"
    found = [bench.found(name, seed) for name in bench.scores]
    asked = {"alpha": scorers[0].alpha, "variant": scorers[0].variant}
    used = next(one for one in found if one["name"] == level)
    facts = {
        "name": source.name if source else "",
        "config": source.config if source else None,
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
        {**asked, "weights": None if weights is None else list(weights)},
        verdict(used),
        advice(used, found, bench.models, planted.clean, len(dataset)),
        round(time.perf_counter() - started, 1),
    )


def _silent(words: str) -> None:
    pass


def _check_settings(
    scorers: Sequence[SentenceScore],
    rows: int,
    by: Sequence[str | Selector],
    weights: Sequence[float] | None,
) -> None:
    if rows < 2:
        raise SettingError(f"rows={rows} (--rows) must be at least 2; 100 is the default.")
    slugs = [scorer.slug for scorer in scorers]
    if not slugs or len(set(slugs)) < len(slugs):
        raise SettingError(f"Name each model once, and at least one: {', '.join(slugs)}.")
    if len(scorers) > 1:
        model_weights([1] * len(scorers), scorers[0].variant, weights)
    elif weights is not None:
        raise SettingError("--weights combine several models; omit them for one.")
    for one in by:
        if isinstance(one, str) and one not in SELECTORS:
            raise SettingError(
                f"--by {one!r} is not a selector of the check; choose from {', '.join(SELECTORS)}. "
                "The levels and 'expected' are always included."
            )
