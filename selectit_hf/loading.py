"""Where a model runs: its device or devices, dtype and token budget; and loading it there.

Only causal language models, from safetensors, and whole: a weight that is missing, or that would be
fetched from main memory for every batch, is an error.
"""

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError

from selectit_hf.errors import ModelError, SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = [
    "DEVICE_MAPS",
    "DTYPES",
    "budget_in",
    "choose_device",
    "choose_dtype",
    "default_budget",
    "fitting_budget",
    "input_device",
    "is_out_of_memory",
    "load_model",
    "tame_fork",
]

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to spread one model over the visible GPUs, by transformers' names; the first two are one."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKEN_BUDGET = {"cuda": 32768, "cpu": 1024}

SMALLEST_BUDGET = 1024
HELD_OF_HIDDEN, HELD_OF_INNER = 12, 4
"""What is held of each token at once, in its width and in its MLP's; generous."""

OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "DefaultCPUAllocator",
)
UNREADABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises about files that are not there, cut off, or of another model."""

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
        raise SettingError(f"device={device!r} is not there: {count} CUDA devices are visible.")
    return device


def choose_dtype(dtype: str | None, device: str) -> str:
    """``dtype`` itself, else bfloat16 on CUDA and float32 elsewhere.

    Raises:
        SettingError: a dtype that is not in `DTYPES`.
    """
    if dtype is None:
        return "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in DTYPES:
        raise SettingError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")
    return dtype


def default_budget(device: str) -> int:
    """Padded tokens a forward pass on ``device`` may hold, where none are given."""
    return TOKEN_BUDGET.get(torch.device(device).type, TOKEN_BUDGET["cpu"])


def fitting_budget(
    config: "PreTrainedConfig", dtype: str, device: str, device_map: str | None = None
) -> int:
    """Padded tokens that a forward pass can hold beside the weights on ``device``.

    On CUDA half of the memory that is free now and not needed by the weights is given to what a
    layer holds of each token; a power of two, at most `default_budget`, which the CPU has. With a
    ``device_map`` the weights count as spread evenly over as few of the visible GPUs as hold them,
    each with what the fullest has free: all workers of a run keep to one budget, and some may have
    no more GPUs than that.
    """
    if torch.device(device).type != "cuda":
        return default_budget(device)
    model = _without_weights(config, dtype)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    seen = range(torch.cuda.device_count()) if device_map else (device,)
    with _room(device, device_map):
        free = max(min(torch.cuda.mem_get_info(one)[0] for one in seen), 1)
    fewest = -(-weights // free) if device_map else 1
    return budget_in(free - weights // fewest, config, DTYPES[dtype].itemsize)


def budget_in(room: int, config: "PreTrainedConfig", itemsize: int) -> int:
    """Padded tokens for which ``room`` bytes are enough, of ``itemsize`` bytes a number."""
    text = config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    each = itemsize * (HELD_OF_HIDDEN * text.hidden_size + HELD_OF_INNER * inner)
    tokens = max(room // 2 // each, SMALLEST_BUDGET)
    return min(1 << (int(tokens).bit_length() - 1), TOKEN_BUDGET["cuda"])


def load_model(
    path: str, dtype: str, device: str, device_map: str | None = None, **arguments: Any
) -> "PreTrainedModel":
    """Load a causal language model from safetensors, in ``dtype``, onto ``device``.

    With a ``device_map``, one of `DEVICE_MAPS`, its layers are spread over all visible GPUs
    instead, or put on the CPU where there are none.

    Raises:
        ModelError: no safetensors weights, an unknown architecture, weights that are missing
            (they would be drawn at random), an architecture whose layers cannot be spread, or
            devices that do not hold them all.
    """
    tame_fork()
    # A model that was spread before this one holds itself in a circle, by its hooks.
    gc.collect()
    torch.cuda.empty_cache()
    with _room(device, device_map):
        model = _read(path, dtype, device_map, **arguments)
        placed = (model if device_map else cast(Any, model).to(torch.device(device))).eval()
        _check_causal(placed)
    return cast("PreTrainedModel", placed)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, in any of the ways PyTorch says it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


@contextmanager
def _room(device: str, device_map: str | None) -> Iterator[None]:
    """Say what helps where memory runs out before a model computes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where, helps = _devices() if device_map else device, ""
        if not device_map and torch.device(device).type == "cuda":
            helps = "all GPUs together (--device-map auto), "
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"The model does not fit in the memory of {where} ({said}). Take {helps}a 16-bit dtype "
            "(--dtype bfloat16), fewer --workers, or a smaller model."
        ) from error


def _read(path: str, dtype: str, device_map: str | None, **arguments: Any) -> "PreTrainedModel":
    """The model with all its weights, spread as ``device_map`` says or on the CPU."""
    from transformers import AutoModelForCausalLM

    try:
        places = _places(path, dtype, device_map, **arguments) if device_map else None
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            device_map=places,
            **arguments,
        )
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"The weights cannot be loaded: {str(error).strip().removesuffix('.')}. Only causal "
            "language models with safetensors weights are loaded, and code of a model repository "
            "is never run."
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"The checkpoint lacks {len(missing)} weights, {missing[0]!r} among them, which would "
            "have been drawn at random; use a complete causal language model."
        )
    return cast("PreTrainedModel", model)


def _without_weights(config: "PreTrainedConfig", dtype: str) -> Any:
    """A model on the meta device: the sizes of its weights, and none of them."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return cast(Any, AutoModelForCausalLM).from_config(config, dtype=DTYPES[dtype])


def _places(path: str, dtype: str, device_map: str, **arguments: Any) -> dict[str, int | str]:
    """The device of each part of a model, by its name, before any weight is read."""
    from accelerate.utils import get_balanced_memory, get_max_memory, infer_auto_device_map
    from transformers import AutoConfig

    model = _without_weights(AutoConfig.from_pretrained(path, **arguments), dtype)
    whole = sorted(model._no_split_modules or ())
    if device_map == "sequential":
        free = get_max_memory()
    else:
        low_zero = device_map == "balanced_low_0"
        free = get_balanced_memory(model, no_split_module_classes=whole, low_zero=low_zero)
    places = infer_auto_device_map(
        model, max_memory=_of_cuda_and_cpu(free), no_split_module_classes=whole
    )
    _check_fits(places)
    if not whole and len(set(places.values())) > 1:
        raise ModelError(
            f"{type(model).__name__} cannot be spread over several GPUs, since it does not say "
            "which of its parts must stay whole; load it on one device (--device cuda:0)."
        )
    return dict(places)


def _of_cuda_and_cpu(free: Mapping[int | str, int]) -> dict[int | str, int]:
    """Bytes by place, without accelerators of other kinds, which nothing else here knows.

    On a Mac accelerate names only the GPU, whose memory is that of the CPU.
    """
    gpus = range(torch.cuda.device_count())
    kept = {place: size for place, size in free.items() if place == "cpu" or place in gpus}
    return kept or {"cpu": max(free.values(), default=0)}


def _check_fits(places: Mapping[str, int | str]) -> None:
    """Refuse a model of which parts would have to be fetched again for every batch."""
    outside = {"cpu", "disk"} if torch.cuda.device_count() else {"disk"}
    left = [name for name, place in places.items() if place in outside]
    if left:
        raise ModelError(
            f"The model does not fit on {_devices()}: {len(left)} of its {len(places)} parts, "
            f"{left[0] or 'all'!r} first, would stay in main memory or on the disk, which is "
            "hundreds of times slower and not done. Take more or larger GPUs, a 16-bit dtype, "
            "fewer --workers, or a smaller model."
        )


def _devices() -> str:
    """All that a model is spread over, in words."""
    gpus = torch.cuda.device_count()
    if gpus > 1:
        return f"the {gpus} visible GPUs"
    return "the one visible GPU" if gpus else "the CPU"


def input_device(model: "PreTrainedModel") -> torch.device:
    """Where a model takes token ids, which is not where all its layers are if it was spread."""
    embedding = cast(Any, model).get_input_embeddings()
    return cast(torch.device, next(embedding.parameters()).device)


@torch.inference_mode()
def _check_causal(model: "PreTrainedModel") -> None:
    """Padding is left unmasked, so what comes later must not reach an earlier position."""
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=input_device(model))
    one, other = model(input_ids=ids, use_cache=False).logits[:, :3].float()
    if not torch.allclose(one, other, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ModelError(
            f"{type(model).__name__} is not causal: what follows a token changes what it predicts "
            "there. Only causal language models rate."
        )


def tame_fork() -> None:
    """In a forked worker, use one thread: the threads of the parent are not there to wait for."""
    if os.getpid() != _IMPORTED_IN:
        torch.set_num_threads(1)
