"""Plans: what they hold, and that anything else is refused by name."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from selectit_hf import SentenceScore
from selectit_hf.errors import InputError, RunError
from selectit_hf.plans import check_plan, compare, make_plan, read_plan
from selectit_hf.runs import Run
from selectit_hf.shapes import misfit
from selectit_hf.sources import Source

SOURCE = Source("rows.json", None, "train", "sha256:0")


@pytest.fixture(scope="module")
def plan(checkpoint: Path) -> dict[str, Any]:
    scorer = SentenceScore(str(checkpoint), token_budget=512)
    return make_plan(SOURCE, ["instruction", "output"], 11, "sha256:1", [scorer], 4, {})


def test_all_models_keep_to_the_budget_of_the_tightest(
    checkpoint: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    paths = [checkpoint, make_checkpoint(tmp_path / "larger", hidden_size=64)]
    monkeypatch.setattr(
        "selectit_hf.loading.fitting_budget", lambda config, *_: 2**18 // config.hidden_size
    )
    widths = [json.loads((path / "config.json").read_text())["hidden_size"] for path in paths]
    assert len({*widths}) == 2
    for order in (paths, paths[::-1]):
        scorers = [SentenceScore(str(path)) for path in order]
        made = make_plan(SOURCE, ["instruction", "output"], 11, "sha256:1", scorers, 4, {})
        assert made["token_budget"] == 2**18 // max(widths)
    asked = [replace(scorers[0], token_budget=700), replace(scorers[1], token_budget=300)]
    kept = make_plan(SOURCE, ["instruction", "output"], 11, "sha256:1", asked, 4, made)
    assert kept["token_budget"] == 300


def test_a_plan_holds_all_that_can_change_a_rating(plan: dict[str, Any], checkpoint: Path) -> None:
    scorer = SentenceScore(str(checkpoint))
    state = scorer.resolved()
    asked = [state.template, *state.rating_prompts]
    assert plan["input"] == {
        "name": "rows.json",
        "config": None,
        "split": "train",
        "revision": "sha256:0",
        "rows": 11,
        "columns": ["instruction", "output"],
        "fingerprint": "sha256:1",
    }
    assert plan["rating"]["rating_prompts"] == list(state.rating_prompts)
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    assert plan["method"]["prompt_hash"] == f"sha256:{digest}"
    assert set(plan["method"]) == {
        "prompt_hash", "truncation", "attention", "batch_plan_version", "rating_version",
        "formula_version",
    }  # fmt: skip
    (model,) = plan["models"]
    assert model["revision"] == scorer.checkpoint.revision
    assert model["dtype"] == "float32"
    assert model["rating_key"] == scorer.rating_key()
    assert plan["shard_size"] == 4
    assert plan["token_budget"] == 512
    assert {"torch", "transformers", "tokenizers", "numpy", "datasets"} <= set(plan["versions"])
    assert str(checkpoint.parent) not in json.dumps(plan)


def test_a_plan_survives_its_file(plan: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    assert read_plan(path) == plan


def test_two_models_of_one_name_are_refused(
    make_checkpoint: Callable[..., Path], checkpoint: Path, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / checkpoint.name, seed=3)
    scorers = [SentenceScore(str(checkpoint)), SentenceScore(str(other))]
    with pytest.raises(InputError, match="both called 'random_llama'"):
        make_plan(SOURCE, ["a"], 1, "", scorers, None, {})
    scorers[1] = replace(scorers[1], name="other")
    assert len(make_plan(SOURCE, ["a"], 1, "", scorers, None, {})["models"]) == 2


# Another plan


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a plan that is no list and no object, ``versions`` apart."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, (dict, list)) and key != "versions":
            yield from leaves(inner, (*path, key))
        else:
            yield (*path, key)


def changed(plan: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    plan = copy.deepcopy(plan)
    inner: Any = plan
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return plan


def test_every_key_that_differs_is_named(plan: dict[str, Any]) -> None:
    compare(plan, copy.deepcopy(plan), "run")
    for path in leaves(plan):
        other = changed(plan, path, {"9.9": "9"} if path[-1] == "versions" else "another")
        with pytest.raises(RunError, match="planned differently") as caught:
            compare(plan, other, "run")
        assert f" {'.'.join(map(str, path))}" in str(caught.value)


def test_all_that_differs_is_named_at_once(plan: dict[str, Any]) -> None:
    other = changed(changed(plan, ("threads",), 99), ("models", 0, "dtype"), "float16")
    with pytest.raises(RunError) as caught:
        compare(plan, other, "run")
    assert f"threads: {plan['threads']}, now 99" in str(caught.value)
    assert "models.0.dtype: 'float32', now 'float16'" in str(caught.value)


# What is no plan


def test_what_is_missing_or_of_a_wrong_type_is_named(plan: dict[str, Any]) -> None:
    check_plan(plan)
    for path in leaves(plan):
        name = ".".join(map(str, path))
        with pytest.raises(RunError, match="is no plan of a run") as caught:
            check_plan(changed(plan, path, [[]]))
        assert (name if path != ("format",) else "format is") in str(caught.value)
        if not isinstance(path[-1], int):
            without = changed(plan, path, None)
            inner: Any = without
            for key in path[:-1]:
                inner = inner[key]
            del inner[path[-1]]
            if path[0] != "rating" or path[-1] in plan["rating"]:
                with pytest.raises(RunError, match=r"missing|format is None"):
                    check_plan(without)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), 3, "its format is 3, and this version reads 1 and 2"),
        (("format",), True, "its format is True"),
        (("input", "rows"), 0, "input.rows is 0"),
        (("input", "rows"), True, "input.rows is True, not a whole number"),
        (("shard_size",), -4, "shard_size is -4"),
        (("token_budget",), 1.5, "token_budget is 1.5"),
        (("threads",), 0, "threads is 0"),
        (("rating", "k"), 12, "rating.k is 12"),
        (("rating", "k"), 4, "rating_prompts are 5, not k=4"),
        (("models",), [], "at least one"),
        (("models", 0, "name"), "../../etc", "not snake case"),
        (("models", 0, "name"), "", "not snake case"),
        (("models", 0, "name"), "ratings\n", "not snake case"),
    ],
)
def test_what_is_out_of_range_is_named(
    plan: dict[str, Any], path: tuple[Any, ...], value: Any, words: str
) -> None:
    with pytest.raises(RunError) as caught:
        check_plan(changed(plan, path, value))
    assert words in str(caught.value)


def test_a_model_named_twice_is_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="none twice"):
        check_plan(changed(plan, ("models",), plan["models"] * 2))


def test_a_plan_of_format_1_is_read_and_not_gone_on_with(
    plan: dict[str, Any], tmp_path: Path, checkpoint: Path
) -> None:
    scorer = SentenceScore(str(checkpoint), token_budget=512)
    rows = Dataset.from_dict({"instruction": ["a"] * 11, "output": ["b"] * 11})
    old = {key: value for key, value in plan.items() if key != "method"} | {"format": 1}
    (tmp_path / "plan.json").write_text(json.dumps(old))
    assert Run.open(tmp_path).slugs == ["random_llama"]
    with pytest.raises(RunError, match=r"format: 1, now 2.*method\.prompt_hash: None, now"):
        Run.start(tmp_path, rows, SOURCE, [scorer], 4)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(data=st.data())
def test_no_plan_at_all_ends_in_another_error(plan: dict[str, Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(leaves(plan))))
    depth = data.draw(st.integers(1, len(path)))
    broken = changed(plan, path[:depth], data.draw(JSON))
    with suppress(RunError):
        check_plan(broken)
        assert broken["input"]["rows"] >= 1
        assert len(broken["rating"]["rating_prompts"]) == broken["rating"]["k"]


@pytest.mark.parametrize(
    ("value", "shape", "words"),
    [
        ({"a": 1}, {"a": int}, None),
        ({"a": 1, "b": 2}, {"a": int}, None),
        ({"a": 1.0}, {"a": int}, "a is 1.0, not a whole number"),
        ({"a": True}, {"a": int}, "a is True, not a whole number"),
        ({"a": None}, {"a": (str, type(None))}, None),
        ({"a": 1}, {"a": (str, type(None))}, "a is 1, not a text or null"),
        ({"a": [{"b": "x"}, {}]}, {"a": [{"b": str}]}, "a.1.b is missing"),
        ({"a": "x" * 99}, {"a": dict}, f"a is '{'x' * 56}..., not an object"),
        ([], {"a": int}, "it is [], not an object"),
    ],
)
def test_shapes_say_what_does_not_fit(value: Any, shape: Any, words: str | None) -> None:
    assert misfit(value, shape) == words
