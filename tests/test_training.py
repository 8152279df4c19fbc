"""``scripts/finetune.py`` and ``scripts/evaluate.py``: the bundled model, a few steps, offline."""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
TINY = str(files("selectit_hf") / "data" / "tiny-rater")
SAMPLE = [
    json.loads(line)
    for line in (files("selectit_hf") / "data" / "sample.jsonl").read_text("utf-8").splitlines()
]
QUICK = ("--steps", 4, "--batch", 4, "--save-every", 2, "--learning-rate", 1e-3)


def command(script: str, *words: object) -> list[str]:
    return [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, words)]


def run(script: str, *words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(script, *words), capture_output=True, text=True, timeout=240)


def said(script: str, *words: object) -> Any:
    done = run(script, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def rows(path: Path, part: slice) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in SAMPLE[part]))
    return path


def prompt(row: dict[str, str]) -> str:
    asked = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
    return f"Instruction:\n{asked}\n\nResponse:\n"


def loglikelihood(model: Any, tokenizer: Any, before: str, text: str) -> tuple[float, int]:
    """The log-probability of a text behind another, and its tokens: one forward pass, no batch."""
    start = len(tokenizer(before)["input_ids"])
    ids = torch.tensor([tokenizer(before + text)["input_ids"]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0].double(), -1)
    of_text = [float(logprobs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])]
    return sum(of_text), len(of_text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    place = tmp_path_factory.mktemp("trained")
    data, held_out = (
        rows(place / "pool.jsonl", slice(24)),
        rows(place / "held.jsonl", slice(30, 36)),
    )
    out = place / "whole-0"
    flags = ("--model", TINY, "--out", out, "--held-out", held_out, "--arm", "whole", *QUICK)
    return out, said("finetune", data, *flags)


def test_the_loss_of_the_trained_model_is_that_of_a_plain_loop(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    out, facts = trained
    for model_name, when in ((TINY, "before"), (str(out), "after")):
        model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(model_name)
        end = tokenizer.eos_token
        found = [
            loglikelihood(model, tokenizer, prompt(row), row["output"] + end)
            for row in SAMPLE[30:36]
        ]
        loss = statistics.fmean(-one / count for one, count in found)
        assert math.isclose(facts["held_out_loss"][when], loss, rel_tol=1e-4), when
    assert facts["held_out_loss"]["after"] < facts["held_out_loss"]["before"]


def test_a_model_tells_what_it_was_trained_on(trained: tuple[Path, dict[str, Any]]) -> None:
    out, facts = trained
    assert json.loads((out / "training.json").read_text()) == facts
    assert (facts["data"]["rows"], facts["steps_done"], facts["model"]) == (24, 4, "tiny-rater")
    assert (facts["trained"]["rows"], facts["trained"]["at_max_length"]) == (24, 0)
    assert str(out.parent) not in json.dumps(facts)


def test_a_killed_training_resumes_and_ends_alike(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    whole, facts = trained
    flags = (whole.parent / "pool.jsonl", "--model", TINY, "--arm", "whole", *QUICK)
    flags = (*flags, "--held-out", whole.parent / "held.jsonl", "--out", tmp_path / "killed")
    with subprocess.Popen(
        command("finetune", *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        first = tmp_path / "killed" / "checkpoints" / "checkpoint-2" / "trainer_state.json"
        while not first.exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "killed" / "training.json").exists()
    again = said("finetune", *flags)
    losses = ("held_out_loss", "training_loss")
    assert {k: v for k, v in again.items() if k not in losses} == {
        k: v for k, v in facts.items() if k not in losses
    }
    mine, other = (load_file(p / "model.safetensors") for p in (whole, tmp_path / "killed"))
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    rows(whole.parent / "held.jsonl", slice(30, 35))
    other_loss = run("finetune", *flags)
    assert "another held_out" in other_loss.stderr
    rows(whole.parent / "held.jsonl", slice(30, 36))
    other_rate = run("finetune", *flags, "--learning-rate", 1e-4)
    assert other_rate.returncode == 1
    assert "holds a training with another learning_rate; give another folder" in other_rate.stderr


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft reads it
def test_a_single_step_changes_the_model(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    pool = trained[0].parent / "pool.jsonl"
    flags = ("--model", TINY, "--out", tmp_path / "one", "--steps", 1, "--batch", 4)
    assert said("finetune", pool, *flags)["steps_done"] == 1
    before = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).state_dict()
    after = load_file(tmp_path / "one" / "model.safetensors")
    assert sum(not torch.equal(before[name], after[name]) for name in after) > len(after) / 2


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
def test_an_adapter_is_evaluated_as_a_plain_loop_would(tmp_path: Path) -> None:
    data = rows(tmp_path / "pool.jsonl", slice(24))
    out = tmp_path / "adapted-3"
    said("finetune", data, "--model", TINY, "--out", out, "--seed", 3, "--lora", 4, *QUICK)
    assert not (out / "model.safetensors").exists()
    items: list[dict[str, Any]] = [
        {
            "asked": prompt(row),
            "choices": [row["output"], SAMPLE[100 + i]["output"], "I do not know."],
        }
        for i, row in enumerate(SAMPLE[60:72])
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(one) + "\n" for one in items))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "own.yaml").write_text(
        f"""
task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {tmp_path / "items.jsonl"}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{asked}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
"""
    )
    flags = ("--out", tmp_path / "results", "--tasks", "own_choice", "--tasks-folder", tasks)
    found = said("evaluate", TINY, out, *flags)
    from peft import PeftModel

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    for arm, model in (("base", base), ("pool.jsonl", PeftModel.from_pretrained(base, str(out)))):
        right = []
        for item in items:
            asked, choices = item["asked"], item["choices"]
            found_of = [loglikelihood(model, tokenizer, asked, one)[0] for one in choices]
            right.append(found_of.index(max(found_of)) == 0)
        assert found[arm]["own_choice (acc)"]["mean"] == pytest.approx(statistics.fmean(right))
    again = run("evaluate", TINY, out, *flags)
    assert "own_choice acc" not in again.stderr + again.stdout.partition("| arm")[0]
    assert json.loads(again.stdout.splitlines()[-1]) == found


def test_the_table_has_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    values = {"random": [0.25, 0.5, 0.75], "sentence": [0.5, 0.625, 0.75], "base": [0.5]}
    for arm, numbers in values.items():
        for seed, value in enumerate(numbers):
            facts = {"arm": arm, "seed": seed, "task": "t", "metric": "acc,none", "value": value}
            (tmp_path / f"{arm}-{seed}.json").write_text(json.dumps(facts))
    done = run("evaluate", "--out", tmp_path)
    assert "| random | 0.5000 ± 0.2500 (3 seeds) |" in done.stdout
    assert "| sentence | **0.6250** ± 0.1250 (3 seeds) |" in done.stdout
    assert "| base | 0.5000 |" in done.stdout
    for change in ({"limit": 10}, {"model": "another"}):
        facts = {"arm": "base", "seed": 0, "task": "t", "metric": "acc,none", "value": 1.0}
        (tmp_path / "again.json").write_text(json.dumps(facts | change))
        refused = run("evaluate", "--out", tmp_path)
        assert refused.returncode == 1
        assert "two results of 't' that do not belong together" in refused.stderr


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = run("evaluate", TINY, "--out", tmp_path, "--tasks", "no_such_task")
    assert done.returncode == 1
    assert "There is no task 'no_such_task'" in done.stderr
    assert "Traceback" not in done.stderr
