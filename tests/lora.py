"""A random LoRA adapter as files."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK, ALPHA = 4, 8
CHANGED = {"self_attn.q_proj": (32, 32), "mlp.down_proj": (64, 32)}
"""Modules that the adapter changes: their inputs and outputs."""


def write_adapter(folder: Path, base: Path | str, **config: Any) -> Path:
    """A random LoRA adapter, its files written without `peft`."""
    folder.mkdir(parents=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": [name.rpartition(".")[2] for name in CHANGED],
    } | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    torch.manual_seed(3)
    weights = {}
    for layer in range(2):
        for name, (wide, high) in CHANGED.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(RANK, wide)
            weights[f"{key}.lora_B.weight"] = torch.randn(high, RANK)
    save_file(weights, folder / "adapter_model.safetensors")
    return folder
