"""Whether weights, configuration and tokenizer belong together. Nothing here imports torch."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from selectit_hf.errors import ModelError, TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

__all__ = ["check_config", "check_tokenizer", "check_weights"]

logger = logging.getLogger(__name__)

LAYER = re.compile(r"^(.+)\.(\d+)\.")
HARMLESS = re.compile(r"inv_freq|masked_bias|\.attn\.bias$|_scale$|rotary_emb|rope\.")
"""Buffers that older versions stored and newer ones compute, and scales of quantized caches."""

MOST_LAYERS = 10_000
"""More layers than any model has; a larger number would exhaust time and memory."""


def check_config(config: "PreTrainedConfig") -> None:
    """Refuse a configuration that would run code, or build far too many layers.

    Raises:
        ModelError: it asks for a kernel of the Hub, or for more than `MOST_LAYERS` layers.
    """
    attention = str(getattr(config, "_attn_implementation", ""))
    if "/" in attention:
        raise ModelError(
            f"Remove attn_implementation from config.json: it asks for {attention!r}, a kernel "
            "from the Hub. Kernels are code, which is never run here."
        )
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ModelError(
            f"Correct num_hidden_layers in config.json: no model has {layers:,} layers."
        )


def check_weights(
    missing: Iterable[str], unused: Iterable[str], layers: Mapping[str, int], predictors: int = 0
) -> None:
    """Refuse a checkpoint that lacks weights of the model, or has layers that it would not use.

    Args:
        missing: the model's weights that the checkpoint lacks.
        unused: the checkpoint's weights that the model lacks.
        layers: how many modules each list of modules of the model holds, by its name.
        predictors: layers after the last one that predict further tokens and are not used for
            rating (``num_nextn_predict_layers``).

    Raises:
        ModelError: weights are missing, or belong to layers after the configuration's last one.
    """
    absent = sorted(missing)
    if absent:
        raise ModelError(
            f"The checkpoint lacks {len(absent)} weights, {absent[0]!r} among them, which would be "
            "drawn at random; use a complete causal language model."
        )
    left = sorted(unused)
    lost = [name for name in left if _is_beyond(name, layers, predictors)]
    if lost:
        raise ModelError(
            f"Correct the number of layers in config.json, or use a complete checkpoint: its "
            f"weights have layers that the configuration lacks ({lost[0]!r}; {len(lost)} weights "
            "would be left out)."
        )
    own = [name for name in left if _layer(name, layers) and not HARMLESS.search(name)]
    if own:
        logger.warning(
            "%d weights of the checkpoint have no place in the model's layers and are not used, "
            "%r among them. If its configuration is not the one it was trained with, ratings are "
            "wrong.",
            len(own),
            own[0],
        )


def _layer(name: str, layers: Mapping[str, int]) -> tuple[int, int] | None:
    """The number of the layer that a weight belongs to, and how many the model has."""
    match = LAYER.match(name)
    while match:
        prefix, number = match.groups()
        for known, count in layers.items():
            if known == prefix or known.endswith(f".{prefix}"):
                return int(number), count
        match = LAYER.match(f"{prefix}.")
    return None


def _is_beyond(name: str, layers: Mapping[str, int], predictors: int) -> bool:
    place = _layer(name, layers)
    return place is not None and place[0] >= place[1] + predictors


def check_tokenizer(rows: int, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer that is not the model's; warn of tokens that the model does not know.

    Added tokens that have no embedding are common: only rows that hold one cannot be rated.

    Args:
        rows: the model's embeddings, as `embedding_rows` counts them.
        tokenizer: its tokenizer.

    Raises:
        TokenizerError: a token of the vocabulary itself, or one that begins each text, has none.
    """
    added = {i for i, token in tokenizer.added_tokens_decoder.items()}
    beyond = {i: text for text, i in tokenizer.get_vocab().items() if i >= rows}
    if not beyond:
        return
    started = set(tokenizer("a")["input_ids"])
    for i, text in sorted(beyond.items()):
        if i not in added or i in started:
            raise TokenizerError(
                f"Use the tokenizer that belongs to the model: its token {text!r} has the id {i}, "
                f"and the model has embeddings for the ids 0 to {rows - 1} only."
            )
    shown = ", ".join(map(repr, [beyond[i] for i in sorted(beyond)][:5]))
    logger.warning(
        "The model has no embedding for %d tokens that were added to its tokenizer (%s%s); rows "
        "that hold one cannot be rated.",
        len(beyond),
        shown,
        ", ..." if len(beyond) > 5 else "",
    )
