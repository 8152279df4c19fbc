"""What the evidence scripts share: rows, rating that can be resumed, intervals, Markdown tables.

Ratings and measurements are kept in run folders under ``--cache``: a stopped script can be resumed,
and scripts that need the same ratings compute them once.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from selectit_hf import runs
from selectit_hf.analysis.candidates import Candidates
from selectit_hf.analysis.measures import Measures
from selectit_hf.formats.rows import Pair, RowReader
from selectit_hf.formats.sources import Source
from selectit_hf.rating.prompts.rating_prompts import RELEASED_TEMPLATE
from selectit_hf.rating.ratings import Ratings
from selectit_hf.rating.scorers import SentenceScore
from selectit_hf.runs import Run
from selectit_hf.selection.selection import Cut, decide, kept_rows
from selectit_hf.selectors.baselines import Random
from selectit_hf.selectors.ifd import IFD

RESAMPLES = 1000
TOP = 0.2

Floats = NDArray[np.float64]


def parser(description: str, rows: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rows", required=True, help="A json file of instruction, input, output.")
    made.add_argument("--n", type=int, default=rows, help=f"Source rows. Default: {rows}.")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--model", action="append", help="Repeatable. Default: tiny-rater.")
    made.add_argument("--template", help="Text file. Default: the released one.")
    made.add_argument("--dtype", default="float32", help="On any device. Default: float32.")
    made.add_argument("--cache", default="evidence", help="Folder of ratings. Default: evidence.")
    return made


def models_of(given: argparse.Namespace) -> list[str]:
    return given.model or ["tiny-rater"]


def template_of(given: argparse.Namespace) -> str:
    if given.template:
        return Path(given.template).read_text("utf-8")
    return RELEASED_TEMPLATE


def read(path: str) -> list[dict[str, Any]]:
    text = Path(path).read_text("utf-8")
    if path.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return list(json.loads(text))


def pairs(path: str, seed: int) -> list[tuple[int, Pair]]:
    """Different rows that can be read, in random order: number, and instruction and response."""
    rows = read(path)
    numbers = np.random.default_rng(seed).permutation(len(rows)).tolist()
    names = ("instruction", "input", "output")
    found = RowReader().pairs({key: [rows[i].get(key, "") for i in numbers] for key in names})
    first: dict[Pair, int] = {}
    for i, one in zip(numbers, found, strict=True):
        if isinstance(one, Pair):
            first.setdefault(one, i)
    return [(i, one) for one, i in first.items()]


def rated(rows: Dataset, name: str, given: argparse.Namespace, **settings: Any) -> Run:
    """The rows rated by all models; cached ratings are used again."""
    scorers = [
        SentenceScore(model, **{"template": template_of(given), "dtype": given.dtype, **settings})
        for model in models_of(given)
    ]
    source = Source(name, None, "train", f"sha256:{rows._fingerprint}")
    run = runs.plan(rows, source, scorers, str(Path(given.cache) / name))
    runs.rate(run, rows, scorers)
    return run


def ratings(run: Run) -> dict[str, Ratings]:
    return {slug: runs.ratings_of(run, slug) for slug in run.slugs}


def selectors(run: Run, rows: Dataset, given: argparse.Namespace) -> dict[str, Floats]:
    """(n) scores of every selector of the comparison, by name; NaN where a row has none."""
    found: dict[str, Floats] = {}
    measures = Measures(run, rows)
    several = len(run.slugs) > 1
    for slug, model in zip(run.slugs, models_of(given), strict=True):
        made = Candidates(measures, model=model)
        for level in ("token", "sentence", "expected"):
            name = f"{level}:{slug}"
            found[name] = made.score(name).scores.values
        found[f"perplexity:{slug}"] = made.score("perplexity").scores.values
        found[f"ifd:{slug}"] = made.score("ifd").scores.values
        found[f"ifd low:{slug}"] = -_all_ifd(measures, model, run)
    made = Candidates(measures, model=models_of(given)[0])
    if several:
        found["model"] = made.score("model").scores.values
        found["expected"] = made.score("expected").scores.values
    found["length"] = made.score("length").scores.values
    found["length low"] = -found["length"]
    found["random"] = Random(given.seed).draw(range(len(rows))).values
    return found


def _all_ifd(measures: Measures, model: str, run: Run) -> Floats:
    """The ratio of the mean cross-entropies of every row, including ratios of 1 and more."""
    first = run.plan["models"][0]
    one = IFD(model, dtype=first["dtype"], token_budget=int(first["token_budget"]))
    measures.scores(one)
    tables = [measures.table(each) for each in one.measurements()]
    given, alone = (
        -table["logprob"].to_numpy().astype(float) / table["tokens"].to_numpy().astype(float)
        for table in tables
    )
    return np.asarray(given / alone)


# Numbers


def interval(statistic: Callable[[NDArray[np.int64]], float], n: int, seed: int) -> list[float]:
    """The 2.5 % and 97.5 % quantiles of a statistic over rows drawn with replacement."""
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(n, size=n)) for _ in range(RESAMPLES)]
    found = np.array([one for one in drawn if np.isfinite(one)])
    return [float(q) for q in np.quantile(found, [0.025, 0.975])]


def auc(good: Floats, bad: Floats) -> float:
    """The probability that a good row scores above a bad one, ties half; no score is lowest."""
    if not len(good) or not len(bad):
        return float("nan")
    good, bad = (np.where(np.isnan(one), -np.inf, one) for one in (good, bad))
    low = np.sort(bad)
    below, at_most = np.searchsorted(low, good, "left"), np.searchsorted(low, good, "right")
    return float((below + at_most).mean() / 2 / len(bad))


def kept(scores: Floats, share: float = TOP) -> NDArray[np.bool_]:
    """The rows that `selectit_hf.select` would keep."""
    return kept_rows(decide(scores, Cut(share)))


def precision(scores: Floats, labels: NDArray[np.bool_], share: float = TOP) -> float:
    """The share of labelled rows among the best."""
    return float(labels[kept(scores, share)].mean())


def said(value: float, ends: Sequence[float]) -> str:
    return f"{value:.2f} ({ends[0]:.2f} to {ends[1]:.2f})"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print(f"\n**{title}**\n")
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def last_line(**facts: Any) -> None:
    print("\n" + json.dumps(facts))
