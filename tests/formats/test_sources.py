"""Local sources: every kind of file, pinned to its contents, and what cannot be read."""

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from selectit_hf.errors import InputError
from selectit_hf.formats.sources import Source, load

ROWS = [
    {"instruction": "Add 1 and 2.", "input": "", "output": "3"},
    {"instruction": 'Say é,\nthen "数".', "input": "{x}", "output": "é\n数"},
    {"instruction": "Stop.", "input": "now", "output": "</s>"},
]


def write_json(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    return path


def write_jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


def write_parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


WRITERS = {
    "rows.json": write_json,
    "lines.json": write_jsonl,
    "rows.jsonl": write_jsonl,
    "rows.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("split", [None, "train"])
def test_files(tmp_path, name, split):
    path = WRITERS[name](tmp_path / name)
    rows, source = load(str(path), split)
    assert rows.to_list() == ROWS
    assert (source.name, source.config, source.split) == (name, None, "train")
    assert re.fullmatch("sha256:[0-9a-f]{64}", source.revision)
    assert str(tmp_path) not in repr(source)


def test_rows_of_mixed_types_come_through(tmp_path):
    rows = [{"a": "text"}, {"a": {"b": 1}}, {"a": None}, {"a": ["c", 2.5]}]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert load(str(path))[0].to_list() == rows


def test_a_csv_file(tmp_path):
    rows, source = load(str(write_csv(tmp_path / "rows.csv", ROWS)))
    # An empty cell may be null, which means the same to a reader of rows.
    assert [{**row, "input": row["input"] or ""} for row in rows] == ROWS
    assert source.name == "rows.csv"


@pytest.mark.parametrize(
    "outputs", [["3", "007"], ["None", "NA"], ["nan", "null"], ["True", "1e5"]]
)
def test_the_cells_of_a_csv_file_are_texts(tmp_path, outputs):
    rows = [{"instruction": "Say it.", "output": output} for output in outputs]
    assert load(str(write_csv(tmp_path / "rows.csv", rows)))[0].to_list() == rows


def test_a_saved_dataset(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    rows, source = load(str(tmp_path / "saved"))
    assert rows.to_list() == ROWS
    assert (source.name, source.config, source.split) == ("saved", None, "train")
    with pytest.raises(InputError, match="single split"):
        load(str(tmp_path / "saved"), "train")


def test_a_saved_dict_of_splits(tmp_path):
    one, two = Dataset.from_list(ROWS[:1]), Dataset.from_list(ROWS[1:])
    DatasetDict({"train": one, "test": two}).save_to_disk(tmp_path / "saved")
    for split, rows in (("train", ROWS[:1]), ("test", ROWS[1:])):
        loaded, source = load(str(tmp_path / "saved"), split)
        assert loaded.to_list() == rows
        assert source.split == split
    with pytest.raises(InputError, match=r"splits train, test, and no split was named.*--split"):
        load(str(tmp_path / "saved"))
    with pytest.raises(InputError, match="there is no split 'dev'"):
        load(str(tmp_path / "saved"), "dev")


def test_the_only_split_of_a_dict_needs_no_name(tmp_path):
    DatasetDict({"dev": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    rows, source = load(str(tmp_path / "saved"))
    assert rows.to_list() == ROWS
    assert source.split == "dev"


def test_a_file_in_the_working_directory_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "rows.json")
    assert load("rows.json")[0].to_list() == ROWS
    Dataset.from_list(ROWS).save_to_disk("saved")
    assert load("saved")[0].to_list() == ROWS


@pytest.mark.parametrize("name", ["a[1].json", "a*b.json", "a b.json", "ü#1?.json", "a::b.json"])
def test_names_with_odd_characters(tmp_path, name):
    path = write_json(tmp_path / name)
    write_json(tmp_path / "a1.json", ROWS[:1])
    write_json(tmp_path / "aXb.json", ROWS[:1])
    rows, source = load(str(path))
    assert rows.to_list() == ROWS
    assert source.name == name


# Pinned


@pytest.mark.parametrize("is_saved", [True, False])
def test_the_working_directory_is_called_by_its_name(tmp_path, monkeypatch, is_saved):
    folder = tmp_path / "mine"
    if is_saved:
        Dataset.from_list(ROWS).save_to_disk(folder)
    else:
        folder.mkdir()
        write_jsonl(folder / "rows.jsonl")
    expected = load(str(folder))[1]
    monkeypatch.chdir(folder)
    assert load(".")[1] == expected
    assert expected.name == "mine"


def test_the_same_contents_elsewhere_have_the_same_revision(tmp_path):
    (tmp_path / "other").mkdir()
    first, second = (write_json(f / "rows.json") for f in (tmp_path, tmp_path / "other"))
    assert load(str(first))[1] == load(str(second))[1]


def test_a_file_overwritten_in_place_is_read_again(tmp_path):
    path = write_json(tmp_path / "rows.json")
    before, source = load(str(path))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    changed = [{**row, "output": row["output"][::-1]} for row in ROWS]
    write_json(path, changed)
    os.utime(path, ns=times)  # as a copy that keeps times does
    after, other = load(str(path))
    assert other.revision != source.revision
    assert after.to_list() == changed
    assert before.to_list() == ROWS


def test_a_saved_dataset_with_other_rows_has_another_revision(tmp_path):
    revisions = set()
    for i in range(2):
        folder = tmp_path / str(i) / "saved"
        Dataset.from_list(ROWS[i:]).save_to_disk(folder)
        revisions.add(load(str(folder))[1].revision)
    assert len(revisions) == 2


def test_what_a_map_leaves_in_a_saved_dataset_does_not_count(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    rows, before = load(str(tmp_path / "saved"))
    rows.map(lambda row: {"more": 1})
    assert any(path.name.startswith("cache-") for path in (tmp_path / "saved").iterdir())
    assert load(str(tmp_path / "saved"))[1] == before


# What cannot be read


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


UNREADABLE = {
    "garbage.json": content(b"no json at all"),
    "cut.json": content(b'[{"instruction": "Add.", "out'),
    "cut.jsonl": content(b'{"a": "b"}\n{"a": '),
    "binary.json": content(b"\xff\xfe\x00\x01"),
    "latin1.csv": content("instruction,output\nSag é,ja\n".encode("latin-1")),
    "ragged.csv": content(b'a,b\n1,2\n"3,4,5,6\n7,8,9\n'),
    "text.parquet": content(b"PAR1 is not enough PAR1"),
    "folder.json": Path.mkdir,
    "folder": Path.mkdir,
    "notes.txt": content(b"Add 1 and 2."),
    "none": content(b"Add 1 and 2."),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_one_clear_paragraph(tmp_path, name):
    UNREADABLE[name](tmp_path / name)
    with pytest.raises(InputError) as caught:
        load(str(tmp_path / name))
    message = str(caught.value)
    assert repr(name) in message
    assert "\n" not in message
    assert len(message) < 600


WITHOUT_ROWS = {
    "empty.json": content(b""),
    "empty.jsonl": content(b""),
    "empty.csv": content(b""),
    "empty.parquet": content(b""),
    "no-rows.json": content(b"[]"),
    "no-rows.csv": content(b"instruction,output\n"),
    "no-rows.parquet": lambda path: pq.write_table(pa.table({"a": pa.array([], "string")}), path),
}


@pytest.mark.parametrize("name", WITHOUT_ROWS)
def test_a_file_without_rows(tmp_path, name):
    WITHOUT_ROWS[name](tmp_path / name)
    with pytest.raises(InputError, match=rf"'{name}'.* has no rows"):
        load(str(tmp_path / name))


@pytest.mark.parametrize("name", ["none.json", "./none", "~/none/there.csv", "/none/there"])
def test_what_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"no file '{re.escape(name)}'"):
        load(name)


def test_a_dangling_link_is_not_there(tmp_path):
    (tmp_path / "rows.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(InputError, match="no file"):
        load(str(tmp_path / "rows.json"))


def test_a_saved_dataset_with_a_damaged_shard(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (shard,) = (tmp_path / "saved").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(InputError, match="'saved' cannot be read"):
        load(str(tmp_path / "saved"))


def test_a_saved_dataset_without_rows(tmp_path):
    Dataset.from_dict({"a": []}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="no rows"):
        load(str(tmp_path / "saved"))


def test_a_single_file_has_no_other_split(tmp_path):
    path = write_json(tmp_path / "rows.json")
    with pytest.raises(InputError, match="no split 'test'"):
        load(str(path), "test")


def test_the_real_rows(shared_data):
    path = shared_data / "alpaca_gpt4_999.json"
    rows, source = load(str(path))
    assert rows.to_list() == json.loads(path.read_text("utf-8"))
    assert source == Source(path.name, None, "train", source.revision)


# Folders that lead elsewhere


def _names(state: Path, name: str) -> None:
    state.write_text(
        json.dumps(json.loads(state.read_text()) | {"_data_files": [{"filename": name}]})
    )


@pytest.mark.parametrize("how", ["relative", "absolute", "link", "split", "folder"])
def test_rows_outside_the_folder_are_refused(how: str, tmp_path: Path) -> None:
    for name in ("secret", "data/train"):
        Dataset.from_list(ROWS).save_to_disk(tmp_path / name)
    secret, data = tmp_path / "secret", tmp_path / "data"
    arrow = "data-00000-of-00001.arrow"
    splits = ["../secret"] if how == "split" else ["train"]
    (data / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    if how in ("relative", "absolute"):
        place = secret if how == "absolute" else Path("../../secret")
        _names(data / "train" / "state.json", str(place / arrow))
    elif how == "link":
        (data / "train" / arrow).unlink()
        (data / "train" / arrow).symlink_to(secret / arrow)
    elif how == "folder":
        data = tmp_path / "files"
        data.mkdir()
        (data / "rows.arrow").symlink_to(secret / arrow)
    with pytest.raises(InputError, match=f"in the folder '{data.name}' leads out of it"):
        load(str(data))


def test_every_file_that_is_read_is_hashed(tmp_path: Path) -> None:
    """Also one called like the caches of `datasets`, which are not."""
    revisions = set()
    for i, rows in enumerate((ROWS, ROWS[::-1])):
        folder = tmp_path / str(i) / "saved"
        Dataset.from_list(rows).save_to_disk(folder)
        (folder / "data-00000-of-00001.arrow").rename(folder / "cache-1.arrow")
        _names(folder / "state.json", "cache-1.arrow")
        state = json.loads((folder / "state.json").read_text()) | {"_fingerprint": "same"}
        (folder / "state.json").write_text(json.dumps(state))
        revisions.add(load(str(folder))[1].revision)
    assert len(revisions) == 2


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["[]", "null", "[" * 100_000, '{"_data_files": 3, "features": 3}'])
def test_descriptions_of_odd_types_are_errors(name: str, text: str, tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / name).write_text(text)
    with pytest.raises(InputError, match="'saved' cannot be read"):
        load(str(tmp_path / "saved"))
