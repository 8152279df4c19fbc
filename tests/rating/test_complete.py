"""Weights, configuration and tokenizer that do not belong together are refused."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from selectit_hf.errors import ModelError, TokenizerError
from selectit_hf.rating.models.completeness import check_tokenizer, check_weights
from selectit_hf.rating.models.loading import embedding_rows, load_model
from selectit_hf.rating.models.model_names import resolve


@pytest.fixture
def folder(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(tmp_path / "model", layers=3)


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add(folder: Path, **weights: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **weights}, path, {"format": "pt"})


def load(folder: Path) -> Any:
    return load_model(str(folder), "float32", "cpu")


@pytest.mark.parametrize("layers", [2, 4])
def test_a_configuration_of_another_number_of_layers_is_refused(folder: Path, layers: int) -> None:
    configure(folder, num_hidden_layers=layers)
    says = r"'model\.layers\.2\.\w+.*would be left out" if layers == 2 else "lacks .* weights"
    with pytest.raises(ModelError, match=says):
        load(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": 10**9}, "no model has 1,000,000,000 layers"),
        (
            {"attn_implementation": "somebody/attention"},
            "'somebody/attention', a kernel",
        ),
        ({"quantization_config": {"quant_method": "zip9"}}, "stored in 'zip9'"),
    ],
)
def test_layers_without_end_and_code_of_the_hub_are_refused(
    folder: Path, change: dict[str, Any], says: str
) -> None:
    configure(folder, **change)
    with pytest.raises(ModelError, match=says):
        load(folder)


def test_layers_without_the_models_prefix_are_seen_as_well(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    bare = {name.removeprefix("model."): value for name, value in weights.items()}
    save_file(bare, path, {"format": "pt"})
    load(folder)
    configure(folder, num_hidden_layers=2)
    with pytest.raises(ModelError, match="would be left out"):
        load(folder)


def test_buffers_that_are_computed_now_are_harmless(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    with caplog.at_level(logging.WARNING, "selectit_hf"):
        load(folder)
    assert not [r for r in caplog.records if r.name.startswith("selectit_hf")]


def test_other_weights_of_a_layer_that_are_not_used_are_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(folder, **{"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    with caplog.at_level(logging.WARNING, "selectit_hf"):
        load(folder)
    assert "1 weights of the checkpoint have no place" in caplog.text
    assert "'model.layers.0.self_attn.q_proj.bias'" in caplog.text


LAYERS = {"model.layers": 3, "model.layers.0.mlp.experts": 8}


@pytest.mark.parametrize(
    "unused",
    [
        "vision_tower.encoder.layers.20.mlp.fc1.weight",
        "visual.blocks.31.attn.qkv.weight",
        "mtp.layers.0.mlp.up_proj.weight",
        "lm_head.weight",
        "model.layers.3.eh_proj.weight",  # the one layer that predicts further tokens
    ],
)
def test_what_is_no_layer_of_the_language_model_is_left(unused: str) -> None:
    check_weights([], [unused], LAYERS, predictors=1)


@pytest.mark.parametrize(
    "unused",
    ["model.layers.4.mlp.up_proj.weight", "layers.7.x.y", "model.layers.0.mlp.experts.9.up.weight"],
)
def test_what_is_one_is_not(unused: str) -> None:
    with pytest.raises(ModelError, match="would be left out"):
        check_weights([], [unused], LAYERS, predictors=1)


# Tokenizers


def test_a_tokenizer_that_fits_is_let_through(folder: Path) -> None:
    checkpoint = resolve(str(folder))
    assert embedding_rows(checkpoint.config()) == embedding_rows(load(folder))
    check_tokenizer(embedding_rows(checkpoint.config()), checkpoint.tokenizer())


def test_an_added_token_without_embedding_is_told(
    bpe_split: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    rows = len(bpe_split)
    bpe_split.add_tokens(["<tool_call>"])
    check_tokenizer(rows, bpe_split)
    assert (
        "no embedding for 1 tokens that were added to its tokenizer ('<tool_call>')" in caplog.text
    )


def test_a_tokenizer_of_another_model_is_refused(bpe_split: PreTrainedTokenizerBase) -> None:
    with pytest.raises(
        TokenizerError, match=r"has the id \d+.*embeddings for the ids 0 to 49 only"
    ):
        check_tokenizer(50, bpe_split)


def test_a_first_token_without_embedding_is_refused(bpe_split: PreTrainedTokenizerBase) -> None:
    rows = len(bpe_split)
    bpe_split.add_special_tokens({"bos_token": "<new>"})
    start = processors.TemplateProcessing(single="<new> $A", special_tokens=[("<new>", rows)])
    bpe_split._tokenizer.post_processor = start
    with pytest.raises(TokenizerError, match=rf"token '<new>' has the id {rows}"):
        check_tokenizer(rows, bpe_split)
