"""A run followed by an experiment tracker: tensorboard, trackio or wandb, through accelerate."""

import importlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selectit_hf.errors import SettingError, did_you_mean
from selectit_hf.runs.rate_shards import Progress
from selectit_hf.runs.run import RESULTS, Run
from selectit_hf.runs.store import is_url

__all__ = ["TRACKERS", "Trackers", "tracking"]

TRACKERS = ("tensorboard", "trackio", "wandb")
EVERY = 10.0
"""Seconds between two lines of a run in progress."""


@contextmanager
def tracking(names: Sequence[str], run: Run) -> Iterator["Trackers"]:
    """Trackers that are started now, and finished when the block ends, however it ends.

    Args:
        names: which of `TRACKERS`; none is fine.
        run: the run. tensorboard writes to a folder next to it, ``RUN.logs``.

    Raises:
        SettingError: an unknown tracker, or one that is not installed.
    """
    found = Trackers(run, {name: _started(name, run) for name in names})
    try:
        yield found
    finally:
        found.close()


class Trackers:
    """What is logged, for each model: rows, speed and rating mass; then the results."""

    def __init__(self, run: Run, trackers: Mapping[str, Any]) -> None:
        self._run, self._trackers = run, trackers
        self._done: Counter[str] = Counter()
        self._before: Counter[str] = Counter()
        self._last = time.monotonic()

    def following(self, progress: Progress) -> Progress:
        """``progress``, and a line for the trackers now and then."""
        if not self._trackers:
            return progress

        def told(slug: str, prompts: int) -> None:
            progress(slug, prompts)
            self._done[slug] += prompts
            if time.monotonic() - self._last >= EVERY:
                self._tell()

        return told

    def tell_results(self, summary: Mapping[str, Any]) -> None:
        """Log the summary of the finished run."""
        if not self._trackers:
            return
        self._tell()
        names = ("minimum", "quarter", "median", "three_quarters", "maximum")
        facts = {
            "rows": summary["rows"],
            "selected": summary["selected"],
            "threshold": summary["threshold"],
            **dict(zip((f"score/{n}" for n in names), summary["score_quantiles"], strict=False)),
        }
        for slug, model in summary["models"].items():
            facts[f"{slug}/rating_mass"] = model["rating_mass"]
            facts |= {f"{slug}/status/{name}": n for name, n in model["statuses"].items()}
        self._log(facts)
        self._tell_scores(summary["by"])

    def _tell_scores(self, by: str) -> None:
        """Log the histogram of the scores, if the rows were ranked by one."""
        with self._run.results.parquet(RESULTS[0]) as file:
            if by not in file.schema_arrow.names:
                return
            column = file.read(columns=[by])[by].drop_null().to_numpy()
        for name, tracker in self._trackers.items():
            if name == "tensorboard":
                tracker.tracker.add_histogram("scores", column, self._step)
            else:
                made = importlib.import_module(name).Histogram(column)
                tracker.log({"scores": made}, step=self._step)

    @property
    def _step(self) -> int:
        return sum(self._done.values())

    def _tell(self) -> None:
        now, k = time.monotonic(), self._run.plan["rating"]["k"]
        facts: dict[str, Any] = {}
        for slug, prompts in self._done.items():
            facts[f"{slug}/rows"] = prompts / k
            made = (prompts - self._before[slug]) / k
            speed = made / max(now - self._last, 1e-9)
            facts[f"{slug}/rows_per_second"] = speed
            tokens = self._run.tokens_per_row(slug)
            facts[f"{slug}/tokens_per_second"] = None if tokens is None else tokens * speed
            facts[f"{slug}/rating_mass"] = self._run.rating_mass(slug)
        self._before, self._last = self._done.copy(), now
        self._log(facts)

    def _log(self, facts: Mapping[str, Any]) -> None:
        known = {name: float(value) for name, value in facts.items() if value is not None}
        for tracker in self._trackers.values():
            tracker.log(known, step=self._step)

    def close(self) -> None:
        """Finish all of them."""
        for tracker in self._trackers.values():
            tracker.finish()


def _started(name: str, run: Run) -> Any:
    if name not in TRACKERS:
        meant = did_you_mean(name, TRACKERS)
        raise SettingError(f"There is no tracker {name!r}; known are {', '.join(TRACKERS)}.{meant}")
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in map(str, get_available_trackers()):
        raise SettingError(f"--report-to {name} needs a package: pip install {name}.")
    PartialState()  # some trackers log only if it exists
    kind = LOGGER_TYPE_TO_CLASS[name]
    folder = Path(run.name if is_url(run.where) else run.where)
    logs = {"logging_dir": folder.with_name(f"{folder.name}.logs")}
    tracker = kind(run.name, **(logs if kind.requires_logging_directory else {}))
    tracker.start()
    models = {f"model_{i}": model["model"] for i, model in enumerate(run.plan["models"])}
    tracker.store_init_configuration(
        {"dataset": run.plan["input"]["name"], "rows": run.rows, "k": run.plan["rating"]["k"]}
        | models
    )
    return tracker
