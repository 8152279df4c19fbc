"""Models and datasets by name, through the real clients, from a local server."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from lora import write_adapter

ROWS = [{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(6)]
HASH = """
import json, sys
from datasets.fingerprint import Hasher
from selectit_hf import SentenceScore
scorer = SentenceScore("user/tiny")
print(json.dumps([Hasher.hash(scorer), scorer.checkpoint.revision, scorer.slug]))
"""


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server(checkpoint: Path, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_repo("model", "user/tiny", files(checkpoint))
        server.add_repo("model", "other/gated", files(checkpoint), gated=True)
        lora = write_adapter(tmp_path / "lora", "user/tiny")
        server.add_repo("model", "user/lora", files(lora))
        server.add_repo("model", "user/both", files(lora) | files(checkpoint))
        server.add_repo("model", "user/quants", {"a-Q4.gguf": b"a", "b-Q8.gguf": b"b"})
        data = "\n".join(map(json.dumps, ROWS)).encode()
        server.add_repo("dataset", "user/data", {"train.jsonl": data, "test.jsonl": data})
        yield server


def python(
    server: HubServer, home: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**server.environment(home), "COLUMNS": "400", **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def selectit(
    server: HubServer, home: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return python(server, home, "-m", "selectit_hf", *arguments, **environment)


def test_a_run_by_name_is_pinned_and_goes_on_offline(server: HubServer, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    command = ["run", "user/data", "--split", "train", "--model", "user/tiny", "--out", out]
    done = selectit(server, tmp_path / "home", *command, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 6
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["input"]["revision"] == server.repo("dataset", "user/data").head
    assert plan["input"]["split"] == "train"
    assert plan["models"][0]["model"] == "user/tiny"
    assert plan["models"][0]["revision"] == server.repo("model", "user/tiny").head

    again = selectit(
        server, tmp_path / "home", "select", out, "--n", "2", "--out", str(tmp_path / "two")
    )
    assert again.returncode == 0, again.stderr

    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    local = ["run", str(tmp_path / "rows.json"), "--model", "user/tiny", "--out"]
    offline = selectit(
        server, tmp_path / "home", *local, str(tmp_path / "offline"), HF_HUB_OFFLINE="1"
    )
    assert offline.returncode == 0, offline.stderr
    for flags in ({}, {"HF_HUB_OFFLINE": "1"}):  # begun online, resumed offline
        done = selectit(server, tmp_path / "home", *local, str(tmp_path / "begun"), **flags)
        assert done.returncode == 0, done.stderr
    cached = json.loads((tmp_path / "offline" / "plan.json").read_text())["models"][0]
    assert cached["revision"] == plan["models"][0]["revision"]
    assert "from the local cache" in offline.stderr


def test_an_adapter_and_its_base_are_pinned_together(server: HubServer, tmp_path: Path) -> None:
    data = str(tmp_path / "rows.json")
    Path(data).write_text(json.dumps(ROWS))
    command = ["run", data, "--model", "user/lora", "--out"]
    done = selectit(server, tmp_path / "home", *command, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    heads = [server.repo("model", name).head for name in ("user/lora", "user/tiny")]
    (model,) = json.loads((tmp_path / "run" / "plan.json").read_text())["models"]
    assert (model["model"], model["base"]) == ("user/lora", "user/tiny")
    assert model["revision"] == "~".join(heads)

    server.repo("model", "user/tiny").commit({"README.md": b"newer"}, "A newer base")
    command[3] += f"@{model['revision']}"
    offline = {"HF_HUB_OFFLINE": "1"}
    done = selectit(server, tmp_path / "home", *command, str(tmp_path / "again"), **offline)
    assert done.returncode == 0, done.stderr
    (again,) = json.loads((tmp_path / "again" / "plan.json").read_text())["models"]
    assert again == model


def test_a_new_commit_changes_the_hash(
    server: HubServer, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    first = python(server, tmp_path / "home", "-c", HASH)
    assert first.returncode == 0, first.stderr
    repo = server.repo("model", "user/tiny")
    old = repo.head
    repo.commit(files(make_checkpoint(tmp_path / "new", seed=5)), "New weights")
    second = python(server, tmp_path / "home", "-c", HASH)
    before, after = json.loads(first.stdout), json.loads(second.stdout)
    assert before[0] != after[0]
    assert [before[1], after[1]] == [old, repo.head]
    assert before[2] == after[2] == "tiny"


MISSING = {
    "split": (["user/data", "--model", "user/tiny"], "splits train, test"),
    "dataset": (["user/none", "--model", "user/tiny"], "no dataset 'user/none'"),
    "revision": (["user/data@v9", "--model", "user/tiny"], "no revision 'v9'"),
    "model": (["DATA", "--model", "user/none"], "no model 'user/none'"),
    "model revision": (["DATA", "--model", "user/tiny@v9"], "no revision 'v9'"),
    "gated": (["DATA", "--model", "other/gated"], "accept its terms"),
    "not a model": (["DATA", "--model", "user/empty"], "no config.json"),
    "both": (["DATA", "--model", "user/both"], "into a folder of their own"),
    "which": (["DATA", "--model", "user/quants"], "as in user/quants:a-Q4.gguf"),
    "no file": (["DATA", "--model", "user/quants:c.gguf"], "no c.gguf"),
    "whole": (["DATA", "--model", "user/tiny", "--base-model", "user/tiny"], "not an adapter"),
}
MANY = """
import contextlib, io, json, sys
from selectit_hf import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["selectit", "run", *arguments, "--out", "run"]
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, err.getvalue()]))
"""


def test_what_is_not_there_is_said_before_any_work(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    server.add_repo("model", "user/empty", {"a.txt": b"a"})
    local = {"DATA": str(tmp_path / "rows.json")}
    commands = [[local.get(word, word) for word in words] for words, _ in MISSING.values()]
    done = python(server, tmp_path / "home", "-c", MANY, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    for (_, message), (code, err) in zip(MISSING.values(), outcomes, strict=True):
        assert code == 1, err
        assert message in err
        assert "Traceback" not in err
    assert not Path("run").exists()


def test_no_network_and_no_cache(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    done = selectit(
        server,
        tmp_path / "home",
        *["run", str(tmp_path / "rows.json"), "--model", "user/tiny", "--out", "run"],
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert done.returncode == 1
    assert "The Hub cannot be reached to look up the model 'user/tiny'" in done.stderr


# Text files of a dataset, read as local ones

ODD = [
    {"instruction": "a", "output": "2024-01-02", "n": 1},
    {"instruction": "b", "output": "x", "n": 0.5},
    {"instruction": "c", "output": "y", "late": ["z"]},
]
LINES = [json.dumps(row).encode() + b"\n" for row in ODD]
READ = """
import json, sys
from selectit_hf.formats.sources import load, stream
from selectit_hf.errors import SelectItError
for name in json.loads(sys.argv[1]):
    for read in (load, stream):
        try:
            rows, source = read(name)
            found = [list(rows), source.revision]
        except SelectItError as error:
            found = str(error)
        print(json.dumps(found))
"""
CSV = [{"instruction": "007", "output": "NA"}, {"instruction": "2024-01-02", "output": "a;b"}]
NUMBERS = [row | {"n": row.get("n", None), "late": row.get("late", None)} for row in ODD]


def test_text_files_are_read_as_local_ones_streamed_or_not(
    server: HubServer, tmp_path: Path
) -> None:
    comma = b"instruction,output\n007,NA\n2024-01-02,a;b\n"
    semicolon = b'instruction;output\n007;NA\n2024-01-02;"a;b"\n'
    parts = {"data/train-0.jsonl": b"".join(LINES[:2]), "data/train-1.jsonl": LINES[2]}
    server.add_repo("dataset", "user/csv", {"t.csv": comma})
    for key in ("sep", "delimiter"):
        of = {"configs": [{"config_name": "default", "data_files": "t.csv", key: ";"}]}
        server.add_repo("dataset", f"user/{key}", {"t.csv": semicolon}, card=of)
    server.add_repo("dataset", "user/parts", parts)
    server.add_repo("dataset", "user/shift", {"d/t.csv": comma + b"Apple, of course.,x\n"})
    of = {"configs": [{"config_name": c, "data_files": f"{c}/*"} for c in ("one", "two")]}
    both = {"one/t.csv": comma, "two/t.jsonl": b"".join(LINES)}
    repo = server.add_repo("dataset", "user/both", both, card=of)
    old = repo.head
    repo.commit({"one/t.csv": b"instruction,output\nnew,new\n"}, "Newer")
    expected: dict[str, Any] = {
        "user/csv": CSV,
        "user/sep": CSV,
        "user/delimiter": CSV,
        "user/parts": NUMBERS,
        "user/both:two": NUMBERS,
        "user/both:one": [{"instruction": "new", "output": "new"}],
        f"user/both:one@{old}": CSV,
        "user/shift": "'d/t.csv', line 4: 3 fields, and the header has 2",
        "user/both": "has the configs one, two, and none was named",
        "user/both:three": "has the configs one, two, and there is no 'three'",
    }
    done = python(server, tmp_path / "home", "-c", READ, json.dumps(list(expected)))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for i, (name, wanted) in enumerate(expected.items()):
        for one in found[2 * i : 2 * i + 2]:
            if isinstance(wanted, str):
                assert wanted in one, name
                continue
            head = server.repo("dataset", name.partition(":")[0]).head
            assert one == [wanted, old if "@" in name else head], name


def test_views_of_text_stream_into_a_run_and_are_pushed(server: HubServer, tmp_path: Path) -> None:
    """Parquet as Polars writes it."""
    table = pa.table({n: pa.array([row[n] for row in ROWS], pa.string_view()) for n in ROWS[0]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    server.add_repo("dataset", "user/views", {"train.parquet": buffer.getvalue()})
    out = str(tmp_path / "run")
    run = ["run", "user/views", "--model", "user/tiny", "--proportion", "1", "--out", out]
    done = selectit(server, tmp_path / "home", *run, "--streaming")
    assert done.returncode == 0, done.stderr
    done = selectit(server, tmp_path / "home", "push", out, "user/kept", "--yes")
    assert done.returncode == 0, done.stderr
    files = server.repo("dataset", "user/kept").files()
    (kept,) = [data for name, data in files.items() if name.startswith("data/train")]
    for found in (pq.read_table(f"{out}/selected.parquet"), pq.read_table(io.BytesIO(kept))):
        assert found.select(list(ROWS[0])).to_pylist() == ROWS


KEYS = """
from selectit_hf import SentenceScore
for file in ("a-Q4.gguf", "b-Q8.gguf"):
    print(SentenceScore(f"user/quants:{file}", dtype="float32", name="m").rating_key())
"""


def test_gguf_files_of_one_repository_have_keys_of_their_own(
    server: HubServer, tmp_path: Path
) -> None:
    done = python(server, tmp_path / "home", "-c", KEYS)
    assert done.returncode == 0, done.stderr
    assert len({*done.stdout.split()}) == 2
