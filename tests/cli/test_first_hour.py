"""What a newcomer types first: help, a version, typos, and parts that are not installed."""

import re
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from command import ROWS, Outcome
from datasets import Dataset

import selectit_hf
from selectit_hf.errors import how_to_install
from selectit_hf.rating.engine.engine import Engine

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("command", ["", "run", "status"])
def test_h_is_help(selectit: Callable[..., Outcome], command: str) -> None:
    short, long = (selectit(*filter(None, (command, flag))) for flag in ("-h", "--help"))
    assert short.code == 0, short.err
    assert short.out == long.out


def test_help_shows_flags_in_groups(selectit: Callable[..., Outcome]) -> None:
    said = selectit("run", "--help").out
    groups = re.split(r"╭─ (.*?) ─+╮", said)[1:]
    flags = dict(zip(groups[::2], groups[1::2], strict=True))
    assert "--chat " in flags["Models, and how they are asked"]
    assert "--alpha" in flags["Score"]
    assert "--proportion" in flags["How many rows are kept"]
    assert "--limit" in flags["Options"]


def test_the_version_is_that_of_the_project(selectit: Callable[..., Outcome]) -> None:
    assert selectit("--version").out == f"selectit_hf {metadata.version('selectit-hf')}\n"


TYPOS = {
    "run rwos.json --model tiny-rater --out r": (1, "Did you mean 'rows.json'?"),
    "run rows.json --modle tiny-rater --out r": (2, "--model"),
    "run rows.json --model tiny-rater --out r --per instrution": (2, "mean 'instruction'?"),
    "run rows.json --model tiny-rater --out r --by sentense": (2, "mean 'sentence'?"),
    "run rows.json --model tiny-rater --out r --proportion 20": (2, "Did you mean 0.2?"),
    "run rows.json --model tiny-rater --out r --split tran": (1, "no split 'tran'"),
    "select rows.json --proportion 15 --out r.jsonl": (2, "Did you mean 0.15?"),
    "run rows.json --model tiny-rater --out r --proportion 0": (2, "not a share"),
    "run rows.json --model tiny-rater --out r --response-column outptu --instruction-column "
    "instruction": (1, "mean 'output'?"),
}


@pytest.mark.parametrize("typed", TYPOS)
def test_a_typo_is_met_with_what_was_meant_before_anything_is_rated(
    selectit: Callable[..., Outcome], data: Path, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "__init__", lambda *args: pytest.fail("a model was loaded"))
    done = selectit(*typed.split())
    code, words = TYPOS[typed]
    assert done.code == code, done
    assert words in " ".join(re.sub("[│╭╮╰╯─]", " ", done.err).split())


def test_a_selection_shows_itself_in_one_line() -> None:
    rows = Dataset.from_dict({"stars": [1.0, 2.5, 3.0, None]})
    said = repr(selectit_hf.select(rows, by="stars", n=2))
    assert said == "Selection(2 of 4 rows by stars, threshold 2.5)"
    lazy = selectit_hf.select(rows.to_iterable_dataset(), by="stars", threshold=2.0)
    assert "\n" not in repr(lazy)
    assert "stars" in repr(lazy)


def test_the_default_model_offline_is_one_error_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rows = Dataset.from_list(ROWS[:2])
    with pytest.raises(selectit_hf.SelectItError, match="HF_HUB_OFFLINE is set") as caught:
        selectit_hf.token_score(rows[:])
    assert "tiny-rater" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_what_to_install_is_named_by_its_packages(extra: str) -> None:
    command, names = how_to_install(extra), PROJECT["optional-dependencies"][extra]
    assert command.startswith("pip install ")
    assert all(re.match(r"[\w-]+", name)[0] in command for name in names)  # type: ignore[index]


def test_no_hint_asks_an_index_for_this_package() -> None:
    package = Path(selectit_hf.__file__).parent
    found = [path for path in package.rglob("*.py") if "install 'selectit" in path.read_text()]
    assert found == []
