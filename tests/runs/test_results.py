"""Finishing in two bounded passes, against everything at once in memory."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, concatenate_datasets
from finished_runs import K, commit, make_plan, make_rows, planned
from hypothesis import given, settings
from hypothesis import strategies as st

from selectit_hf import ModelScore, SentenceScore, select
from selectit_hf.analysis.verified_results import check_written
from selectit_hf.errors import InputError, RunError, SettingError
from selectit_hf.formats.rows import STATUSES, Pair, RowReader
from selectit_hf.rating.ratings import Ratings, nested_lists, nulled
from selectit_hf.rating.reflection import Reflection
from selectit_hf.runs import Run, finish, open_run, ranking_column, ratings_of
from selectit_hf.selection import contrast
from selectit_hf.selection import selected_file as selected_rows
from selectit_hf.selection.selection import Cut


def run_of(folder: Path, rows: Dataset, ratings: dict[str, Ratings], size: int = 7) -> Run:
    """A run whose shards are all rated."""
    run = planned(folder, make_plan(rows, list(ratings), size))
    for slug, one in ratings.items():
        commit(run, slug, one)
    return run


def make_ratings(count: int, seed: int, parameters: int = 10**9) -> Ratings:
    """Made-up ratings with every kind of status, ties, and whole shards without a rating."""
    random = np.random.default_rng(seed)
    logits = random.integers(0, 3, (count, K, K)) / 2
    logprobs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)) - 0.1).astype(np.float32)
    statuses = random.choice(["ok"] * 6 + [*STATUSES], count).tolist()
    statuses[: count // 4] = ["empty"] * (count // 4)
    for i, status in enumerate(statuses):
        if status not in ("ok", "truncated"):
            logprobs[i] = np.nan
    rater = {"model": f"org/{seed}", "revision": "0", "parameters": parameters, "rating_key": "key"}
    return Ratings(statuses, logprobs, rater)


def at_once(rows: Dataset, ratings: dict[str, Ratings], how: Reflection) -> Dataset:
    """All rows with all score columns, as the scorers give them."""
    columns: dict[str, Any] = {}
    types: dict[str, Any] = {}
    for slug, rated in ratings.items():
        scorer = SentenceScore(name=slug, alpha=how.alpha, variant=how.variant)
        columns |= scorer.values(rated)
        types |= scorer.columns
    if len(ratings) > 1:
        combine = ModelScore(weights=how.weights, alpha=how.alpha, variant=how.variant)
        columns |= combine.combine(ratings)
        types |= combine.columns
    plain = {
        name: [list(map(list, v)) if name.startswith("rating_") and v else v for v in values]
        for name, values in columns.items()
    }
    return concatenate_datasets([rows, Dataset.from_dict(plain, Features(types))], axis=1)


def same(table: pa.Table, dataset: Dataset) -> bool:
    """Whether two tables hold the same rows; NaN does not occur in them."""
    return table.to_pylist() == dataset.to_list()


HOWS = [
    (Reflection(), Cut()),
    (Reflection(alpha=1.5, weights=(3.0, 1.0)), Cut(n=7)),
    (Reflection(by="sentence_score__small"), Cut(proportion=0.5)),
    (Reflection(by="token_score__large"), Cut(threshold=1.0)),
    (Reflection(variant="released", by="sentence_score__large"), Cut(n=4, variant="released")),
    (Reflection(by="stars"), Cut(n=5)),
]


@pytest.mark.parametrize("size", [3, 7, 40])
@pytest.mark.parametrize(("how", "cut"), HOWS)
def test_finishing_is_what_selecting_at_once_gives(tmp_path, monkeypatch, size, how, cut):
    monkeypatch.setattr(
        selected_rows, "ROWS", 3
    )  # several pieces to a shard, several to a row group
    monkeypatch.setattr(selected_rows, "GROUP_ROWS", 5)
    monkeypatch.setattr(contrast, "ROWS", 3)
    rows = make_rows(40, stars=[float(i * 7 % 11) for i in range(40)])
    ratings = {"small": make_ratings(40, 1), "large": make_ratings(40, 2, 3 * 10**9)}
    if how.variant == "released":
        ratings = {"large": ratings["large"]}
    run = run_of(tmp_path / "run", rows, ratings, size)
    summary = finish(run, rows, how, cut, tmp_path / "out")
    scored = at_once(rows, ratings, how)
    by = ranking_column(run.plan, how, rows.column_names)
    expected = select(scored, by=by, **asdict(cut))
    scores = pq.read_table(tmp_path / "out" / "scores.parquet")
    assert scores["row"].to_pylist() == list(range(40))
    assert same(scores.drop_columns("row"), scored.select_columns(scores.column_names[1:]))
    selected = pq.read_table(tmp_path / "out" / "selected.parquet")
    assert same(selected, expected.selected)
    assert selected.schema.equals(expected.selected.features.arrow_schema)
    facts = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert facts["threshold"] == expected.threshold
    assert facts["reasons"] == expected.reasons
    assert (facts["rows"], facts["selected"], facts["by"]) == (40, len(expected.selected), by)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_the_summary_by_hand(tmp_path):
    rows = make_rows(40)
    ratings = {"small": make_ratings(40, 1)}
    summary = finish(run_of(tmp_path, rows, ratings), rows)
    scores = at_once(rows, ratings, Reflection())
    scored = scores.to_list()
    statuses = [row["status__small"] for row in scored]
    model = summary["models"]["small"]
    assert model["statuses"] == {s: statuses.count(s) for s in sorted(set(statuses))}
    assert model["oom_splits"] == 3  # one in every second of six shards
    masses = [np.exp(p).sum() for r in scored for p in r["rating_logprobs__small"] or []]
    assert model["rating_mass"] == pytest.approx(float(np.mean(masses)), abs=1e-6)
    kept = np.flatnonzero(select(scores, by="sentence_score__small").kept).tolist()
    pairs = RowReader().pairs(rows[:])
    lengths = {i: len(p.response) for i, p in enumerate(pairs) if isinstance(p, Pair)}
    mean = sum(lengths[i] for i in kept if i in lengths) / sum(i in lengths for i in kept)
    assert summary["mean_response_characters"] == {
        "selected": round(mean, 1),
        "all": round(sum(lengths.values()) / len(lengths), 1),
    }
    digits = [any(c.isdigit() for c in pairs[i].response) for i in kept if i in lengths]
    assert summary["contrast"]["selected"]["numeric_share"] == round(sum(digits) / len(digits), 4)
    assert summary["contrast"]["selected"]["rows"] == len(digits)
    assert sum(summary["contrast"]["response_characters"]["rejected"]) == len(lengths) - len(digits)
    ranked = sorted(
        (i for i, row in enumerate(scored) if row["sentence_score__small"] is not None),
        key=lambda i: -scored[i]["sentence_score__small"],
    )
    assert {row["row"] for row in summary["best"]} <= {*ranked[:3]}
    assert {row["row"] for row in summary["worst"]} <= {*ranked[-3:]}
    finite = [scored[i]["sentence_score__small"] for i in ranked]
    assert summary["score_quantiles"][0] == min(finite)
    assert summary["score_quantiles"][2] == pytest.approx(np.median(finite))


def results(folder: Path) -> dict[str, bytes]:
    names = ("scores.parquet", "selected.parquet", "selection.json", "summary.json")
    return {name: (folder / name).read_bytes() for name in names}


def test_whoever_commits_in_whatever_order_ends_in_the_same_bytes(tmp_path):
    rows, ratings = make_rows(40), make_ratings(40, 3)
    for name, order in {"forth": range(6), "back": range(5, -1, -1)}.items():
        run = planned(tmp_path / name, make_plan(rows, ["small"], 7))
        commit(run, "small", ratings, order)
        finish(run, rows)
    assert results(tmp_path / "forth") == results(tmp_path / "back")


def test_rows_under_a_mapping_or_a_format_are_the_same(tmp_path):
    rows = make_rows(40)
    run = run_of(tmp_path / "run", rows, {"small": make_ratings(40, 3)})
    mapped = rows.select(range(39, -1, -1)).select(range(39, -1, -1))
    for name, one in {"a": rows, "b": mapped, "c": rows.with_format("numpy", ["output"])}.items():
        finish(run, one, out=tmp_path / name)
    assert results(tmp_path / "a") == results(tmp_path / "b") == results(tmp_path / "c")


def table_of(run: Run, number: int) -> Path:
    (path,) = (Path(run.where) / "ratings" / "small").glob(f"{number:05d}.*.parquet")
    return path


@pytest.mark.parametrize("how", ["missing", "one bit", "swapped"])
def test_nothing_is_written_unless_the_shards_are_whole(tmp_path, how):
    rows, ratings = make_rows(40), make_ratings(40, 3)
    run = run_of(tmp_path / "run", rows, {"small": ratings})
    path = table_of(run, 2)
    if how == "missing":
        path.unlink()
    elif how == "one bit":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(table_of(run, 1).read_bytes())
    with pytest.raises(RunError, match="the rows 14 to 20 are not rated by 'small'"):
        finish(open_run(run.where), rows, out=tmp_path / "out")
    assert not [*(tmp_path / "out").glob("*")] if how != "missing" else True
    again = open_run(run.where)
    assert again.shards("small").missing() == [2]  # it is set aside, to be rated again
    commit(again, "small", ratings, [2])
    finish(again, rows)


def test_a_shard_that_holds_other_rows_is_refused(tmp_path):
    rows, ratings = make_rows(8), make_ratings(8, 3)
    run = run_of(tmp_path / "run", rows, {"small": ratings}, 4)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(ratings.logprobs[:4].reshape(-1)), K * K)
    table = pa.table({"row": [0, 1, 2, 3], "status": ratings.statuses[:4], "logprobs": flat})
    said = {"rater": ratings.rater, "oom_splits": 0, "seconds": 1.0}
    run.shards("small").commit(1, table, said, replace=True)
    with pytest.raises(RunError, match="the rows 4 to 7 are not rated"):
        finish(open_run(run.where), rows)


def test_what_is_committed_after_the_results_changes_nothing(tmp_path):
    """As a late worker does in storage that cannot create exclusively."""
    rows = make_rows(40)
    run = run_of(tmp_path / "run", rows, {"small": make_ratings(40, 3)})
    finish(run, rows, cut=Cut(n=9))
    before = results(tmp_path / "run")
    said = {"rater": make_ratings(40, 3).rater, "oom_splits": 0, "seconds": 1.0}
    for number in (1, 4):
        shards = open_run(run.where).shards("small")
        table = shards.table(shards.committed()[number])
        late = table.set_column(1, "status", pa.array(["oom"] * len(table)))
        shards.commit(number, late, said, replace=True)
    finish(open_run(run.where), rows, cut=Cut(n=9), out=tmp_path / "again")
    for name in ("scores.parquet", "selected.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == before[name]


def test_mixed_shards_are_refused_or_said(tmp_path):
    rows, ratings = make_rows(8), make_ratings(8, 3)
    run = run_of(tmp_path / "run", rows, {"small": ratings}, 4)
    shards = run.shards("small")
    for number, torch in enumerate(("2.9", "2.10")):
        facts = shards.committed()[number]
        said = {"rater": ratings.rater, "oom_splits": 0, "seconds": 1.0}
        said["made_with"] = {"device": "cpu AVX2", "torch": torch}
        shards.commit(number, shards.table(facts), said, replace=True)
    run = open_run(run.where)
    with pytest.raises(RunError, match=r"several versions.*torch: 2\.10 and 2\.9") as refused:
        finish(run, rows)
    assert "remove ratings/small/00001.json and rate" in str(refused.value)
    found = finish(run, rows, allow_mixed=True)["models"]["small"]["made_with"]
    assert [one["torch"] for one in found] == ["2.9", "2.10"]


def test_results_go_into_no_other_run(tmp_path):
    rows, others = make_rows(40), make_rows(40, more=["text"] * 40)
    run = run_of(tmp_path / "run", rows, {"small": make_ratings(40, 3)})
    other = run_of(tmp_path / "other", others, {"small": make_ratings(40, 4)})
    finish(other, others)
    before = results(tmp_path / "other")
    with pytest.raises(RunError, match="'other' is another run"):
        finish(run, rows, out=tmp_path / "other")
    finish(other, others, out=tmp_path / "run" / ".." / "other")  # the same folder
    assert results(tmp_path / "other") == before
    assert check_written(open_run(tmp_path / "other"))
    finish(run, rows)
    for name, data in results(tmp_path / "run").items():
        (tmp_path / "other" / name).write_bytes(data)
    with pytest.raises(RunError, match="not made from the ratings by small"):
        check_written(open_run(tmp_path / "other"))


def test_a_failure_leaves_the_files_of_before(tmp_path):
    rows = make_rows(40)
    run = run_of(tmp_path / "run", rows, {"small": make_ratings(40, 3)})
    finish(run, rows)
    before = results(tmp_path / "run")
    with pytest.raises(InputError, match="not scores"):
        finish(run, rows, Reflection(by="output"))
    with pytest.raises(RunError, match="39 rows are not those"):
        finish(run, rows.select(range(39)))
    assert results(tmp_path / "run") == before


def test_no_rating_at_all_selects_nothing(tmp_path):
    rows, ratings = make_rows(9), make_ratings(9, 3)
    ratings.logprobs[:] = np.nan
    run = run_of(tmp_path, rows, {"small": ratings._replace(statuses=["empty"] * 9)}, 4)
    summary = finish(run, rows)
    assert summary["reasons"] == {"empty": 9}
    assert summary["models"]["small"]["rating_mass"] is None
    assert (summary["best"], summary["score_quantiles"], summary["threshold"]) == ([], [], None)
    assert pq.read_table(tmp_path / "selected.parquet").num_rows == 0


def test_all_ratings_are_those_committed(tmp_path):
    ratings = make_ratings(40, 3)
    found = ratings_of(run_of(tmp_path, make_rows(40), {"small": ratings}), "small")
    assert found.statuses == ratings.statuses
    np.testing.assert_array_equal(found.logprobs, ratings.logprobs)
    assert (found.rater, found.splits) == (ratings.rater, 3)


def test_weights_of_one_model_and_unknown_columns_are_refused():
    rows = make_rows(4)
    with pytest.raises(SettingError, match="this run has only one"):
        ranking_column(make_plan(rows, ["small"]), Reflection(weights=(1.0,)), rows.column_names)
    with pytest.raises(InputError, match="no column 'stars'"):
        ranking_column(make_plan(rows), Reflection(by="stars"), rows.column_names)
    assert ranking_column(make_plan(rows), Reflection(), rows.column_names) == "model_score"


@settings(max_examples=30)
@given(st.lists(st.booleans(), max_size=6), st.integers(1, 3), st.integers(1, 3))
def test_nested_lists_are_those_of_a_loop(rated, prompts, k):
    values = np.arange(len(rated) * prompts * k, dtype=np.float32).reshape(len(rated), prompts, k)
    mask = np.array(rated, dtype=np.bool_)
    literal = [values[i].tolist() if ok else None for i, ok in enumerate(rated)]
    found = nested_lists(values, mask)
    found.validate(full=True)
    assert found.to_pylist() == literal
    assert [x if x is None else [list(y) for y in x] for x in nulled(values, mask)] == literal
