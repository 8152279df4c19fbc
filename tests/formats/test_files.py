"""Files are read as they are, or refused with file, line and remedy; what goes in comes out."""

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selectit_hf.cli import app
from selectit_hf.errors import InputError, SettingError
from selectit_hf.formats import sources
from selectit_hf.formats.readers import json_records, text_lines
from selectit_hf.formats.rows import Pair, RowReader
from selectit_hf.formats.sources import load, local_files, stream
from selectit_hf.formats.survey import take_in
from selectit_hf.formats.writing import writer

ROWS = [{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(6)]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(path: Path, data: str | bytes) -> list[dict[str, Any]]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    rows, _ = load(str(path))
    streamed, _ = stream(str(path))
    assert list(streamed) == rows.to_list()
    assert streamed.features == rows.features
    return rows.to_list()


# Refused


REFUSED = {
    "more.csv": ("q,a\nx,y\nIs it far?,No, it is near.\n", r"line 3: 3 fields.* has 2 \(q, a\)"),
    "fewer.csv": ("q,a,b\nx,y,z\nu,v\n", "line 3: 2 fields.* has 3"),
    "last.csv": ("q,a\nx,y,\n", "line 2: 3 fields"),
    "open.csv": ('q,a\nx,y\n"u,v\nw,x\n', "line 3: unexpected end of data"),
    "single.csv": ('q,a\nx,y\n"He said "no".",v\n', "line 3: .*twice"),
    "slash.csv": ('q,a\n"a \\"b\\" c",v\n', "line 2: .*twice"),
    "twin.csv": ("q,a,q\nx,y,z\n", "two columns are called 'q'"),
    "semi.csv": ("q;a\nx;y\n", "separated by ';'"),
    "latin.csv": ("q,a\nx,\xe9t\xe9\n".encode("cp1252"), r"line 2: byte 3 \(0xe9\).*iconv"),
    "latin.jsonl": (lines(ROWS).encode() + b'{"instruction": "\x93x\x94"}\n', r"line 7: byte 18"),
    "wide.jsonl": (lines(ROWS).encode("utf-16"), "UTF-16LE.*iconv"),
    "cut.jsonl": (lines(ROWS)[:-9], "line 6, character"),
    "number.jsonl": (lines(ROWS) + "7\n", "line 7: a row must be an object.*not int"),
    "twin.jsonl": ('{"a": "b"}\n{"a": "b", "a": "c"}\n', "line 2: .*'a' twice"),
    "huge.jsonl": (lines([{"a": 1}, {"a": 2**64}]), "line 2: the number in 'a' is too large"),
    "mixed.jsonl": (lines([{"a": 0.5}, {"a": 2**53 + 1}]), "line 2: the number in 'a' is too"),
    "key.jsonl": ('{"a": "b"}\n{"\\udc00": "b"}\n', "line 2: a key is not valid Unicode"),
    "array.json": ('[{"a": "b"},\n {"a": }]', "line 2, character 8"),
    "texts.json": ('["a", "b"]', "element 1: a row must be an object"),
    "wrapped.json": (json.dumps({"data": ROWS}, indent=1), r"are under 'data'.*jq '\.data'"),
    "short.jsonl.gz": (gzip.compress(lines(ROWS * 50).encode())[:-20], "cannot be unpacked"),
    "plain.jsonl.gz": (lines(ROWS), "cannot be unpacked"),
    "short.jsonl.xz": (lzma.compress(lines(ROWS).encode())[:-20], "cannot be unpacked"),
    "plain.jsonl.zst": (lines(ROWS), "cannot be unpacked"),
    "rows.xlsx": (b"PK", "is not one of .json"),
    "bare.csv": ("q,a\nx,y\n".encode("utf-16-le"), "UTF-16LE.*iconv"),
    "bare.jsonl": (lines(ROWS).encode("utf-16-be"), "UTF-16BE.*iconv"),
    "wider.csv": ("q,a\nx,y\n".encode("utf-32"), "UTF-32LE.*iconv"),
    "packed.jsonl": (gzip.compress(lines(ROWS).encode()), "is not text but gzip"),
    "table.csv": (b"PAR1\x15\x04", "is not text but parquet"),
    "infinite.jsonl": (lines(ROWS) + '{"a": -1e999}\n', "line 7: the number -1e999 is too large"),
    "digits.json": (f'[{{"a": {"9" * 400}.5}}]', "is too large for a column"),
    "deep.jsonl": (lines(ROWS) + f'{{"a": {"[" * 100}{"]" * 100}}}\n', "line 7: .*too deeply"),
    "deeper.jsonl": (lines(ROWS) + f'{{"a": {"[" * 10**5}\n', "line 7: .*too deeply"),
    "deepest.json": ("[" * 10**5, "too deeply"),
    "objects.json": (lines([{"a": "b"}]) * 2 + '{"a": ' * 10**5, "line 3: .*too deeply"),
    "line.json": (json.dumps({"data": ROWS}), r"jq '\.data'"),
    "splits.json": (json.dumps({"train": ROWS, "test": ROWS}), r"jq '\.train'"),
    "version.json": (json.dumps({"version": "1", "rows": ROWS}, indent=1), r"jq '\.rows'"),
    "columns.json": (json.dumps({"q": ["x", "y"], "a": ["z", "w"]}), "by its columns"),
    "frame.json": (json.dumps({"q": {"0": "x"}, "a": {"0": "z"}}, indent=1), "by its columns"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_with_its_line_and_a_remedy(tmp_path, name):
    data, words = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(InputError, match=words) as caught:
        load(str(path))
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


# As they are


@pytest.mark.parametrize(
    "rows",
    [
        [{"a": "2024-02-30", "b": "2024-01-02T03:04:05Z"}, {"a": "12:00", "b": "1e5"}],
        [{"a": "007", "b": 7}, {"a": "", "b": -(2**63)}],
        [{"a": None, "b": True}, {"a": [[], ["x", None]], "b": None}],
        [{"a": {"b": 1}}, {"a": "text"}, {"a": [1, "x", None]}, {"a": "5"}, {"a": None}],
        [{"a": [{"x": {"p": 1}}, {"x": {"q": "z"}}]}, {"a": None}],
        [{"a": json.loads("[" * 90 + "]" * 90)}, {"a": [[["x"]]]}, {"a": None}],
        [{"a": json.loads('{"k": ' * 90 + "1" + "}" * 90)}, {"a": {"k": None}}],
        [{"a": "x", "tools": [{"name": "clock"}]}],
    ],
)
def test_json_values_are_what_they_were(tmp_path, rows):
    assert read(tmp_path / "rows.jsonl", lines(rows)) == rows
    assert read(tmp_path / "rows.json", json.dumps(rows, indent=2)) == rows
    assert read(tmp_path / "apart.json", "\n".join(json.dumps(r, indent=1) for r in rows)) == rows


def test_the_text_of_a_list_is_looked_through_once(tmp_path, monkeypatch):
    searched: list[int] = []

    class Watched:
        def search(self, text: str) -> None:
            searched.append(len(text))

    monkeypatch.setattr(json_records, "ESCAPED", Watched())
    for text in (json.dumps(ROWS * 20), "\n".join(json.dumps(r, indent=1) for r in ROWS * 20)):
        (tmp_path / "rows.json").write_text(text)
        assert [row for _, row in json_records.json_rows(tmp_path / "rows.json", "r")] == ROWS * 20
    assert len(searched) == 2


def test_an_object_over_several_lines_has_its_line(tmp_path):
    text = "\n\n".join(json.dumps(row, indent=1) for row in ROWS) + "\n\n 7"
    (tmp_path / "rows.json").write_text("\n" + text)
    with pytest.raises(InputError, match="line 32: a row must be an object"):
        load(str(tmp_path / "rows.json"))
    found = [line for line, _ in json_records._documents(text[:-1], "rows.json")]
    assert found == [1, 6, 11, 16, 21, 26]


def test_types_and_fields_that_come_late_fit_all_rows(tmp_path):
    late = [{"n": 1, "t": None, "s": {"x": 1}} for _ in range(2500)]
    late += [{"n": 0.5, "t": "text", "s": {"x": 1, "y": "z"}, "more": ["m"]}]
    rows = read(tmp_path / "rows.jsonl", lines(late))
    assert rows[0] == {"n": 1.0, "t": None, "s": {"x": 1, "y": None}, "more": None}
    assert rows[-1] == late[-1]
    mixed = [{"a": i} for i in range(1500)] + [{"a": "text"}]
    assert read(tmp_path / "mixed.jsonl", lines(mixed)) == mixed
    assert load(str(tmp_path / "mixed.jsonl"))[0].features == {"a": Json()}


def test_long_nulls_and_then_a_text(tmp_path):
    long = [{"input": None, "output": "x" * 2**22} for _ in range(10)]
    assert read(tmp_path / "rows.jsonl", lines([*long, {"input": "y", "output": "z"}]))[-1] == {
        "input": "y",
        "output": "z",
    }


@pytest.mark.parametrize(
    "bad", ["half \\ud83d of it", "\\udE00", "before \\ud800\\ud83d\\ude00 behind"]
)
def test_half_of_a_surrogate_pair_refuses_one_row(tmp_path, bad):
    row = f'{{"instruction": "Say it.", "output": "{bad}"}}\n'
    good = '{"instruction": "Say it.", "output": "\\ud83d\\ude00"}\n'
    rows = read(tmp_path / "rows.jsonl", good + row + good)
    good_pair = Pair("Say it.", "\U0001f600")
    pairs = RowReader().pairs({name: [r[name] for r in rows] for name in rows[0]})
    assert pairs == [good_pair, "encoding", good_pair]


@pytest.mark.parametrize(
    "text", ["a\n\nb", 'say "x", y', " 007", "NA", "", "1e5", "\ufeffx", "a\rb"]
)
def test_cells_of_a_csv_file_are_texts(tmp_path, text):
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["q", "a"], [text, "x"], ["", text]])
    rows = load(str(tmp_path / "rows.csv"))[0].to_list()
    assert rows == [{"q": text, "a": "x"}, {"q": "", "a": text}]


def test_a_mistake_behind_a_cell_of_several_lines_has_the_right_line(tmp_path):
    (tmp_path / "rows.csv").write_text('q,a\n"one\ntwo\n\nthree",x\ny,z,w\n')
    with pytest.raises(InputError, match="line 6: 3 fields"):
        load(str(tmp_path / "rows.csv"))


# Several, compressed, elsewhere


PACKED = {
    "rows.jsonl.gz": gzip.compress,
    "rows.JSONL.GZ": gzip.compress,
    "rows.jsonl.bz2": bz2.compress,
    "rows.ndjson.xz": lzma.compress,
    "rows.json.zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    "rows.JSONL": bytes,
    "rows.NdJson": bytes,
}


@pytest.mark.parametrize("name", PACKED)
def test_compressed_text_and_other_endings(tmp_path, name):
    if name.endswith(".zst"):
        with pa.output_stream(str(tmp_path / name), compression="zstd") as file:
            file.write(lines(ROWS).encode())
        assert load(str(tmp_path / name))[0].to_list() == ROWS
    else:
        assert read(tmp_path / name, PACKED[name](lines(ROWS).encode())) == ROWS


def test_several_files(tmp_path):
    for i in range(3):
        (tmp_path / f"part-{i}.jsonl").write_text(lines(ROWS[2 * i : 2 * i + 2]))
    everything = [str(tmp_path), f"{tmp_path}/part-*.jsonl", f"{tmp_path}/**/*.jsonl"]
    everything.append(",".join(f"{tmp_path}/part-{i}.jsonl" for i in range(3)))
    for name in everything:
        rows, source = load(name)
        assert rows.to_list() == ROWS
        assert str(tmp_path) not in source.name or "," in name
    assert load(everything[0], "train[:50%]")[0].to_list() == ROWS[:3]
    with pytest.raises(InputError, match="does not fit the 6 rows"):
        load(everything[0], "train[x]")
    (tmp_path / "more.csv").write_text("instruction,output\na,b\n")
    with pytest.raises(InputError, match=r"several kinds \(more.csv, part-0.jsonl\)"):
        load(str(tmp_path))


def test_a_folder_whose_files_tell_splits(tmp_path):
    (tmp_path / "train-0.jsonl").write_text(lines(ROWS[:4]))
    (tmp_path / "test.jsonl").write_text(lines(ROWS[4:]))
    with pytest.raises(InputError, match="splits train, test, and no split was named"):
        load(str(tmp_path))
    assert load(str(tmp_path), "test")[0].to_list() == ROWS[4:]
    (tmp_path / "notes.jsonl").write_text(lines(ROWS))
    with pytest.raises(InputError, match=r"'notes.jsonl' belongs to none"):
        load(str(tmp_path), "test")


def test_a_folder_by_a_relative_path(tmp_path, monkeypatch):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text(lines(ROWS[:4]))
    (tmp_path / "rows" / "b.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[4:]).encode()))
    (tmp_path / "splits" / "dev").mkdir(parents=True)
    (tmp_path / "splits" / "dev" / "a.csv").write_text("q,a\nx,y\n")
    (tmp_path / "link").symlink_to("rows")
    absolute = load(str(tmp_path / "rows"))[1]
    monkeypatch.chdir(tmp_path / "splits")
    for name in ("../rows", "./../rows/", "../link"):
        rows, source = load(name)
        assert rows.to_list() == ROWS
        assert source.revision == absolute.revision
    monkeypatch.chdir(tmp_path)
    assert load("rows")[1] == absolute
    assert load("splits", "validation")[0].to_list() == [{"q": "x", "a": "y"}]


def test_a_part_of_a_saved_split(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "two")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    for name in ("one", "two"):
        rows, source = load(str(tmp_path / name), "train[2:4]")
        assert rows.to_list() == ROWS[2:4]
        assert source.split == "train[2:4]"


# What goes in comes out

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["2024-01-02", "007", "NaN", "null", '"', "a,b", "\r\n", " "]
)
COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "text": (pa.string(), TEXTS),
    "view": (pa.string_view(), TEXTS),
    "large": (pa.large_string(), TEXTS),
    "name": (pa.dictionary(pa.int8(), pa.string()), TEXTS),
    "whole": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "share": (pa.float64(), st.floats(allow_nan=False)),
    "truth": (pa.bool_(), st.booleans()),
    "list": (pa.list_(pa.string()), st.lists(st.none() | TEXTS, max_size=2)),
    "views": (pa.list_view(pa.string_view()), st.lists(st.none() | TEXTS, max_size=2)),
    "deep": (
        pa.large_list(pa.struct({"x": pa.int64(), "y": pa.list_(pa.string())})),
        st.lists(
            st.fixed_dictionaries(
                {"x": st.none() | st.integers(0, 9), "y": st.none() | st.lists(TEXTS, max_size=2)}
            ),
            max_size=2,
        ),
    ),
    "time": (pa.timestamp("us"), st.datetimes(datetime.datetime(1970, 1, 1))),
    "day": (pa.date32(), st.dates()),
}
JSON_COLUMNS = [name for name in COLUMNS if name not in ("time", "day")]
TABLES = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, (_, values) in COLUMNS.items()}),
    min_size=2,
    max_size=4,
)


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    arrays = {}
    for name, (type_, _) in COLUMNS.items():
        values = [row[name] for row in rows]
        is_coded = pa.types.is_dictionary(type_)
        arrays[name] = (
            pa.array(values, pa.string()).dictionary_encode()
            if is_coded
            else pa.array(values, type_)
        )
    asked = [f"Say {i}." for i in range(len(rows))]
    return pa.table({"instruction": asked, "output": asked, **arrays})


def selectit(*arguments: object) -> None:
    before = sys.argv
    sys.argv = ["selectit", *map(str, arguments)]
    try:
        app.app(standalone_mode=False)
    finally:
        sys.argv = before


def write(folder: Path, kind: str, table: pa.Table) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    elif kind == "jsonl":
        names = ["instruction", "output", *JSON_COLUMNS]
        path.write_text(lines(table.select(names).to_pylist()), "utf-8")
    else:
        names = ["instruction", "output", "text", "view", "large", "name"]
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = [[v or "" for v in row.values()] for row in table.select(names).to_pylist()]
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    return path


@settings(
    max_examples=4,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow"])
@given(rows=TABLES)
def test_the_original_columns_come_out_as_they_went_in(tmp_path, kind, rows):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    table = as_table(rows)
    path = write(folder, kind, table)
    selectit("run", path, "--model", "tiny-rater", "--out", folder / "run", "--proportion", 1)
    outs = [folder / "run" / "selected.parquet", folder / "scored.parquet", folder / "scored.jsonl"]
    for out in outs[1:]:
        selectit("score", path, "--model", "tiny-rater", "--out", out)
    expected = table.to_pylist()
    if kind == "csv":
        expected = [{name: value or "" for name, value in row.items()} for row in expected]
    for out in outs:
        found = sources.load(str(out))[0]
        names = [name for name in table.column_names if name in found.column_names]
        assert len(names) == (6 if kind == "csv" else 12 if kind == "jsonl" else 14), names
        wanted = [{name: row[name] for name in names} for row in expected]
        if out.suffix == ".jsonl":
            wanted = json.loads(json.dumps(wanted, default=lambda value: value.isoformat()))
        assert found.select_columns(names).to_list() == wanted


ODD = pa.table(
    {
        "instruction": ["Say 1.", "Say 2."],
        "output": ["1", "2"],
        "instant": pa.array([1, None], pa.timestamp("ns", "UTC")),
        "lasted": pa.array([None, 7], pa.duration("ns")),
        "price": pa.array([None, "0.10"], pa.string()).cast(pa.decimal128(9, 2)),
        "small": pa.array([0.1, None], pa.float32()),
        "clock": pa.array([3, None], pa.time64("ns")),
    }
)


def test_what_a_dataset_cannot_say_in_python_comes_out_of_score(tmp_path):
    pq.write_table(ODD, tmp_path / "odd.parquet")
    for out in ("scored.parquet", "scored"):
        selectit(
            "score", tmp_path / "odd.parquet", "--model", "tiny-rater", "--out", tmp_path / out
        )
        found = load(str(tmp_path / out))[0].data.table.select(ODD.column_names)
        assert found.combine_chunks().to_batches() == ODD.to_batches()


VIEWS = pa.DictionaryArray.from_arrays(pa.array([1, None], pa.uint32()), ["x", "y"])
VIEWS = pa.DictionaryArray.from_arrays(VIEWS.indices, VIEWS.dictionary.cast(pa.string_view()))


@pytest.mark.parametrize("column", [VIEWS, pa.ListArray.from_arrays([0, 1, 2], VIEWS)])
def test_categories_of_views_are_read(tmp_path, column):
    """As Polars exports them."""
    table = pa.table({"instruction": ["a", "b"], "output": ["c", "d"], "kind": column})
    rows = load(str(write(tmp_path, "arrow", table)))[0]
    wanted = [["y"], [None]] if pa.types.is_list(column.type) else ["y", None]
    assert rows["kind"][:] == wanted


def test_json_within_lists_comes_out_and_in_again(tmp_path):
    rows = [{"a": [{"p": 1}, {"p": "x"}, {"p": None}]}, {"a": None}]
    rows = [row | good for row, good in zip(rows, ROWS, strict=False)]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    for source, out in (("rows.jsonl", "one.parquet"), ("one.parquet", "two.jsonl")):
        selectit("score", tmp_path / source, "--model", "tiny-rater", "--out", tmp_path / out)
        found = load(str(tmp_path / out))[0].select_columns(list(rows[0]))
        assert found.to_list() == rows


@pytest.mark.parametrize("ending", ["jsonl.gz", "json.xz", "csv.zst"])
def test_a_file_that_unpacks_without_end_is_refused(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its ratio, before a line of it is whole."""
    monkeypatch.setattr(text_lines, "UNPACKED", 4 << 20)
    path = tmp_path / f"rows.{ending}"
    openers: dict[str, Any] = {"gz": gzip.open, "xz": lzma.open}
    open_it = openers.get(path.suffix[1:], lambda path, _: pa.output_stream(path, "zstd"))
    with open_it(str(path), "wb") as file:
        file.write(b'["' + bytes([48]) * (8 << 20))
    with pytest.raises(InputError, match="unpacks to more than 100 times its size"):
        load(str(path))


def test_lines_are_split_wherever_the_blocks_end() -> None:
    text = b"ab\n\ncde\nf\n"
    for end in (text, text + b"g"):
        for size in range(1, len(end) + 1):
            blocks = [end[i : i + size] for i in range(0, len(end), size)]
            assert list(text_lines._split(iter(blocks))) == io.BytesIO(end).readlines()


# What is written


@pytest.mark.parametrize("kind", ["same", "dotted", "link", "hard"])
def test_the_input_is_never_written_over(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(ROWS))
    out = tmp_path / "out.jsonl"
    if kind == "link":
        out.symlink_to(path)
    elif kind == "hard":
        out.hardlink_to(path)
    else:
        out = path if kind == "same" else tmp_path / "." / ".." / tmp_path.name / "rows.jsonl"
    for dataset in (path, tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(SettingError, match="is the input itself"):
            writer(out, local_files(str(dataset)))


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_file_is_replaced_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    path, other = tmp_path / name, tmp_path / "other"
    other.write_text("another's")
    path.symlink_to(other)
    writer(path)(Dataset.from_list(ROWS))
    assert (path.is_symlink(), other.read_text()) == (False, "another's")
    before = path.read_bytes()
    rows = Dataset.from_list(ROWS).map(lambda row: row, desc="")

    def fails(*_: Any) -> None:
        raise OSError("no room")

    for method in ("to_parquet", "with_format"):
        setattr(rows, method, fails)
    with pytest.raises(OSError, match="no room"):
        writer(path)(rows)
    assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([name, "other"])


def test_names_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").mkdir()
    with pytest.raises(SettingError, match="is a folder"):
        writer(tmp_path / "a.parquet")
    with pytest.raises(OSError, match="too long"):
        writer(tmp_path / f"{300 * 'n'}.jsonl")
    writer(tmp_path / f"{240 * 'n'}.jsonl")(Dataset.from_list(ROWS))


def test_a_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    ends = pa.array(["ab", "c", "d"]).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 3, [None, ends, pa.py_buffer(b"ab\xffd")])
    pq.write_table(
        pa.table({"instruction": ["a", "b", "c"], "output": texts}), tmp_path / "a.parquet"
    )
    rows, _ = load(str(tmp_path / "a.parquet"))
    with pytest.raises(InputError, match="column 'output' of row 1 is not UTF-8"):
        take_in(rows, RowReader())
