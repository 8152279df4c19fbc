"""What would fail or be in vain after hours is found before a model is loaded, and explained."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

import selectit_hf
from selectit_hf import SentenceScore
from selectit_hf.cli import app, display
from selectit_hf.cli.failures import explained
from selectit_hf.errors import InputError, RatingsError
from selectit_hf.formats.rows import RowReader, pair_hash
from selectit_hf.formats.survey import check_ranking, check_space, look, take_in
from selectit_hf.rating import rating_scorer

GOOD = [{"instruction": f"Say {i}.", "output": f"It is {i}.", "kind": "a"} for i in range(4)]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def selectit(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    for console in (display._words, display._log):
        monkeypatch.setattr(console, "width", 1000)

    def command(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["selectit", *map(str, arguments)])
        try:
            app.main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return command


def file(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


BAD = {
    "numbers": ([{"instruction": "Add.", "output": i} for i in range(3)], "holds numbers"),
    "truth": ([{"prompt": "Yes?", "completion": True}] * 2, "holds true and false"),
    "half": ([*GOOD[:1], {"instruction": "Say.", "output": ""}, {"instruction": "a"}], "2 of 3"),
    "none": ([{"instruction": " ", "output": "a"}] * 2, "None of the 2 rows"),
    "turns": ([{"messages": [{"role": r, "content": "x"} for r in ("user", "bot") * 2]}], "turns"),
    "roles": (
        [{"messages": [{"role": r, "content": "x"} for r in ("elf", "orc")]}],
        "'elf' in 1 row, 'orc' in 1 row; map each, as in --role 'elf'=user",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("command", ["run", "score"])
def test_rows_in_vain_are_refused_before_a_model_is_looked_for(
    selectit, name, command, monkeypatch
):
    rows, words = BAD[name]
    out = "out" if command == "run" else "out.jsonl"
    monkeypatch.setattr(
        rating_scorer.RatingScorer, "rate", lambda *_: pytest.fail("a model was asked")
    )
    code, said = selectit(command, file(rows), "--model", "tiny-rater", "--out", out)
    assert (code, words in said) == (1, True), said


def test_the_others_are_rated_where_that_is_asked(selectit):
    rows = [GOOD[0], {"instruction": "a", "output": ""}, {"instruction": "", "output": "b"}]
    given = ("run", file(rows), "--model", "tiny-rater", "--out", "out")
    assert selectit(*given)[0] == 1
    assert not Path("out").exists()
    assert selectit(*given, "--allow-unrated")[0] == 0
    blank = file([{"instruction": "a", "output": ""}] * 2, "blank.jsonl")
    code, said = selectit("run", blank, "--model", "tiny-rater", "--out", "o", "--allow-unrated")
    assert code == 1
    assert "None of the 2 rows can be rated" in said


def test_it_is_said_what_is_read_and_what_is_not(selectit):
    rows = [row | {"id": i, "source": "s", "tags": ["t"]} for i, row in enumerate(GOOD)]
    code, said = selectit("run", file(rows), "--model", "tiny-rater", "--out", "out")
    assert code == 0, said
    assert "4 rows of rows.jsonl, read as Alpaca: instruction, output." in said
    assert "Not read: 4 columns (kind, id, source, tags)" in said


RANKINGS = {
    "--per nosuch": "no such column of groups",
    "--by instruction": "holds string, not numbers",
    "--by nosuch": "no such column or selector",
    "--by per:nosuch:length": "no such column of groups",
    "--by diverse:nosuch": "no such column or selector",
    "--per kind --threshold 1": "contradict",
}


@pytest.mark.parametrize("flags", RANKINGS)
def test_a_ranking_that_would_fail_is_refused_before_rating(selectit, flags, monkeypatch):
    monkeypatch.setattr(
        rating_scorer.RatingScorer, "rate", lambda *_: pytest.fail("a model was asked")
    )
    code, said = selectit("run", file(GOOD), "--model", "tiny-rater", "--out", "o", *flags.split())
    words = " ".join(said.replace("│", " ").split())
    assert (code, RANKINGS[flags] in words) == (2, True), said


def test_rankings_that_fit_are_let_through():
    rows = Dataset.from_list([row | {"stars": 1} for row in GOOD])
    for by in (None, "stars", "token", "per:kind", "per:kind:stars", "diverse:length"):
        check_ranking(rows, by, None, ("token", "length", "per:COLUMN", "diverse"))


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    rows = Dataset.from_list(GOOD)
    check_space(tmp_path / "not" / "there", rows, 1, 5, 0.2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="make room"):
        check_space(tmp_path, rows, 1, 5, 0.2)


@pytest.mark.parametrize(
    "type_",
    [
        pa.string_view(),
        pa.map_(pa.string(), pa.int64()),
        pa.list_view(pa.int8()),
        pa.list_(pa.struct([])),
    ],
)
def test_columns_that_could_not_be_written_again(type_):
    try:
        rows = Dataset(pa.table({"instruction": ["a"], "output": ["b"], "x": pa.nulls(1, type_)}))
    except ValueError:
        return  # not even a dataset
    with pytest.raises(InputError, match=r"'x' has the Arrow type .* could not be written again"):
        take_in(rows, RowReader())


def test_a_map_over_such_rows_warns_once_with_the_remedy(caplog, monkeypatch):
    monkeypatch.setattr(rating_scorer, "_WARNED", set())
    talk = [{"role": r, "content": "x"} for r in ("user", "assistant") * 2]
    with caplog.at_level(logging.WARNING, "selectit_hf"):
        for _ in range(2):
            SentenceScore("tiny-rater")({"messages": [talk] * 3})
    (said,) = [record.getMessage() for record in caplog.records if "rated" in record.getMessage()]
    assert "3 of 3 rows" in said
    assert "turns='first'" in said


# Ratings belong to the text


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The instructions that a model is asked about."""
    from selectit_hf.rating.rater import Rater

    seen: list[str] = []
    ask = Rater.ask

    def watched(self: Rater, pairs: Any, *more: Any) -> Any:
        seen.extend(pair.instruction for pair in pairs)
        return ask(self, pairs, *more)

    monkeypatch.setattr(Rater, "ask", watched)
    return seen


SCORER = SentenceScore("tiny-rater")
COLUMN = "sentence_score__tiny_rater"


def test_an_edited_row_is_rated_again_and_no_other(asked):
    before = Dataset.from_list(GOOD).map(SCORER, batched=True)
    asked.clear()
    edited = before.map(lambda row, i: {"output": "No."} if i == 2 else {}, with_indices=True)
    after = edited.map(SCORER, batched=True)
    assert asked == ["Say 2."]
    fresh = Dataset.from_list([row | {"output": "No."} for row in GOOD]).map(SCORER, batched=True)
    assert after[COLUMN][2] == pytest.approx(fresh[COLUMN][2], abs=1e-5)
    assert after[COLUMN][2] != before[COLUMN][2]
    assert [after[COLUMN][i] for i in (0, 1, 3)] == [before[COLUMN][i] for i in (0, 1, 3)]


def test_filtered_shuffled_and_grown_rows_keep_what_is_right(asked):
    before = Dataset.from_list(GOOD).map(SCORER, batched=True)
    asked.clear()
    moved = before.shuffle(seed=1).filter(lambda row: row["output"] != "It is 0.")
    assert moved.map(SCORER, batched=True)[COLUMN] == moved[COLUMN]
    assert asked == []
    new = {name: [None] for name in before.column_names} | {
        "instruction": ["New."],
        "output": ["x"],
    }
    grown = selectit_grown(before, new)
    after = grown.map(SCORER, batched=True)
    assert asked == ["New."]
    assert after[COLUMN][:4] == before[COLUMN][:]


def selectit_grown(rows: Dataset, new: dict[str, list[Any]]) -> Dataset:
    from datasets import concatenate_datasets

    return concatenate_datasets([rows, Dataset.from_dict(new, features=rows.features)])


def test_a_row_that_is_no_pair_any_more_loses_its_rating(asked):
    before = Dataset.from_list(GOOD).map(SCORER, batched=True)
    asked.clear()
    after = before.map(lambda row: {"output": ""}).map(SCORER, batched=True)
    assert after["status__tiny_rater"] == ["empty"] * 4
    assert after[COLUMN] == [None] * 4
    assert asked == []


def test_what_a_run_selects_knows_its_text_too(selectit, asked):
    selectit("run", file(GOOD), "--model", "tiny-rater", "--out", "out", "--proportion", 1)
    asked.clear()
    code, said = selectit(
        "score", "out/selected.parquet", "--model", "tiny-rater", "--out", "s.jsonl"
    )
    assert code == 0, said
    assert asked == []
    (row, *_) = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert row["rater__tiny_rater"]["pair"] == pair_hash(("Say 0.", "It is 0."))


# Whose fault it is


def raised_by(call: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


FOREIGN = {
    "pyarrow": lambda: pa.array(["x", 1]),
    "datasets": lambda: Dataset.from_dict({"a": [1]}).remove_columns("b"),
    "jinja2": lambda: __import__("jinja2").Template("{% for %}"),
    "pandas": lambda: __import__("pandas").DataFrame({"a": [1]})["b"],
    "tokenizers": lambda: __import__("tokenizers").Tokenizer.from_str("{}"),
    "huggingface_hub": lambda: __import__("huggingface_hub").HfApi().dataset_info("a/b/c"),
}


@pytest.mark.parametrize("library", FOREIGN)
def test_what_a_library_raises_is_an_error_with_a_remedy(library):
    words, code = explained(raised_by(FOREIGN[library]))
    assert code == 1
    assert words.startswith(f"Error: {library} says: ")
    assert "fault" not in words


def test_a_path_that_the_system_refuses_is_no_matter_of_a_library(tmp_path):
    (tmp_path / "file").write_text("x")
    local = __import__("fsspec").filesystem("file")
    for call in (local.mkdir, local.ls):
        words, code = explained(raised_by(lambda call=call: call(f"{tmp_path}/file/in/it")))
        assert code == 1
        assert "Check the path" in words


def test_what_we_raise_by_mistake_is_our_fault():
    words, code = explained(raised_by(lambda: pair_hash(object())))  # type: ignore[arg-type]
    assert code == 70
    assert "a bug in selectit" in words


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (DatasetDict({"dev": Dataset.from_list(GOOD)}), r"splits dev.*ds\['dev'\]"),
        (Dataset.from_list(GOOD).to_iterable_dataset(), "stream"),
        (GOOD, "not a list"),
    ],
)
def test_score_says_what_it_takes(rows, words):
    with pytest.raises(InputError, match=words):
        selectit_hf.score(rows, SCORER)


def test_score_columns_that_went_through_csv_are_refused(selectit):
    code, said = selectit("score", file(GOOD), "--model", "tiny-rater", "--out", "s.parquet")
    assert code == 0, said
    Dataset.from_parquet("s.parquet").to_csv("scored.csv")
    code, said = selectit("score", "scored.csv", "--model", "tiny-rater", "--out", "t.parquet")
    assert code == 1
    assert "rater__tiny_rater does not hold what a scorer writes" in said
    with pytest.raises(RatingsError, match="status__x does not hold"):
        selectit_hf.ModelScore()(
            {"rater__x": [None], "rating_logprobs__x": [None], "status__x": [3]}
        )


def test_a_look_at_good_rows_finds_nothing():
    found = look(Dataset.from_list(GOOD), RowReader())
    assert (found.unrated, found.statuses, found.roles, found.unread) == (0, {}, {}, ("kind",))
