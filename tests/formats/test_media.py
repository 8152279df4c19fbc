"""What is published holds contents, and nothing of this machine."""

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset, Features, Image, LargeList, List, Pdf, Value, Video
from finished_runs import make_run
from media_rows import NESTED, png, typed

from selectit_hf.analysis.finished_run import from_run
from selectit_hf.errors import InputError, RunError
from selectit_hf.formats.media import REMEDY, check_media, with_contents
from selectit_hf.formats.sources import load
from selectit_hf.formats.writing import check_writable, writer
from selectit_hf.hub.staging import stage
from selectit_hf.privacy import private_place, private_words


def test_pictures_and_sounds_travel_with_their_bytes(tmp_path: Path) -> None:
    one = [{"bytes": png(i), "path": f"{tmp_path}/{i}.png"} for i in range(30)]
    sounds = [{"bytes": b"RIFF%d" % i, "path": f"{tmp_path}/{i}.wav"} for i in range(30)]
    turns = [[{"picture": a, "note": "x"}, {"picture": None, "note": None}] for a in one]
    kinds = {"image": Image(), "sound": Audio(), **NESTED}
    rows = typed(kinds, {"image": one, "sound": sounds, "turns": turns})
    finished = from_run(make_run(tmp_path / "run", rows=rows))
    staged = stage(finished, _made(tmp_path / "staged"))
    for file in (tmp_path / "run" / "selected.parquet", *(tmp_path / "staged").rglob("*.parquet")):
        assert private_place(file, [f"{tmp_path}/"]) is None
    found = pq.read_table(next((staged.folder / "data").iterdir())).to_pylist()
    for row in found:
        i = int(row["instruction"][9:-1])
        assert row["image"] == {"bytes": png(i), "path": f"{i}.png"}
        assert row["sound"] == {"bytes": b"RIFF%d" % i, "path": f"{i}.wav"}
        assert [t["picture"] for t in row["turns"]] == [row["image"], None]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        (Image(), lambda value: value),
        (Audio(), lambda value: value),
        (Video(), lambda value: value),
        (Pdf(), lambda value: value),
        (List(Image()), lambda value: [value]),
        (LargeList({"a": {"b": Image()}}), lambda value: [{"a": {"b": value}}]),
    ],
)
def test_media_that_are_paths_only_are_refused(kind: Any, wrap: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of this machine")
    value = {"bytes": None, "path": str(tmp_path / "secret")}
    rows = typed({"seen": kind}, {"seen": [wrap(None)] * 29 + [wrap(value)]})
    with pytest.raises(InputError, match="column 'seen' holds paths"):
        check_media(rows)
    with pytest.raises(InputError, match="column 'seen' holds paths"):
        with_contents(rows.data.table, rows.features)


@pytest.mark.parametrize("how", ["text", "nested", "binary", "dictionary", "metadata", "png"])
def test_private_words_are_found_in_every_byte(how: str, tmp_path: Path) -> None:
    word = "/home/unmistakable/"
    letters = random.Random(0)
    # Texts that a page compresses, with the word in pieces that its bytes do not show.
    text = ["".join(letters.choices("/homeunistakbl", k=200)) for _ in range(300)]
    text[150] = f"l{text[150]}{word}{text[150]}"  # neither least nor greatest
    column = {
        "text": pa.array(text),
        "nested": pa.array([[{"a": one}] for one in text]),
        "binary": pa.array([one.encode() for one in text], pa.large_binary()),
        "dictionary": pa.array(text).dictionary_encode(),
    }.get(how, pa.array([1]))
    table = pa.table({"c": column})
    if how == "metadata":
        table = table.replace_schema_metadata({"origin": word})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression="zstd")
    if how == "png":
        path = tmp_path / "a.png"
        path.write_bytes(b"\x89PNG" + b"0" * (1 << 20) + word.encode())
    if how in {"text", "nested", "binary", "dictionary"}:
        assert word.encode() not in path.read_bytes()
    assert private_place(path, [word]) is not None
    assert private_place(path, ["/home/somebody-else/"]) is None


def test_private_words_are_the_tokens_and_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/unmistakable")
    monkeypatch.setenv("HF_TOKEN", "not-of-the-usual-form")
    assert private_words("hf_abcdefgh") == [
        "/home/unmistakable/", "hf_abcdefgh", "not-of-the-usual-form",
    ]  # fmt: skip
    monkeypatch.setenv("HOME", "/root")
    assert "/root/" not in private_words()


@pytest.mark.parametrize("name", ["selected.parquet", "scores.parquet", "summary.json"])
def test_a_result_that_is_not_what_was_written_is_named(name: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    from_run(folder)
    data = (folder / name).read_bytes()
    if name == "summary.json":
        changed = json.dumps(json.loads(data) | {"rows": 31}).encode()
    else:
        changed = bytearray(data)
        changed[len(data) // 3] ^= 4
    (folder / name).write_bytes(changed)
    with pytest.raises(RunError, match=f"{name} was changed after it was written"):
        from_run(folder)


@pytest.mark.parametrize("change", [b'"manifest_sha256": null, "old": ', b'"manifest_sha257": '])
def test_a_manifest_without_its_hash_is_refused(change: bytes, tmp_path: Path) -> None:
    manifest = make_run(tmp_path / "run") / "selection.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"manifest_sha256": ', change))
    with pytest.raises(RunError, match=r"selection.json was changed after it was written"):
        from_run(manifest.parent)


def test_results_of_two_selections_are_refused(tmp_path: Path) -> None:
    folder, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=7)
    (folder / "summary.json").write_bytes((other / "summary.json").read_bytes())
    with pytest.raises(RunError, match=r"summary.json was changed after it was written"):
        from_run(folder)


def test_the_remedy_works(tmp_path: Path) -> None:
    """The very words of the error, on a picture that is a path."""
    (tmp_path / "a.png").write_bytes(png(3))
    kinds = Features({"instruction": Value("string"), "output": Value("string"), "seen": Image()})
    columns = {"instruction": ["a"], "output": ["b"], "seen": [str(tmp_path / "a.png")]}
    dataset = Dataset.from_dict(columns, features=kinds)
    with pytest.raises(InputError, match="holds paths") as caught:
        check_media(dataset)
    assert REMEDY in str(caught.value)
    file = str(tmp_path / "rows.parquet")
    eval(REMEDY.replace("rows.parquet", file), {"dataset": dataset, "datasets": datasets})
    rows, _ = load(file)
    check_media(rows)
    (stored,) = rows.with_format("arrow")[:]["seen"].to_pylist()
    assert stored == {"bytes": png(3), "path": "a.png"}


@pytest.mark.parametrize("out", ["out.parquet", "out"])
def test_what_is_written_holds_contents(out: str, tmp_path: Path) -> None:
    rows = typed(
        {"seen": Image()}, {"seen": [{"bytes": png(1), "path": f"{tmp_path}/x/1.png"}] * 30}
    )
    check_writable(tmp_path / out, rows)
    writer(tmp_path / out)(rows)
    written, _ = load(str(tmp_path / out))
    stored = written.with_format("arrow")[:]["seen"].to_pylist()
    assert stored == [{"bytes": png(1), "path": "1.png"}] * 30
    referred = typed({"seen": Image()}, {"seen": [{"bytes": None, "path": "/etc/hostname"}] * 30})
    with pytest.raises(InputError, match="'seen' holds paths"):
        check_writable(tmp_path / "other.parquet", referred)
