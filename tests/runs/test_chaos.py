"""Workers that are killed, made in duplicate or late: runs end in the bytes of one left alone."""

from pathlib import Path

import chaos
import pytest


@pytest.fixture
def place(tmp_path: Path) -> chaos.Folders:
    return chaos.Folders(tmp_path)


def test_runs_end_the_same_whoever_is_killed(place: chaos.Folders) -> None:
    found = chaos.chaos(place, kills=24)
    assert found["violations"] == []
    assert found["kills"] >= 24
    assert {1, 3} == set(found["workers"])
    assert found["late_writers"]
    assert found["shards_in_duplicate"]


@pytest.mark.parametrize("mutant", sorted(chaos.MUTANTS))
def test_a_broken_protocol_is_caught(place: chaos.Folders, mutant: str) -> None:
    assert chaos.chaos(place, kills=200, mutant=mutant)["violations"]
