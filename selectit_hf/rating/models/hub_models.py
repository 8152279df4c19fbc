"""A model of the Hub by name: which commit, whether it is an adapter, and all its files."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from selectit_hf import hub_files
from selectit_hf.errors import ModelError
from selectit_hf.hashes import LOADED, TEMPLATES
from selectit_hf.patience import FAILURES
from selectit_hf.rating.models import adapters

__all__ = ["TOKENIZER", "HubModel", "find", "folder", "gated"]

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer_config.json"
CONFIG = "config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class HubModel(NamedTuple):
    """A model's commit sha; for an adapter, its configuration and whether it has a tokenizer.

    ``offline`` says that the sha comes from the local cache.
    """

    revision: str
    adapter: Path | None
    has_tokenizer: bool
    offline: bool = False


def find(model: str, revision: str | None, gguf_file: str | None) -> HubModel:
    """Look up a model; only in the local cache if HF_HUB_OFFLINE is set.

    Raises:
        ModelError: no such model, revision or file, no access, or the Hub cannot be reached.
    """
    wanted = revision or constants.DEFAULT_REVISION
    offline, known = constants.is_offline_mode(), set[str]()
    cached = _cached(model, wanted) if offline and not hub_files.COMMIT.fullmatch(wanted) else None
    try:
        if hub_files.COMMIT.fullmatch(wanted):
            sha = wanted
        elif cached is not None:
            sha = cached
        else:
            sha, known = hub_files.commit_of("model", model, wanted)
        names = set(hub_files.listing("model", model, sha, known))
        adapter = gguf_file is None and adapters.is_adapter(model, names)
        needed = gguf_file or (adapters.CONFIG if adapter else CONFIG)
        if needed not in names:
            raise _lacking(model, needed, names)
        # Downloading one file records the revision in the cache, for later use offline.
        if gguf_file is None:
            folder = hub_files.fetch("model", model, sha, [needed])
        if not hub_files.COMMIT.fullmatch(wanted) and not offline:
            _remember(model, wanted, sha)
    except GatedRepoError as error:
        raise gated(model) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"The model {model!r} has no revision {wanted!r}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"There is no model {model!r}: no folder of that name here, and none on the Hub that "
            "this login can see. Check the spelling; for a private model, log in with "
            "'hf auth login' or set HF_TOKEN."
        ) from error
    except FAILURES as error:
        raise _unreached(model, error) from error
    config = folder / needed if adapter else None
    return HubModel(sha, config, not adapter or TOKENIZER in names, offline)


def _cached(model: str, revision: str) -> str:
    """The sha that the local cache has for a revision."""
    reference = hub_files.place("model", model) / "refs" / revision
    if not reference.is_file():
        raise ModelError(
            f"HF_HUB_OFFLINE is set, and {model!r} at {revision!r} is not in the cache. Unset it "
            "to download the model, or name a folder of this machine with model= (--model); "
            "'tiny-rater' is always here."
        )
    sha = reference.read_text("utf-8").strip()
    logger.warning("HF_HUB_OFFLINE is set; using %s at %s from the local cache.", model, sha)
    return sha


def _remember(model: str, revision: str, sha: str) -> None:
    """Record a revision's sha in the cache, as the Hub's client does, for later use offline."""
    reference = hub_files.place("model", model) / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(sha, "utf-8")


def _unreached(model: str, error: BaseException) -> ModelError:
    return ModelError(
        f"The Hub cannot be reached to look up the model {model!r} ({hub_files.said(error)}). "
        "Repeat the command when it answers, name a local folder, or set HF_HUB_OFFLINE=1 to use "
        "what the local cache has."
    )


# Files


def folder(model: str, sha: str, gguf_file: str | None, weights: bool) -> Path:
    """The folder of all files needed to load a model, each as the Hub lists it.

    Without ``weights``, only the configuration, tokenizer and chat template.

    Raises:
        ModelError: the Hub cannot be reached, or a file is not as listed.
    """
    try:
        listed = hub_files.listing("model", model, sha)
        names = {name for name in listed if _is_small(name)}
        found = hub_files.fetch("model", model, sha, names)
        if gguf_file is not None:
            hub_files.fetch("model", model, sha, [gguf_file])
        elif weights:
            hub_files.fetch("model", model, sha, _weights(found, set(listed)))
    except GatedRepoError as error:
        raise gated(model) from error
    except FAILURES as error:
        raise _unreached(model, error) from error
    return found


def _is_small(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder in ("", TEMPLATES) and Path(file).suffix in set(LOADED) - {".safetensors"}


def _weights(folder: Path, listed: set[str]) -> set[str]:
    """The weights that transformers would load, in its order of preference, or an adapter's."""
    if adapters.WEIGHTS in listed and CONFIG not in listed:
        return {adapters.WEIGHTS}
    named = _json(folder / CONFIG).get("transformers_weights")
    for first in ([str(named)] if named else []) + [WHOLE, INDEX]:
        if first not in listed:
            continue
        if not first.endswith(".index.json"):
            return {first}
        shards = _json(folder / first).get("weight_map")
        named_there = shards.values() if isinstance(shards, dict) else ()
        return {first, *map(str, named_there)}
    return set()


def _json(path: Path) -> dict[str, object]:
    value = json.loads(path.read_text("utf-8"))
    return value if isinstance(value, dict) else {}


def gated(model: str) -> ModelError:
    """The error for a model that this login may not load."""
    return ModelError(
        f"The model {model!r} is gated: accept its terms on https://huggingface.co/{model}, then "
        "log in with 'hf auth login' or set HF_TOKEN."
    )


def _lacking(model: str, needed: str, names: set[str]) -> ModelError:
    files = sorted(name for name in names if name.endswith(".gguf"))
    if files:
        return ModelError(
            f"Name one of the GGUF files of {model!r}, as in {model}:{files[0]}; it holds "
            f"{', '.join(files[:10])}{', ...' if len(files) > 10 else ''}, and no {needed}."
        )
    return ModelError(f"The model {model!r} has no {needed}, so transformers cannot load it.")
