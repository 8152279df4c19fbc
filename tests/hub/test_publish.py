"""The whole way: rate, select, push, and load by name in a process that knows nothing of it."""

import ast
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
from datasets import Audio, Dataset, Image
from finished_runs import make_rows, make_run
from hub_server import TOKEN, HubServer, status
from huggingface_hub import DatasetCard, HfApi, close_session, constants
from media_rows import NESTED, png, typed
from push_selected import main as push_selected_main

import selectit_hf
from selectit_hf.errors import HubError, InputError, RatingsError, SettingError
from selectit_hf.hub.publishing import push_run
from selectit_hf.hub.push_commit import Pushed
from selectit_hf.hub.push_plan import PushPlan
from selectit_hf.privacy import private_place

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "selectit_hf" / "data" / "sample.jsonl"
NAME = "user/picked"

# the client uploads its large files through a deprecated argument of its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

LOAD = f"""
    import json
    from datasets import load_dataset

    def facts(rows):
        rows = list(rows)
        return {{"columns": list(rows[0]), "rows": rows}}

    loaded = {{}}
    for config in ("default", "scores"):
        for streaming in (False, True):
            named = () if config == "default" else (config,)
            rows = load_dataset("{NAME}", *named, split="train", streaming=streaming)
            loaded[f"{{config}} {{streaming}}"] = facts(rows)
    print(json.dumps(loaded))
"""


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def environment(server: HubServer, home: Path) -> dict[str, str]:
    """A process of its own: fresh caches, and a user and machine that would be noticed."""
    home.mkdir(parents=True, exist_ok=True)
    return server.environment(home / "hf") | {
        "HOME": str(home),
        "USER": "unmistakable-user",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


def run(server: HubServer, home: Path, *command: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment(server, home),
        capture_output=True,
        text=True,
        timeout=240,
        cwd=home,
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def push_selected(server: HubServer, home: Path, *arguments: str | Path, code: int = 0) -> str:
    return run(server, home, ROOT / "scripts" / "push_selected.py", *arguments, code=code)


def loaded(server: HubServer, home: Path) -> dict[str, Any]:
    """What a fresh process with a fresh cache loads by name."""
    found = json.loads(run(server, home, "-c", textwrap.dedent(LOAD)).splitlines()[-1])
    for config in ("default", "scores"):
        assert found[f"{config} True"] == found[f"{config} False"]
    return {config: found[f"{config} False"] for config in ("default", "scores")}


def same(rows: list[dict[str, Any]], expected: Dataset) -> bool:
    return json.loads(json.dumps(rows)) == json.loads(json.dumps(list(expected)))


def assert_private_bytes(server: HubServer, home: Path) -> None:
    """Nothing that was uploaded names the machine, its user or its folders."""
    for path, data in server.repo("dataset", NAME).files().items():
        texts = [data]
        if path.endswith(".parquet"):
            file = home / "downloaded.parquet"
            file.write_bytes(data)
            texts.append(repr(list(Dataset.from_parquet(str(file), cache_dir=str(home)))).encode())
        for secret in (str(home), str(ROOT), "unmistakable-user", TOKEN, "/tmp/"):
            assert not any(secret.encode() in text for text in texts), (path, secret)


def test_the_whole_way(server: HubServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = home / "RUN"
    run(server, home, "-m", "selectit_hf", "demo", "--out", folder)
    assert push_selected(server, home, folder, NAME).splitlines()[-2] == "nothing pushed; add --yes"
    assert server.repos == {}
    said = json.loads(push_selected(server, home, folder, NAME, "--yes").splitlines()[-1])
    repo = server.repo("dataset", NAME)
    assert (said["commit"], said["pushed"], repo.private) == (repo.head, True, True)

    found = loaded(server, tmp_path / "elsewhere")
    selected = Dataset.from_parquet(str(folder / "selected.parquet"), cache_dir=str(tmp_path))
    scores = Dataset.from_parquet(str(folder / "scores.parquet"), cache_dir=str(tmp_path))
    assert found["default"]["columns"] == selected.column_names
    assert same(found["default"]["rows"], selected)
    assert found["scores"]["columns"] == [*scores.column_names, "selected"]
    kept = [row.pop("selected") for row in found["scores"]["rows"]]
    assert same(found["scores"]["rows"], scores)
    assert (len(kept), sum(kept)) == (600, 120)

    data = DatasetCard(repo.files()["README.md"].decode()).data
    infos = {info["config_name"]: info for info in data.dataset_info}
    counts = {name: info["splits"][0]["num_examples"] for name, info in infos.items()}
    assert counts == {"default": 120, "scores": 600}
    assert [config["config_name"] for config in data.configs] == ["default", "scores"]
    assert_private_bytes(server, home)


def test_a_run_over_alpaca_gpt4(
    server: HubServer, tmp_path: Path, shared_data: Path, checkpoint: Path
) -> None:
    home, data = tmp_path / "home", shared_data / "alpaca_gpt4_999.json"
    folder = home / "RUN"
    run(server, home, "-m", "selectit_hf", "run", data, "--model", checkpoint, "--out", folder,
        "--k", "2", "--max-length", "128")  # fmt: skip
    push_selected(server, home, folder, NAME, "--yes", "--license", "cc-by-nc-4.0")
    found = loaded(server, tmp_path / "elsewhere")
    selected = Dataset.from_parquet(str(folder / "selected.parquet"), cache_dir=str(tmp_path))
    assert same(found["default"]["rows"], selected)
    source = {row["instruction"] for row in json.loads(data.read_text())}
    assert {row["instruction"] for row in found["default"]["rows"]} <= source
    assert (len(found["default"]["rows"]), len(found["scores"]["rows"])) == (199, 999)
    assert b"license: cc-by-nc-4.0" in server.repo("dataset", NAME).files()["README.md"]
    assert_private_bytes(server, home)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing-here", NAME], 1, "is not a run folder"),
        (["RUN", "not-a-whole-name"], 2, "not a repository name"),
        (["RUN", NAME, "--license", "no licence!"], 2, "not a licence identifier"),
        (["RUN", NAME, "--update", "--overwrite"], 2, "contradict each other"),
        (["RUN", NAME], 1, "needs a login"),
    ],
)
def test_the_script_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    make_run(tmp_path / "RUN", source={"revision": "sha256:0"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["push_selected.py", *arguments, "--yes"])
    assert push_selected_main() == code
    assert words in capsys.readouterr().err


# In this process


@pytest.fixture
def api(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    close_session()
    yield HfApi(endpoint=server.url, token=TOKEN)
    close_session()


def card_of(server: HubServer) -> Any:
    return DatasetCard(server.repo("dataset", NAME).files()["README.md"].decode()).data


def test_the_published_scores_choose_the_same_rows_again(
    server: HubServer, api: HfApi, tmp_path: Path
) -> None:
    push_run(make_run(tmp_path / "RUN"), NAME, yes=True, api=api)
    data = server.repo("dataset", NAME).files()["scores/train-00000-of-00001.parquet"]
    (tmp_path / "scores.parquet").write_bytes(data)
    scores = Dataset.from_parquet(str(tmp_path / "scores.parquet"), cache_dir=str(tmp_path))
    rescored = scores.remove_columns("model_score").map(selectit_hf.ModelScore(), batched=True)
    kept = selectit_hf.select(rescored).selected["row"]
    assert list(kept) == [row["row"] for row in scores if row["selected"]]


def test_the_licence_comes_from_the_source_at_its_revision(
    server: HubServer, api: HfApi, tmp_path: Path
) -> None:
    source = server.add_repo("dataset", "org/source", card={"license": "cc-by-nc-4.0"})
    pinned = source.head
    source.commit({"README.md": b"---\nlicense: mit\n---\n"}, "Another licence")
    folder = make_run(tmp_path / "RUN", source={"name": "org/source", "revision": pinned})
    push_run(folder, NAME, yes=True, api=api)
    assert card_of(server).license == "cc-by-nc-4.0"
    assert card_of(server).source_datasets == ["org/source"]


def test_a_source_that_is_gone_is_a_warning(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    told: list[str] = []
    push_run(make_run(tmp_path / "RUN"), NAME, yes=True, api=api, tell=told.append)
    assert "note: the source names no licence" in told[0]
    assert card_of(server).license == "other"


def test_a_source_that_cannot_be_asked_stops_the_push(
    server: HubServer, api: HfApi, tmp_path: Path
) -> None:
    server.at("GET /api/datasets/org/source", status(503), inf)
    with pytest.raises(HubError, match="licence of org/source cannot be read"):
        push_run(make_run(tmp_path / "RUN"), NAME, yes=True, api=api)
    assert server.repos == {}


def test_an_export_is_published_in_its_form(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "RUN", rows=make_rows(30, source=["someone"] * 30))
    told: list[str] = []
    plan = push_run(folder, NAME, form="messages", api=api, tell=told.append)
    assert (type(plan), server.repos) == (PushPlan, {})
    assert "note: columns that are left out: source" in told[0]
    push_run(folder, NAME, yes=True, form="messages", api=api)
    repo = server.repo("dataset", NAME)
    assert (repo.private, len(repo.history())) == (True, 2)  # one made it, one filled it
    found = loaded(server, tmp_path / "elsewhere")
    selected = Dataset.from_parquet(str(folder / "selected.parquet"), cache_dir=str(tmp_path))
    assert found["default"]["rows"] == [
        {
            "messages": [
                {"role": "user", "content": row["instruction"]},
                {"role": "assistant", "content": row["output"]},
            ]
        }
        for row in selected
    ]
    assert len(found["scores"]["rows"]) == 30
    card = repo.files()["README.md"].decode()
    assert "in the form <code>messages</code> for training:" in card
    assert "original columns" not in card
    assert json.loads(repo.files()["selectit.json"])["form"]["name"] == "messages"


# From Python


@pytest.fixture(scope="module")
def scored() -> Dataset:
    """Forty rows of the sample, rated with default settings."""
    rows = Dataset.from_json(str(SAMPLE)).select(range(40))
    return rows.map(selectit_hf.SentenceScore("tiny-rater"), batched=True)


def test_a_selection_is_published_like_a_run(
    server: HubServer, api: HfApi, scored: Dataset, tmp_path: Path
) -> None:
    source = server.add_repo("dataset", "org/source", card={"license": "mit", "language": "en"})
    selection = selectit_hf.select(scored)
    done = selectit_hf.publish(selection, NAME, source="org/source", api=api)
    assert isinstance(done, Pushed)
    found = loaded(server, tmp_path / "elsewhere")
    assert same(found["default"]["rows"], selection.selected)
    assert [row["row"] for row in found["scores"]["rows"]] == list(range(40))
    manifest = json.loads(server.repo("dataset", NAME).files()["selectit.json"])
    assert manifest["input"]["revision"] == source.head
    assert manifest["models"][0]["dtype"] == "float32"
    assert len(manifest["rating"]["rating_prompts"]) == 5
    again = selectit_hf.publish(selection, NAME, source=f"org/source@{source.head}", api=api)
    assert isinstance(again, Pushed)
    assert (again.new, again.commit) == (False, done.commit)


def test_a_dry_run_only_plans(server: HubServer, api: HfApi, scored: Dataset) -> None:
    server.add_repo("dataset", "org/source")
    plan = selectit_hf.publish(
        selectit_hf.select(scored), NAME, source="org/source", dry_run=True, api=api
    )
    assert isinstance(plan, PushPlan)
    assert "will be created" in plan.describe()
    assert ("dataset", NAME) not in server.repos


def test_settings_that_are_not_the_rows_own_are_refused(
    server: HubServer, api: HfApi, scored: Dataset
) -> None:
    server.add_repo("dataset", "org/source")
    mine = selectit_hf.SentenceScore("tiny-rater", alpha=0.7, max_length=200)
    rows = Dataset.from_json(str(SAMPLE)).select(range(10)).map(mine, batched=True)

    def publish(rows: Dataset, *scorers: Any) -> Any:
        selection = selectit_hf.select(rows, n=3)
        return selectit_hf.publish(selection, NAME, source="org/source", scorers=scorers, api=api)

    with pytest.raises(RatingsError, match="settings that are not the defaults"):
        publish(rows)
    with pytest.raises(RatingsError, match="not rated by the scorer given"):
        publish(rows, selectit_hf.SentenceScore("tiny-rater", max_length=100))
    with pytest.raises(RatingsError, match="does not follow from the stored ratings"):
        publish(rows, selectit_hf.SentenceScore("tiny-rater", max_length=200))
    with pytest.raises(RatingsError, match="does not follow from the stored ratings"):
        publish(scored.map(lambda row: {"sentence_score__tiny_rater": 1.0}))
    with pytest.raises(RatingsError, match="no rater__"):
        publish(scored.remove_columns("rater__tiny_rater"))
    with pytest.raises(RatingsError, match="incomplete"):
        publish(scored.remove_columns("rating_logprobs__tiny_rater"))
    assert ("dataset", NAME) not in server.repos
    publish(rows, mine)
    manifest = json.loads(server.repo("dataset", NAME).files()["selectit.json"])
    assert manifest["selection"]["reflection"]["alpha"] == 0.7
    assert manifest["rating"]["max_length"] == 200


def test_a_selection_that_cannot_be_published_is_refused(
    server: HubServer, api: HfApi, scored: Dataset
) -> None:
    server.add_repo("dataset", "org/source")

    def publish(selection: Any, **options: Any) -> Any:
        return selectit_hf.publish(selection, NAME, api=api, **{"source": "org/source"} | options)

    lazy = selectit_hf.select(scored.to_iterable_dataset(), threshold=1.0)
    with pytest.raises(SettingError, match="lazy"):
        publish(lazy)
    with pytest.raises(InputError, match="nothing to publish"):
        publish(selectit_hf.select(scored, threshold=100.0))
    lengths = scored.map(lambda row: {"length": float(len(row["output"]))})
    with pytest.raises(InputError, match="not a score of this package"):
        publish(selectit_hf.select(lengths, by="length"))
    with pytest.raises(HubError, match="cannot be found"):
        publish(selectit_hf.select(scored), source="org/nowhere")
    with pytest.raises(InputError, match="is not a dataset"):
        publish(selectit_hf.select(scored), source="@main")
    assert ("dataset", NAME) not in server.repos


def test_a_local_source_is_named_by_its_base_name(
    server: HubServer, api: HfApi, scored: Dataset, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(SAMPLE.read_text().splitlines()[:40]))
    selectit_hf.publish(selectit_hf.select(scored), NAME, source=str(file), api=api, license="mit")
    manifest = json.loads(server.repo("dataset", NAME).files()["selectit.json"])
    assert manifest["input"]["name"] == "mine.jsonl"
    assert manifest["input"]["revision"].startswith("sha256:")
    assert_private_bytes(server, tmp_path)


STORED = f"""
    from datasets import load_dataset

    rows = load_dataset("{NAME}", split="train")
    print([str(rows.features[name]) for name in ("image", "sound", "turns")])
    print(rows.with_format("arrow")[:].to_pylist())
"""


def test_pictures_sounds_and_nested_columns_are_loaded_back_equal(
    server: HubServer, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    picture = [{"bytes": png(i), "path": f"{home}/gone/{i}.png"} for i in range(30)]
    sound = [{"bytes": b"RIFF%d" % i, "path": f"{home}/gone/{i}.wav"} for i in range(30)]
    turns = [[{"picture": a, "note": "x"}, {"picture": None, "note": None}] for a in picture]
    rows = typed(
        {"image": Image(), "sound": Audio(), **NESTED},
        {"image": picture, "sound": sound, "turns": turns},
    )
    folder = make_run(home / "RUN", rows=rows)
    push_selected(server, home, folder, NAME, "--yes")
    printed = run(server, tmp_path / "elsewhere", "-c", textwrap.dedent(STORED)).splitlines()
    kinds, selected = map(ast.literal_eval, printed[-2:])
    assert kinds == [str(rows.features[n]) for n in ("image", "sound", "turns")]
    assert len(selected) == 6
    for row in selected:
        i = int(row["instruction"][9:-1])
        assert row["image"] == {"bytes": png(i), "path": f"{i}.png"}
        assert row["sound"] == {"bytes": b"RIFF%d" % i, "path": f"{i}.wav"}
        assert row["turns"] == [
            {"picture": row["image"], "note": "x"}, {"picture": None, "note": None},
        ]  # fmt: skip
    for path, data in server.repo("dataset", NAME).files().items():
        (tmp_path / "file").write_bytes(data)
        assert private_place(tmp_path / "file", [str(home)]) is None, path
        assert path.endswith(".parquet") or str(home).encode() not in data
