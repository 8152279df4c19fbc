"""PEFT adapters: a small folder of weights that change a base model.

A checkpoint is either an adapter or a whole model. If a folder holds both, transformers applies the
adapter if `peft` is installed and ignores it otherwise; here such a folder is refused.
"""

import json
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from safetensors import SafetensorError

from selectit_hf.errors import ModelError, how_to_install, in_short

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "WHOLE",
    "AdapterConfig",
    "apply_adapter",
    "is_adapter",
    "read_adapter",
]

logger = logging.getLogger(__name__)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
WHOLE = ("model.safetensors", "model.safetensors.index.json")
PICKLED = "adapter_model.bin"
UNREADABLE = (OSError, SafetensorError)


class AdapterConfig(NamedTuple):
    """The base that an ``adapter_config.json`` names: a Hub name or a path, and a revision."""

    base: str
    revision: str | None


def is_adapter(name: str, files: Collection[str]) -> bool:
    """Whether a checkpoint with these ``files`` is an adapter.

    Raises:
        ModelError: it holds an adapter and whole weights, or an adapter only as a pickle.
    """
    if CONFIG not in files:
        return False
    both = [file for file in WHOLE if file in files]
    if both:
        raise ModelError(
            f"Move {CONFIG} and {WEIGHTS} into a folder of their own and name that folder, or "
            f"delete them: {name!r} holds whole weights ({both[0]}) and an adapter, and nothing "
            "says whether the adapter is already merged into the weights."
        )
    if WEIGHTS not in files:
        pickled = f" ({PICKLED} is a pickle, which is never loaded)" if PICKLED in files else ""
        raise ModelError(
            f"The adapter {name!r} has no {WEIGHTS}{pickled}; save it with "
            "save_pretrained(..., safe_serialization=True)."
        )
    return True


def read_adapter(name: str, config: Path) -> AdapterConfig:
    """The base of an adapter, from its ``config``, the path of an ``adapter_config.json``.

    Raises:
        ModelError: the file cannot be read, or the adapter is of a kind that cannot rate.
    """
    try:
        settings = json.loads(config.read_text("utf-8"))
        kind, base = settings["peft_type"], settings.get("base_model_name_or_path")
        if not isinstance(base, (str, type(None))):
            raise ValueError(f"its base is {base!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The {CONFIG} of {name!r} cannot be read ({in_short(error)}); save the adapter again "
            "with save_pretrained."
        ) from error
    task = settings.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"The adapter {name!r} is for the task {task}; only adapters of causal language models "
            "(CAUSAL_LM) rate."
        )
    if settings.get("alora_invocation_tokens"):
        raise ModelError(
            f"The adapter {name!r} ({kind}) acts only after its invocation tokens, which a rating "
            "prompt does not have; use another adapter."
        )
    return AdapterConfig(base or "", settings.get("revision"))


def apply_adapter(model: "PreTrainedModel", folder: str, merge: bool) -> "PreTrainedModel":
    """The model with the adapter in ``folder``, loaded with `peft`.

    With ``merge`` the adapter is added to the weights (for LoRA ``W + scale * B @ A``; the product
    is computed in float32 and rounded to the dtype of ``W``), which leaves a plain model. Quantized
    weights are not merged, since that would round them again: the adapter is computed beside them.

    Raises:
        ModelError: `peft` is not installed, the adapter is of a kind that has no weights to add, or
            not all of it fits the model.
    """
    name = Path(folder).name
    if find_spec("peft") is None:
        raise ModelError(f"Install peft to load the adapter {name!r}: {how_to_install('peft')}.")
    from peft import PeftConfig, PeftModel

    try:
        with _warnings_in_the_log():
            config = PeftConfig.from_pretrained(folder)
        if config.is_prompt_learning:
            raise ModelError(
                f"The adapter {name!r} adds virtual tokens to the prompt instead of weights, which "
                "is not supported; use LoRA or another method that changes weights."
            )
        config.inference_mode = True
        with _warnings_in_the_log():
            adapted: Any = PeftModel(model, config)
            read = adapted.load_adapter(folder, "default", torch_device="cpu")
            _check_complete(name, read)
            _untie(adapted.get_base_model())
            whole = adapted.merge_and_unload(safe_merge=True) if merge else adapted.get_base_model()
    except UNREADABLE as error:
        raise ModelError(
            f"Load the adapter {name!r} again: its {WEIGHTS} cannot be read ({in_short(error)})."
        ) from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"Merge the adapter {name!r} into its base yourself and name the result, or use "
            f"another: it cannot be applied to {type(model).__name__} ({in_short(error)})."
        ) from error
    loaded: PreTrainedModel = whole
    return loaded


def _untie(model: Any) -> None:
    """Give the head its own weights if the adapter changes the head or the embeddings.

    If the two share weights, merging a change to one would also change the other.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if not any(isinstance(end, BaseTunerLayer) for end in ends):
        return
    embeddings, head = (
        cast(Any, end).get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends
    )
    if head is not None and head.weight is embeddings.weight:
        own = head.weight.detach().clone()
        head.weight = type(head.weight)(own, requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = False


@contextmanager
def _warnings_in_the_log() -> Iterator[None]:
    """Log warnings of `peft`, such as unknown settings, but not its deprecation warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if not issubclass(warning.category, (FutureWarning, DeprecationWarning)):
            logger.warning("%s", warning.message)


def _check_complete(name: str, read: Any) -> None:
    """Refuse an adapter with a weight that is missing or has no place in the model."""
    lost, missing = sorted(read.unexpected_keys), sorted(read.missing_keys)
    if lost or missing:
        what = "has no place in the model" if lost else "is missing"
        raise ModelError(
            f"Name the base that the adapter {name!r} was trained on (--base-model), or load the "
            f"whole adapter again: its weight {(lost or missing)[0]!r} {what}."
        )
