"""A model's name to a `Checkpoint`, which says where it lies and which revision it is.

A Hub model is pinned to a commit sha, a local folder to the hash of its contents.
"""

import functools
import logging
import os
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from selectit_hf.errors import ModelError
from selectit_hf.hashes import content_hash, is_content_hash
from selectit_hf.rating.models import adapters, hub_models
from selectit_hf.rating.models.checkpoints import OF_BASE, Checkpoint

__all__ = ["DEFAULT_MODEL", "TINY_RATER", "is_local", "model_name", "resolve", "slug", "was_folder"]

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "Qwen/Qwen3-0.6B-Base"
PAPER_MODEL = "meta-llama/Llama-2-7b-hf"
TINY_RATER = "tiny-rater"
OWN_FOLDER = Path(str(files("selectit_hf").joinpath("data", TINY_RATER)))
GGUF = ".gguf"


def slug(name: str) -> str:
    """A model's name in snake case, for columns: ``org/Llama-2-7b-hf`` to ``llama_2_7b_hf``."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^0-9a-z]+", "_", last.lower()).strip("_") or "model"


def model_name(model: str | None) -> str:
    """The model to use: ``model`` itself, else ``SELECTIT_MODEL``, else `DEFAULT_MODEL`.

    The default is named in one log line, with the paper's model beside it.
    """
    if model is not None:
        return model
    chosen = os.environ.get("SELECTIT_MODEL")
    if chosen:
        return chosen
    _announce_default()
    return DEFAULT_MODEL


@functools.cache
def _announce_default() -> None:
    logger.warning(
        "No model named: rating with %s. The paper used %s (gated); choose with model= or "
        "SELECTIT_MODEL.",
        DEFAULT_MODEL,
        PAPER_MODEL,
    )


def is_local(model: str) -> bool:
    """Whether ``model`` names a folder or a file of this machine, and not a model of the Hub."""
    return _place(model).folder is not None


def was_folder(model: str, revision: str) -> bool:
    """Whether a recorded model was a folder or file of somebody's machine."""
    return is_content_hash(revision) and model != TINY_RATER


def resolve(model: str, revision: str | None = None, base_model: str | None = None) -> Checkpoint:
    """Pin a Hub name, a local folder, a GGUF file or ``tiny-rater`` to a `Checkpoint`.

    A GGUF file is named by its path, or as ``FOLDER:FILE.gguf`` or ``HUB_NAME:FILE.gguf``. The base
    of an adapter is ``base_model``, else the one that its configuration names. A revision that
    starts with ``sha256:`` is compared with the folder's contents. If HF_HUB_OFFLINE is set, a Hub
    model that was used before is pinned to the commit in the local cache, and the plan says so.

    Raises:
        ModelError: no such model, revision, file or base, no access, no network, or changed
            contents.
    """
    place = _place(model)
    own, _, of_base = (revision or "").partition(OF_BASE)
    if place.folder is not None:
        found = _local(model, place.folder, place.gguf_file, own or None)
        config = place.folder / adapters.CONFIG if found.gguf_file is None else None
        config = config if config is not None and config.is_file() else None
    else:
        hub = hub_models.find(place.name, own or None, place.gguf_file)
        found = Checkpoint(
            model,
            place.name,
            hub.revision,
            place.gguf_file,
            has_tokenizer=hub.has_tokenizer,
            offline=hub.offline,
        )
        config = hub.adapter
    if config is not None:
        return _adapter(found, config, base_model, of_base or None)
    if base_model is not None:
        raise ModelError(
            f"Omit the base model {base_model!r}: {found.name!r} is a whole model, not an adapter."
        )
    return found


class _Place(NamedTuple):
    """The Hub name of a model or the folder it lies in, and its GGUF file."""

    name: str
    folder: Path | None = None
    gguf_file: str | None = None


def _place(model: str) -> _Place:
    if model == TINY_RATER:
        if Path(model).is_dir():
            _say_which_tiny_rater()
        return _Place(model, OWN_FOLDER)
    path = Path(model).expanduser()
    if path.is_dir():
        return _Place(model, path.resolve())
    if path.is_file() and path.suffix == GGUF:
        return _Place(model, path.parent.resolve(), path.name)
    name, colon, file = model.rpartition(":")
    if colon and file.endswith(GGUF):
        folder = Path(name).expanduser()
        return _Place(name, folder.resolve() if folder.is_dir() else None, file)
    return _Place(model)


@functools.cache
def _say_which_tiny_rater() -> None:
    logger.warning(
        "%s is the model of this package, not the folder of that name here; to use the folder, "
        "rename it.",
        TINY_RATER,
    )


# Local folders


def _local(model: str, path: Path, gguf_file: str | None, revision: str | None) -> Checkpoint:
    name = TINY_RATER if model == TINY_RATER else path.name + (f":{gguf_file}" if gguf_file else "")
    if name == TINY_RATER != model and path != OWN_FOLDER.resolve():
        raise ModelError(
            f"Rename the folder {name!r}: the model of this package has that name, and the results "
            "could not tell the two apart."
        )
    names = {file.name for file in path.iterdir()}
    adapter = gguf_file is None and adapters.is_adapter(name, names)
    if gguf_file is not None and not (path / gguf_file).is_file():
        raise ModelError(
            f"The folder {path.name!r} has no file {gguf_file!r}; {_gguf_files(path, names)}"
        )
    if gguf_file is None and not adapter and "config.json" not in names:
        raise ModelError(
            f"The folder {path.name!r} has no config.json, so it is not a checkpoint; "
            f"{_gguf_files(path, names)}"
        )
    content = content_hash(path, gguf_file, links=model == TINY_RATER)
    if revision is not None and revision != content:
        raise ModelError(
            f"The checkpoint folder {name!r} holds {content}, not revision {revision!r}. Omit "
            "the revision of a local folder, or restore its contents."
        )
    has_tokenizer = not adapter or hub_models.TOKENIZER in names
    return Checkpoint(name, str(path), content, gguf_file, has_tokenizer=has_tokenizer)


def _gguf_files(folder: Path, names: set[str]) -> str:
    found = sorted(name for name in names if name.endswith(GGUF))
    if found:
        return f"name one of its GGUF files, as in {folder.name}:{found[0]}."
    return "name a folder written by save_pretrained, or a model of the Hub."


# Adapters


def _adapter(
    found: Checkpoint, config: Path, base_model: str | None, revision: str | None
) -> Checkpoint:
    """An adapter with its base, both pinned."""
    said = adapters.read_adapter(found.name, config)
    named = base_model or said.base
    wanted = revision or (said.revision if base_model is None else None)
    try:
        if not named:
            raise ModelError(f"{adapters.CONFIG} names none.")
        base = resolve(named, wanted) if is_local(named) else _hub_base(named, wanted)
    except ModelError as error:
        raise ModelError(
            f"Name the base of the adapter {found.name!r} with --base-model (base_model=), a "
            f"folder or a model of the Hub: {named!r} cannot be used. {error}"
        ) from error
    if base.base is not None:
        raise ModelError(
            f"Merge the adapter {base.name!r} into its own base first: it is the base of the "
            f"adapter {found.name!r}, and adapters on adapters are not loaded."
        )
    revision = f"{found.revision}{OF_BASE}{base.revision}"
    return replace(found, revision=revision, base=base, offline=found.offline or base.offline)


@functools.lru_cache(maxsize=64)
def _hub_base(model: str, revision: str | None) -> Checkpoint:
    """Cached, since a local adapter is checked at every call."""
    return resolve(model, revision)
