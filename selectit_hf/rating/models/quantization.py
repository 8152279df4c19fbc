"""Weights in fewer bits: quantized while they are loaded, or stored quantized.

``8bit`` and ``4bit`` are bitsandbytes' LLM.int8() and NF4; the head and the embeddings stay as they
are. A checkpoint that is stored in fewer bits (GPTQ, AWQ, FP8, MXFP4, ...) is loaded by
transformers, or refused with the name of its method. Nothing here imports torch.
"""

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from selectit_hf.errors import ModelError, SettingError, how_to_install, in_short

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = [
    "QUANTIZATIONS",
    "bits",
    "check_device",
    "check_stored",
    "quantizing",
    "stored_method",
]

logger = logging.getLogger(__name__)

QUANTIZATIONS = {"8bit": 8, "4bit": 4}
STORED_BITS = {"bitsandbytes_8bit": 8, "bitsandbytes_4bit": 4, "fp8": 8, "mxfp4": 4}
"""Bits of methods whose configuration does not give them."""


def check_device(quantization: str | None, device: str) -> None:
    """Refuse, before anything is loaded, a quantization that cannot be done on ``device``.

    Raises:
        SettingError: it is unknown, or ``device`` is not a CUDA GPU.
        ModelError: bitsandbytes is not installed.
    """
    if quantization is None:
        return
    if quantization not in QUANTIZATIONS:
        raise SettingError(
            f"quantization={quantization!r} is unknown; choose one of {', '.join(QUANTIZATIONS)}."
        )
    if not device.startswith("cuda"):
        raise SettingError(
            f"Omit --quantization {quantization} (quantization=), or run on a machine with a CUDA "
            f"GPU: bitsandbytes computes in few bits on CUDA only, and the device here is {device}."
        )
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"Install bitsandbytes for --quantization {quantization}: "
            f"{how_to_install('quantization')}."
        )


def stored_method(config: "PreTrainedConfig") -> str | None:
    """How a checkpoint's weights are quantized, by transformers' name; ``None`` if they are not."""
    stored = _stored(config)
    if stored is None:
        return None
    if stored.get("load_in_4bit") or stored.get("load_in_8bit"):
        return f"bitsandbytes_{'4bit' if stored.get('load_in_4bit') else '8bit'}"
    method = stored.get("quant_method")
    return str(getattr(method, "value", method))


def check_stored(
    config: "PreTrainedConfig", quantization: str | None, device: str, is_gguf: bool = False
) -> str | None:
    """The method that a checkpoint is quantized with, if transformers can load it on ``device``.

    ``None`` for unquantized weights, and for a GGUF file, which is unpacked. If weights have to be
    unpacked because nothing can compute with them here, a warning names the method.

    Raises:
        SettingError: it is stored quantized, and ``quantization`` is set as well.
        ModelError: transformers does not know the method, or cannot compute it here.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoHfQuantizer

    method, stored = "GGUF" if is_gguf else stored_method(config), _stored(config)
    if method is None or (is_gguf and quantization is None):
        return None
    if quantization is not None:
        raise SettingError(
            f"Omit --quantization {quantization} (quantization=): the checkpoint is stored in "
            f"{method} already."
        )
    if method not in AUTO_QUANTIZER_MAPPING:
        raise ModelError(
            f"Use the model's checkpoint in 16 bits: this one is stored in {method!r}, which "
            "transformers does not know."
        )
    try:
        quantizer: Any = AutoHfQuantizer.from_config(stored or {}, pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"Use the model's checkpoint in 16 bits, or solve this: it is stored in "
            f"{method}, which cannot be computed on {device} here ({in_short(error)})."
        ) from error
    if getattr(quantizer.quantization_config, "dequantize", False):
        logger.warning(
            "The checkpoint is stored in %s, which %s does not compute here: its weights are "
            "unpacked, which takes the memory of the whole model.",
            method,
            device,
        )
    return method


def bits(config: "PreTrainedConfig", quantization: str | None) -> int | None:
    """Bits of a quantized weight; ``None`` if the weights are not quantized, or if unknown."""
    if quantization is not None:
        return QUANTIZATIONS[quantization]
    method, stored = stored_method(config), _stored(config) or {}
    found = stored.get("bits") or stored.get("w_bit") or STORED_BITS.get(method or "")
    return found if isinstance(found, int) else None


def quantizing(quantization: str, dtype: str) -> Any:
    """The value of ``from_pretrained(quantization_config=)``, to compute in ``dtype``."""
    import transformers

    config: Any = transformers.BitsAndBytesConfig
    if quantization == "8bit":
        return config(load_in_8bit=True)
    return config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _stored(config: "PreTrainedConfig") -> dict[str, Any] | None:
    for one in (config, config.get_text_config()):
        stored = getattr(one, "quantization_config", None)
        if stored is not None:
            return dict(stored if isinstance(stored, dict) else stored.to_dict())
    return None
