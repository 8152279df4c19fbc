"""Which split of a dataset, and which part of it, as in ``train[:1000]``."""

from typing import Any

from datasets import Dataset, DatasetDict, IterableDatasetDict, ReadInstruction

from selectit_hf.errors import InputError, did_you_mean

__all__ = ["choose_split", "cut", "one_split", "part_of"]


def cut(split: str | None) -> tuple[str | None, str | None]:
    """The split in ``train[:1000]``, and the whole text if it asks for a part."""
    if split is None or "[" not in split:
        return split, None
    return split.partition("[")[0], split


def part_of(rows: Dataset, part: str | None, name: str) -> Dataset:
    """The rows of ``train[:1000]``, of those of ``train``."""
    if part is None:
        return rows
    base = part.partition("[")[0]
    try:
        (found,) = ReadInstruction.from_spec(part).to_absolute({base: len(rows)})
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"--split {part} does not fit the {len(rows)} rows of {name!r}: {error} Write it as "
            "in train[:1000] or train[:10%]."
        ) from error
    start, stop = found.from_ or 0, len(rows) if found.to is None else found.to
    return rows.select(range(start, stop))


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
