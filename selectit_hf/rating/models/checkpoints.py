"""A checkpoint, pinned: where its files lie, and its tokenizer and configuration.

Two runs that name the same `Checkpoint` loaded the same bytes.
"""

import copy
import functools
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

from huggingface_hub.errors import GatedRepoError

from selectit_hf.errors import ModelError, how_to_install, in_short
from selectit_hf.hashes import is_content_hash
from selectit_hf.rating.models import hub_models
from selectit_hf.rating.models.completeness import check_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["OF_BASE", "Checkpoint"]

OF_BASE = "~"
"""Separates the revisions of an adapter and of its base; no git revision contains it."""
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    RecursionError,
    struct.error,
)
"""What transformers raises for files that are missing, cut off, or hold something else."""


@dataclass(frozen=True)
class Checkpoint:
    """A model and its tokenizer, pinned.

    Attributes:
        name: its name: the Hub name, ``tiny-rater``, or a local folder's base name; a GGUF file
            follows a colon.
        path: the Hub name or a folder.
        revision: the commit sha, or ``sha256:`` and the hash of a folder's contents; for an adapter
            its own and its base's, joined by `OF_BASE`.
        gguf_file: the file in ``path`` that holds the model.
        base: the model that an adapter changes.
        has_tokenizer: whether an adapter brings its own tokenizer.
        offline: whether the commit comes from the local cache, since HF_HUB_OFFLINE is set.
    """

    name: str
    path: str
    revision: str
    gguf_file: str | None = None
    base: "Checkpoint | None" = None
    has_tokenizer: bool = True
    offline: bool = field(default=False, compare=False)

    @property
    def is_local(self) -> bool:
        """Whether the checkpoint is a folder of this machine."""
        return is_content_hash(self.revision)

    @property
    def weights(self) -> "Checkpoint":
        """Where the whole weights are: an adapter's base, else this."""
        return self.base or self

    @property
    def load_arguments(self) -> dict[str, object]:
        """Keyword arguments for every ``from_pretrained`` of the `folder`; nothing is executed."""
        file = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        return {"trust_remote_code": False, "local_files_only": True, **file}

    @property
    def _own_revision(self) -> str:
        return self.revision.partition(OF_BASE)[0]

    def folder(self, weights: bool = False) -> str:
        """The folder of its files; Hub files are downloaded if need be, and verified.

        Raises:
            ModelError: they cannot be downloaded, or differ from the Hub's listing.
        """
        if self.is_local:
            return self.path
        found = hub_models.folder(self.path, self._own_revision, self.gguf_file, weights)
        return str(found)

    def adapter_folder(self) -> str | None:
        """The folder of an adapter's files; else ``None``. See `folder` for the errors."""
        return None if self.base is None else self.folder(weights=True)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer: an adapter's own, else its base's.

        Raises:
            ModelError: there is none, or it needs code of the repository.
        """
        from transformers import AutoTokenizer

        owner = self if self.has_tokenizer else self.weights
        with _readable(owner, "tokenizer"):
            loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                owner.folder(), **owner.load_arguments
            )
        return loaded

    def config(self) -> "PretrainedConfig":
        """Load the model's configuration, without its weights.

        Raises:
            ModelError: there is none, or it needs code of the repository.
        """
        return copy.deepcopy(_config(self.weights))


@functools.lru_cache(maxsize=8)
def _config(checkpoint: Checkpoint) -> "PretrainedConfig":
    """Cached, since a GGUF file takes long to open."""
    from transformers import AutoConfig

    with _readable(checkpoint, "configuration"):
        loaded: PretrainedConfig = AutoConfig.from_pretrained(
            checkpoint.folder(), **checkpoint.load_arguments
        )
    check_config(loaded)
    return loaded


@contextmanager
def _readable(checkpoint: Checkpoint, part: str) -> Iterator[None]:
    name = checkpoint.name
    if checkpoint.gguf_file is not None and find_spec("gguf") is None:
        raise ModelError(f"Install gguf to load {name!r}: {how_to_install('gguf')}.")
    try:
        yield
    except UNREADABLE as error:
        if _caused_by(error, GatedRepoError):
            raise hub_models.gated(name) from error
        raise ModelError(
            f"Name a model that transformers knows: the {part} of {name!r} cannot be loaded "
            f"({in_short(error)}). Code from a model repository is never run."
        ) from error


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
