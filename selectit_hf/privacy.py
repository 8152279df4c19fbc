"""Tokens and local paths must not leave this machine: every file is searched, output is redacted.

In parquet files the decoded values and the metadata are searched, since pages are compressed.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selectit_hf.redaction import HIDDEN, SECRET, redacted

__all__ = ["private_place", "private_words", "shown"]

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
SHARED = {"/", "/root", "/home", "/nonexistent", "/var/empty"}
"""Home folders that texts of any origin name."""
PIECE = 1 << 20


def private_words(token: str | None = None) -> list[str]:
    """The login's tokens, and the path of the home folder, which holds the user's name.

    The home of root is left out: it identifies nobody, and instructions about Linux name it.
    """
    tokens = [token or "", *(os.environ.get(name, "").strip() for name in TOKENS)]
    homes = {str(Path.home()), os.environ.get("HOME", ""), str(Path.home().resolve())} - SHARED
    words = [one for one in tokens if len(one) >= 8]
    words += [f"{home.rstrip('/')}/" for home in homes if len(home) > 3]
    return sorted(set(words))


def private_place(path: Path, words: list[str]) -> str | None:
    """Where in a file one of the words is, as a phrase for a person; `None` if nowhere."""
    if not words:
        return None
    if path.suffix == ".parquet":
        return next(_places(path, words), None)
    return "its bytes" if _holds(path, [word.encode() for word in words]) else None


def _holds(path: Path, words: list[bytes]) -> bool:
    behind = b""
    longest = max(map(len, words))
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            joined = behind + piece
            if any(word in joined for word in words):
                return True
            behind = joined[-longest:]
    return False


def _places(path: Path, words: list[str]) -> Iterator[str]:
    with pq.ParquetFile(path) as file:
        if _holds(path, [word.encode() for word in words]):
            yield "its metadata or plain pages"  # of a file that is read anyway
        said = {**(file.schema_arrow.metadata or {}), **(file.metadata.metadata or {})}
        for key, value in said.items():
            if any(word.encode() in key + value for word in words):
                yield f"the metadata {key.decode(errors='replace')!r}"
        for batch in file.iter_batches(1000):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if any(_found(leaf, words) for leaf in _leaves(column)):
                    yield f"the column {name!r}"


def _leaves(values: pa.Array) -> Iterator[pa.Array]:
    """The texts and bytes within a column, however deep."""
    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        yield from _leaves(values.storage)
    elif pa.types.is_dictionary(kind):
        yield from _leaves(values.dictionary)
    elif pa.types.is_struct(kind):
        for one in values.flatten():
            yield from _leaves(one)
    elif pa.types.is_map(kind):
        yield from _leaves(values.keys)
        yield from _leaves(values.items)
    elif pa.types.is_nested(kind):
        yield from _leaves(values.flatten())
    elif (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    ):
        yield values


def _found(values: pa.Array, words: list[str]) -> bool:
    return any(pc.any(pc.match_substring(values, word)).as_py() for word in words)


# What is shown


def shown(facts: Any) -> str:
    """Facts as JSON for people: other values become text, and secrets are left out."""
    return redacted(json.dumps(_without_secrets("", facts), indent=2, default=str))


def _without_secrets(name: str, value: Any) -> Any:
    is_secret = re.fullmatch(SECRET, name, re.IGNORECASE)
    if isinstance(value, dict):
        return {n: HIDDEN if is_secret else _without_secrets(n, v) for n, v in value.items()}
    if isinstance(value, list):
        return [_without_secrets(name, one) for one in value]
    if is_secret and value is not None:
        return HIDDEN
    return redacted(value) if isinstance(value, str) else value
