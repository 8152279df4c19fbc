"""What we ship: the wheel, installed into a fresh environment away from the repository."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAP = """
import json, sys
import selectit_hf
from datasets import Dataset
ds = Dataset.from_dict({"instruction": ["Add 1 and 2."], "output": ["3"]})
ds = ds.map(selectit_hf.token_score, batched=True)
print(json.dumps([selectit_hf.__file__, ds.column_names, ds[0]["status__tiny_rater"]]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "project"
    # A copy of what is tracked, since building in the repository would leave files there.
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(out)]
    subprocess.run([sys.executable, *build, str(source)], check=True, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; the dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = ["-m", "pip", "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, *command], check=True, env=elsewhere)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def run(fresh: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [fresh / "bin" / command[0], *command[1:]],
        cwd=folder,
        env={**os.environ, "SELECTIT_MODEL": "tiny-rater", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"selectit_hf"}
    for needed in ("py.typed", "data/rating_prompts.txt", "data/tiny-rater/model.safetensors"):
        assert f"selectit_hf/{needed}" in names


def test_the_installed_demo(fresh: Path, tmp_path: Path) -> None:
    done = run(fresh, tmp_path, "selectit", "demo", "--json")
    summary = json.loads(done.stdout)
    assert summary["selected"] == summary["rows"] // 5
    assert (tmp_path / "selectit-demo" / "selected.parquet").is_file()
    assert "broken on purpose" in done.stderr


def test_the_installed_map(fresh: Path, tmp_path: Path) -> None:
    done = run(fresh, tmp_path, "python", "-c", MAP)
    where, columns, status = json.loads(done.stdout)
    assert str(fresh) in where
    assert "token_score__tiny_rater" in columns
    assert status == "ok"
