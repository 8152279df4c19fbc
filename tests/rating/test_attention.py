"""Attention and dtype, by the names that people give them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from selectit_hf import SentenceScore
from selectit_hf.errors import ModelError, SettingError
from selectit_hf.rating.engine.attention import ATTENTIONS, check_attention, check_attention_in_use
from selectit_hf.rating.models.loading import choose_dtype, load_model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_way_asked_for_is_taken(checkpoint: Path, attention: str) -> None:
    model = load_model(str(checkpoint), "float32", "cpu", attn_implementation=attention)
    assert model.config._attn_implementation == attention
    plain = load_model(str(checkpoint), "float32", "cpu")
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        both = [one(input_ids=ids).logits for one in (model, plain)]
    torch.testing.assert_close(*both, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["flash", "kernels-community/flash-attn", "paged|eager"])
def test_another_is_refused_before_anything_is_loaded(name: str) -> None:
    scorer = SentenceScore("there/is-no-such-model", attn_implementation=name)
    with pytest.raises(SettingError, match="choose one of eager, sdpa, flash_attention_2"):
        scorer.prepare()


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name.startswith("flash")])
def test_flash_attention_is_refused_where_it_is_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match="Give --dtype bfloat16 or float16"):
        check_attention(name, "float32")
    number = name[-1]
    where = f"transformers.utils.import_utils.is_flash_attn_{number}_available"
    monkeypatch.setattr(where, lambda: False)
    with pytest.raises(SettingError, match=f"Omit --attn-implementation {name}, or install"):
        check_attention(name, "bfloat16")
    monkeypatch.setattr(where, lambda: True)
    check_attention(name, "bfloat16")


def test_another_than_was_asked_for_is_not_taken_unsaid(checkpoint: Path) -> None:
    model: Any = load_model(str(checkpoint), "float32", "cpu")
    check_attention_in_use(model, None)
    with pytest.raises(ModelError, match="LlamaForCausalLM would use sdpa instead"):
        check_attention_in_use(model, "eager")


def test_it_is_part_of_the_key(checkpoint: Path) -> None:
    asked = [SentenceScore(str(checkpoint), attn_implementation=one) for one in (None, "eager")]
    assert len({scorer.rating_key() for scorer in asked}) == 2


# Dtypes


@pytest.mark.parametrize(
    ("short", "long"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")]
)
def test_short_and_long_names_are_one(checkpoint: Path, short: str, long: str) -> None:
    assert choose_dtype(short, "cpu") == choose_dtype(long, "cuda:0") == long
    keys = {SentenceScore(str(checkpoint), dtype=name).rating_key() for name in (short, long)}
    assert len(keys) == 1


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("cuda:1", "bfloat16")])
def test_auto_is_the_default(checkpoint: Path, device: str, dtype: str) -> None:
    assert choose_dtype("auto", device) == choose_dtype(None, device) == dtype
    keys = {SentenceScore(str(checkpoint), dtype=name).rating_key() for name in ("auto", None)}
    assert len(keys) == 1


def test_another_dtype_is_refused() -> None:
    with pytest.raises(SettingError, match=r"choose one of float32, .* fp32, bf16, fp16, auto"):
        choose_dtype("half", "cpu")
