"""Which checkpoint, exactly: a model's name to where it lies and which revision it is.

A Hub model is pinned to a commit sha, a local folder to the hash of its contents, so that two runs
that name the same `Checkpoint` loaded the same bytes.
"""

import functools
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from selectit_hf.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["DEFAULT_MODEL", "TINY_RATER", "Checkpoint", "model_name", "resolve", "slug"]

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "Qwen/Qwen3-0.6B-Base"
PAPER_MODEL = "meta-llama/Llama-2-7b-hf"
TINY_RATER = "tiny-rater"
CONTENT = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""The files of a checkpoint folder that can change a rating."""


@dataclass(frozen=True)
class Checkpoint:
    """A model and its tokenizer, pinned.

    Attributes:
        name: what to call it: the Hub name, ``tiny-rater``, or a local folder's base name.
        path: what ``from_pretrained`` takes: the Hub name or a folder.
        revision: the commit sha, or ``sha256:`` and the hash of a folder's contents.
    """

    name: str
    path: str
    revision: str

    @property
    def is_local(self) -> bool:
        """Whether the checkpoint is a folder of this machine."""
        return self.revision.startswith("sha256:")

    @property
    def load_arguments(self) -> dict[str, object]:
        """Keyword arguments for every ``from_pretrained``: pinned, and nothing executed."""
        pinned = {} if self.is_local else {"revision": self.revision}
        return {"trust_remote_code": False, **pinned}

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer.

        Raises:
            ModelError: there is none, or it needs code of the repository.
        """
        from transformers import AutoTokenizer

        with _readable(self.name, "tokenizer"):
            loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.path, **self.load_arguments
            )
        return loaded

    def config(self) -> "PretrainedConfig":
        """Load the model's configuration, without its weights.

        Raises:
            ModelError: there is none, or it needs code of the repository.
        """
        from transformers import AutoConfig

        with _readable(self.name, "configuration"):
            loaded: PretrainedConfig = AutoConfig.from_pretrained(self.path, **self.load_arguments)
        return loaded


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


def resolve(model: str, revision: str | None = None) -> Checkpoint:
    """Pin a Hub name, a local folder or ``tiny-rater`` to a `Checkpoint`.

    A revision that starts with ``sha256:`` is compared with the folder's contents. Without a
    network, a Hub model that was used before is pinned to the commit in the local cache.

    Raises:
        ModelError: no such model or revision, no access, no network, or changed contents.
    """
    bundled = str(files("selectit_hf").joinpath("data", TINY_RATER)) if model == TINY_RATER else ""
    folder = bundled or (model if Path(model).expanduser().is_dir() else "")
    if not folder:
        return Checkpoint(model, model, _commit(model, revision))
    path = Path(folder).expanduser().resolve()
    name = TINY_RATER if bundled else path.name
    content = _content_hash(path)
    if revision is not None and revision != content:
        raise ModelError(
            f"The checkpoint folder {name!r} holds {content}, not revision {revision!r}. Leave "
            "the revision unset for a local folder, or restore its contents."
        )
    return Checkpoint(name, str(path), content)


# Local folders


def _content_hash(folder: Path) -> str:
    names = sorted(p for p in folder.iterdir() if p.suffix in CONTENT and p.is_file())
    if not any(p.name == "config.json" for p in names):
        raise ModelError(
            f"The folder {folder.name!r} has no config.json, so it is no checkpoint; name a folder "
            "written by save_pretrained, or a model of the Hub."
        )
    total = hashlib.sha256()
    for path in names:
        stat = path.stat()
        digest = _file_hash(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        total.update(f"{path.name}\0{digest}\n".encode())
    return f"sha256:{total.hexdigest()}"


@functools.lru_cache(maxsize=1024)
def _file_hash(path: str, size: int, modified: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The Hub


def _commit(model: str, revision: str | None) -> str:
    wanted = revision or constants.DEFAULT_REVISION
    if re.fullmatch(r"[0-9a-f]{40}", wanted):
        return wanted
    try:
        HfApi().model_info(model, revision=wanted)
        # Pins the revision in the local cache, for a time without a network.
        config = hf_hub_download(model, "config.json", revision=wanted)
    except GatedRepoError as error:
        raise _gated(model) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"The model {model!r} has no revision {wanted!r}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"There is no model {model!r}: no folder of that name here, and none on the Hub that "
            "this login can see. Check the spelling; for a private model, log in with "
            "'hf auth login' or set HF_TOKEN."
        ) from error
    except EntryNotFoundError as error:
        raise ModelError(
            f"The model {model!r} has no config.json, so it is none that transformers can load."
        ) from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        return _cached_commit(model, wanted, error)
    return Path(config).parent.name


def _cached_commit(model: str, revision: str, cause: Exception) -> str:
    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(cached, str):
        raise ModelError(
            f"The Hub cannot be reached to look up the model {model!r} ({type(cause).__name__}), "
            "and it is not in the local cache. Connect once, or name a local folder."
        ) from cause
    sha = Path(cached).parent.name
    logger.warning("The Hub cannot be reached; using %s at %s from the local cache.", model, sha)
    return sha


def _gated(model: str) -> ModelError:
    return ModelError(
        f"The model {model!r} is gated: accept its terms on https://huggingface.co/{model}, then "
        "log in with 'hf auth login' or set HF_TOKEN."
    )


@contextmanager
def _readable(name: str, part: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        if _caused_by(error, GatedRepoError):
            raise _gated(name) from error
        raise ModelError(
            f"The {part} of {name!r} cannot be loaded: {_first_line(error)} "
            "Code of a model repository is never run here; name a model that transformers knows."
        ) from error


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    line = str(error).strip().split("\n", 1)[0]
    return line if line.endswith(".") else f"{line}."
