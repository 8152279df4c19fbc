"""IFD and perplexity against one plain forward pass a row, with the cross-entropy by hand."""

import dataclasses
import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import AutoModelForCausalLM, AutoTokenizer

from selectit_hf.errors import SettingError, TokenizerError
from selectit_hf.formats.rows import Pair
from selectit_hf.rating import rater
from selectit_hf.rating.engine.forward import Forward
from selectit_hf.rating.models import loading
from selectit_hf.rating.prompts.response_encoder import ResponseEncoder
from selectit_hf.rating.scorer_settings import OF_A_PLACE
from selectit_hf.rating.scorers import SentenceScore
from selectit_hf.selectors import response_scorer
from selectit_hf.selectors.ifd import IFD
from selectit_hf.selectors.perplexity import Perplexity

ROWS = Dataset.from_list(
    [
        {"instruction": "Name three colours.", "output": "Red, orange and violet."},
        {"instruction": "Read the </s> and judge.", "output": "1 2 3 4 5 99 100 <|end|> 2024"},
        {"instruction": "Jump.", "output": "A quick brown fox jumps over the lazy dog. " * 6},
        {"instruction": "Say nothing.", "output": ""},
        {"instruction": "Odd ünï ☃ {response}", "output": "☃ {instruction}"},
        {"instruction": "Shortest.", "output": "a"},
    ]
)


def literal_loss(model, before: list[int], response: list[int]) -> float:
    """The mean cross-entropy of a response, from one forward pass and a softmax by hand."""
    ids = before + response
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().numpy()
    before_each = logits[len(before) - 1 : -1]
    found = before_each[range(len(response)), response] - np.log(np.exp(before_each).sum(axis=1))
    return float(-found.mean())


def literal_losses(folder, row) -> tuple[float, float, int]:
    """``s(A|Q)``, ``s(A)`` and the number of response tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return losses_of(model, tokenizer, row)


def losses_of(model, tokenizer, row) -> tuple[float, float, int]:
    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.eos_token_id

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    instruction = row["instruction"] + (f"\n{row['input']}" if row.get("input") else "")
    context = ids(f"Instruction:{instruction}\nResponse:")
    response = ids(row["output"])
    given = literal_loss(model, [start, *context], response)
    return given, literal_loss(model, [start], response), len(response)


@pytest.mark.parametrize("kind", ["bpe_split", "bpe_merge", "sentencepiece", "unigram"])
def test_perplexity_and_ifd_are_the_literal_loops(make_checkpoint, tmp_path, kind):
    folder = make_checkpoint(tmp_path / "model", kind=kind)
    ifd, both = IFD(str(folder), slug="m"), IFD(str(folder), slug="m", ratio="perplexity")
    measured = ROWS.map(ifd, batched=True, batch_size=4, features=ifd.features(ROWS))
    measured = measured.map(Perplexity(str(folder), slug="m", keep="high"), batched=True)
    ratios = ROWS.map(both, batched=True)["score__ifd_m"]
    for row, ratio in zip(measured, ratios, strict=True):
        if not row["output"]:
            assert [row["score__ifd_m"], row["score__perplexity_m"], ratio] == [None] * 3
            assert row["status__ifd_m"] == row["status__perplexity_m"] == "empty"
            continue
        if kind == "unigram" and "</s>" in row["instruction"]:  # whose pieces hold "</s>" itself
            assert row["status__ifd_m"] == row["status__perplexity_m"] == "encoding"
            assert row["response_given__m"]["logprob"] is row["score__ifd_m"] is None
            continue
        given, alone, tokens = literal_losses(folder, row)
        assert row["response_given__m"]["tokens"] == tokens == row["response_alone__m"]["tokens"]
        assert -row["response_given__m"]["logprob"] / tokens == pytest.approx(given, abs=1e-4)
        assert row["score__perplexity_m"] == pytest.approx(math.exp(given), rel=1e-4)
        if given / alone < 1 - 1e-5:
            assert row["score__ifd_m"] == pytest.approx(given / alone, abs=1e-4)
            assert ratio == pytest.approx(math.exp(given - alone), abs=1e-4)
            assert row["status__ifd_m"] == "ok"
        elif given / alone > 1 + 1e-5:
            assert row["score__ifd_m"] is ratio is None
            assert row["status__ifd_m"] == "ifd_at_least_1"


def test_ifd_drops_what_the_instruction_makes_harder():
    def table(losses):
        return pa.table({
            "logprob": pa.array([-10 * loss for loss in losses], pa.float32()),
            "tokens": pa.array([10] * len(losses), pa.int32()),
            "status": ["ok"] * len(losses),
        })  # fmt: skip

    given, alone = [1.0, 2.0, 3.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0, 0.0]
    scores = IFD("any").scores([table(given), table(alone)])
    np.testing.assert_array_equal(scores.values, [0.5, np.nan, np.nan, 0.0, np.nan])
    dropped = "ifd_at_least_1"
    assert scores.statuses == ["ok", dropped, dropped, "ok", "nonfinite"]


def test_200_real_rows_are_the_literal_loops(shared_data, make_checkpoint, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "model", hidden_size=16, layers=1)
    real = Dataset.from_json(str(shared_data / "alpaca_gpt4_999.json")).select(range(200))
    ifd = IFD(str(checkpoint), slug="m")
    measured = real.map(ifd, batched=True).map(Perplexity(str(checkpoint), slug="m"), batched=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for row in measured:
        given, alone, tokens = losses_of(model, tokenizer, row)
        assert row["response_given__m"]["tokens"] == tokens
        assert -row["response_given__m"]["logprob"] / tokens == pytest.approx(given, abs=1e-4)
        assert -row["response_alone__m"]["logprob"] / tokens == pytest.approx(alone, abs=1e-4)
        assert row["score__perplexity_m"] == pytest.approx(-math.exp(given), rel=1e-4)
        if row["score__ifd_m"] is None:
            assert given / alone > 1 - 1e-5
        else:
            assert row["score__ifd_m"] == pytest.approx(given / alone, abs=1e-4)


def test_no_pass_is_paid_twice(checkpoint, passes):
    ifd, perplexity = IFD(str(checkpoint), slug="m"), Perplexity(str(checkpoint), slug="m")
    batch = ROWS.to_dict()
    first = perplexity(batch)
    assert passes == [5]
    second = ifd({**batch, **first})
    assert passes == [5, 5]
    third = perplexity({**batch, **second})
    assert passes == [5, 5]
    assert third == first
    assert IFD(str(checkpoint), slug="m", ratio="perplexity")({**batch, **second})
    assert passes == [5, 5]


def test_a_model_that_rates_and_reads_is_loaded_once(checkpoint, monkeypatch):
    loaded = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: loaded.append(a) or load(*a, **k))
    rater._ENGINE._held = None
    batch = ROWS.to_dict()
    SentenceScore(str(checkpoint), name="a")(batch)
    IFD(str(checkpoint), slug="m")(batch)
    assert len(loaded) == 1


@pytest.mark.parametrize("kind", ["bpe_split", "sentencepiece"])
def test_a_long_pair_is_cut_in_token_space(built_tokenizers, kind):
    tokenizer = built_tokenizers[kind]
    context = "Instruction:{instruction}\nResponse:"
    whole = ResponseEncoder(tokenizer, context, None)
    long = Pair("Name a colour, please, if you can. " * 9, "Red, orange and violet. " * 9)
    short = Pair("Name a colour.", long.response)
    for limit in (40, 64, 90):
        cut = ResponseEncoder(tokenizer, context, limit)
        for pair in (long, short, Pair(long.instruction, "Red")):
            full, some = whole.encode([pair])[0], cut.encode([pair])[0]
            assert some.status == "truncated"
            assert 1 + len(some.context) + len(some.response) <= limit
            assert some.response == full.response[: len(some.response)]
            assert tokenizer.decode(some.context).endswith("\nResponse:")
            if len(some.response) < len(full.response):
                assert len(some.response) >= (limit - 1) // 2
            if some.context != full.context:
                assert limit - 1 - len(some.context) - len(some.response) <= 8


def test_a_sample_never_yields_a_special_token(tokenizer):
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        return
    encoder = ResponseEncoder(tokenizer, "{instruction}", None)
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    special -= {tokenizer.unk_token_id}
    for token in tokenizer.all_special_tokens:
        one = encoder.encode([Pair(f"a {token} b", f"c {token} d")])[0]
        assert not special & {*one.context, *one.response}
        assert one.status in ("ok", "encoding")


def test_a_tokenizer_without_any_edge_is_refused(wordpiece):
    with pytest.raises(TokenizerError, match="neither a BOS nor an EOS"):
        ResponseEncoder(wordpiece, "{instruction}", None)


def test_settings_are_checked(bpe_split):
    with pytest.raises(SettingError, match=r"must hold \{instruction\} once"):
        IFD("any", context="nothing")
    with pytest.raises(SettingError, match="ratio='other' is unknown; choose 'loss' or"):
        IFD("any", ratio="other")
    with pytest.raises(SettingError, match="keep='other'"):
        Perplexity("any", keep="other")
    with pytest.raises(SettingError, match="max_length=4 tokens leave no room"):
        ResponseEncoder(bpe_split, "Instruction:{instruction}\nResponse:", 4)


def test_out_of_memory_is_a_status_and_tried_again(checkpoint, monkeypatch):
    scorer = Perplexity(str(checkpoint), slug="m")
    batch = ROWS.to_dict()
    whole = scorer(batch)
    logits = Forward.logits

    def tight(self, batch, *others):
        if batch.length > 60:
            raise MemoryError
        return logits(self, batch, *others)

    with monkeypatch.context() as patch:
        patch.setattr(Forward, "logits", tight)
        part = scorer(batch)
    assert part["status__perplexity_m"][2] == "oom"
    assert part["score__perplexity_m"][2] is None
    assert part["score__perplexity_m"][5] == pytest.approx(whole["score__perplexity_m"][5])
    again = scorer({**batch, "response_given__m": part["response_given__m"]})
    assert again["score__perplexity_m"] == pytest.approx(whole["score__perplexity_m"])


def test_what_can_change_a_value_changes_the_key(checkpoint, make_checkpoint, tmp_path):
    other = make_checkpoint(tmp_path / "other", seed=5)
    keys = {
        scorer.given().key()
        for scorer in (
            Perplexity(str(checkpoint)),
            Perplexity(str(other)),
            Perplexity(str(checkpoint), context="Q:{instruction}\nA:"),
            Perplexity(str(checkpoint), max_length=100),
            Perplexity(str(checkpoint), dtype="bfloat16"),
            Perplexity(str(checkpoint), instruction_column="a", response_column="b"),
        )
    }
    same = Perplexity(str(checkpoint), keep="high", device="cpu", token_budget=7, slug="x")
    assert len(keys) == 6
    assert same.given().key() in keys
    assert IFD(str(checkpoint)).given().key() in keys
    assert IFD(str(checkpoint)).alone().key() not in keys


PLACES = {"device": "cpu", "device_map": "auto", "token_budget": 7}


@pytest.mark.parametrize("kind", [IFD, Perplexity])
@pytest.mark.parametrize("name", PLACES)
def test_where_a_model_runs_changes_nothing_that_is_kept(checkpoint, kind, name):
    plain, placed = kind(str(checkpoint)), kind(str(checkpoint), **{name: PLACES[name]})
    assert set(PLACES) == set(OF_A_PLACE)
    assert placed.__getstate__() == plain.__getstate__()
    assert Hasher.hash(placed) == Hasher.hash(plain)
    assert placed.given().key() == plain.given().key()
    assert placed.alone().key() == plain.alone().key()


@pytest.mark.parametrize("kind", [IFD, Perplexity])
def test_the_state_is_that_of_what_is_cached(checkpoint, kind):
    """Its names, by which `datasets` finds what it has mapped; one more, and nothing is found."""
    names = {f.name for f in dataclasses.fields(kind) if f.init}
    later = {"device_map", "base_model", "quantization", "attn_implementation", "roles"}
    assert set(kind(str(checkpoint)).__getstate__()) == {*names, "version"} - later
    eager = kind(str(checkpoint), attn_implementation="eager")
    assert set(eager.__getstate__()) == {*names, "version"} - later | {"attn_implementation"}
    assert eager.given().key() != kind(str(checkpoint)).given().key()


def test_a_pickle_from_before_a_field_came_is_read(checkpoint):
    scorer = Perplexity(str(checkpoint), device_map="auto", keep="high")
    state = scorer.__getstate__()
    older = {name: value for name, value in state.items() if name not in ("device_map", "slug")}
    for kept in (state, older, {**state, "device_map": None}):
        read = Perplexity.__new__(Perplexity)
        read.__setstate__(kept)
        assert (read.keep, read.device_map, read.slug) == ("high", None, None)
        assert read.given().key() == scorer.given().key()
    assert pickle.loads(pickle.dumps(scorer)).given().key() == scorer.given().key()


def test_where_a_model_runs_is_in_no_key(checkpoint, monkeypatch):
    """Not even as nothing where it came to the settings after keys had been written."""
    hashed = {}
    monkeypatch.setattr(response_scorer, "key_of", lambda state: hashed.update(state) or "key")
    Perplexity(str(checkpoint), device_map="auto", token_budget=7).given().key()
    assert {"revision", "device", "token_budget"} < set(hashed)
    assert hashed["token_budget"] is None
    assert "device_map" not in hashed
