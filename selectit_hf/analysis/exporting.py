"""The kept rows of a finished run, in the form that a trainer reads."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features

from selectit_hf.analysis.finished import Finished, Rows, is_score
from selectit_hf.analysis.finished_run import from_run
from selectit_hf.analysis.verified_results import check_unchanged
from selectit_hf.formats import RowReader, Trainable, write_arrow, writer
from selectit_hf.runs import RESULTS, Run, is_url, open_results

__all__ = ["Exported", "export", "for_training"]


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        rows: the number of rows.
        columns: their columns.
        notes: what a person should know: what is not in them, and what a trainer skips.
    """

    rows: int
    columns: tuple[str, ...]
    notes: tuple[str, ...]


def export(
    run: Run | str | Path, form: str, out: str | Path, *, with_scores: bool = False
) -> Exported:
    """Write the kept rows of a finished run to a file or folder, as a trainer reads them.

    The run's files are verified first. ``out`` is replaced whole, or not at all.

    Args:
        run: the run, or its folder or URL.
        form: ``messages``, ``prompt-completion``, ``alpaca``, ``sharegpt`` or ``text``.
        out: a .jsonl, .json or .parquet file; or a new folder, for `datasets.load_from_disk`.
        with_scores: keep the score columns.

    Returns:
        The number of rows, their columns, and notes on what is not in them.

    Raises:
        SettingError: an unknown form, or ``out`` cannot be written.
        RunError: the run is not finished, or its files do not belong together.
        InputError: the form cannot hold a row; the message names the row and a form that can.

    Example:
        >>> export("RUN", "messages", "kept.jsonl")  # doctest: +SKIP
        Exported(rows=120, columns=('messages',), notes=())
    """
    run = run if isinstance(run, Run) else open_results(run)
    own = [] if is_url(str(run.results)) else [run.results.path(name) for name in RESULTS]
    write = writer(Path(out), [path for path in own if path.exists()])
    finished = from_run(run)
    rows, notes = for_training(finished, form, with_scores=with_scores)
    with tempfile.TemporaryDirectory(prefix="selectit-export-") as folder:
        path = Path(folder) / "rows.arrow"
        write_arrow(path, rows.features.arrow_schema, rows.tables(None))
        check_unchanged(run, finished)
        made = Dataset.from_file(str(path))
        write(made)
        return Exported(len(made), tuple(made.column_names), tuple(notes()))


def for_training(
    finished: Finished, form: str, *, with_scores: bool = False
) -> tuple[Rows, Callable[[], list[str]]]:
    """The kept rows in a trainer's form, read in pieces, and what to say once they were read.

    Raises:
        SettingError, InputError: see `export`; rows are checked as they are read.
    """
    selected = finished.selected
    ours = [name for name in selected.features if is_score(name)]
    theirs = Features({k: v for k, v in selected.features.items() if k not in ours})
    made = Trainable(form, RowReader.of(finished.facts["rating"]), theirs)
    more = ours if with_scores else []
    features = Features({**made.features, **{name: selected.features[name] for name in more}})
    needed = list(dict.fromkeys([*made.columns, *made.media, *more]))
    numbers = np.flatnonzero(finished.scores.column("selected").to_numpy(False))

    def tables(columns: list[str] | None) -> Iterator[pa.Table]:
        made.shortened = made.uneven = 0
        start = 0
        for table in selected.tables(needed):
            part = table.select([*dict.fromkeys([*made.columns, *made.media])])
            batch = Dataset(part).with_format(None)[:]
            rows = made.rows(batch, numbers[start : start + len(table)])
            values = {name: [row[name] for row in rows] for name in made.features}
            whole = Dataset.from_dict(values, features=made.features).data.table
            for name in more:
                whole = whole.append_column(name, table[name])
            whole = whole.cast(features.arrow_schema)
            yield whole if columns is None else whole.select(columns)
            start += len(table)

    def notes() -> list[str]:
        left = [name for name in made.left_out if name not in made.media]
        said = [f"columns that are left out: {', '.join(left)}"] if left else []
        if made.shortened:
            said.append(
                f"{made.shortened} rows hold only the exchange that was rated; --format messages "
                "or sharegpt keeps the whole conversation"
            )
        if made.uneven:
            said.append(
                f"{made.uneven} conversations do not alternate between human and gpt, or do not "
                "end with gpt; LLaMA-Factory skips them"
            )
        return said

    return Rows(features, tables), notes
