"""What the generator behind tiny-rater promises: rows, defects, held-out tasks, phrasings."""

import itertools
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "tiny_rater"))
data = pytest.importorskip("tiny_rater_data", reason="scripts/ is not beside tests/")
sys.path.pop(0)

SEEN, UNSEEN = tuple(data.SEEN_FAMILIES), tuple(data.UNSEEN_FAMILIES)
PACKAGE_PROMPTS = data.seen_rating_prompts()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return list(data.rows(seed=5, count=1800))


def tasks(family: str, count: int = 200) -> list:
    rng = random.Random(family)
    return [data.FAMILIES[family](rng) for _ in range(count)]


def test_same_seed_same_rows_another_seed_others():
    first = list(data.rows(3, 90))
    assert first == list(data.rows(3, 90))
    assert first != list(data.rows(4, 90))


def test_rows_are_alpaca_rows_with_family_and_defect(rows):
    for row in rows:
        assert list(row) == ["instruction", "input", "output", "family", "defect"]
        assert row["instruction"]
        assert row["output"]
        assert row["defect"] == "none" or row["defect"] in data.DEFECTS


def test_at_least_fourteen_families_and_exactly_two_of_them_unseen(rows):
    assert len(SEEN) >= 12
    assert len(UNSEEN) == 2
    assert not set(SEEN) & set(UNSEEN)
    assert {row["family"] for row in rows} == set(SEEN)


def test_no_kind_of_defect_is_above_a_fifth_and_all_occur(rows):
    kinds = Counter(row["defect"] for row in rows if row["defect"] != "none")
    assert set(kinds) == set(data.DEFECTS)
    assert max(kinds.values()) <= 0.2 * kinds.total()
    assert 0.35 <= kinds.total() / len(rows) <= 0.45


def test_length_alone_tells_nothing(rows):
    assert 0.40 <= data.length_auc(rows) <= 0.60


@pytest.mark.parametrize("family", [*SEEN, *UNSEEN])
def test_contents_that_are_wrong_or_partly_right_are_not_right(family):
    for task in tasks(family):
        assert task.right not in [*task.wrong, *task.partly]
        assert task.wrong
        assert not set(task.wrong) & set(task.partly)


@pytest.mark.parametrize("defect", [*data.DEFECTS, "none"])
def test_a_defective_response_is_never_a_good_one(defect):
    rng = random.Random(f"respond {defect}")
    made = 0
    for _ in range(1500):
        family = rng.choice(SEEN)
        task, sibling, stranger = data.draw_with_neighbours(rng, family, SEEN, held_out=False)
        response = data.respond(task, defect, rng, sibling, stranger)
        if response is not None:
            made += 1
            assert (response in task.good) == (defect == "none"), (task, response)
            assert response == response.strip()
    assert made > 500


def test_training_and_evaluation_share_no_instruction(rows):
    rng = random.Random("held out")
    trained = {data.draw(rng, family, held_out=False).prompt for family in SEEN for _ in range(300)}
    evaluated = {f"{r['instruction']}\n{r['input']}".removesuffix("\n") for r in rows}
    assert len(trained) > 1000
    assert not trained & evaluated


def test_every_family_has_enough_held_out_instructions_for_the_sample():
    for family in SEEN:
        held_out = {t.prompt for t in tasks(family, 6000) if data.is_held_out(t)}
        assert len(held_out) >= 34, family


@pytest.mark.parametrize("defect", list(data.GRADES))
def test_targets_are_distributions_and_good_rows_are_the_clear_ones(defect):
    target = data.rating_target(defect)
    assert len(target) == data.K
    assert sum(target) == pytest.approx(1)
    grade = sum(i * p for i, p in enumerate(target, 1))
    if defect == "none":
        assert grade > 4.5
    else:
        assert grade < 3
        assert max(target) < 0.4


def test_unseen_phrasings_are_never_trained_on():
    rng = random.Random("phrasings")
    trained = {data.training_rating_prompt(rng, PACKAGE_PROMPTS) for _ in range(20_000)}
    unseen = data.UNSEEN_RATING_PROMPTS
    assert set(PACKAGE_PROMPTS) < trained
    assert len(trained) > 1000
    assert len(set(unseen)) >= 5
    assert not trained & set(unseen)
    sentences = {s for text in trained for s in re.split(r"(?<=[.?!]) ", text)}
    assert not sentences & {s for text in unseen for s in re.split(r"(?<=[.?!]) ", text)}


def test_rating_prompts_are_for_five_grades():
    rng = random.Random("k")
    for text in [*PACKAGE_PROMPTS, *data.UNSEEN_RATING_PROMPTS]:
        assert re.search(r"\b1\b.*\b5\b|\b5\b.*\b1\b", text)
    for _ in range(500):
        assert "{" not in data.training_rating_prompt(rng, PACKAGE_PROMPTS)


def test_layout_of_a_rating_text():
    assert data.rating_text("Rate.", "Add.\n1, 2", "3") == (
        "Rate.\n\nInstruction:Add.\n1, 2\nResponse:3\nThe answer is: \n"
    )


def test_length_auc_counts_ties_half():
    made = [("ab", "none"), ("abc", "none"), ("ab", "wrong"), ("a", "wrong")]
    assert data.length_auc([{"output": o, "defect": d} for o, d in made]) == 0.875


def test_bundled_tokenizer_keeps_digits_apart_and_responses_whole():
    tokenizer = AutoTokenizer.from_pretrained(data.PACKAGE_DATA / "tiny-rater")
    for row in data.rows(seed=6, count=60):
        prompt = f"{row['instruction']}\n{row['input']}".removesuffix("\n")
        text = data.rating_text(PACKAGE_PROMPTS[0], prompt, row["output"])
        ids = tokenizer.encode(text)
        for digit in "0123456789":
            assert tokenizer.encode(text + digit) == [*ids, tokenizer.convert_tokens_to_ids(digit)]
        before, after = text.split("\nResponse:")
        parts = [before + "\nResponse:", row["output"], after.removeprefix(row["output"])]
        pieces = [tokenizer.encode(part, add_special_tokens=False) for part in parts]
        assert ids == [tokenizer.bos_token_id, *itertools.chain(*pieces)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_bundled_sample_is_what_the_script_writes():
    path = data.PACKAGE_DATA / "sample.jsonl"
    bundled = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    sys.path.insert(0, str(ROOT / "scripts" / "tiny_rater"))
    from make_sample_dataset import sample

    assert bundled == sample(seed=2024, count=600)
    assert len({(row["instruction"], row["input"]) for row in bundled}) == len(bundled)
    assert 0.35 <= sum(row["defect"] != "none" for row in bundled) / len(bundled) <= 0.45
    kinds = Counter(row["defect"] for row in bundled if row["defect"] != "none")
    assert max(kinds.values()) <= 0.2 * kinds.total()
    assert 0.40 <= data.length_auc(bundled) <= 0.60
