"""Libraries that report only errors, so that the messages of this package can be read."""

import logging
from typing import Any, cast

import datasets

__all__ = ["quiet_libraries"]


def quiet_libraries() -> None:
    """Turn off the progress bars and the minor log lines of the libraries below."""
    import transformers

    for library in (datasets, transformers):
        cast(Any, library.utils.logging).set_verbosity_error()
    cast(Any, transformers.utils.logging).disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every matrix product
