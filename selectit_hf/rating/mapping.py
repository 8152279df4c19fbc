"""`Dataset.map` over several devices, without its traps.

With CUDA, workers of ``map`` must be spawned. They get their rank only on request, and neither
``device`` nor ``token_budget`` of a pickled scorer. ``map`` also reuses the cached files of an
earlier call with another number of workers. `score` takes care of all of this.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import multiprocess
from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    concatenate_datasets,
)
from datasets.fingerprint import Hasher

from selectit_hf.errors import InputError, SettingError
from selectit_hf.rating.model_level import ModelScore
from selectit_hf.rating.rate_batch import listened
from selectit_hf.rating.rating_scorer import RatingScorer

__all__ = ["device_count", "environment", "score", "shares"]


def device_count() -> int:
    """How many CUDA devices are visible."""
    count = 0
    while _is_there(f"cuda:{count}"):
        count += 1
    return count


def _is_there(device: str) -> bool:
    from selectit_hf.rating.models.loading import choose_device

    try:
        choose_device(device)
    except SettingError:
        return False
    return True


def shares(count: int) -> list[str | None]:
    """The GPUs of each of ``count`` workers that spread their model, for CUDA_VISIBLE_DEVICES.

    The visible GPUs are divided equally; ``None`` if there are none.

    Raises:
        SettingError: they cannot be divided equally.
    """
    gpus = device_count()
    if gpus % count:
        raise SettingError(
            f"--workers {count} cannot share {gpus} GPUs equally to spread a model over; use a "
            f"number that divides {gpus}."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:gpus] if visible else [str(number) for number in range(gpus)]
    each = gpus // count
    parts = [",".join(names[rank * each : (rank + 1) * each]) for rank in range(count)]
    return [part or None for part in parts]


def score(
    dataset: Dataset,
    scorer: RatingScorer | ModelScore,
    num_proc: int | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Dataset:
    """``dataset`` with the columns of ``scorer``, from as many processes as there are GPUs.

    The columns are those of ``dataset.map(scorer, batched=True)``, whatever ``num_proc`` is; all
    other columns stay exactly as they are stored.

    Args:
        dataset: rows; see `RatingScorer`.
        scorer: what scores them.
        num_proc: worker processes; by default one for each visible GPU, else none. A scorer with a
            ``device_map`` takes all GPUs in this process.
        progress: called with the scorer's slug and how many more rating prompts are done, if this
            process rates.

    Raises:
        InputError: ``dataset`` is not a `Dataset`, but a dict of splits or a stream.
        SettingError: ``num_proc`` is less than 1, or more than 1 with a ``device_map``.
        What the scorer raises; see `RatingScorer.__call__`.

    Example:
        >>> ds = score(ds, SentenceScore("meta-llama/Llama-2-7b-hf"))  # doctest: +SKIP
    """
    if num_proc is not None and num_proc < 1:
        raise SettingError(f"num_proc={num_proc} must be at least 1.")
    _check_dataset(dataset)
    rates = isinstance(scorer, RatingScorer)
    spread = scorer.spread if isinstance(scorer, RatingScorer) else None
    if spread and num_proc not in (None, 1):
        raise SettingError(
            f"num_proc={num_proc} and the device map {spread!r} contradict each other: one process "
            "takes all GPUs. Omit num_proc; 'selectit run --workers' divides the GPUs among "
            "several."
        )
    one = not isinstance(scorer, RatingScorer) or scorer.device or spread
    devices = 1 if one else device_count()
    count = min(num_proc or max(devices, 1), max(len(dataset), 1))
    read = dataset.select_columns(_read(dataset.column_names, scorer))
    features = scorer.features(read)
    if not len(dataset):  # `map` would leave it without the columns
        whole = scorer.features(dataset)
        return Dataset.from_dict({name: [] for name in whole}, whole)
    desc = scorer.slug if isinstance(scorer, RatingScorer) else "model_score"
    if count == 1:
        with listened(progress):
            scored = read.map(scorer, batched=True, features=features, desc=desc)
        return _beside(dataset, scored, list(scorer.columns))
    # Settings that are not part of a pickled scorer.
    given = {
        "SELECTIT_DEVICE": getattr(scorer, "device", None),
        "SELECTIT_TOKEN_BUDGET": getattr(scorer, "token_budget", None),
    }
    with environment(given), _spawned():
        scored = read.map(
            scorer,
            batched=True,
            features=features,
            desc=desc,
            num_proc=count,
            with_rank=rates,
            new_fingerprint=Hasher.hash([read._fingerprint, scorer, count]),
        )
    return _beside(dataset, scored, list(scorer.columns))


STORED = ("rater__", "rating_logprobs__", "status__")


def _read(columns: list[str], scorer: RatingScorer | ModelScore) -> list[str]:
    """The columns that a scorer looks at; the others need not pass through Python."""
    own = [c for c in columns if c in scorer.columns or c.startswith(STORED)]
    texts = scorer.reader.columns(columns) if isinstance(scorer, RatingScorer) else ()
    return list(dict.fromkeys((*texts, *own)))


def _beside(dataset: Dataset, scored: Dataset, columns: list[str]) -> Dataset:
    """The dataset, untouched, with score columns added or replaced."""
    others = [name for name in dataset.column_names if name not in columns]
    halves = [dataset.select_columns(others), scored.select_columns(columns)]
    joined = concatenate_datasets([half.with_format(None) for half in halves], axis=1)
    order = list(dict.fromkeys((*dataset.column_names, *columns)))
    return joined.select_columns(order).with_format(dataset.format["type"])


def _check_dataset(dataset: object) -> None:
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        raise InputError(
            f"This is a dict of the splits {', '.join(map(str, dataset))}; score one of them, as "
            f"in score(ds[{next(iter(dataset), 'train')!r}], scorer)."
        )
    if isinstance(dataset, IterableDataset):
        raise InputError(
            "A stream cannot be divided among processes; score it as it passes, as in "
            "ds.map(scorer, batched=True), or put it on the disk with 'selectit run --streaming'."
        )
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"score takes a datasets.Dataset, not a {type(dataset).__name__}; make one, as in "
            "Dataset.from_list(rows) or Dataset.from_pandas(frame)."
        )


@contextmanager
def environment(given: Mapping[str, object]) -> Iterator[None]:
    """Set environment variables for processes started in the block; ``None`` changes nothing."""
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    try:
        yield
    finally:
        for name in given:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


@contextmanager
def _spawned() -> Iterator[None]:
    """Let `datasets` spawn its workers, since CUDA does not survive a fork."""
    before = multiprocess.get_start_method(allow_none=True)
    multiprocess.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocess.set_start_method(before, force=True)
