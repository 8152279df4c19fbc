"""The trust check: its numbers against literal loops, and controls whose answer is known."""

import base64
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import spearmanr

import selectit_hf
from selectit_hf.analysis.finished import Finished
from selectit_hf.analysis.finished_run import from_run
from selectit_hf.analysis.speed import Speed
from selectit_hf.analysis.trust import auc, bench
from selectit_hf.analysis.trust.auc import separation
from selectit_hf.analysis.trust.check_file import read_check
from selectit_hf.analysis.trust.defects import DEFECTS, plant
from selectit_hf.analysis.trust.trust_check import check
from selectit_hf.analysis.trust.verdict import advice, verdict
from selectit_hf.errors import InputError, SettingError
from selectit_hf.formats.rows import Pair
from selectit_hf.hub.card import CardSettings, Licence, make_card
from selectit_hf.rating.model_level import ModelScore
from selectit_hf.rating.reflection import token_score
from selectit_hf.rating.scorers import SentenceScore
from selectit_hf.report.check_plot import check_plot
from selectit_hf.report.plots import card_plots
from selectit_hf.runs import open_run
from selectit_hf.selectors.ifd import IFD

SAMPLE = Path(selectit_hf.__file__).parent / "data" / "sample.jsonl"
PAIR = Pair("Name 3 primes and the year 1999.", "1. Two is the first.\n2. Then 13 and 1789, I say.")
OTHER = Pair("Say hello.", "Hello there.")


@pytest.fixture(scope="module")
def good() -> Dataset:
    """The rows of the sample that are not broken on purpose."""
    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    return Dataset.from_list([row for row in rows if row["defect"] == "none"])


# AUC


def literal_auc(clean: list[float], copies: list[float]) -> float:
    won = 0.0
    for a in clean:
        for b in copies:
            a_, b_ = (-np.inf if np.isnan(x) else x for x in (a, b))
            won += 1.0 if a_ > b_ else 0.5 if a_ == b_ else 0.0
    return won / (len(clean) * len(copies))


def literal_others(clean: list[float], copies: list[float], source: list[int]) -> float:
    """The AUC of rows over the copies of other rows."""
    return float(
        np.mean(
            [
                literal_auc([a], [b])
                for i, a in enumerate(clean)
                for j, b in enumerate(copies)
                if source[j] != i
            ]
        )
    )


def literal_interval(
    clean: list[float], copies: list[float], source: list[int], seed: int
) -> tuple[float, float]:
    """Rows drawn with replacement, each with its copies, and the AUC of what was drawn.

    Pairs of a row and a copy of the same row do not count, whichever draws they come from.
    """
    rng = np.random.default_rng(seed)
    n, found, left = len(clean), [], auc.RESAMPLES
    while left:
        for rows in rng.integers(n, size=(min(auc.BLOCK, left), n)).tolist():
            others = [
                literal_auc([clean[i]], [copies[j]])
                for i in rows
                for other in rows
                for j in range(len(copies))
                if source[j] == other and i != other
            ]
            if others:
                found.append(np.mean(others))
            left -= 1
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize("matched", [True, False])
def test_auc_and_interval_are_those_of_a_literal_loop(
    matched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auc, "RESAMPLES", 150)
    rng = np.random.default_rng(3)
    clean = rng.integers(5, size=9).astype(float)  # many ties
    clean[4] = np.nan
    source = np.array([0, 0, 2, 3, 4, 4, 8], np.int64)
    copies = rng.integers(4, size=len(source)).astype(float)
    copies[5] = np.nan
    found = separation(clean, copies, source, seed=7, matched=matched)

    rows = sorted(set(source.tolist())) if matched else list(range(len(clean)))
    mine, places = [float(clean[i]) for i in rows], [rows.index(i) for i in source.tolist()]
    low, high = literal_interval(mine, copies.tolist(), places, 7)
    pairs = [literal_auc([mine[i]], [b]) for i, b in zip(places, copies.tolist(), strict=True)]
    assert found.auc == pytest.approx(literal_others(mine, copies.tolist(), places), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.pairs_right == pytest.approx(sum(pairs) / len(pairs))
    assert (found.rows, found.copies) == (5, 7)
    assert low < found.auc < high


def test_own_copies_that_are_always_lower_are_no_better_than_chance() -> None:
    """Ten rows whose copies are a little lower each, which says nothing about two rows."""
    clean = np.arange(10.0)
    found = separation(clean, clean - 0.5, np.arange(10))
    assert (found.auc, found.low, found.high, found.pairs_right) == (0.5, 0.5, 0.5, 1.0)


def test_two_rows_say_nothing_about_others() -> None:
    found = separation(np.array([1.0, 2.0]), np.array([0.0, 1.5]), np.arange(2))
    assert (found.auc, found.low, found.high) == (0.5, 0.0, 1.0)
    alone = separation(np.array([1.0]), np.array([0.0]), np.arange(1))
    assert (alone.auc, alone.low, alone.high, alone.pairs_right) == (0.5, 0.0, 1.0, 1.0)


def test_a_row_without_a_score_ranks_below_every_row_with_one() -> None:
    of = np.array([0, 1], np.int64)
    none, some = np.array([np.nan, np.nan]), np.array([-5.0, -5.0])
    assert separation(none, some, of).auc == 0
    assert separation(some, none, of).auc == 1
    assert separation(none, none, of).auc == 0.5


# Defects


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_breaks_what_it_says_and_is_the_same_for_the_same_seed(name: str) -> None:
    made = [DEFECTS[name](PAIR, OTHER, np.random.default_rng(5)) for _ in range(2)]
    assert made[0] == made[1] != PAIR
    broken = made[0]
    assert broken is not None
    changed = "instruction" if name == "noise" else "response"
    kept = "response" if name == "noise" else "instruction"
    assert getattr(broken, kept) == getattr(PAIR, kept)
    new, old = getattr(broken, changed), getattr(PAIR, changed)
    if name == "swapped":
        assert new == OTHER.response
    elif name == "cut":
        assert old.startswith(new)
        assert len(new.split()) == 4  # of 12 words
    elif name == "shuffled":
        assert sorted(new.split()) == sorted(old.split())
    elif name == "repeated":
        assert any(new.count(" ".join(old.split()[i : i + 2])) == 6 for i in range(12))
        assert set(new.split()) == set(old.split())
    elif name == "number":
        different = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        assert len(different) == 1
        assert all(c.isdigit() for c in different[0])
        assert new.startswith("1. ")
        assert "\n2. " in new
    elif name == "noise":
        shape = ["a" if c.isalpha() else c for c in old]
        assert ["a" if c.isalpha() else c for c in new] == shape


def test_what_cannot_be_broken_is_left_out() -> None:
    pairs = [Pair("Say yes.", "yes"), Pair("Add.", "17"), Pair("Listen.", "1. One\n2. Two three")]
    planted = plant(pairs, [4, 8, 9], DEFECTS, {"rejected": [None, OTHER, pairs[2]]})
    has = {
        name: set(planted.source[planted.defect == i].tolist())
        for i, name in enumerate(planted.names)
    }
    assert has["number"] == {1}  # a list's numbers are no statements
    assert has["cut"] == {0, 2}  # of two characters there is no third
    assert has["rejected"] == {1}  # one is missing, one is the row itself
    assert planted.clean == 3
    assert all(planted.pairs[i] != planted.pairs[s] for i, s in enumerate(planted.source) if i > 2)


def test_a_copy_is_broken_whatever_the_script_and_the_space_around_it() -> None:
    broken = Pair(
        "何か。",
        "春は花が咲きます。とても綺麗です。\n夏は海で泳ぎます。毎年楽しみです。\n秋は山を歩いて紅葉を見ます。",
    )
    made = DEFECTS["shuffled"](broken, OTHER, np.random.default_rng(0))
    assert made is not None
    assert not set(made.response.split("\n")) & set(broken.response.split("\n"))
    assert DEFECTS["number"](Pair("a", "٣ and ٤"), OTHER, np.random.default_rng(0)) is None
    same = [Pair("Laugh.", "ha ha ha\n"), Pair("Say hello.", "Hello there.")]
    planted = plant(same, [0, 1], {"shuffled": DEFECTS["shuffled"]}, {})
    assert 0 not in planted.source[2:]


def test_the_response_of_another_row_answers_something_else() -> None:
    pairs = [Pair("Ask.", f"Answer {i}.") for i in range(6)] + [Pair("Other.", "Something.")]
    planted = plant(pairs, list(range(7)), {"swapped": DEFECTS["swapped"]}, {})
    assert [pair.response for pair in planted.pairs[7:13]] == ["Something."] * 6
    with pytest.raises(InputError, match="None of the rows"):
        plant(pairs[:6], list(range(6)), {"swapped": DEFECTS["swapped"]}, {})


def test_a_draw_depends_on_seed_row_and_name_alone() -> None:
    pairs = [PAIR, OTHER]
    whole = plant(pairs, [4, 8], DEFECTS, {}, seed=1)
    alone = plant(pairs, [4, 8], {"number": DEFECTS["number"]}, {}, seed=1)
    which = np.flatnonzero(whole.defect == whole.names.index("number")).tolist()
    assert [whole.pairs[i] for i in which] == alone.pairs[2:]
    seeds = {plant(pairs, [4, 8], {"number": DEFECTS["number"]}, {}, s).pairs[2] for s in range(9)}
    assert len(seeds) > 4


def test_a_defect_that_gives_no_pair_is_named() -> None:
    with pytest.raises(InputError, match=r"'mine' returned str.*return pair\._replace"):
        plant([PAIR, OTHER], [0, 1], {"mine": lambda pair, other, rng: "no"}, {})  # type: ignore
    with pytest.raises(InputError, match="can have any of the defects mine"):
        plant([PAIR, OTHER], [0, 1], {"mine": lambda pair, other, rng: None}, {})


# Controls


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tiny_rater_ranks_its_own_sample_well(good: Dataset, seed: int) -> None:
    found = check(good, SentenceScore("tiny-rater"), rows=20, seed=seed)
    assert found.verdict["kind"] == "well", found.verdict
    assert found.advice == []
    assert found.used["all"]["low"] > 0.8


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_random_checkpoint_is_not_told_to_rank(
    good: Dataset, make_checkpoint: Callable[..., Path], tmp_path: Path, seed: int
) -> None:
    model = make_checkpoint(tmp_path / "random", seed=seed)
    found = check(good, SentenceScore(str(model)), rows=20, seed=seed)
    assert found.verdict["kind"] in ("undecided", "narrowly", "mixed", "backwards")
    assert "Do not" in found.verdict["words"]
    assert any("larger model" in words for words in found.advice)


# The same path as a run


@pytest.fixture(scope="module")
def two_models(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> list[SentenceScore]:
    folder = tmp_path_factory.mktemp("models")
    paths = [make_checkpoint(folder / f"m{i}", seed=i, layers=1 + i) for i in range(2)]
    return [SentenceScore(str(path), alpha=9.0) for path in paths]


def test_scores_and_facts_are_those_of_mapped_rows(
    good: Dataset, two_models: list[SentenceScore]
) -> None:
    count = 6
    found = check(good, two_models, rows=count, seed=4, by=["length", "ifd", "random"])
    order = np.random.default_rng(4).permutation(len(good)).tolist()
    pairs, numbers = [], []
    for i in order:
        pair = two_models[0].reader.pairs(good[i : i + 1])[0]
        if pair not in pairs and len(pairs) < count:
            pairs.append(pair)
            numbers.append(i)
    planted = plant(pairs, numbers, DEFECTS, {}, 4)
    rows = Dataset.from_list([pair._asdict() for pair in planted.pairs])
    mapped = rows
    for scorer in two_models:
        mapped = mapped.map(scorer, batched=True)
    mapped = mapped.map(ModelScore(alpha=9.0), batched=True)
    mapped = mapped.map(IFD(two_models[0].model), batched=True)

    columns = {
        "token:m0": "token_score__m0",
        "sentence:m1": "sentence_score__m1",
        "model": "model_score",
        "ifd": "score__ifd_m0",
    }
    by_name = {one["name"]: one for one in found.selectors}
    for name, column in columns.items():
        values = [float("nan") if v is None else v for v in mapped[column]]
        for at, defect in enumerate(planted.names):
            copies = np.flatnonzero(planted.defect == at).tolist()
            rows_ = planted.source[copies].tolist()
            clean = [values[i] for i in rows_]
            literal = literal_others(clean, [values[i] for i in copies], list(range(len(rows_))))
            assert by_name[name]["defects"][defect]["auc"] == pytest.approx(literal, abs=1e-9)
        of = planted.source[count:].tolist()
        over_all = literal_others(values[:count], values[count:], of)
        assert by_name[name]["all"]["auc"] == pytest.approx(over_all, abs=1e-9)
        assert by_name[name]["unscored"] == sum(np.isnan(values))
    assert found.level == "model"
    assert set(by_name) == {
        *(f"{level}:m{i}" for level in ("token", "sentence", "expected") for i in range(2)),
        *("model", "expected", "length", "ifd", "random"),
    }

    raw = np.array(mapped[f"rating_logprobs__{found.models[1]['name']}"][:count])
    assert found.models[1]["rating_mass"] == pytest.approx(np.exp(raw).sum(axis=2).mean(), rel=1e-5)
    whole = np.array(mapped[f"rating_logprobs__{found.models[1]['name']}"][:])
    likeliest = [int(np.argmax(whole[i, j])) for i in range(len(whole)) for j in range(5)]
    shares = [likeliest.count(k) / len(likeliest) for k in range(5)]
    assert found.models[1]["ratings"] == pytest.approx(shares, abs=1e-4)
    tokens = token_score(raw)
    alike = [spearmanr(tokens[:, i], tokens[:, j]).statistic for i in range(5) for j in range(i)]
    assert found.models[1]["prompt_correlation"] == pytest.approx(np.mean(alike), abs=1e-9)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_own_defects_and_columns_of_worse_responses(checkpoint: Path) -> None:
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Say {i}."}],
                "chosen": [{"role": "assistant", "content": f"{i} it is, as you asked."}],
                "rejected": [{"role": "assistant", "content": "No." if i else f"{i} it is"}],
            }
            for i in range(8)
        ]
    )
    seen: list[Pair] = []

    def rude(pair: Pair, other: Pair, rng: np.random.Generator) -> Pair | None:
        seen.append(pair)
        return pair._replace(response=f"Obviously, {pair.response}") if "3" in pair else None

    scorer = SentenceScore(str(checkpoint))
    found = check(rows, scorer, rows=5, defects={"rude": rude}, bad=["rejected"])
    assert found.defects == {"rejected": 5}  # no row can be rude
    assert {pair.response for pair in seen} < {f"{i} it is, as you asked." for i in range(8)}
    with pytest.raises(InputError, match=r"'absent' must be a column with worse responses than"):
        check(rows, scorer, bad=["absent"])
    with pytest.raises(InputError, match="worse responses than 'chosen'"):
        check(rows, scorer, bad=["chosen"])
    empty = rows.remove_columns("rejected").add_column("rejected", [None] * 8)
    with pytest.raises(InputError, match="'rejected' gives no response that can be read"):
        check(empty, scorer, bad=["rejected"])


def test_what_cannot_be_checked_is_refused(good: Dataset, checkpoint: Path) -> None:
    scorer = SentenceScore(str(checkpoint))
    with pytest.raises(SettingError, match=r"--by 'best'.*length, perplexity, ifd, random"):
        check(good, scorer, by=["best"])
    with pytest.raises(SettingError, match="at least 2"):
        check(good, scorer, rows=1)
    with pytest.raises(SettingError, match="each model once"):
        check(good, [scorer, scorer])
    same = Dataset.from_list([{"instruction": "a", "output": "b"}] * 5)
    with pytest.raises(InputError, match="of 5 it can read 1"):
        check(same, scorer)
    blank = Dataset.from_list([{"instruction": "a", "output": ""}] * 5)
    with pytest.raises(InputError, match=r"it can read 0\. The others: 5 empty"):
        check(blank, scorer)
    with pytest.raises(SettingError, match="--weights combine several"):
        check(good, scorer, weights=[1.0])


def test_rows_that_were_cut_are_counted(good: Dataset, checkpoint: Path) -> None:
    long = good.map(lambda row: {"output": "word " * 200 + row["output"]})
    found = check(long, SentenceScore(str(checkpoint), max_length=150), rows=3)
    (model,) = found.models
    assert model["truncated"] > 0
    assert any(words.startswith(f"{model['truncated']} of the rows") for words in found.advice)


# Words


def made_up(over_all: tuple[float, float, float], *defects: tuple[float, float]) -> dict[str, Any]:
    middle, low, high = over_all
    each = {
        f"d{i}": {"auc": (a + b) / 2, "low": a, "high": b, "rows": 15}
        for i, (a, b) in enumerate(defects)
    }
    found = {"auc": middle, "low": low, "high": high, "rows": 15}
    return {"name": "sentence", "all": found, "defects": each}


RIGHT, WRONG, OPEN = (0.6, 0.8), (0.2, 0.4), (0.4, 0.6)


@pytest.mark.parametrize(
    ("kind", "over_all", "defects"),
    [
        ("well", (0.75, 0.7, 0.8), (RIGHT, RIGHT, OPEN)),
        ("well", (0.75, 0.7, 0.8), (RIGHT, RIGHT, WRONG)),
        ("narrowly", (0.75, 0.7, 0.8), (RIGHT, OPEN, OPEN)),
        ("narrowly", (0.75, 0.7, 0.8), (OPEN, OPEN, OPEN)),
        ("weakly", (0.75, 0.7, 0.8), (RIGHT, RIGHT, OPEN, OPEN, OPEN)),
        ("weakly", (0.6, 0.55, 0.65), (RIGHT, OPEN)),
        ("weakly", (0.6, 0.55, 0.65), (RIGHT, RIGHT, OPEN)),
        ("weakly", (0.6, 0.55, 0.65), (RIGHT, RIGHT, RIGHT, WRONG)),
        ("mixed", (0.6, 0.55, 0.65), (RIGHT, RIGHT, WRONG)),
        ("mixed", (0.4, 0.35, 0.45), (RIGHT, WRONG, WRONG)),
        ("backwards", (0.4, 0.35, 0.45), (OPEN, WRONG, WRONG)),
        ("undecided", (0.55, 0.49, 0.61), (RIGHT, OPEN)),
    ],
)
def test_the_verdict_follows_the_rules(kind: str, over_all: Any, defects: Any) -> None:
    found = verdict(made_up(over_all, *defects))
    assert found["kind"] == kind
    lists = (("Recognised", RIGHT), ("Preferred to good rows", WRONG), ("Not told apart", OPEN))
    for words, kind_of in lists:
        names = ", ".join(f"d{i}" for i, one in enumerate(defects) if one is kind_of)
        assert (f"{words}: {names}." in found["words"]) == bool(names)


def test_an_interval_of_few_rows_decides_nothing() -> None:
    used = made_up((0.9, 0.8, 1.0), RIGHT, RIGHT)
    assert verdict(used)["kind"] == "well"
    for auc_ in (used["all"], *used["defects"].values()):
        auc_["rows"] = 14
    found = verdict(used)
    assert found["kind"] == "undecided"
    assert found["words"].startswith("Too few rows to tell")
    assert "Not told apart: d0, d1." in found["words"]


def test_advice_names_what_helps() -> None:
    used = made_up((0.55, 0.49, 0.61), OPEN)
    better = made_up((0.7, 0.6, 0.8), RIGHT) | {"name": "ifd"}
    lucky = made_up((0.9, 0.8, 0.95), RIGHT) | {"name": "random"}
    model = {
        "name": "m",
        "rating_mass": 0.05,
        "truncated": 0,
        "ratings": [0.9, 0.1, 0, 0, 0],
        "other_ends": {" is: ": 0.7, " is:": 0.04},
        "chat": False,
        "has_chat_template": True,
    }
    words = "\n".join(advice(used, [used, better, lucky], [model], 100, 999))
    for part in (
        "0.05: it hardly understood",
        "ends in ' is: '",
        "0.7 instead of 0.05",
        "answers 1 to 90% of",
        "--chat",
        "'ifd' is better: 0.70",
        "--rows 400",
        "larger model",
    ):
        assert part in words
    assert "random" not in words
    quiet = {**model, "rating_mass": 0.6, "other_ends": {}}
    assert advice(made_up((0.8, 0.75, 0.85), RIGHT), [used], [quiet], 100, 999) == []


def test_other_ends_of_the_template_have_the_mass_that_is_said(good: Dataset) -> None:
    scorer = SentenceScore("tiny-rater", template="{rating_prompt} {instruction} {response} Rate")
    ends = check(good, scorer, rows=3).models[0]["other_ends"]
    assert ends
    pairs = check_pairs(good, 3)
    for end, mass in ends.items():
        other = replace(scorer, template="{rating_prompt} {instruction} {response}" + end)
        rated = other.rate(Dataset.from_list([pair._asdict() for pair in pairs])[:])
        assert mass == pytest.approx(np.exp(rated.logprobs[:, 0]).sum(axis=1).mean(), abs=1e-3)


def check_pairs(rows: Dataset, count: int) -> list[Any]:
    numbers = np.random.default_rng(0).permutation(len(rows))[:count].tolist()
    return [SentenceScore("tiny-rater").reader.pairs(rows[i : i + 1])[0] for i in numbers]


def test_what_takes_how_long_is_told_for_selectors_that_read_too(
    good: Dataset, checkpoint: Path
) -> None:
    said: list[str] = []
    models = [SentenceScore("tiny-rater", k=2), SentenceScore(str(checkpoint), k=2)]
    selectit_hf.check(good, models, rows=3, by=["perplexity", "ifd", "length"], tell=said.append)
    first, second = said
    assert "broken copies, then reads them for perplexity and ifd, in about" in first
    assert "broken copies, in about" in second


def test_a_long_check_says_how_many_rows_take_minutes(
    good: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a check of 40 minutes, 20 rows; of one of 40 hours there are too few to be worth it."""
    said: list[str] = []
    for hours in (4, 240):
        speed = Speed(0.0, 0.0, SentenceScore("tiny-rater", k=2).rate(good[:1]))
        monkeypatch.setattr(Speed, "seconds", lambda *_, hours=hours: hours * 600.0)
        monkeypatch.setattr(bench, "measure", lambda *_, speed=speed: speed)
        check(good, SentenceScore("tiny-rater", k=2), rows=20 * 8, tell=said.append)
    assert "in about 40 min" in said[0]
    assert said[0].endswith("With --rows 20 it would take 5 min.")
    assert "--rows" not in said[1]


# Stored, drawn and shown


def test_the_command_stores_what_report_and_card_show(
    selectit: Callable[..., Any], good: Dataset, checkpoint: Path, tmp_path: Path
) -> None:
    good.select(range(40)).to_json("good.jsonl")
    asked = ("check", "good.jsonl", "--model", checkpoint, "--rows", 6)
    done = selectit(*asked, "--out", "run", "--plot", "plot.png", "--by", "length")
    assert done.code == 0, done.err
    facts = json.loads(Path("run/check.json").read_text())
    assert facts["rows"] == 6
    assert "in about" in done.err
    for words in ("swapped", "Not told apart", "6 of 40 rows, seed 0", "pairs", "rating mass"):
        assert words in done.out
    assert facts["verdict"]["words"] in done.out
    assert Path("plot.png").read_bytes() == check_plot(facts)

    done = selectit("run", "good.jsonl", "--model", checkpoint, "--out", "run")
    assert done.code == 0, done.err
    assert "selectit check" not in done.err
    done = selectit("report", "run", "--data", "good.jsonl")
    assert done.code == 0, done.err
    page = Path("run/report/report.html").read_text()
    assert "Can these models rank these rows?" in page
    assert "copies of 6 rows, seed 0" in page
    assert base64.b64encode(check_plot(facts)).decode() in page
    assert Path("run/report/images/check.png").read_bytes() == check_plot(facts)
    card = stage_card(from_run("run"))
    assert "copies of 6 of the rows (seed 0)" in card
    assert "| swapped | 6 |" in card
    assert "images/check.png" in card


def stage_card(finished: Finished) -> str:
    made = make_card(
        finished.facts,
        "user/kept",
        licence=Licence(),
        settings=CardSettings(),
        source_card={},
        datasets_data={},
        plots=[name for name, _ in card_plots(finished)],
    )
    return made.text()


def test_json_is_for_machines_and_require_for_pipelines(
    selectit: Callable[..., Any], good: Dataset, checkpoint: Path
) -> None:
    good.to_json("good.jsonl")
    asked = ("check", "good.jsonl", "--rows", 20, "--json")
    done = selectit(*asked, "--model", "tiny-rater", "--require", 0.7)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["verdict"]["kind"] == "well"
    done = selectit(*asked, "--model", checkpoint, "--require", 0.9)
    assert done.code == 1
    assert json.loads(done.out)["level"] == "sentence"
    assert "below --require 0.9" in done.err


def test_the_check_that_a_run_suggests_runs_as_printed(
    selectit: Callable[..., Any], good: Dataset, checkpoint: Path
) -> None:
    good.select(range(12)).to_json("my rows.jsonl")
    Path("end.txt").write_text("{rating_prompt}\n{instruction}\n{response}\nRating: ")
    asked = (
        "--template",
        "end.txt",
        "--k",
        3,
        "--alpha",
        0.4,
        "--proportion",
        0.5,
        "--by",
        "token",
    )
    done = selectit("run", "my rows.jsonl", "--model", checkpoint, *asked, "--out", "run")
    assert done.code == 0, done.err
    said = next(one for one in done.err.splitlines() if one.startswith("selectit check "))
    checked = selectit(*shlex.split(said)[1:], "--rows", 3)
    assert checked.code == 0, checked.err
    assert read_check(open_run("run")) is not None
    done = selectit("run", "my rows.jsonl", "--model", checkpoint, "--limit", 5, "--out", "five")
    said = next(one for one in done.err.splitlines() if one.startswith("selectit check "))
    assert selectit(*shlex.split(said)[1:]).code == 0
    assert json.loads(Path("five/check.json").read_text())["rows"] == 5


def test_a_check_of_something_else_is_refused_or_left_out(
    selectit: Callable[..., Any], good: Dataset, checkpoint: Path
) -> None:
    good.select(range(20)).to_json("good.jsonl")
    good.select(range(19)).to_json("other.jsonl")
    done = selectit("run", "good.jsonl", "--model", checkpoint, "--out", "run")
    assert "selectit check good.jsonl --model" in done.err
    asked = ("--model", checkpoint, "--out", "run", "--rows", 4)
    done = selectit("check", "other.jsonl", *asked)
    assert done.code == 1
    assert "planned with another dataset" in done.err
    done = selectit("check", "good.jsonl", *asked, "--split", "train[:10]")
    assert "planned with another dataset, or another part" in done.err
    done = selectit("check", "good.jsonl", *asked, "--k", 4)
    assert "planned with other settings (--chat" in done.err
    assert not Path("run/check.json").exists()

    assert selectit("check", "good.jsonl", *asked).code == 0
    assert read_check(open_run("run")) is not None
    assert from_run("run").facts["check"]["aside"] == ""
    done = selectit("select", "run", "--out", "run", "--by", "token", "--alpha", 0.7)
    assert done.code == 0, done.err
    said = from_run("run").facts["check"]["aside"]
    assert "about the sentence level, with alpha 0.2 instead of 0.7" in said
    assert "ranked by token_score__" in said
    facts = json.loads(Path("run/check.json").read_text())
    other = [{**facts["models"][0], "rating_key": "another"}]
    odd = [
        {"models": other},
        {"level": "nowhere"},
        {"selectors": []},
        {"selectors": [{**one, "defects": {}} for one in facts["selectors"]]},
        {"selectors": [{**one, "all": {"auc": "high"}} for one in facts["selectors"]]},
        {"defects": {"swapped": None}},
        {"verdict": {"kind": 1, "words": []}},
        {"advice": "none"},
        {"rows": 10**400},
    ]
    texts = [json.dumps({**facts, **change}) for change in odd]
    for text in (*texts, "[]", '{"input": 3}', "{"):
        Path("run/check.json").write_text(text)
        assert read_check(open_run("run")) is None
        assert "check" not in from_run("run").facts
