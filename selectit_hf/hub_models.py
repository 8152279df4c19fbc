"""A model of the Hub by name: which commit, and whether it is an adapter."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from selectit_hf import adapters
from selectit_hf.errors import ModelError

__all__ = ["TOKENIZER", "HubModel", "find", "gated"]

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer_config.json"
UNREACHED = (HTTPError, OfflineModeIsEnabled)


class HubModel(NamedTuple):
    """A model's commit sha; for an adapter, its configuration and if it brings a tokenizer."""

    revision: str
    adapter: Path | None
    has_tokenizer: bool


def find(model: str, revision: str | None, gguf_file: str | None) -> HubModel:
    """Look a model up; without a network, in the local cache.

    Raises:
        ModelError: no such model, revision or file, no access, or no network and not in the cache.
    """
    wanted = revision or constants.DEFAULT_REVISION
    if re.fullmatch(r"[0-9a-f]{40}", wanted):
        return _pinned(model, wanted, gguf_file)
    try:
        found = HfApi().model_info(model, revision=wanted)
        names = {file.rfilename for file in found.siblings or ()}
        adapter = gguf_file is None and adapters.is_adapter(model, names)
        needed = gguf_file or (adapters.CONFIG if adapter else "config.json")
        if needed not in names:
            raise _lacking(model, needed, names)
        # Pins the revision in the local cache, for a time without a network.
        path = None if gguf_file else hf_hub_download(model, needed, revision=wanted)
        sha = str(found.sha) if path is None else Path(path).parent.name
        if adapter and path:
            return _adapter(model, sha, Path(path))
        return HubModel(sha, None, True)
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
    except (EntryNotFoundError, *UNREACHED) as error:
        return _cached(model, wanted, gguf_file, error)


def gated(model: str) -> ModelError:
    """What to say of a model that this login may not load."""
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
    return ModelError(
        f"The model {model!r} has no {needed}, so it is none that transformers can load."
    )


def _pinned(model: str, sha: str, gguf_file: str | None) -> HubModel:
    """A model at a commit; a plain one is not looked at before it is loaded."""
    if gguf_file is not None:
        return HubModel(sha, None, True)
    try:
        adapter = _file(model, sha, adapters.CONFIG)
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HFValidationError, *UNREACHED):
        adapter = None  # whoever loads it says more
    if adapter is None:
        return HubModel(sha, None, True)
    try:
        files = HfApi().model_info(model, revision=sha).siblings or ()
        names = {file.rfilename for file in files}
    except UNREACHED:
        seen = (try_to_load_from_cache(model, name, revision=sha) for name in adapters.WHOLE)
        names = {Path(path).name for path in seen if isinstance(path, str)}
        names |= {adapters.CONFIG, adapters.WEIGHTS}
    adapters.is_adapter(model, names)
    return _adapter(model, sha, adapter)


def _adapter(model: str, sha: str, config: Path) -> HubModel:
    try:
        return HubModel(sha, config, _file(model, sha, TOKENIZER) is not None)
    except (LocalEntryNotFoundError, *UNREACHED) as error:
        raise ModelError(
            f"The Hub cannot be reached to see if the adapter {model!r} has a tokenizer of its own "
            f"({type(error).__name__}). Connect once, or name a local folder."
        ) from error


def _file(model: str, sha: str, name: str) -> Path | None:
    """One small file of a model; ``None`` where it is known to have none."""
    cached = try_to_load_from_cache(model, name, revision=sha)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:
        return None
    try:
        return Path(hf_hub_download(model, name, revision=sha))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return None


def _cached(model: str, revision: str, gguf_file: str | None, cause: Exception) -> HubModel:
    for name in [gguf_file] if gguf_file else ["config.json", adapters.CONFIG]:
        path = try_to_load_from_cache(model, name, revision=revision)
        if isinstance(path, str):
            sha = Path(path).parent.name
            logger.warning(
                "The Hub cannot be reached; using %s at %s from the local cache.", model, sha
            )
            return _pinned(model, sha, gguf_file)
    raise ModelError(
        f"The Hub cannot be reached to look up the model {model!r} ({type(cause).__name__}), "
        "and it is not in the local cache. Connect once, or name a local folder."
    ) from cause
