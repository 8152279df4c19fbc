"""What is quantized, where, and what is refused before anything is loaded."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from selectit_hf import SentenceScore
from selectit_hf.errors import ModelError, SettingError
from selectit_hf.rating.models import loading, quantization
from selectit_hf.rating.models.device_maps import weight_bytes, without_weights
from selectit_hf.rating.models.loading import budget_in, fitting_budget, load_model
from selectit_hf.rating.models.quantization import bits, check_device, quantizing, stored_method

BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.fixture
def stored(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """A checkpoint whose configuration says how its weights are quantized."""

    def make(**settings: Any) -> Path:
        folder = make_checkpoint(tmp_path / "stored")
        path = folder / "config.json"
        config = json.loads(path.read_text()) | {"quantization_config": settings}
        path.write_text(json.dumps(config))
        return folder

    return make


def test_on_the_cpu_it_is_refused_before_anything_is_looked_for() -> None:
    scorer = SentenceScore("there/is-no-such-model", quantization="4bit", device="cpu")
    with pytest.raises(SettingError, match=r"Omit --quantization 4bit.*CUDA GPU.*here is cpu"):
        scorer.prepare()
    with pytest.raises(SettingError, match="Omit --quantization 4bit"):
        load_model("there/is-no-such-model", "float32", "cpu", quantization="4bit")


def test_what_is_unknown_or_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="choose one of 8bit, 4bit"):
        check_device("2bit", "cuda:0")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'bitsandbytes>="):
        check_device("8bit", "cuda:0")
    check_device(None, "cpu")


def test_it_is_part_of_the_key(checkpoint: Path) -> None:
    keys = {SentenceScore(str(checkpoint), quantization=q).rating_key() for q in (None, "4bit")}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "stored in gptq, which cannot"),
        ({"quant_method": "rot13", "bits": 4}, "stored in 'rot13', which transformers does not"),
        ({"bits": 4}, "transformers does not know"),
    ],
)
def test_a_stored_method_that_is_not_computed_here_is_named_before_the_weights_are_read(
    stored: Callable[..., Path],
    settings: dict[str, Any],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")
    with pytest.raises(ModelError, match=says):
        load_model(str(stored(**settings)), "float32", "cpu")


def test_weights_that_are_unpacked_here_are_told(
    stored: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = stored(quant_method="fp8", weight_block_size=[16, 16])
    with caplog.at_level(logging.WARNING, "selectit_hf"):
        load_model(str(folder), "float32", "cpu")
    assert "stored in fp8, which cpu does not compute here: its weights are unpacked" in caplog.text


def test_what_is_stored_quantized_is_not_quantized_again(
    stored: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "check_device", lambda *_: None)
    with pytest.raises(SettingError, match=r"Omit --quantization 8bit.*in bitsandbytes_4bit alr"):
        load_model(str(stored(**BNB)), "float32", "cpu", quantization="8bit")


def test_bits() -> None:
    plain, four = LlamaConfig(), LlamaConfig(quantization_config=BNB)
    assert [bits(plain, None), bits(plain, "8bit"), bits(four, None)] == [None, 8, 4]
    assert stored_method(LlamaConfig(quantization_config={"quant_method": "gptq"})) == "gptq"
    assert bits(LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 3}), None) == 3
    assert quantizing("8bit", "float16").load_in_8bit
    four_bits = quantizing("4bit", "float16")
    assert (four_bits.bnb_4bit_quant_type, four_bits.bnb_4bit_compute_dtype) == (
        "nf4",
        torch.float16,
    )


def test_linear_layers_but_the_head_take_fewer_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    linear = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    others = 2 * 100 * 32 + 32 * (2 * 3 + 1)
    model = without_weights(config, torch.bfloat16)
    assert weight_bytes(model, None) == 2 * (linear + others)
    assert weight_bytes(model, 8) == linear + 2 * others
    assert weight_bytes(model, 4) == linear // 2 + 2 * others

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**6, 10**6))
    expected = budget_in(10**6 - linear // 2 - 2 * others, config, 2)
    assert fitting_budget(config, "bfloat16", "cuda:0", None, "4bit") == expected


def test_parameters_are_those_that_packed_weights_stand_for(checkpoint: Path) -> None:
    model: Any = load_model(str(checkpoint), "float32", "cpu")
    whole = sum(p.numel() for p in model.parameters())
    model.config.quantization_config = BNB
    packed = model.model.layers[0].mlp.up_proj
    packed.weight = torch.nn.Parameter(packed.weight.data[: packed.weight.shape[0] // 2])
    assert loading.parameter_count(model) == whole
