"""Recipes: the same as the flags, checked as strictly, and written as they were given."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from command import Outcome

from selectit_hf.cli.app import app
from selectit_hf.cli.recipes import SECTIONS

Selectit = Callable[..., Outcome]


def write(path: Path, **sections: Any) -> Path:
    path.write_text(yaml.safe_dump(sections))
    return path


def facts(run: Path) -> tuple[Any, Any]:
    """What was planned and how rows were selected; neither names the run's folder."""
    chosen = json.loads((run / "selection.json").read_bytes())
    return json.loads((run / "plan.json").read_bytes()), (chosen["by"], chosen["cut"])


def test_a_recipe_is_the_flags_and_flags_take_precedence(
    selectit: Selectit, data: Path, tmp_path: Path
) -> None:
    flags = {"dataset": str(data), "model": "tiny-rater", "k": 4, "max_length": 200}
    recipe = write(tmp_path / "r.yaml", run={**flags, "out": "recipe", "proportion": 0.5})
    said = selectit("run", recipe, "--json")
    assert said.code == 0, said.err
    typed = ["--model", "tiny-rater", "--k", 4, "--max-length", 200, "--proportion", 0.5]
    assert selectit("run", data, *typed, "--out", "typed").code == 0
    assert facts(tmp_path / "recipe") == facts(tmp_path / "typed")

    assert selectit("run", recipe, "--out", "other", "--n", 3, "--k", 5).code == 0
    plan, (_, cut) = facts(tmp_path / "other")
    assert (plan["rating"]["k"], plan["rating"]["max_length"]) == (5, 200)
    assert (cut["n"], cut["proportion"]) == (3, None)

    again = {"scored": "recipe", "data": str(data), "out": "picked", "by": "token", "n": 4}
    write(tmp_path / "s.yaml", select=again)
    done = selectit("select", "s.yaml", "--n", 5)
    assert done.code == 0, done.err
    chosen = json.loads((tmp_path / "picked" / "selection.json").read_bytes())
    assert (chosen["by"], chosen["selected"]) == ("token_score__tiny_rater", 5)


def test_a_saved_recipe_makes_the_same_run_again(
    selectit: Selectit, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELECTIT_MODEL", "tiny-rater")
    given = ["run", "rows.json", "--out", "first", "--n", 3, "--role", "narrator=system", "--k", 5]
    given += ["--save-recipe", "saved.yaml"]
    assert selectit(*given).code == 0
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text()) == {
        "run": {
            "dataset": "rows.json",
            "out": "first",
            "model": ["tiny-rater"],
            "role": ["narrator=system"],
            "n": 3,
        }
    }
    monkeypatch.setenv("SELECTIT_MODEL", "no/such-model")
    assert selectit("run", "saved.yaml", "--out", "again").code == 0
    monkeypatch.setenv("SELECTIT_MODEL", "tiny-rater")
    assert facts(tmp_path / "again") == facts(tmp_path / "first")
    assert selectit(*given).code == 0  # the same recipe is there already
    other = selectit(*given, "--n", 4)
    assert (other.code, "saved.yaml holds something else" in other.err) == (1, True)
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["run"]["n"] == 3


def test_a_recipe_holds_no_token_and_paths_of_this_machine_are_named(
    selectit: Selectit, data: Path, tmp_path: Path
) -> None:
    base = ["run", data, "--model", "tiny-rater", "--out", "RUN", "--save-recipe"]
    secret = selectit(*base, "a.yaml", "--role", "hf_" + "a" * 30 + "=user")
    assert (secret.code, "access token" in secret.err) == (1, True)
    assert not (tmp_path / "a.yaml").exists()
    assert "names paths of this machine: dataset." in selectit(*base, "b.yaml").err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "run: {dataset: d, propotion: 0.1}",
            "'propotion' is not a key of 'run'. Did you mean 'pr",
        ),
        ("run: {dataset: d, zzz: 1}", "'zzz' is not a key of 'run'. Known: allow-mixed"),
        ("runs: {dataset: d}", "'runs' is not a section. Did you mean 'run'?"),
        ("push: {run: d}", "there is no section 'run'"),
        ("run: {out: d}", "the section 'run' needs the key 'dataset'"),
        ("run: {dataset: d, k: five}", "run.k is 'five', but must be a whole number"),
        ("run: {dataset: d, k: true}", "run.k is True, but must be a whole number"),
        ("run: {dataset: d, chat: 1}", "run.chat is 1, but must be true or false"),
        ("run: {dataset: d, model: [1]}", "run.model is 1, but must be a list of text"),
        ("run: {dataset: d, split: 1}", "run.split is 1, but must be text; quote it"),
        ("run: {dataset: d, k: 4, k: 5}", "the key 'k' is there twice"),
        ("run: [a]", "must hold lines of the form 'name: value'"),
        ("run: {", "is not valid YAML"),
        ("run: {dataset: !!python/name:os.system d}", "is not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(selectit: Selectit, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    done = selectit("run", "r.yaml", "--out", "RUN")
    assert (done.code, words in done.err) == (1, True), done.err
    assert "r.yaml" in done.err
    assert not (tmp_path / "RUN").exists()


def test_a_push_is_never_confirmed_by_a_recipe(selectit: Selectit, tmp_path: Path) -> None:
    write(tmp_path / "r.yaml", push={"run": "RUN", "repo": "not-whole", "yes": True})
    assert "'yes' is not a key of 'push'" in selectit("push", "r.yaml").err
    write(tmp_path / "r.yaml", push={"run": "RUN", "repo": "not-whole"})
    assert "'not-whole' is not a repository name" in selectit("push", "r.yaml").err
    assert "'nor-this' is not a repository name" in selectit("push", "r.yaml", "nor-this").err
    assert "cannot be read" in selectit("push", "missing.yaml").err


@pytest.mark.parametrize("section", SECTIONS)
def test_every_flag_is_a_key_with_its_type(
    section: str, selectit: Selectit, tmp_path: Path
) -> None:
    group: Any = typer.main.get_command(app)
    for one in group.commands[section].params:
        flag = max(one.opts, key=len).lstrip("-")
        if flag in ("help", "json", "debug", "yes", "save-recipe"):
            continue
        write(tmp_path / "r.yaml", **{section: {flag: {"no": "value"}}})
        said = selectit(section, "r.yaml").err
        assert f"r.yaml: {section}.{flag} is {{'no': 'value'}}, but must be" in said
