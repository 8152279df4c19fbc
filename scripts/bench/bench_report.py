"""How large is the report of a large run, and how soon can a reader move its slider?

A finished run with made-up rows and ratings of three models is written without scoring, its report
is built, and the page is opened in headless Chromium: "interactive" is the time from the start of
the navigation until the first chart is drawn and the slider answers, the median of several visits.
The last line of stdout is JSON.

    python scripts/bench/bench_report.py
    python scripts/bench/bench_report.py --rows 200000
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from check_report import browser, opened
from datasets import Dataset

from selectit_hf.report.page import write_report

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from finished_runs import make_run

VOCABULARY, TOPICS = 20_000, 12
WORDS = 110
"""Words of a response on average: about 700 characters, as Alpaca-GPT4 has."""


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--rows", type=int, default=52_000)
    flags.add_argument("--visits", type=int, default=5)
    flags.add_argument("--keep", type=Path, help="write the page to this folder, and leave it")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-report-") as folder:
        rows = made_rows(given.rows)
        run = make_run(Path(folder) / "RUN", rows=rows, models=("org/a", "org/b", "org/c"))
        print(f"A run with {given.rows} rows is written.", file=sys.stderr)
        started = time.perf_counter()
        page = write_report(run, rows, given.keep)
        facts = {
            "rows": given.rows,
            "build_seconds": round(time.perf_counter() - started, 1),
            "peak_megabytes": round(
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
            ),
            "page_megabytes": round(page.stat().st_size / 1e6, 2),
            **timed_visits(page, given.visits),
        }
    print(json.dumps(facts))


def made_rows(count: int) -> Dataset:
    """Rows of made-up words, each about one of twelve topics."""
    random = np.random.default_rng(0)
    syllables = ["".join(pair) for pair in zip("bdfgklmnprst" * 4, "aeiou" * 10, strict=False)]
    words = np.array(["".join(random.choice(syllables, 3)) for _ in range(VOCABULARY)])
    topics = random.integers(TOPICS, size=count)
    lengths = random.geometric(1 / WORDS, size=count)
    responses = [text(random, words, *row) for row in zip(topics, lengths, strict=True)]
    return Dataset.from_dict(
        {
            "instruction": [text(random, words, topic, 12) for topic in topics],
            "output": responses,
            "topic": [f"topic {topic}" for topic in topics],
        }
    )


def text(random: np.random.Generator, words: np.ndarray, topic: int, length: int) -> str:
    """Words that are common everywhere, and some that are common only in the topic."""
    places = random.zipf(1.3, size=length) % VOCABULARY
    own = random.random(length) < 0.3
    places[own] = (places[own] + (topic + 1) * 1500) % VOCABULARY
    return " ".join(words[places])


def timed_visits(page: Path, visits: int) -> dict[str, float]:
    ready, moved = [], []
    with browser() as chromium:
        for _ in range(visits):
            with opened(chromium, page) as (tab, _):
                ready.append(tab.evaluate("performance.getEntriesByName('ready')[0].startTime"))
                moved.append(tab.evaluate(MOVE))
    return {
        "interactive_seconds": round(statistics.median(ready) / 1000, 2),
        "slowest_interactive_seconds": round(max(ready) / 1000, 2),
        "slider_milliseconds": round(statistics.median(moved)),
    }


MOVE = """() => new Promise((done) => {
  const started = performance.now();
  const slider = document.getElementById("keep");
  slider.value = 350;
  slider.dispatchEvent(new Event("input"));
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - started)));
})"""
"""Moves the slider, and waits until the frame that shows the change is drawn."""


if __name__ == "__main__":
    main()
