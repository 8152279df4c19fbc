"""What the libraries raise while a dataset is read, as errors that name it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from datasets.exceptions import DatasetsError
from httpx2 import HTTPError
from huggingface_hub.errors import GatedRepoError

from selectit_hf import hub_files
from selectit_hf.errors import InputError, SelectItError

__all__ = ["FOREIGN", "gated", "readable", "without_rows"]

NO_ROWS = ("corresponds to no data", "No columns to parse", "BatchSize must be greater than 0")
"""How the readers say that a file has no rows."""

FOREIGN = (
    DatasetsError,
    HTTPError,
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    RuntimeError,
    pa.ArrowException,
)


def gated(name: str) -> InputError:
    """The error for a dataset whose terms must be accepted first."""
    return InputError(
        f"The dataset {name!r} is gated: accept its terms on "
        f"https://huggingface.co/datasets/{name}, then log in with 'hf auth login' or set HF_TOKEN."
    )


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what the libraries raise while a dataset is read into an `InputError`."""
    try:
        yield
    except GatedRepoError as error:
        raise gated(name) from error
    except SelectItError:
        raise
    except hub_files.Unverified as error:
        raise InputError(f"The dataset {name!r} cannot be loaded: {error}.") from error
    except FOREIGN as error:
        cause = error.__cause__ or error
        detail = str(cause).strip().split("\n", 1)[0]
        if any(text in detail for text in NO_ROWS):
            raise without_rows(name) from error
        raise InputError(
            f"The dataset {name!r} cannot be read: {detail} Check that every row has the same "
            "columns and types, and that the file's extension is right."
        ) from error


def without_rows(name: str) -> InputError:
    """The error for a dataset with nothing in it."""
    return InputError(f"The dataset {name!r} has no rows; there is nothing to rate.")
