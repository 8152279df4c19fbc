"""GGUF files: the weights that were written, whatever the file is called by."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from selectit_hf.errors import ModelError, SettingError
from selectit_hf.rating.models import checkpoints
from selectit_hf.rating.models.loading import embedding_rows, load_model
from selectit_hf.rating.models.model_names import is_local, resolve, slug

WORDS = [*map(chr, range(33, 127)), "Ġ", "Ċ", "he", "Ġthe"]
MERGES = ["h e", "Ġ t", "Ġt he"]
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(5)
    words = ["<unk>", "<s>", "</s>", *WORDS, "Ġt"]
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Query and key rows as GGUF has them: the two halves of each head's rotation in turns."""
    rows = [
        weight[head * size + half * size // 2 + i]
        for size in [weight.shape[0] // heads]
        for head in range(heads)
        for i in range(size // 2)
        for half in (0, 1)
    ]
    return np.stack(rows)


def write_gguf(path: Path, model: LlamaForCausalLM, seed_words: int = 0) -> Path:
    """A Llama in float32, written with the format's own library."""
    config: Any = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", *WORDS, "Ġt"])
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) + 1))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    for name, ours in NAMES.items():
        writer.add_tensor(name, state[ours])
    for layer in range(config.num_hidden_layers):
        for name, ours in OF_A_LAYER.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            heads = {"attn_q": 4, "attn_k": 2}.get(name)
            weight = interleaved(weight, heads) if heads else weight
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return write_gguf(tmp_path / "folder" / "tiny.gguf", tiny())


def test_logits_are_those_of_the_weights_written(file: Path) -> None:
    checkpoint = resolve(str(file))
    loaded = load_model(checkpoint.path, "float32", "cpu", **checkpoint.load_arguments)
    ids = torch.randint(3, embedding_rows(loaded), (1, 60))
    with torch.inference_mode():
        expected = tiny()(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    assert embedding_rows(checkpoint.config()) == embedding_rows(loaded)
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("the the")["input_ids"]) == ["t", "he", "Ġthe"]


def test_a_file_has_three_names_and_one_hash(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [str(file), f"{file.parent}:tiny.gguf", "folder/tiny.gguf", "folder:tiny.gguf"]
    assert all(map(is_local, names))
    found = {resolve(name) for name in names}
    (one,) = found
    assert (one.name, one.gguf_file) == ("folder:tiny.gguf", "tiny.gguf")
    assert slug(one.name) == "folder_tiny_gguf"
    assert not is_local("user/name:tiny.gguf")

    write_gguf(file.parent / "other.gguf", tiny())
    assert resolve(str(file)) == one
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert resolve(str(file)).revision != one.revision
    with pytest.raises(ModelError, match="not revision"):
        resolve(str(file), one.revision)


def test_a_file_that_is_cut_off_is_named(file: Path) -> None:
    for length in (4, 24, 100):
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(ModelError, match=r"'folder:tiny\.gguf' cannot be loaded"):
            resolve(str(file)).config()


def test_a_name_that_fits_no_file_says_which_there_are(file: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json.*as in folder:tiny\.gguf"):
        resolve(str(file.parent))
    with pytest.raises(ModelError, match=r"no file 'small\.gguf'; name one.*folder:tiny\.gguf"):
        resolve(f"{file.parent}:small.gguf")


def test_without_gguf_it_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'gguf>="):
        resolve(str(file)).tokenizer()


def test_it_is_not_quantized_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectit_hf.rating.models.loading.check_device", lambda *_: None)
    with pytest.raises(SettingError, match=r"Omit --quantization 4bit.*GGUF"):
        load_model(str(file.parent), "float32", "cpu", gguf_file="tiny.gguf", quantization="4bit")
