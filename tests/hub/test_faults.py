"""Faults of the Hub at requests of a run and of a push: what is said stays true."""

import itertools
from collections import Counter

import faults
import pytest


def test_what_is_said_agrees_with_the_hub_whatever_it_answers() -> None:
    counts: Counter[str] = Counter()
    with faults.stage() as found:
        wrong = [
            *faults.attack_runs(found, "parquet", True, 83, counts, []),
            *faults.attack_pushes(found, False, 131, counts, []),
        ]
    assert wrong == []
    assert counts["refused"]


def test_trusting_the_fallback_is_caught() -> None:
    with faults.stage(mutant=True) as found:
        attack = faults.attack_runs(found, "parquet", True, 1, Counter(), ["503"])
        assert list(itertools.islice(attack, 1))


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of files are enough here."""
    monkeypatch.setattr(faults, "KINDS", ("parquet", "jsonl"))
