"""What a card says of its source is true, and its code and commands do what it says."""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from finished_runs import make_run
from hub_server import HubServer

from selectit_hf.analysis.finished_run import from_run
from selectit_hf.hub.card import CardSettings, inherited, make_card

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "selectit_hf" / "data" / "sample.jsonl").read_text().splitlines()[:40]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

PUBLISH = """
    import sys
    import selectit_hf
    from datasets import load_dataset

    PROMPTS = ["Is it good? 1 to {k}.", "Is it 4 us? 1 to {k}", "Rate: {k}", "Say {k}: {"]
    how, source, derived = sys.argv[1:]
    scorer = selectit_hf.SentenceScore("tiny-rater", k=4, rating_prompts=PROMPTS,
        template="{rating_prompt}|{instruction}|{response}\\nRating: ")
    rows = load_dataset("org/source", split="train")
    changes = {
        "same": lambda: rows,
        "more columns": lambda: rows.add_column("topic", ["x"] * len(rows)),
        "filtered": lambda: rows.filter(lambda row: len(row["output"]) > 12),
        "shuffled": lambda: rows.shuffle(seed=1),
        "edited": lambda: rows.map(lambda row: {"output": row["output"] + "!"}),
    }
    scored = changes[how]().map(scorer, batched=True)
    selection = selectit_hf.select(scored, proportion=0.2)
    selectit_hf.publish(
        selection, "user/picked", source=source, scorers=[scorer], derived=bool(derived)
    )
"""


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        text = "\n".join(LINES).encode()
        server.add_repo("dataset", "org/source", {"train.jsonl": text}, card={"license": "mit"})
        yield server


def run(server: HubServer, home: Path, *command: str, code: int = 0) -> str:
    home.mkdir(exist_ok=True)
    bin_ = home.parent / "bin"
    bin_.mkdir(exist_ok=True)
    (bin_ / "selectit").write_text(f'#!/bin/sh\nexec {sys.executable} -m selectit_hf "$@"\n')
    hf = "from huggingface_hub.cli.hf import main; main()"
    (bin_ / "hf").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{hf}" "$@"\n')
    for one in bin_.iterdir():
        one.chmod(0o755)
    env = server.environment(home.parent / "hf") | {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": str(ROOT), "PATH": f"{bin_}:/usr/bin:/bin"}
    env["XDG_STATE_HOME"] = str(home.parent / "state")
    done = subprocess.run(
        command, env=env, cwd=home, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def publish(
    server: HubServer, home: Path, how: str, source: str = "org/source", derived: str = "", **o: Any
) -> str:
    code = textwrap.dedent(PUBLISH)
    return run(server, home, sys.executable, "-c", code, how, source, derived, **o)


def card(server: HubServer) -> str:
    return server.repo("dataset", "user/picked").files()["README.md"].decode()


def blocks(text: str, heading: str, language: str) -> list[str]:
    section = text.partition(f"## {heading}")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)\n```", section, re.DOTALL)


def chosen(server: HubServer, home: Path) -> list[list[dict[str, Any]]]:
    """The rows that each block of "Choose again" returns."""
    found = []
    code = ""
    for block in blocks(card(server), "Choose again", "python"):
        code += block + "\nprint('ROWS', __import__('json').dumps(rows.to_list()))\n"
    for line in run(server, home, sys.executable, "-c", code).splitlines():
        if line.startswith("ROWS "):
            found.append(json.loads(line[5:]))
    return found


def test_rows_of_the_source_are_said_to_be_and_made_again(
    server: HubServer, tmp_path: Path
) -> None:
    publish(server, tmp_path / "home", "more columns")
    text = card(server)
    assert "with its row number in the source" in text
    source = [json.loads(line) for line in LINES]
    files = server.repo("dataset", "user/picked").files()
    kept = rows_in(files["data/train-00000-of-00001.parquet"], tmp_path)
    for rows in chosen(server, tmp_path / "chosen"):
        assert len(rows) == 4
        assert all(row in source for row in rows)
    assert {row["output"] for row in rows} <= {row["output"] for row in source}
    first = chosen(server, tmp_path / "chosen")[0]
    assert {row["output"] for row in first} <= {row["output"] for row in kept}

    (command,) = blocks(text, "Reproduce it", "bash")
    run(server, tmp_path / "empty", "sh", "-ec", command)
    (shown,) = blocks(text, "Reproduce it", "yaml")
    assert (tmp_path / "empty" / "recipe.yaml").read_text() == f"{shown}\n"
    made = Dataset.from_parquet(str(tmp_path / "empty" / "RUN" / "selected.parquet"))
    assert [row["output"] for row in made] == [row["output"] for row in kept]
    key = "rating_logprobs__tiny_rater"
    assert [row[key] for row in made] == [row[key] for row in kept]


def rows_in(data: bytes, folder: Path) -> Dataset:
    (folder / "rows.parquet").write_bytes(data)
    return Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(folder))


@pytest.mark.parametrize("how", ["filtered", "shuffled", "edited"])
def test_other_rows_are_refused_or_said_to_be_derived(
    server: HubServer, tmp_path: Path, how: str
) -> None:
    refused = publish(server, tmp_path / "home", how, code=1)
    assert "are not those of org/source" in refused
    assert "derived=True" in refused
    assert ("dataset", "user/picked") not in server.repos
    publish(server, tmp_path / "home", how, derived="yes")
    text = card(server)
    assert "rows derived from" in text
    assert "row number in the source" not in text
    assert "source.select" not in text
    assert "dataset: org/source" not in text
    manifest = json.loads(server.repo("dataset", "user/picked").files()["selectit.json"])
    assert manifest["input"]["relation"] == "derived"
    assert manifest["input"]["fingerprint"] in text
    kept = server.repo("dataset", "user/picked").files()["data/train-00000-of-00001.parquet"]
    outputs = {row["output"] for row in rows_in(kept, tmp_path)}
    for rows in chosen(server, tmp_path / "chosen"):
        assert rows
        assert {row["output"] for row in rows} < outputs


def test_a_source_that_cannot_be_read_is_not_compared(server: HubServer, tmp_path: Path) -> None:
    server.add_repo("dataset", "org/gated", {"train.jsonl": b"{}"}, gated=True)
    said = publish(server, tmp_path / "home", "shuffled", source="org/gated")
    assert "the rows were not compared with org/gated" in said
    text = card(server)
    assert "Not compared with the source" in text
    assert "row number in the source" not in text
    assert "source.select" not in text


def test_a_local_model_and_file_are_named_as_local_with_their_hashes(tmp_path: Path) -> None:
    finished = from_run(make_run(tmp_path / "run", source={"name": "mine.jsonl"}))
    for facts in (finished.facts["input"], finished.facts["models"][0]):
        facts["revision"] = "sha256:" + "5" * 64
    asked = finished.facts["rating"]
    asked["rating_prompts"] = ["two\nlines", *asked["rating_prompts"][1:]]

    def text() -> str:
        return make_card(
            finished.facts,
            "user/x",
            licence=inherited({}, CardSettings()),
            settings=CardSettings(),
            source_card={},
            datasets_data={},
        ).body

    assert "The model org/small lay in a folder of the publisher's machine" in text()
    assert f"the hash of its contents,\nsha256:{'5' * 64}" in text()
    assert "mine.jsonl is a file of the publisher's machine" in text()
    assert "The model org/large lay" not in text()
    assert "Not compared with the source" in text()
    assert "no file of prompts can hold" in text()
    asked["rating_prompts"] = [*asked["rating_prompts"][1:], "one line"]
    assert "rating-prompts: rating_prompts.txt" in text()
