"""Does the engine equal plain forward passes on every causal architecture that can be made small?

Goes through transformers' mapping of causal language models, makes a small random model of each
configuration class that allows it, and reads sequences with shared beginnings with the engine and
with a plain loop. It prints a line for each: the way used and the largest difference, or why the
model was refused or not made. Exits 1 if any difference is over 1e-4, or if fewer than
``--least`` architectures were equal. The last line is JSON.

    python scripts/checks/check_architectures.py
    python scripts/checks/check_architectures.py --only deepseek_v32 glm_moe_dsa doge
"""

import argparse
import inspect
import json
import logging
import sys
import warnings
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from selectit_hf.errors import ModelError
from selectit_hf.rating.engine.engine import Engine

VOCABULARY = 211
READ = (3, 17, 54, 101, 200)
PREFIXES = ([9, 8, 7, 6, 5], [9, 8, 7, 4, 4, 4, 3])
LARGEST = 5_000_000
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 64, "ffn_dim": 64, "d_ff": 64, "n_inner": 64, "ffn_hidden_size": 64,
    "decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "num_layers": 2, "num_hidden_layers": 2,
    "n_layer": 2, "n_layers": 2, "decoder_layers": 2, "encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4,
    "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1, "index_head_dim": 8,
    "index_n_heads": 2, "index_topk": 16, "mamba_d_state": 8, "mamba_n_heads": 4,
    "mamba_d_head": 16, "mamba_expand": 2, "state_size": 8, "time_step_rank": 4,
    "attention_hidden_size": 32, "lru_width": 32, "keep_window_size": 16, "rotary_dim": 4,
}  # fmt: skip
AGAIN: dict[str, dict[str, Any]] = {
    # Architectures that the sizes above do not fit.
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v3": {"num_key_value_heads": 4},
    "deepseek_v32": {"num_key_value_heads": 4},
    "deepseek_v2": {"num_key_value_heads": 4},
    "glm_moe_dsa": {"num_key_value_heads": 4},
}


def small(kind: type[PretrainedConfig]) -> PretrainedConfig:
    """A configuration of that kind with small sizes."""
    known = {*inspect.signature(kind.__init__).parameters, *vars(kind())}
    sizes = {name: value for name, value in SMALL.items() if name in known}
    return kind(**{**sizes, **AGAIN.get(kind.model_type, {})})


def spread(model: Any) -> Any:
    """Make weights large enough that a wrong position or a lost token shows."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) / weight.shape[-1] ** 0.5)
    return model.eval()


def sequences() -> list[list[int]]:
    numbers = np.random.default_rng(1)
    rows = [numbers.integers(3, VOCABULARY, numbers.integers(1, 90)).tolist() for _ in range(18)]
    return [[*([], *PREFIXES)[i % 3], *row] for i, row in enumerate(rows)]


@torch.no_grad()
def literal(model: Any, ids: list[list[int]]) -> np.ndarray:
    """A plain forward pass for each sequence alone."""
    found = []
    for row in ids:
        logits = model(input_ids=torch.tensor([row])).logits[0, -1].double()
        found.append(torch.log_softmax(logits, dim=-1)[list(READ)].numpy())
    return np.array(found)


def tried(name: str) -> dict[str, Any]:
    """The result for one architecture."""
    torch.manual_seed(0)
    try:
        config = small(CONFIG_MAPPING[name])
        with torch.device("meta"):
            sized = AutoModelForCausalLM.from_config(config)
        if sum(p.numel() for p in sized.parameters()) > LARGEST:
            return {"not_made": "too large with the sizes tried"}
        model = AutoModelForCausalLM.from_config(config)
        expected = literal(spread(model), sequences())
    except Exception as error:
        return {"not_made": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
    if not np.isfinite(expected).all():
        return {"not_made": "a plain forward pass gives no finite numbers"}
    try:
        read = Engine(model, 300).next_token_logprobs(sequences(), READ, prefixes=PREFIXES)
    except ModelError as error:
        return {"refused": str(error)[:160]}
    gap = float(np.abs(read.values - expected).max())
    return {"way": read.reading.way, "gap": gap}


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--only", nargs="+", help="these model types")
    flags.add_argument("--least", type=int, default=65, help="how many must be equal")
    given = flags.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    found = {}
    for name in given.only or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        found[name] = tried(name)
        print(f"{name:28}", *(f"{k}={v}" for k, v in found[name].items()), flush=True)
    read = {name: one for name, one in found.items() if "gap" in one}
    off = [name for name, one in read.items() if not one["gap"] < 1e-4]
    print(
        json.dumps(
            {
                "transformers": transformers.__version__,
                "tried": len(found),
                "equal": len(read) - len(off),
                "off": off,
                "refused": [name for name, one in found.items() if "refused" in one],
                "not_made": len([name for name, one in found.items() if "not_made" in one]),
                "ways": {
                    way: sum(one["way"] == way for one in read.values())
                    for way in sorted({one["way"] for one in read.values()})
                },
                "largest_gap": max((one["gap"] for one in read.values()), default=None),
            }
        )
    )
    if off or (not given.only and len(read) - len(off) < given.least):
        sys.exit(1)


if __name__ == "__main__":
    main()
