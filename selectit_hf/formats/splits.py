"""Which split of a dataset, and which part of it, as in ``train[:1000]``."""

import re
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    ReadInstruction,
)

from selectit_hf.errors import InputError, SettingError, did_you_mean

__all__ = ["choose_split", "cut", "first_rows", "one_split", "part_of", "start_of"]

FIRST = re.compile(r"\[:(\d+)\]")


def first_rows(split: str | None, limit: int | None) -> str | None:
    """The split that is asked for, or only its first ``limit`` rows, as in ``train[:1000]``.

    Raises:
        SettingError: the split already asks for a part.
    """
    if limit is None:
        return split
    if split is not None and "[" in split:
        raise SettingError(
            f"--limit {limit} and --split {split} both name a part of the rows; omit one of them."
        )
    return f"{split or ''}[:{limit}]"


def cut(split: str | None) -> tuple[str | None, str | None]:
    """The split and the part in ``train[:1000]``; in ``[:1000]`` no split is named."""
    base, bracket, rest = (split or "").partition("[")
    return base or None, f"[{rest}" if bracket else None


def part_of(rows: Dataset, split: str, part: str | None, name: str) -> tuple[Dataset, str]:
    """The rows of a part such as ``[:1000]``, and what they are, as in ``train[:1000]``.

    The first 1000 of fewer rows are all of them, and are called so.
    """
    start = FIRST.fullmatch(part or "")
    if part is None or (start and int(start[1]) >= len(rows)):
        return rows, split
    try:
        (found,) = ReadInstruction.from_spec(f"rows{part}").to_absolute({"rows": len(rows)})
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"--split {split}{part} does not fit the {len(rows)} rows of {name!r}: {error} Write "
            "it as in train[:1000] or train[:10%]."
        ) from error
    begin, end = found.from_ or 0, len(rows) if found.to is None else found.to
    return rows.select(range(begin, end)), f"{split}{part}"


def start_of(rows: IterableDataset, split: str, part: str | None) -> tuple[IterableDataset, str]:
    """Like `part_of`, of a stream, of which only the first rows can be read."""
    if part is None:
        return rows, split
    found = FIRST.fullmatch(part)
    if found is None:
        raise InputError(
            f"--streaming reads a split or its first rows, as in {split}[:1000], not "
            f"{split}{part}; omit --streaming to read another part."
        )
    return rows.take(int(found[1])), f"{split}{part}"


def one_split(loaded: Any, split: str | None, name: str) -> tuple[Any, str]:
    """One split of what was loaded, and its name."""
    if not isinstance(loaded, (DatasetDict, IterableDatasetDict)):
        if split is not None:
            raise InputError(f"{name!r} is a single split; omit --split.")
        return loaded, "train"
    chosen = choose_split(list(loaded), split, name)
    return loaded[chosen], chosen


def choose_split(splits: list[str], split: str | None, name: str) -> str:
    """The split that is asked for, or the only one."""
    if split is None and len(splits) == 1:
        return splits[0]
    if split in splits:
        return str(split)
    problem = "no split was named" if split is None else f"there is no split {split!r}"
    raise InputError(
        f"The dataset {name!r} has the splits {', '.join(map(str, splits))}, and {problem}; choose "
        f"one with --split.{did_you_mean(split or '', map(str, splits))}"
    )
