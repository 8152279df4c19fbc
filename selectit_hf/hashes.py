"""Hashes of files: of one file, and of all files in a checkpoint that can change a rating."""

import functools
import hashlib
import json
import posixpath
from collections.abc import Iterable
from pathlib import Path

from selectit_hf.errors import ModelError

__all__ = [
    "LOADED",
    "TEMPLATES",
    "content_hash",
    "file_sha256",
    "is_content_hash",
    "leading_out",
    "sha256",
]

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


def content_hash(folder: Path, gguf_file: str | None = None, *, links: bool = False) -> str:
    """``sha256:`` and the hash of a folder's files with their names, weights in subfolders too.

    With a ``gguf_file`` that file is hashed in place of the folder's safetensors weights; with
    ``links`` files may be links that lead out of the folder.

    Raises:
        ModelError: a named file is missing, or a file is outside the folder.
    """
    names = {path.name for path in folder.iterdir() if path.suffix in LOADED and path.is_file()}
    names |= {f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja")}
    if gguf_file is not None:
        names = {name for name in names if not name.endswith(".safetensors")} | {gguf_file}
    else:
        names |= _weight_files(folder, names)
    _refuse_outside(folder, names, links)
    total = hashlib.sha256()
    for name in sorted(names):
        path = folder / name
        stat = path.stat()
        digest = _file_hash(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        total.update(f"{name}\0{digest}\n".encode())
    return f"sha256:{total.hexdigest()}"


def is_content_hash(revision: str) -> bool:
    """Whether a revision is a hash of local files, and no commit of the Hub."""
    return revision.startswith("sha256:")


def _refuse_outside(folder: Path, names: Iterable[str], links: bool) -> None:
    """Refuse files that would be loaded from outside the folder that is hashed or moved."""
    tokenizers = _json(folder / "tokenizer_config.json").get("fast_tokenizer_files") or []
    named = [str(name) for name in tokenizers] if isinstance(tokenizers, list) else []
    outside = next((name for name in named if Path(name).name != name), None)
    outside = outside or (None if links else leading_out(folder, names))
    if outside is not None:
        raise ModelError(
            f"Put {outside!r} into the checkpoint folder {folder.name!r} itself, as a file, not a "
            "link: it leads out of the folder."
        )


def leading_out(folder: Path, names: Iterable[str]) -> str | None:
    """The first of the names that lead out of ``folder``, by themselves or as links.

    The files of a Hub cache's snapshot are links to its blobs, which belong to it.
    """
    root = folder.resolve()
    roots = [root]
    for one in (root, *root.parents):
        if one.parent.name == "snapshots":
            roots.append(one.parent.parent / "blobs")
    for name in sorted(names):
        target = (root / name).resolve()
        if not any(target.is_relative_to(one) for one in roots):
            return name
    return None


def _weight_files(folder: Path, names: set[str]) -> set[str]:
    """The weights that an index or the configuration names, which may lie in subfolders."""
    found = {str(_json(folder / "config.json").get("transformers_weights") or "")} - {""}
    for index in {name for name in names | found if name.endswith(INDEX)}:
        found |= {str(name) for name in _weight_map(folder / index).values()}
    for name in found:
        if name.startswith("/") or posixpath.normpath(name).startswith(".."):
            raise ModelError(
                f"The index of the checkpoint folder {folder.name!r} names weights outside it, in "
                f"{name!r}; move them into the folder and correct the index."
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
    """A JSON object; empty if it is not one, since loading it later gives the error."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@functools.lru_cache(maxsize=1024)
def _file_hash(path: str, size: int, modified: int, changed: int) -> str:
    return file_sha256(Path(path))


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(data: bytes) -> str:
    """The hash of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
