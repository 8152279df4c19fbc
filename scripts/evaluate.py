"""Evaluate fine-tuned models with lm-evaluation-harness, and print a table of arms and tasks.

MODELs are folders made by scripts/finetune.py, base models on the Hub, or folders of them. Each
task of each model is evaluated once: its result is a file under --out, and a killed evaluation
resumes with the same command. The table is made from all results under --out. A row is an arm (what
a model was trained on), a column is a task; a cell is the mean over seeds and the standard
deviation.

    bash scripts/install.sh '[train]'
    python scripts/evaluate.py BASE models/* --out results --tasks mmlu bbh gsm8k
    python scripts/evaluate.py --out results              # the table alone

The paper's tasks are mmlu, bbh, gsm8k, TyDiQA (tydiqa_goldp_LANGUAGE) and humaneval; their data
are on the Hub. humaneval runs code written by the model, and a metric from the Hub, on this
machine, and needs --run-unsafe-code. --tasks-folder adds tasks of your own. The last line of stdout
is JSON.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from selectit_hf.errors import SelectItError, SettingError
from selectit_hf.json_files import as_json
from selectit_hf.whole_files import write

TRAINED = "training.json"
ADAPTER = "adapter_config.json"
HOW = ("few_shot", "limit", "chat")
PREFERRED = ("exact_match,strict-match", "pass@1,create_test", "f1,none", "acc,none")
"""The metrics that the paper's tables show, where a task has several."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--out", required=True, type=Path, help="The folder of the results.")
    parser.add_argument("--tasks", nargs="+", default=[], help="Names of tasks or groups.")
    parser.add_argument("--tasks-folder", help="A folder with YAML files of more tasks.")
    parser.add_argument("--few-shot", type=int, help="Examples in a prompt. Default: the task's.")
    parser.add_argument("--limit", type=int, help="Only the first documents of each task.")
    parser.add_argument("--batch", type=int, default=8, help="Default: 8.")
    parser.add_argument("--chat", action="store_true", help="Use the model's chat template.")
    parser.add_argument(
        "--run-unsafe-code", action="store_true", help="Run code that the model writes."
    )
    return parser.parse_args(given)


def loaded(model: str, batch: int) -> HFLM:
    """A model, or an adapter and its base, in the form that the harness takes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = AutoModelForCausalLM
    if (Path(model) / ADAPTER).is_file():
        kind = AutoPeftModelForCausalLM
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # of the base and all arms
    weights = kind.from_pretrained(
        model, dtype=dtype, use_safetensors=True, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    return HFLM(pretrained=weights.to(device).eval(), tokenizer=tokenizer, batch_size=batch)


def arm(model: str) -> tuple[str, int | None]:
    """What a model was trained on, and its seed."""
    trained = Path(model) / TRAINED
    if not trained.is_file():
        return "base", None
    facts = json.loads(trained.read_bytes())
    return str(facts["arm"]), int(facts["seed"])


def place(out: Path, model: str, task: str, how: dict[str, Any]) -> Path:
    """The place of a result. Another model of the same name, or other settings, get another."""
    trained = Path(model) / TRAINED
    which = trained.read_text("utf-8") if trained.is_file() else model
    of = hashlib.sha256(json.dumps([which, task, how], sort_keys=True).encode()).hexdigest()
    return out / f"{Path(model).name}.{task}.{of[:12]}.json"


def evaluate(given: argparse.Namespace) -> None:
    """Every task of every model that has no result yet."""
    how = {key: getattr(given, key) for key in HOW}
    if given.run_unsafe_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # what the metric of humaneval asks for
    tasks = TaskManager(include_path=given.tasks_folder)
    unknown = sorted(set(given.tasks) - set(tasks.all_tasks))
    if unknown:
        raise SettingError(f"There is no task {unknown[0]!r}; 'lm-eval ls tasks' lists them.")
    for model in given.models:
        ready = None
        for task in given.tasks:
            path = place(given.out, model, task, how)
            if path.exists():
                continue
            ready = ready or loaded(model, given.batch)
            found = simple_evaluate(
                ready,
                tasks=[task],
                num_fewshot=given.few_shot,
                limit=given.limit,
                apply_chat_template=given.chat,
                task_manager=tasks,
                log_samples=False,
                bootstrap_iters=0,
                confirm_run_unsafe_code=given.run_unsafe_code,
            )
            name, seed = arm(model)
            facts = {"arm": name, "seed": seed, "model": Path(model).name, "task": task, **how}
            metric, value = score(found["results"][task], task)
            versions = found.get("versions", {}).get(task)
            write(path, as_json(facts | {"metric": metric, "value": value, "version": versions}))
            print(f"{Path(model).name}: {task} {metric} {value:.4f}", flush=True)


def score(found: dict[str, Any], task: str) -> tuple[str, float]:
    """The metric of a task that the table shows."""
    numbers = {
        key: float(value)
        for key, value in found.items()
        if isinstance(value, int | float) and "," in key and "_stderr" not in key
    }
    if not numbers:
        raise SettingError(f"Task {task!r} has no number for a table: {sorted(found)}.")
    metric = next((one for one in PREFERRED if one in numbers), next(iter(numbers)))
    return metric, numbers[metric]


def results(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(out.glob("*.json")):
        yield json.loads(path.read_bytes())


def asked_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(name) == other.get(name) for name in HOW)


def said(one: dict[str, Any]) -> str:
    how = ", ".join(f"{name} {one.get(name)}" for name in HOW)
    return f"{one.get('model')} ({one['arm']}, seed {one['seed']}, {how})"


def table(out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """For each arm and task the mean, the standard deviation over seeds, and their number.

    Raises:
        SettingError: results that one table cannot show.
    """
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    same: dict[tuple[Any, ...], dict[str, Any]] = {}
    asked: dict[str, dict[str, Any]] = {}
    for one in results(out):
        twin = same.setdefault((one["arm"], one["seed"], one["task"]), one)
        like = asked.setdefault(one["task"], one)
        if twin is not one or not asked_alike(like, one):
            other = like if twin is one else twin
            raise SettingError(
                f"{out} holds two results of {one['task']!r} that do not belong together: "
                f"{said(other)}; and {said(one)}. Remove one, or use another --out."
            )
        values[one["arm"]][f"{one['task']} ({one['metric'].partition(',')[0]})"].append(
            one["value"]
        )
    return {
        name: {
            task: {
                "mean": statistics.fmean(numbers),
                "spread": statistics.stdev(numbers) if len(numbers) > 1 else None,
                "n": len(numbers),
            }
            for task, numbers in sorted(tasks.items())
        }
        for name, tasks in sorted(values.items())
    }


def shown(found: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """The table as Markdown; the best mean of a task is bold."""
    columns = sorted({task for tasks in found.values() for task in tasks})
    best = {
        task: max(tasks[task]["mean"] for tasks in found.values() if task in tasks)
        for task in columns
    }
    yield "| " + " | ".join(["arm", *columns]) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, tasks in found.items():
        yield "| " + " | ".join([name, *(cell(tasks.get(t), best[t]) for t in columns)]) + " |"


def cell(one: dict[str, Any] | None, best: float) -> str:
    if one is None:
        return ""
    mean = f"**{one['mean']:.4f}**" if one["mean"] == best else f"{one['mean']:.4f}"
    return mean if one["spread"] is None else f"{mean} ± {one['spread']:.4f} ({one['n']} seeds)"


def main() -> None:
    given = arguments()
    if bool(given.models) != bool(given.tasks):
        sys.exit("Error: give both models and --tasks, or neither for the table alone.")
    try:
        evaluate(given)
        found = table(given.out)
    except SelectItError as error:
        sys.exit(f"Error: {error}")
    print("\n".join(shown(found)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
