"""A folder's hash covers all that is loaded from it, wherever it lies, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from selectit_hf.errors import ModelError
from selectit_hf.hashes import content_hash
from selectit_hf.rating.models.loading import load_model
from selectit_hf.rating.models.model_names import resolve


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def parted(folder: Path, names: tuple[str, str]) -> Path:
    """The weights in two files, which an index names."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(weights)
    weight_map = {key: names[i % 2] for i, key in enumerate(keys)}
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        part = {key: weights[key] for key in keys if weight_map[key] == name}
        save_file(part, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
        "tokenizer.model",
        "merges.txt",
        "vocab.tiktoken",
    ],
)
def test_a_change_to_any_file_that_is_loaded_shows(folder: Path, name: str) -> None:
    before = content_hash(folder)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    assert content_hash(folder) != before


def test_what_is_not_loaded_does_not(folder: Path) -> None:
    before = content_hash(folder)
    shutil.copytree(folder, folder / "checkpoint-500")
    (folder / "README.md").write_text("Read me.")
    (folder / "training_args.bin").write_bytes(b"0")
    assert content_hash(folder) == before


def test_weights_in_a_subfolder_are_loaded_and_hashed(folder: Path) -> None:
    parted(folder, ("weights/1.safetensors", "weights/2.safetensors"))
    before = content_hash(folder)
    load_model(str(folder), "float32", "cpu")
    path = folder / "weights/2.safetensors"
    weights = load_file(path)
    save_file({name: 2 * value for name, value in weights.items()}, path, {"format": "pt"})
    assert content_hash(folder) != before


@pytest.mark.parametrize("outside", ["../other.safetensors", "a/../../other.safetensors"])
def test_weights_outside_the_folder_are_refused(folder: Path, outside: str) -> None:
    parted(folder, ("1.safetensors", outside))
    with pytest.raises(ModelError, match="names weights outside it"):
        content_hash(folder)


def test_weights_that_are_not_there_are_named(folder: Path) -> None:
    parted(folder, ("1.safetensors", "2.safetensors"))
    (folder / "2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"'model' lacks '2\.safetensors'"):
        content_hash(folder)


def test_files_cannot_change_places_unseen(folder: Path) -> None:
    parted(folder, ("1.safetensors", "2.safetensors"))
    before = content_hash(folder)
    (folder / "1.safetensors").rename(folder / "3")
    (folder / "2.safetensors").rename(folder / "1.safetensors")
    (folder / "3").rename(folder / "2.safetensors")
    assert content_hash(folder) != before


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "additional_chat_templates/a.jinja"]
)
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    path, elsewhere = folder / name, tmp_path / "elsewhere"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(ModelError, match=rf"Put '{name}' into the checkpoint folder 'model'"):
        resolve(str(folder))


def test_links_within_a_cache_of_the_hub_are_its_own(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    assert content_hash(snapshot) == content_hash(folder)
    (snapshot / "extra.json").symlink_to(folder / "config.json")
    with pytest.raises(ModelError, match=r"Put 'extra\.json'"):
        content_hash(snapshot)


@pytest.mark.parametrize("name", ["../tokenizer.4.0.json", "in/tokenizer.4.0.json"])
def test_a_tokenizer_of_another_folder_is_refused(folder: Path, name: str) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"fast_tokenizer_files": [name]}
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=f"Put '{name}' into the checkpoint folder"):
        resolve(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_nesting_without_end_is_an_error(folder: Path, name: str) -> None:
    (folder / name).write_text("[" * 100_000)
    found = resolve(str(folder))
    with pytest.raises(ModelError, match="recursion"):
        (found.config if name == "config.json" else found.tokenizer)()
