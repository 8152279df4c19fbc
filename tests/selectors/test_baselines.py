"""The plain selectors against literal ones, row by row."""

import math
import pickle

import numpy as np
import pytest
from datasets import Dataset
from transformers import LlamaTokenizer

from selectit_hf.errors import ModelError, RatingsError, SettingError
from selectit_hf.rating.ratings import Ratings
from selectit_hf.rating.scorers import SentenceScore
from selectit_hf.selectors.baselines import Expected, Length, Random, expected_rating
from selectit_hf.selectors.selector import Selector, worst_status

ROWS = Dataset.from_list(
    [
        {"instruction": "Name a colour.", "output": "Red, or orange </s> and violet."},
        {"instruction": "Add.", "output": "1 2 3 99 2024"},
        {"instruction": "Say nothing.", "output": " "},
        {"instruction": "Jump.", "output": "A quick brown fox\njumps over the lazy dog; ünï ☃"},
    ]
)


def literal_expected(logprobs: np.ndarray) -> float:
    """The mean rating of one row, in plain Python."""
    means = []
    for prompt in logprobs:
        p = [math.exp(x) for x in prompt]
        means.append(sum(i * one / sum(p) for i, one in enumerate(p, 1)))
    return sum(means) / len(means)


def ratings(seed: int, statuses: list[str], parameters: int = 1) -> Ratings:
    logprobs = np.log(np.random.default_rng(seed).dirichlet(np.ones(7), (len(statuses), 5)))
    logprobs = logprobs[..., :5].astype(np.float32)
    logprobs[[status not in ("ok", "truncated") for status in statuses]] = np.nan
    return Ratings(statuses, logprobs, {"parameters": parameters})


def test_the_expected_rating_is_the_literal_mean():
    rated = ratings(0, ["ok"] * 50)
    expected = [literal_expected(row) for row in rated.logprobs.astype(np.float64)]
    np.testing.assert_allclose(expected_rating(rated.logprobs), expected, rtol=0, atol=1e-12)


def test_the_expected_rating_of_several_models_is_weighted_by_their_parameters():
    a = ratings(1, ["ok", "ok", "empty"], parameters=7)
    b = ratings(2, ["ok", "truncated", "empty"], parameters=13)
    scores = Expected().combine({"a": a, "b": b})
    for i in (0, 1):
        one, other = (literal_expected(r.logprobs[i].astype(np.float64)) for r in (a, b))
        assert scores.values[i] == pytest.approx((7 * one + 13 * other) / 20, abs=1e-12)
    assert math.isnan(scores.values[2])
    assert scores.statuses == ["ok", "truncated", "empty"]


def test_the_expected_rating_of_unequally_rated_rows_is_refused():
    rated = ratings(1, ["ok", "ok"])
    rated.logprobs[1, 1:] = np.nan
    with pytest.raises(RatingsError, match="asked 1 rating prompts for some rows and 5"):
        Expected().combine({"a": rated})
    with pytest.raises(RatingsError, match="not been rated by 'a'"):
        Expected().combine({"a": rated._replace(statuses=["ok", ""])})


def test_the_expected_rating_of_stored_columns(checkpoint):
    scorer = SentenceScore(str(checkpoint), name="a")
    rated = ROWS.map(scorer, batched=True).map(Expected(), batched=True, batch_size=3)
    for row in rated:
        stored = row["rating_logprobs__a"]
        if stored is None:
            assert row["score__expected"] is None
            assert row["status__expected"] == "empty"
        else:
            assert row["score__expected"] == pytest.approx(literal_expected(stored), abs=1e-12)


def test_random_is_the_generators_draw_for_each_row_whatever_the_batches():
    draws = np.random.default_rng(3).random(40)
    data = Dataset.from_dict({"x": range(40)})
    for size in (1, 7, 40):
        got = data.map(Random(3), with_indices=True, batched=True, batch_size=size)
        assert got["score__random"][:] == draws.tolist()
    scattered = [39, 0, 17, 17]
    assert Random(3).draw(scattered).values.tolist() == draws[scattered].tolist()
    assert Random(4).draw(range(40)).values.tolist() != draws.tolist()
    with pytest.raises(SettingError, match="seed=-1"):
        Random(-1)


def test_random_among_the_rows_that_are_not_kept():
    kept = np.array([False, True, False, True])
    scores = Random(3).draw_outside(kept)
    draws = np.random.default_rng(3).random(4)
    assert scores.values[~kept].tolist() == draws[~kept].tolist()
    assert np.isnan(scores.values[kept]).all()
    assert scores.statuses == ["ok", "selected", "ok", "selected"]


def test_length_counts_the_tokens_of_each_response(make_checkpoint, tmp_path, tokenizer, request):
    kind = request.node.callspec.params["tokenizer"]
    length = Length(str(make_checkpoint(tmp_path / "model", kind=kind)), slug="m")
    measured = ROWS.map(length, batched=True, batch_size=2, features=length.features(ROWS))
    for row in measured:
        if not row["output"].strip():
            assert row["score__length_m"] is None
            assert row["status__length_m"] == "empty"
        else:
            ids = tokenizer(row["output"], add_special_tokens=False, split_special_tokens=True)
            assert row["score__length_m"] == len(ids["input_ids"])


def test_lengths_of_200_real_rows(shared_data, make_checkpoint, tmp_path):
    real = Dataset.from_json(str(shared_data / "alpaca_gpt4_999.json")).select(range(200))
    folder = make_checkpoint(tmp_path / "model")
    tokenizer = LlamaTokenizer.from_pretrained(shared_data / "llama2_tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    measured = real.map(Length(str(folder), slug="m"), batched=True)
    for row in measured:
        assert row["score__length_m"] == len(tokenizer.tokenize(row["output"]))


def test_what_was_measured_is_not_measured_again(checkpoint, monkeypatch):
    length = Length(str(checkpoint), slug="m")
    batch = ROWS.to_dict()
    whole = length(batch)
    stored = [*whole["response_tokens__m"][:2], None, None]
    seen = []
    measure = Length.measure

    def watched(self, batch, rank):
        seen.append(batch["output"])
        return measure(self, batch, rank)

    monkeypatch.setattr(Length, "measure", watched)
    assert length({**batch, "response_tokens__m": stored}) == whole
    assert seen == [batch["output"][2:]]
    length({**batch, "response_tokens__m": whole["response_tokens__m"]})
    assert len(seen) == 1


def test_a_measurement_with_other_settings_is_refused(checkpoint, make_checkpoint, tmp_path):
    other = make_checkpoint(tmp_path / "other", kind="sentencepiece")
    measured = ROWS.map(Length(str(checkpoint), slug="m"), batched=True)
    with pytest.raises(RatingsError, match="'response_tokens__m' was measured with other settings"):
        measured.map(Length(str(other), slug="m"), batched=True)


def test_a_selector_travels_and_hashes_by_what_it_reads(checkpoint, make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "model", seed=1)
    length = Length(str(folder), slug="m")
    before = length.key()
    travelled = pickle.loads(pickle.dumps(length))
    assert travelled.key() == before
    assert travelled(ROWS.to_dict()) == length(ROWS.to_dict())
    (folder / "tokenizer_config.json").write_text("{}")
    assert length.key() != before
    with pytest.raises(ModelError, match="not revision"):
        travelled(ROWS.to_dict())


def test_a_batch_without_any_score_keeps_the_types(checkpoint):
    blank = Dataset.from_list([{"instruction": "a", "output": ""}] * 2 + [*ROWS])
    measured = blank.map(Length(str(checkpoint), slug="m"), batched=True, batch_size=2)
    assert measured["score__length_m"][:2] == [None, None]
    assert measured.features["score__length_m"].dtype == "float64"


def test_of_several_statuses_the_one_without_a_value_counts():
    found = worst_status(["ok", "truncated", "ok", "oom"], ["ok", "ok", "empty", "truncated"])
    assert found == ["ok", "truncated", "empty", "oom"]


def test_a_selector_must_say_what_it_is():
    for ask in (lambda: Selector().name, Selector().measurements, lambda: Selector().scores([])):
        with pytest.raises(NotImplementedError):
            ask()
