"""Selectors over one run, and their comparison, against literal sets and loops."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from selectit_hf import runs
from selectit_hf.analysis.candidates import Candidates
from selectit_hf.analysis.comparison import CODE, Candidate, compare, spearman
from selectit_hf.analysis.measures import Cost, Measures
from selectit_hf.errors import InputError, RunError, SettingError
from selectit_hf.formats.rows import Pair, RowReader
from selectit_hf.formats.sources import Source
from selectit_hf.rating import reflection
from selectit_hf.rating.scorers import SentenceScore
from selectit_hf.selection.selection import Cut
from selectit_hf.selectors.baselines import expected_rating
from selectit_hf.selectors.diversity import Diverse
from selectit_hf.selectors.endpoint import Endpoint
from selectit_hf.selectors.ifd import IFD
from selectit_hf.selectors.journal import Answer
from selectit_hf.selectors.judge import Judge
from selectit_hf.selectors.perplexity import Perplexity
from selectit_hf.selectors.selector import Scores

SOURCE = Source("rows.jsonl", None, "train", "sha256:0")


def make_rows() -> Dataset:
    words = ["red", "orange", "violet", "fox", "dog", "jumps", "lazy", "quick"]
    words += ["12", "99", "2024", "judge", "whole", "number"]
    rng = np.random.default_rng(0)
    rows = [
        {
            "instruction": f"Name thing {i}.",
            "output": " ".join(rng.choice(words, rng.integers(2, 30))),
            "stars": float(i % 7),
            "topic": "ab"[i % 2],
        }
        for i in range(38)
    ]
    rows[5]["output"] = ""
    rows[9] = {**rows[8], "output": rows[8]["output"].upper() + " !", "stars": 0.0}
    return Dataset.from_list(rows)


ROWS = make_rows()


@pytest.fixture(scope="module")
def finished(make_checkpoint, tmp_path_factory):
    """A run over `ROWS` by two models, and the folder of the first."""
    folder = tmp_path_factory.mktemp("compare")
    models = [make_checkpoint(folder / f"model-{seed}", seed=seed) for seed in (0, 1)]
    scorers = [SentenceScore(str(model), k=3) for model in models]
    run = runs.plan(ROWS, SOURCE, scorers, folder / "run", shard_size=16)
    runs.rate(run, ROWS, scorers)
    return run, models[0]


@pytest.fixture
def made(finished) -> Candidates:
    run, model = finished
    return Candidates(Measures(run, ROWS), model=str(model), cut=Cut(n=6))


def test_the_levels_come_from_the_stored_ratings(made):
    run = made.measures.run
    ratings = {slug: runs.ratings_of(run, slug) for slug in run.slugs}
    tokens = {s: reflection.token_score(r.logprobs) for s, r in ratings.items()}
    sentences = {s: reflection.sentence_score(t, 0.2) for s, t in tokens.items()}
    first = made.score("token:model_1")
    np.testing.assert_array_equal(first.scores.values, tokens["model_1"][:, 0])
    assert first.cost.sequences == 37
    second = made.score("sentence:model_1")
    np.testing.assert_array_equal(second.scores.values, sentences["model_1"])
    assert second.cost.sequences == 37 * 3
    model = made.score("model")
    halves = (sentences["model_0"] + sentences["model_1"]) / 2
    np.testing.assert_allclose(model.scores.values, halves, rtol=1e-12)
    assert model.cost.sequences == 2 * 37 * 3
    assert model.scores.statuses[5] == "empty"
    expected = made.score("expected")
    mean = sum(expected_rating(r.logprobs) for r in ratings.values()) / 2
    np.testing.assert_allclose(expected.scores.values, mean, rtol=1e-12)
    assert expected.paid == Cost()


def test_the_run_keeps_what_was_measured(made, passes, finished):
    run, model = finished
    measures = Measures(run, ROWS)
    first = made.score("perplexity")
    assert first.paid.sequences == first.cost.sequences == 37
    assert passes == [15, 16, 6]
    second = made.score("ifd")
    assert (second.paid.sequences, second.cost.sequences) == (37, 74)
    assert passes == [15, 16, 6] * 2
    again = made.score("perplexity")
    assert (again.paid, again.cost) == (Cost(), first.cost)
    assert len(passes) == 6
    mapped = ROWS.map(IFD(str(model), slug="m"), batched=True)
    ours = [math.nan if v is None else v for v in mapped["score__ifd_m"]]
    np.testing.assert_allclose(second.scores.values, ours, rtol=1e-5)
    shards = sorted((Path(run.where) / "measures").glob("response_given__model_0.*/*.json"))
    assert len(shards) == 3
    shards[1].unlink()
    passes.clear()
    repaired = measures.scores(
        Perplexity(str(model), token_budget=run.plan["models"][0]["token_budget"])
    )
    assert passes == [16]
    np.testing.assert_array_equal(repaired.values, first.scores.values)


def test_other_settings_are_measured_beside(finished, passes):
    run, model = finished
    measures = Measures(run, ROWS)
    both = Perplexity(str(model)), Perplexity(str(model), context="Q:{instruction}\nA:")
    first = [measures.scores(one).values for one in both]
    assert sum(passes) >= 37
    passes.clear()
    for one, values in zip(both, first, strict=True):
        np.testing.assert_array_equal(measures.scores(one).values, values)
    assert not passes
    assert (first[0] != first[1])[np.isfinite(first[0])].all()
    assert len(list((Path(run.where) / "measures").glob("response_given__model_0.*"))) == 2


def test_rows_of_another_dataset_are_refused(finished):
    run, _ = finished
    with pytest.raises(RunError, match="not those of the run"):
        Measures(run, ROWS.select(range(37)))


def test_what_an_endpoint_did_not_answer_is_asked_again(finished, tmp_path, monkeypatch):
    run, _ = finished
    said = {"status": "unanswered"}

    def ask(self, prompts, journal, progress=None):
        broken = [p for p in prompts if "thing 20." in p]
        answers = [Answer("3", 5, 1)] * len(prompts)
        return [said["status"] if p in broken and said["status"] else a
                for p, a in zip(prompts, answers, strict=True)]  # fmt: skip

    monkeypatch.setattr(Endpoint, "ask", ask)
    judge = Judge(Endpoint("j", "http://127.0.0.1:9"), tmp_path / "answers.jsonl")
    made = Candidates(Measures(run, ROWS), judge=judge)
    first = made.score("judge")
    assert first.scores.statuses[20] == "unanswered"
    assert first.paid.sequences == 36
    said["status"] = ""
    second = made.score("judge")
    assert second.scores.statuses[20] == "ok"
    assert second.scores.values[20] == 3
    assert second.paid.sequences == 16
    assert made.score("judge").paid == Cost()


def test_random_length_and_columns(made):
    draws = np.random.default_rng(0).random(38)
    np.testing.assert_array_equal(made.score("random").scores.values, draws)
    base = made.score("model").scores.values
    best = set(sorted(np.flatnonzero(np.isfinite(base)).tolist(), key=lambda i: -base[i])[:6])
    rest = made.score("random-rest").scores
    assert {i for i, s in enumerate(rest.statuses) if s == "selected"} == best
    assert {i for i, v in enumerate(rest.values) if math.isnan(v)} == best
    stars = made.score("random-rest:stars").scores
    assert [i for i, s in enumerate(stars.statuses) if s == "selected"] == [5, 6, 13, 20, 27, 34]
    np.testing.assert_array_equal(made.score("stars").scores.values, ROWS["stars"][:])
    np.testing.assert_array_equal(made.score("length").scores.values, made.lengths())
    assert math.isnan(made.lengths()[5])


def test_diverse_builds_on_another_selector(made):
    stars = made.score("diverse:stars")
    assert stars.scores.statuses[9] == "near_duplicate"
    assert stars.note.startswith("1 near duplicates")
    whole = made.score("stars").scores.values
    kept = np.isfinite(stars.scores.values)
    np.testing.assert_array_equal(stars.scores.values[kept], whole[kept])
    loose = Candidates(made.measures, diverse=Diverse(jaccard=None, cap=None)).score("diverse")
    np.testing.assert_array_equal(loose.scores.values, made.score("model").scores.values)


def test_a_published_subset_is_matched_by_its_text(made, tmp_path):
    rows = ROWS.select([3, 4, 30]).to_list()
    rows[0]["output"] = "  " + rows[0]["output"].upper() + "\n"
    rows.append({**rows[1], "instruction": "Elsewhere."})
    Dataset.from_list(rows).to_json(str(tmp_path / "subset.jsonl"))
    subset = made.score(f"hub:{tmp_path / 'subset.jsonl'}")
    assert np.flatnonzero(np.isfinite(subset.scores.values)).tolist() == [3, 4, 30]
    assert subset.note == "3 of 4 distinct rows of subset.jsonl are in the run"
    found = compare([subset], made.pairs, Cut(n=20))
    assert found.selectors[0]["kept"] == 3


@pytest.mark.parametrize(
    ("by", "error", "says"),
    [
        ("nothing", SettingError, "'nothing' is neither a selector nor a column"),
        ("token", SettingError, "write token:NAME with one of model_0, model_1"),
        ("sentence:other", SettingError, "no model 'other'"),
        ("judge", SettingError, "needs judge="),
        ("topic", InputError, "holds string, not scores"),
    ],
)
def test_names_that_cannot_be(made, by, error, says):
    with pytest.raises(error, match=says):
        made.score(by)


def test_a_folders_place_must_be_told(finished):
    run, _ = finished
    with pytest.raises(SettingError, match=r"give it again with model= \(--model\)"):
        Candidates(Measures(run, ROWS)).score("length")


# The comparison itself


def literal_ranks(values: list[float]) -> list[float]:
    return [
        1 + sum(other < v for other in values) + (sum(other == v for other in values) - 1) / 2
        for v in values
    ]


def literal_spearman(a, b) -> float:
    both = [(x, y) for x, y in zip(a, b, strict=True) if not math.isnan(x) and not math.isnan(y)]
    x, y = (literal_ranks(list(side)) for side in zip(*both, strict=True))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    up = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    return up / math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_the_literal_formula(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 9, 40).astype(float), rng.random(40)
    b += a / 4
    a[rng.random(40) < 0.2] = np.nan
    b[rng.random(40) < 0.2] = np.nan
    assert spearman(a, b) == pytest.approx(literal_spearman(a, b), abs=1e-12)
    assert spearman(a, a) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)


def test_spearman_of_nothing():
    one = np.array([1.0, np.nan, 3.0])
    assert spearman(one, np.array([np.nan, 1.0, 2.0])) is None
    assert spearman(one, np.array([5.0, 5.0, 5.0])) is None


def test_a_comparison_is_that_of_literal_sets():
    pairs = RowReader().pairs(ROWS.to_dict())
    rng = np.random.default_rng(7)
    tokens = np.array([len(p.response.split()) if isinstance(p, Pair) else np.nan for p in pairs])
    vectors = rng.normal(size=(38, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = [rng.random(38), np.round(rng.random(38), 1), np.full(38, np.nan)]
    scores[0][[2, 5]] = np.nan
    made = [
        Candidate(name, Scores(values, ["odd"] * 38), Cost(1.5, 3, 4))
        for name, values in zip("abc", scores, strict=True)
    ]
    found = compare(made, pairs, Cut(proportion=0.3), tokens, vectors)
    sets = []
    for values in scores:
        order = sorted(
            (i for i in range(38) if not math.isnan(values[i])), key=lambda i: (-values[i], i)
        )
        sets.append(set(order[:11]))
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            expected = len(a & b) / len(a | b) if a | b else None
            assert found.jaccard[i][j] == expected
            assert found.share[i][j] == (len(a & b) / len(a) if a else None)
    assert found.spearman[0][1] == pytest.approx(literal_spearman(*scores[:2]), abs=1e-12)
    assert found.spearman[0][2] is None
    for facts, kept in zip(found.selectors, sets, strict=True):
        assert facts["kept"] == len(kept)
        read = [i for i in sorted(kept) if isinstance(pairs[i], Pair)]
        if not read:
            assert facts["mean_response_characters"] is facts["diversity"] is None
            continue
        texts = [pairs[i].response for i in read]
        assert facts["mean_response_characters"] == pytest.approx(np.mean([len(t) for t in texts]))
        assert facts["mean_response_tokens"] == pytest.approx(np.mean([tokens[i] for i in read]))
        digits = [any(c in "0123456789" for c in t) for t in texts]
        assert facts["digit_share"] == pytest.approx(np.mean(digits))
        repeated = [9 in read and 8 in read and i == 9 for i in read]
        assert facts["duplicate_share"] == pytest.approx(np.mean(repeated))
        apart = [1 - float(vectors[i] @ vectors[j]) for i in read for j in read if i != j]
        assert facts["diversity"] == pytest.approx(np.mean(apart), abs=1e-6)
    assert found.everything["kept"] == 38
    assert found.everything["duplicate_share"] == pytest.approx(1 / 37)
    facts = json.loads(json.dumps(found.to_dict()))
    assert facts["cut"] == {"proportion": 0.3, "variant": "paper"}
    assert facts["selectors"][0]["cost"] == {"seconds": 1.5, "sequences": 3, "tokens": 4}
    assert facts["selectors"][2]["reasons"] == {"odd": 38}


def test_a_comparison_that_cannot_be():
    pairs = RowReader().pairs(ROWS.to_dict())
    one = Candidate("a", Scores(np.zeros(38), ["ok"] * 38))
    with pytest.raises(SettingError, match="named twice"):
        compare([one, one], pairs, Cut())
    with pytest.raises(SettingError, match="'b' scores 3 rows, but there are 38"):
        compare([one, Candidate("b", Scores(np.zeros(3), ["ok"] * 3))], pairs, Cut())


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("Use this:\n```python\nx = 1\n```", True),
        ("def add(a, b):\n    return a + b", True),
        ("#include <stdio.h>\nint main() {}", True),
        ("<html><body><p>Hi</p></body></html>", True),
        ("for (int i = 0; i < 3; i++) {", True),
        ("SELECT name FROM people WHERE age > 3", True),
        ("Import the goods from China, for a while (maybe).", False),
        ("The class was full, and the function of it is unknown.", False),
        ("a < b and b > c", False),
    ],
)
def test_code_is_told_from_prose(response, code):
    assert (CODE.search(response) is not None) == code
