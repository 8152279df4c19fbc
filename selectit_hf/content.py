"""What files hold, as hashes: of one, and of all in a checkpoint that can change a rating."""

import functools
import hashlib
import json
import posixpath
from pathlib import Path

from selectit_hf.errors import ModelError

__all__ = ["content_hash", "file_sha256"]

LOADED = (
    ".bpe",
    ".codes",
    ".jinja",
    ".json",
    ".model",
    ".safetensors",
    ".spm",
    ".tiktoken",
    ".txt",
    ".vocab",
)
"""Suffixes of the files that are loaded: weights, configurations, tokenizer, chat template."""
TEMPLATES = "additional_chat_templates"
INDEX = ".safetensors.index.json"


def content_hash(folder: Path, gguf_file: str | None = None) -> str:
    """``sha256:`` and the hash of a folder's files with their names, wherever the weights lie.

    With a ``gguf_file`` that file is hashed in place of the folder's safetensors weights.

    Raises:
        ModelError: the index of the weights names a file that is not there, or is outside.
    """
    names = {path.name for path in folder.iterdir() if path.suffix in LOADED and path.is_file()}
    names |= {f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja")}
    if gguf_file is not None:
        names = {name for name in names if not name.endswith(".safetensors")} | {gguf_file}
    else:
        names |= _weight_files(folder, names)
    total = hashlib.sha256()
    for name in sorted(names):
        path = folder / name
        stat = path.stat()
        digest = _file_hash(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        total.update(f"{name}\0{digest}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _weight_files(folder: Path, names: set[str]) -> set[str]:
    """The weights that an index or the configuration names, which may lie in subfolders."""
    found = {str(_json(folder / "config.json").get("transformers_weights") or "")} - {""}
    for index in {name for name in names | found if name.endswith(INDEX)}:
        found |= {str(name) for name in _weight_map(folder / index).values()}
    for name in found:
        if name.startswith("/") or posixpath.normpath(name).startswith(".."):
            raise ModelError(
                f"The weights of the checkpoint folder {folder.name!r} are said to lie outside it, "
                f"in {name!r}; move them into the folder and correct the index."
            )
        if not (folder / name).is_file():
            raise ModelError(
                f"The checkpoint folder {folder.name!r} lacks {name!r}, which its index names; "
                "download or copy the folder again."
            )
    return found


def _weight_map(index: Path) -> dict[str, object]:
    weight_map = _json(index).get("weight_map")
    return weight_map if isinstance(weight_map, dict) else {}


def _json(path: Path) -> dict[str, object]:
    """A JSON object; empty where it is none, which whoever loads it explains."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@functools.lru_cache(maxsize=1024)
def _file_hash(path: str, size: int, modified: int, changed: int) -> str:
    return file_sha256(Path(path))


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
