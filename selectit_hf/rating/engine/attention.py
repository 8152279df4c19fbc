"""How a model computes attention, if ``attn_implementation`` is set."""

from typing import TYPE_CHECKING

from selectit_hf.errors import ModelError, SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ATTENTIONS", "check_attention", "check_attention_in_use"]

ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Ways to compute attention, by transformers' names; kernels from the Hub are code, never run."""


def check_attention(attn_implementation: str | None, dtype: str) -> None:
    """Refuse an attention implementation that is unknown or not available.

    Raises:
        SettingError: it is not in `ATTENTIONS`; or FlashAttention, in float32 or not installed.
    """
    if attn_implementation is None:
        return
    if attn_implementation not in ATTENTIONS:
        raise SettingError(
            f"attn_implementation={attn_implementation!r} is unknown; choose one of "
            f"{', '.join(ATTENTIONS)}. Kernels from the Hub are code, which is never run here."
        )
    if not attn_implementation.startswith("flash"):
        return
    if dtype == "float32":
        raise SettingError(
            f"Give --dtype bfloat16 or float16 with --attn-implementation {attn_implementation}: "
            "FlashAttention computes in 16 bits only."
        )
    from transformers.utils.import_utils import (
        is_flash_attn_2_available,
        is_flash_attn_3_available,
    )

    second = attn_implementation == "flash_attention_2"
    if not (is_flash_attn_2_available() if second else is_flash_attn_3_available()):
        raise SettingError(
            f"Omit --attn-implementation {attn_implementation}, or install the package flash-attn "
            "for it on a machine with a CUDA GPU: it is not available here."
        )


def check_attention_in_use(model: "PreTrainedModel", asked: str | None) -> None:
    """Refuse a model that computes attention in another way than was asked for.

    Raises:
        ModelError: it does.
    """
    taken = model.config._attn_implementation
    if asked is not None and taken != asked:
        raise ModelError(
            f"Omit --attn-implementation {asked}: {type(model).__name__} would use {taken} instead."
        )
