"""PEFT adapters: against dense weights computed literally, pinned with their base, never lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora import ALPHA, CHANGED, RANK, write_adapter
from safetensors.torch import load_file, save_file

from selectit_hf import SentenceScore
from selectit_hf.errors import ModelError
from selectit_hf.rating.models import adapters
from selectit_hf.rating.models.loading import load_model
from selectit_hf.rating.models.model_names import resolve

ROWS = {"instruction": ["Name a colour.", "Add 1 and 2."], "output": ["Blue", "3"]}


def write_dense(folder: Path, base: Path, adapter: Path) -> Path:
    """The whole checkpoint that the adapter stands for: ``W + alpha / r * B @ A``."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    lora = load_file(adapter / "adapter_model.safetensors")
    for layer in range(2):
        for name in CHANGED:
            key = f"model.layers.{layer}.{name}"
            b, a = (lora[f"base_model.model.{key}.lora_{one}.weight"] for one in "BA")
            weights[f"{key}.weight"] += ALPHA / RANK * b @ a
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def base(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(tmp_path / "base")


@pytest.fixture
def lora(tmp_path: Path, base: Path) -> Path:
    return write_adapter(tmp_path / "lora", base)


def ratings(model: Path, **settings: Any) -> np.ndarray:
    return SentenceScore(str(model), **settings).rate(ROWS).logprobs


def test_ratings_are_those_of_the_dense_weights(tmp_path: Path, base: Path, lora: Path) -> None:
    dense = write_dense(tmp_path / "dense", base, lora)
    adapted = ratings(lora)
    np.testing.assert_allclose(adapted, ratings(dense), atol=1e-5)
    assert np.abs(adapted - ratings(base)).max() > 0.01
    facts = SentenceScore(str(lora)).rate(ROWS).rater
    assert facts["model"] == "lora"
    assert facts["parameters"] == SentenceScore(str(base)).rate(ROWS).rater["parameters"]


@pytest.mark.parametrize("changed", ["embed_tokens", "lm_head"])
def test_what_changes_a_tied_end_leaves_the_other(
    changed: str, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    base = make_checkpoint(tmp_path / "base", tie_word_embeddings=True)
    lora = write_adapter(tmp_path / "lora", base, target_modules=[changed])
    tied = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    tokens = len(tied)
    a, b = torch.randn(RANK, tokens), torch.randn(32, RANK)
    key = "base_model.model.model.embed_tokens"
    named = {f"{key}.lora_embedding_A": a, f"{key}.lora_embedding_B": b}
    product = (b @ a).T
    if changed == "lm_head":
        a, b = torch.randn(RANK, 32), torch.randn(tokens, RANK)
        key = "base_model.model.lm_head"
        named = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        product = b @ a
    save_file(named, lora / "adapter_model.safetensors")
    other = {"embed_tokens": "lm_head", "lm_head": "embed_tokens"}[changed]
    dense = shutil.copytree(base, tmp_path / "dense")
    weights = load_file(dense / "model.safetensors")
    places = {"embed_tokens": "model.embed_tokens.weight", "lm_head": "lm_head.weight"}
    weights[places[changed]] = tied + ALPHA / RANK * product
    weights[places[other]] = tied.clone()
    save_file(weights, dense / "model.safetensors", {"format": "pt"})
    config = json.loads((dense / "config.json").read_text()) | {"tie_word_embeddings": False}
    (dense / "config.json").write_text(json.dumps(config))
    np.testing.assert_allclose(ratings(lora), ratings(dense), atol=2e-5)


def cut_off(lora: Path) -> None:
    weights = lora / adapters.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:500])


def without_a_name_of_its_base(lora: Path) -> None:
    config = json.loads((lora / adapters.CONFIG).read_text()) | {"base_model_name_or_path": 5}
    (lora / adapters.CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize("damage", [cut_off, without_a_name_of_its_base])
def test_a_damaged_adapter_is_named(damage: Callable[[Path], None], lora: Path) -> None:
    damage(lora)
    with pytest.raises(ModelError, match=r"'lora'.*cannot be read"):
        ratings(lora)


def test_in_16_bits_the_product_is_computed_in_32(base: Path, lora: Path) -> None:
    checkpoint = resolve(str(lora))
    model = load_model(str(base), "bfloat16", "cpu", adapter=checkpoint.adapter_folder())
    weights = load_file(base / "model.safetensors")
    factors = load_file(lora / "adapter_model.safetensors")
    key = "model.layers.1.self_attn.q_proj"
    b, a = (factors[f"base_model.model.{key}.lora_{one}.weight"] for one in "BA")
    expected = weights[f"{key}.weight"].bfloat16() + (ALPHA / RANK * (b @ a)).bfloat16()
    assert torch.equal(model.get_submodule(key).weight, expected)  # type: ignore[arg-type]


def test_the_key_is_that_of_adapter_and_base(tmp_path: Path, base: Path, lora: Path) -> None:
    before = SentenceScore(str(lora))
    key, revision = before.rating_key(), before.checkpoint.revision
    own, joint, of_base = revision.partition("~")
    assert (joint, of_base) == ("~", resolve(str(base)).revision)
    assert resolve(str(lora), revision) == resolve(str(lora), own) == before.checkpoint

    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert before.rating_key() != key
    with pytest.raises(ModelError, match=r"folder 'base' holds sha256:.*not revision"):
        resolve(str(lora), revision)

    factors = load_file(lora / "adapter_model.safetensors")
    save_file({name: 2 * value for name, value in factors.items()}, lora / adapters.WEIGHTS)
    assert resolve(str(lora)).revision.partition("~")[0] != own


def test_a_base_that_is_not_there_is_named(tmp_path: Path, base: Path) -> None:
    gone = write_adapter(tmp_path / "gone", "/models/that/are/not/here")
    with pytest.raises(ModelError, match=r"base of the adapter 'gone' with --base-model") as caught:
        resolve(str(gone))
    assert "'/models/that/are/not/here'" in str(caught.value)
    told = SentenceScore(str(gone), base_model=str(base))
    found = write_adapter(tmp_path / "found" / "gone", base)
    assert told.checkpoint.base == resolve(str(base))
    np.testing.assert_array_equal(told.rate(ROWS).logprobs, ratings(found))
    with pytest.raises(ModelError, match="is a whole model, not an adapter"):
        resolve(str(base), base_model=str(base))
    stacked = write_adapter(tmp_path / "stacked", found)
    with pytest.raises(ModelError, match="Merge the adapter 'gone' into its own base first"):
        resolve(str(stacked))


def test_the_tokenizer_is_the_adapters_own_where_it_has_one(
    base: Path, lora: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    assert resolve(str(lora)).tokenizer().get_vocab() == resolve(str(base)).tokenizer().get_vocab()
    other = make_checkpoint(tmp_path / "other", kind="bpe_merge")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(other / name, lora)
    own = resolve(str(lora)).tokenizer().get_vocab()
    assert own == resolve(str(other)).tokenizer().get_vocab()
    assert own != resolve(str(base)).tokenizer().get_vocab()


# Never lost


def pickled(base: Path, lora: Path) -> Path:
    (lora / adapters.WEIGHTS).rename(lora / "adapter_model.bin")
    return lora


def beside_whole_weights(base: Path, lora: Path) -> Path:
    for path in lora.iterdir():
        shutil.copy(path, base)
    return base


def beside_whole_weights_without_its_own(base: Path, lora: Path) -> Path:
    shutil.copy(lora / adapters.CONFIG, base)
    return base


def for_classes(base: Path, lora: Path) -> Path:
    return write_adapter(lora.parent / "classes", base, task_type="SEQ_CLS")


def broken(base: Path, lora: Path) -> Path:
    (lora / adapters.CONFIG).write_text("[]")
    return lora


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (pickled, r"no adapter_model\.safetensors \(adapter_model\.bin is a pickle"),
        (beside_whole_weights, "Move adapter_config.json and .* into a folder of their own"),
        (beside_whole_weights_without_its_own, "'base' holds whole weights"),
        (for_classes, "task SEQ_CLS"),
        (broken, "adapter_config.json of 'lora' cannot be read"),
    ],
)
def test_what_cannot_be_told_or_loaded_is_refused_before(
    base: Path, lora: Path, make: Callable[[Path, Path], Path], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        resolve(str(make(base, lora)))


def test_transformers_applies_none_by_itself(base: Path, lora: Path) -> None:
    """As it would, of a folder that is loaded without a look at its files."""
    with pytest.raises(ModelError, match="Load the adapter by itself"):
        load_model(str(beside_whole_weights(base, lora)), "float32", "cpu")


def without_one(weights: dict[str, torch.Tensor]) -> None:
    del weights["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]


def with_a_third_layer(weights: dict[str, torch.Tensor]) -> None:
    for one in "AB":
        key = f"self_attn.q_proj.lora_{one}.weight"
        first = weights[f"base_model.model.model.layers.0.{key}"]
        weights[f"base_model.model.model.layers.2.{key}"] = first.clone()


def wider(weights: dict[str, torch.Tensor]) -> None:
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    weights[key] = torch.cat([weights[key]] * 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_one, "layers.1.mlp.down_proj.lora_B.*is missing"),
        (with_a_third_layer, r"layers\.2\.self_attn.*has no place"),
        (wider, "size mismatch"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    base: Path, lora: Path, change: Callable[[dict[str, torch.Tensor]], None], says: str
) -> None:
    weights = load_file(lora / adapters.WEIGHTS)
    change(weights)
    save_file(weights, lora / adapters.WEIGHTS)
    with pytest.raises(ModelError, match=says):
        load_model(str(base), "float32", "cpu", adapter=str(lora))


def test_virtual_tokens_are_refused(base: Path, tmp_path: Path) -> None:
    settings = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "r": None}
    prefix = write_adapter(tmp_path / "prefix", base, **settings)
    with pytest.raises(ModelError, match="'prefix' adds virtual tokens"):
        load_model(str(base), "float32", "cpu", adapter=str(prefix))


def test_without_peft_it_says_what_to_install(
    base: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'peft>="):
        SentenceScore(str(lora)).rate(ROWS)


def test_unmerged_beside_quantized_weights_it_is_the_same(base: Path, lora: Path) -> None:
    """Quantized weights are not rounded again; here plain ones stand for them."""
    merged = load_model(str(base), "float32", "cpu", adapter=str(lora))
    apart = adapters.apply_adapter(load_model(str(base), "float32", "cpu"), str(lora), merge=False)
    assert type(apart) is type(merged)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(
            apart(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )
