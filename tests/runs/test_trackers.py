"""``--report-to``: what lands in a tracker is what the run did."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

from selectit_hf.runs import trackers


def logged(folder: Path) -> dict[str, list[float]]:
    """All values of each name in the event files of a folder, in the order of their steps."""
    found: dict[str, list[float]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file.parent))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found[name] = [one.value for one in events.Scalars(name)]
        for name in events.Tags()["histograms"]:
            found[name] = [value for one in events.Histograms(name) for value in counted(one)]
    return found


def counted(event: Any) -> list[float]:
    """Number, sum, minimum and maximum of what a histogram holds."""
    held = event.histogram_value
    return [held.num, held.sum, held.min, held.max]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_tensorboard_gets_what_the_run_did(
    selectit: Callable[..., Any],
    data: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "EVERY", 0.0)
    flags = ("--model", checkpoint, "--out", "run", "--shard-size", 10)
    done = selectit("run", data, *flags, "--report-to", "tensorboard")
    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.json", "run", "run.logs"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (slug,) = summary["models"]
    found = logged(tmp_path / "run.logs")
    assert found[f"{slug}/rows"] == sorted(found[f"{slug}/rows"])
    assert found[f"{slug}/rows"][-1] == 30
    assert len(found[f"{slug}/rows"]) > 3
    assert found["selected"] == [6]
    assert found[f"{slug}/status/ok"] == [30]
    mass = summary["models"][slug]["rating_mass"]
    assert found[f"{slug}/rating_mass"][-1] == pytest.approx(mass, rel=1e-5)
    assert found["score/median"] == pytest.approx([summary["score_quantiles"][2]], rel=1e-5)
    scores = pq.read_table(tmp_path / "run" / "scores.parquet")[summary["by"]].to_pylist()
    expected = [len(scores), sum(scores), min(scores), max(scores)]
    assert found["scores"] == pytest.approx(expected)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    lengths = prompt_lengths(plan, data, checkpoint)[: 20 * plan["rating"]["k"]]
    speeds = zip(
        found[f"{slug}/tokens_per_second"][::-1], found[f"{slug}/rows_per_second"][::-1],
        strict=False,
    )  # fmt: skip
    # as the last shard of 10 rows is rated, the others are known
    tokens, rows = next((tokens, rows) for tokens, rows in speeds if rows)
    assert tokens / rows == pytest.approx(sum(lengths) / 20, rel=1e-5)


def prompt_lengths(plan: dict[str, Any], data: Path, model: Path) -> list[int]:
    """The number of tokens of every prompt."""
    asked, tokenizer = plan["rating"], AutoTokenizer.from_pretrained(model)
    prompts = [
        asked["template"].format(
            rating_prompt=prompt, instruction=row["instruction"], response=row["output"]
        )
        for row in json.loads(data.read_text())
        for prompt in asked["rating_prompts"]
    ]
    return [len(ids) for ids in tokenizer(prompts)["input_ids"]]


def test_a_tracker_that_is_unknown_missing_or_under_a_launcher_is_refused(
    selectit: Callable[..., Any], data: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("run", data, "--model", checkpoint, "--out", "run", "--report-to")
    assert "Did you mean 'tensorboard'?" in selectit(*flags, "tensorbord").err
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    assert "--report-to wandb needs a package: pip install wandb." in selectit(*flags, "wandb").err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "omit it under a launcher" in selectit(*flags, "tensorboard").err
