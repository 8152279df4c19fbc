"""Where a model runs: its device or devices, dtype and token budget; and loading it there.

Only complete causal language models in safetensors or GGUF files are loaded. A missing weight, or
one that would be copied from main memory for every batch, is an error.
"""

import gc
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError

from selectit_hf.errors import ModelError, SettingError, in_short
from selectit_hf.rating.engine.attention import check_attention, check_attention_in_use
from selectit_hf.rating.models.adapters import apply_adapter
from selectit_hf.rating.models.completeness import check_config, check_weights
from selectit_hf.rating.models.device_maps import devices, places, weight_bytes, without_weights
from selectit_hf.rating.models.quantization import (
    bits,
    check_device,
    check_stored,
    quantizing,
    stored_method,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = [
    "DEVICE_MAPS",
    "DTYPES",
    "budget_in",
    "choose_device",
    "choose_dtype",
    "default_budget",
    "embedding_rows",
    "fitting_budget",
    "input_device",
    "is_out_of_memory",
    "load_model",
    "parameter_count",
    "tame_fork",
]

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to spread a model over the visible GPUs, by transformers' names; the first two are equal."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "auto": None}
TOKEN_BUDGET = {"cuda": 32768, "cpu": 1024}

SMALLEST_BUDGET = 1024
HELD_OF_HIDDEN, HELD_OF_INNER = 12, 4
"""Numbers held for each token at once, in multiples of the widths of model and MLP; generous."""

OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "DefaultCPUAllocator",
)
UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError,
    SafetensorError, struct.error,
)  # fmt: skip
"""What transformers raises for files that are missing, cut off, or of another model."""

_IMPORTED_IN = os.getpid()


def choose_device(device: str | None, rank: int | None = None) -> str:
    """``device`` itself, else this rank's CUDA GPU, else the CPU.

    Raises:
        SettingError: a CUDA device that is not there.
    """
    count = torch.cuda.device_count()
    if device is None:
        return f"cuda:{(rank or 0) % count}" if count else "cpu"
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise SettingError(f"device={device!r} is unknown; use 'cpu' or 'cuda:0'.") from error
    if asked.type == "cuda" and (asked.index or 0) >= count:
        raise SettingError(f"device={device!r} is not available: {count} CUDA devices are visible.")
    return device


def choose_dtype(dtype: str | None, device: str) -> str:
    """``dtype`` by its long name, else bfloat16 on CUDA and float32 elsewhere.

    ``fp32``, ``bf16`` and ``fp16`` are short for the long names; ``auto`` is the same as ``None``.

    Raises:
        SettingError: a dtype that is none of these.
    """
    dtype = SHORT_DTYPES.get(dtype, dtype) if dtype is not None else None
    if dtype is None:
        return "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in DTYPES:
        known = ", ".join([*DTYPES, *SHORT_DTYPES])
        raise SettingError(f"dtype={dtype!r} is unknown; choose one of {known}.")
    return dtype


def default_budget(device: str) -> int:
    """Padded tokens in a forward pass on ``device`` by default."""
    return TOKEN_BUDGET.get(torch.device(device).type, TOKEN_BUDGET["cpu"])


def fitting_budget(
    config: "PreTrainedConfig",
    dtype: str,
    device: str,
    device_map: str | None = None,
    quantization: str | None = None,
) -> int:
    """Padded tokens in a forward pass that fit on ``device`` in addition to the weights.

    The CPU gets `default_budget`. CUDA gets a power of two of at most that, for which the
    activations of one layer fit into half of the memory that is free now and not needed by the
    weights. With a ``device_map`` the weights are assumed to be spread evenly over the fewest
    visible GPUs that can hold them, each with the free memory of the fullest: all workers of a run
    use one budget, and some may have no more GPUs than that.
    """
    if torch.device(device).type != "cuda":
        return default_budget(device)
    model = without_weights(config, DTYPES[dtype])
    weights = weight_bytes(model, bits(config, quantization))
    seen = range(torch.cuda.device_count()) if device_map else (device,)
    with _room(device, device_map):
        free = max(min(torch.cuda.mem_get_info(one)[0] for one in seen), 1)
    fewest = -(-weights // free) if device_map else 1
    return budget_in(free - weights // fewest, config, DTYPES[dtype].itemsize)


def budget_in(room: int, config: "PreTrainedConfig", itemsize: int) -> int:
    """Padded tokens that fit in ``room`` bytes, at ``itemsize`` bytes per number."""
    text = config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    each = itemsize * (HELD_OF_HIDDEN * text.hidden_size + HELD_OF_INNER * inner)
    tokens = max(room // 2 // each, SMALLEST_BUDGET)
    return min(1 << (int(tokens).bit_length() - 1), TOKEN_BUDGET["cuda"])


def load_model(
    path: str,
    dtype: str,
    device: str,
    device_map: str | None = None,
    *,
    adapter: str | None = None,
    quantization: str | None = None,
    attn_implementation: str | None = None,
    config: "PreTrainedConfig | None" = None,
    **arguments: Any,
) -> "PreTrainedModel":
    """Load a causal language model from safetensors or a GGUF file, in ``dtype``, onto ``device``.

    With a ``device_map``, one of `DEVICE_MAPS`, its layers are spread over all visible GPUs
    instead, or put on the CPU where there are none. ``adapter`` is a folder whose adapter is
    applied; ``quantization`` one of `selectit_hf.rating.models.quantization.QUANTIZATIONS`;
    ``attn_implementation`` one of `ATTENTIONS`; ``config`` the configuration in ``path``, if it was
    read before, since reading takes long for a GGUF file. Further ``arguments`` are passed to
    ``from_pretrained``.

    Raises:
        ModelError: no safetensors weights, an unknown architecture, weights that are missing
            (they would be drawn at random) or left out, an architecture whose layers cannot be
            spread, devices that do not hold them all, or an adapter that does not fit.
        SettingError: it cannot be quantized, or compute its attention, in the way asked for.
    """
    tame_fork()
    check_device(quantization, device)
    check_attention(attn_implementation, dtype)
    # An earlier model that was spread is kept alive by reference cycles through its hooks.
    gc.collect()
    torch.cuda.empty_cache()
    with _room(device, device_map):
        config = _config(path, **arguments) if config is None else config
        check_config(config)
        stored = check_stored(config, quantization, device, "gguf_file" in arguments)
        plain = stored is None and quantization is None
        settings = _settings(config, dtype, device, device_map, quantization, attn_implementation)
        model = _read(path, dtype, config, **settings, **arguments)
        check_attention_in_use(model, attn_implementation)
        if adapter is not None:
            model = apply_adapter(model, adapter, merge=plain)
        placed = cast(Any, model).to(torch.device(device)) if plain and not device_map else model
        _check_causal(placed.eval())
    return cast("PreTrainedModel", placed)


def embedding_rows(model: "PreTrainedModel | PreTrainedConfig") -> int:
    """The number of token ids, from 0 on, that a model has an embedding for.

    The configuration gives it before the weights are read; these may have more rows, never fewer.
    """
    if hasattr(model, "get_input_embeddings"):
        return int(cast(Any, model).get_input_embeddings().num_embeddings)
    return int(cast(Any, model).get_text_config().vocab_size)


def parameter_count(model: "PreTrainedModel") -> int:
    """The number of parameters, tied ones counted once, quantized ones as if unquantized."""
    if stored_method(model.config) in (None, "gguf"):
        return sum(p.numel() for p in model.parameters())
    whole = without_weights(model.config, model.dtype)
    return sum(p.numel() for p in whole.parameters())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, in any of the ways PyTorch says it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


@contextmanager
def _room(device: str, device_map: str | None) -> Iterator[None]:
    """Say what helps if memory runs out while a model is loaded."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where, helps = devices() if device_map else device, ""
        if not device_map and torch.device(device).type == "cuda":
            helps = "all GPUs together (--device-map auto), "
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"The model does not fit in the memory of {where} ({said}). Use {helps}a 16-bit dtype "
            "(--dtype bfloat16), fewer --workers, or a smaller model."
        ) from error


def _config(path: str, **arguments: Any) -> "PreTrainedConfig":
    from transformers import AutoConfig

    try:
        return cast("PreTrainedConfig", AutoConfig.from_pretrained(path, **arguments))
    except UNREADABLE as error:
        raise _unloadable(error) from error


def _settings(
    config: "PreTrainedConfig",
    dtype: str,
    device: str,
    device_map: str | None,
    quantization: str | None,
    attn_implementation: str | None,
) -> dict[str, Any]:
    """Arguments for ``from_pretrained``, which places quantized weights; others are moved later."""
    settings: dict[str, Any] = {"device_map": None}
    if device_map is not None:
        settings["device_map"] = places(config, DTYPES[dtype], device_map, quantization)
    elif quantization is not None or stored_method(config) is not None:
        settings["device_map"] = {"": device}
    if quantization is not None:
        settings["quantization_config"] = quantizing(quantization, dtype)
    if attn_implementation is not None:
        settings["attn_implementation"] = attn_implementation
    return settings


def _read(path: str, dtype: str, config: "PreTrainedConfig", **arguments: Any) -> "PreTrainedModel":
    """The model with all its weights, on the CPU or where the ``arguments`` say."""
    from transformers import AutoModelForCausalLM, GgufConfig

    if "gguf_file" in arguments:
        # Otherwise transformers would compute from its blocks with a kernel from the Hub.
        arguments |= {"quantization_config": GgufConfig(dequantize=True), "config": config}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True, **arguments
        )
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        raise _unloadable(error) from error
    model, info = loaded
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "Load the adapter by itself: its folder has weights that it may already be merged into."
        )
    layers = {n: len(m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    predictors = getattr(model.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    check_weights(info["missing_keys"], info["unexpected_keys"], layers, predictors)
    return cast("PreTrainedModel", model)


def _unloadable(error: BaseException) -> ModelError:
    return ModelError(
        "Name a causal language model with safetensors weights or a GGUF file, since the weights "
        f"cannot be loaded: {in_short(error)}. Code from a model repository is never run."
    )


def input_device(model: "PreTrainedModel") -> torch.device:
    """The device that takes token ids; if the model was spread, its layers may be elsewhere."""
    embedding = cast(Any, model).get_input_embeddings()
    return cast(torch.device, next(embedding.parameters()).device)


@torch.inference_mode()
def _check_causal(model: "PreTrainedModel") -> None:
    """Refuse a model in which later tokens affect earlier positions, since padding is unmasked."""
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=input_device(model))
    try:
        one, other = model(input_ids=ids, use_cache=False).logits[:, :3].float()
    except (AssertionError, ImportError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"Use another checkpoint, dtype, attention or device: {type(model).__name__} cannot "
            f"compute with these ({in_short(error)})."
        ) from error
    if not torch.allclose(one, other, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ModelError(
            f"{type(model).__name__} is not causal: later tokens change what it predicts at "
            "earlier positions. Use a causal language model."
        )


def tame_fork() -> None:
    """In a forked worker, use one thread: the parent's threads do not exist there."""
    if os.getpid() != _IMPORTED_IN:
        torch.set_num_threads(1)
