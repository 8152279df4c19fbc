"""The size of a model, and which of its parts go to which GPU, before any weight is read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from selectit_hf.errors import ModelError
from selectit_hf.rating.models.quantization import bits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["devices", "places", "weight_bytes", "without_weights"]


def without_weights(config: "PreTrainedConfig", dtype: torch.dtype) -> Any:
    """A model on the meta device, which has the sizes of the weights but no values."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return cast(Any, AutoModelForCausalLM).from_config(config, dtype=dtype)


def weight_bytes(model: Any, bits_each: int | None) -> int:
    """Bytes of a model's weights, where quantized weights take ``bits_each`` bits each."""
    few = set(_quantized(model)) if bits_each else set()
    return sum(
        p.numel() * (bits_each or 0) // 8 if name in few else p.numel() * p.element_size()
        for name, p in model.named_parameters()
    )


def _quantized(model: Any) -> list[str]:
    """The weights that quantizing makes smaller: of all linear layers but the head."""
    head = model.get_output_embeddings()
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]


def places(
    config: "PreTrainedConfig", dtype: torch.dtype, device_map: str, quantization: str | None = None
) -> dict[str, int | str]:
    """The device of each part of a model, by its name, before any weight is read.

    Raises:
        ModelError: the devices cannot hold all of it, or its layers are not known.
    """
    from accelerate.utils import get_balanced_memory, get_max_memory, infer_auto_device_map

    model = without_weights(config, dtype)
    whole = sorted(model._no_split_modules or ())
    small = _small_dtypes(model, bits(config, quantization))
    if device_map == "sequential":
        free = get_max_memory()
    else:
        low_zero = device_map == "balanced_low_0"
        free = get_balanced_memory(
            model, no_split_module_classes=whole, low_zero=low_zero, special_dtypes=small
        )
    found = infer_auto_device_map(
        model,
        max_memory=_of_cuda_and_cpu(free),
        no_split_module_classes=whole,
        special_dtypes=small,
    )
    _check_fits(found)
    if not whole and len(set(found.values())) > 1:
        raise ModelError(
            f"{type(model).__name__} cannot be spread over several GPUs, since it does not say "
            "which of its parts must stay whole; load it on one device (--device cuda:0)."
        )
    return dict(found)


def _small_dtypes(model: Any, bits_each: int | None) -> dict[str, Any]:
    """The dtypes of the weights that are quantized, as accelerate takes them."""
    from accelerate.utils import CustomDtype

    small = {4: CustomDtype.INT4, 8: torch.int8}.get(bits_each or 0)
    return {} if small is None else dict.fromkeys(_quantized(model), small)


def _of_cuda_and_cpu(free: Mapping[int | str, int]) -> dict[int | str, int]:
    """Free bytes of the GPUs and the CPU, without accelerators of other kinds.

    On a Mac, accelerate lists only the GPU, which shares its memory with the CPU.
    """
    gpus = range(torch.cuda.device_count())
    kept = {place: size for place, size in free.items() if place == "cpu" or place in gpus}
    return kept or {"cpu": max(free.values(), default=0)}


def _check_fits(places: Mapping[str, int | str]) -> None:
    """Refuse a model if parts of it would have to be loaded again for every batch."""
    outside = {"cpu", "disk"} if torch.cuda.device_count() else {"disk"}
    left = [name for name, place in places.items() if place in outside]
    if left:
        raise ModelError(
            f"The model does not fit on {devices()}: {len(left)} of its {len(places)} parts, "
            f"{left[0] or 'all'!r} first, would stay in main memory or on the disk, which is "
            "hundreds of times slower and not done. Use more or larger GPUs, a 16-bit dtype, "
            "fewer --workers, or a smaller model."
        )


def devices() -> str:
    """All devices that a model is spread over, in words."""
    gpus = torch.cuda.device_count()
    if gpus > 1:
        return f"the {gpus} visible GPUs"
    return "the one visible GPU" if gpus else "the CPU"
