"""Progress inside a batch: of `score`, of ``map`` and of the command."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from command import ROWS, Outcome
from datasets import Dataset

from selectit_hf.cli import display
from selectit_hf.rating import SentenceScore, rate_batch
from selectit_hf.rating.mapping import score

DATA = Dataset.from_list([*ROWS[:9], {"instruction": "Say.", "input": "", "output": ""}])
SCORER = SentenceScore("tiny-rater", token_budget=200)


def test_a_listener_hears_of_each_part_of_a_batch_and_of_every_row() -> None:
    heard: list[tuple[str, int]] = []
    scored = score(DATA, SCORER, progress=lambda slug, prompts: heard.append((slug, prompts)))
    assert {slug for slug, _ in heard} == {"tiny_rater"}
    assert sum(prompts for _, prompts in heard) == len(DATA) * SCORER.k
    assert len(heard) > 3
    heard.clear()
    score(scored, SCORER, progress=lambda slug, prompts: heard.append((slug, prompts)))
    assert sum(prompts for _, prompts in heard) == len(DATA) * SCORER.k  # nothing is rated
    heard.clear()
    DATA.map(SCORER, batched=True, load_from_cache_file=False)
    assert heard == []


@pytest.mark.parametrize("watched", [True, False])
def test_a_slow_batch_of_map_has_a_bar_of_its_own(
    watched: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rate_batch, "PATIENCE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched, raising=False)
    datasets.enable_progress_bars()
    DATA.map(SCORER, batched=True, load_from_cache_file=False)
    err = capsys.readouterr().err
    assert ("tiny_rater, this batch" in err) == watched
    assert not watched or re.search(r"\d rows/s|\d+/10 \[", err)


def test_the_command_shows_rows_and_the_rating_mass_so_far(
    selectit: Callable[..., Outcome], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display._words, "_force_terminal", True)
    done = selectit("run", data, "--model", "tiny-rater", "--out", "run", "--shard-size", 10)
    assert re.search(r"30/30 rows, [\d.]+ rows/s, rating mass 1", done.err), done.err
    done = selectit("score", data, "--model", "tiny-rater", "--out", "scored.jsonl")
    assert re.search(r"30/30 rows, [\d.]+ rows/s", done.err), done.err
