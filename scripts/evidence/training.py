"""Does a model learn more from what is kept? Fine-tunes on the choices of several selectors.

Half of a pool of rows gets a planted defect each. Every selector keeps a fifth of the pool, and a
model is fine-tuned on each choice for the same number of steps: the arms. Three more arms are the
whole pool, a random fifth, and the half without defects. The table shows, for each arm, the share
of rows without a defect, the loss on rows outside the pool, and two small tasks (items/): the mean
and standard deviation over training seeds. Needs the extra train. Everything is kept under --cache,
and the same command resumes after a kill. The last line is JSON.

    python scripts/evidence/training.py --rows rows.json --model MODEL --n 600 --steps 60
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import kept, last_line, models_of, pairs, parser, rated, selectors, table
from datasets import Dataset

from selectit_hf.analysis.trust.defects import DEFECTS, plant
from selectit_hf.formats.rows import Pair

SCRIPTS = Path(__file__).resolve().parents[1]
ITEMS = Path(__file__).resolve().parent / "items"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {path}}}
test_split: train
output_type: multiple_choice
doc_to_text: {text}
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: "{between}"
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
"""
TASKS = {
    "facts": {"text": '"{{question}}"', "between": " ", "metric": "acc_norm"},
    "answers": {
        "text": r'"Instruction:\n{{question}}\n\nResponse:\n"',
        "between": "",
        "metric": "acc_norm",
    },
}


def drawn(given: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The pool, whose rows tell which defect they have, and the held-out rows."""
    found = [pair for _, pair in pairs(given.rows, given.seed)][: given.n + given.held_out]
    if len(found) < given.n + given.held_out:
        sys.exit(f"Error: {given.rows} has {len(found)} rows that can be read; lower --n.")
    half = given.n // 2
    planted = plant(found[:half], list(range(half)), DEFECTS, {}, given.seed)
    choose = np.random.default_rng([given.seed, 1])
    pool = [as_row(pair, "none") for pair in found[half : given.n]]
    for i in range(half):
        copies = np.flatnonzero((planted.source == i) & (planted.defect >= 0))
        copy = int(choose.choice(copies))
        pool.append(as_row(planted.pairs[copy], planted.names[planted.defect[copy]]))
    order = choose.permutation(len(pool)).tolist()
    return [pool[i] for i in order], [as_row(pair) for pair in found[given.n :]]


def as_row(pair: Pair, defect: str | None = None) -> dict[str, str]:
    row = {"instruction": pair.instruction, "output": pair.response}
    return row if defect is None else row | {"defect": defect}


def arms(pool: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, list[int]]:
    """The rows of each arm, by their places in the pool."""
    texts = Dataset.from_list([{k: row[k] for k in ("instruction", "output")} for row in pool])
    run = rated(texts, f"training-{given.n}-{given.seed}", given)
    scores = selectors(run, texts, given)
    slug = run.slugs[0]
    wanted = {
        "random": "random",
        "length": "length",
        "sentence": f"sentence:{slug}",
        "expected": f"expected:{slug}",
        "ifd high": f"ifd:{slug}",
        "ifd low": f"ifd low:{slug}",
    }
    found = {name: np.flatnonzero(kept(scores[key])).tolist() for name, key in wanted.items()}
    clean = [i for i, row in enumerate(pool) if row["defect"] == "none"]
    return {"all": list(range(len(pool))), **found, "clean half": clean}


def call(script: str, *words: object) -> dict[str, Any]:
    """The last line of one of our scripts."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def train(
    given: argparse.Namespace, place: Path, chosen: dict[str, list[int]], pool: list[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """What every training says, for each arm in the order of the seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, rows in chosen.items():
        data = place / f"{name.replace(' ', '-')}.json"
        data.write_text(
            json.dumps([as_row(Pair(pool[i]["instruction"], pool[i]["output"])) for i in rows])
        )

    def one(name: str, seed: int) -> dict[str, Any]:
        stem = name.replace(" ", "-")
        flags = ["--model", models_of(given)[0], "--arm", name, "--seed", seed]
        flags += ["--steps", given.steps, "--batch", given.batch, "--device-batch", given.batch]
        flags += ["--learning-rate", given.learning_rate, "--max-length", given.max_length]
        flags += ["--held-out", place / "held-out.json", "--out", place / f"{stem}-{seed}"]
        facts = call("finetune", place / f"{stem}.json", *flags)
        print(f"{name}, seed {seed}: {facts['held_out_loss']}", file=sys.stderr, flush=True)
        return facts

    work = [(name, seed) for seed in range(given.seeds) for name in chosen]
    with ThreadPoolExecutor(given.jobs) as jobs:
        for (name, _), facts in zip(work, jobs.map(one, *zip(*work, strict=True)), strict=True):
            found.setdefault(name, []).append(facts)
    return found


def evaluated(given: argparse.Namespace, place: Path, names: Sequence[str]) -> dict[str, Any]:
    """The table of `evaluate.py` over the base model and all arms."""
    tasks = place / "tasks"
    tasks.mkdir(exist_ok=True)
    for name, how in TASKS.items():
        text = TASK.format(name=name, path=ITEMS / f"{name}.jsonl", **how)
        (tasks / f"{name}.yaml").write_text(text)
    made = [place / f"{name.replace(' ', '-')}-{s}" for s in range(given.seeds) for name in names]
    models = [models_of(given)[0], *made]
    flags = ["--out", place / "results", "--tasks", *TASKS, "--tasks-folder", tasks]
    parts = [models[i :: given.jobs] for i in range(min(given.jobs, len(models)))]
    with ThreadPoolExecutor(given.jobs) as jobs:
        list(jobs.map(lambda part: call("evaluate", *part, *flags), parts))
    return call("evaluate", "--out", place / "results")


def mean(numbers: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.3f}{spread}"


def main() -> None:
    made = parser(__doc__ or "", 600)
    made.add_argument("--held-out", type=int, default=150, help="Rows. Default: 150.")
    made.add_argument("--seeds", type=int, default=3, help="Trainings of each arm. Default: 3.")
    made.add_argument("--steps", type=int, default=60, help="Optimizer steps. Default: 60.")
    made.add_argument("--batch", type=int, default=8, help="Rows a step. Default: 8.")
    made.add_argument("--learning-rate", type=float, default=2e-5, help="Default: 2e-5.")
    made.add_argument("--max-length", type=int, default=1024, help="Tokens. Default: 1024.")
    made.add_argument("--jobs", type=int, default=1, help="Trainings at a time. Default: 1.")
    given = made.parse_args()
    pool, held_out = drawn(given)
    name = f"trained-{given.n}-{given.held_out}-{given.seed}-{given.steps}"
    place = Path(given.cache) / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "held-out.json").write_text(json.dumps(held_out))
    chosen = arms(pool, given)
    trained = train(given, place, chosen, pool)
    scores = evaluated(given, place, list(chosen))
    before = trained["all"][0]["held_out_loss"]["before"]
    facts: dict[str, dict[str, Any]] = {"base": {"loss": [before], "tasks": scores["base"]}}
    for name, rows in chosen.items():
        facts[name] = {
            "rows": len(rows),
            "clean": float(np.mean([pool[i]["defect"] == "none" for i in rows])),
            "tokens": trained[name][0]["trained"]["tokens"],
            "cut": trained[name][0]["trained"]["at_max_length"],
            "loss": [one["held_out_loss"]["after"] for one in trained[name]],
            "tasks": scores[name],
        }
    columns = sorted(scores["base"])
    table(
        f"{len(pool)} rows, half of them with a defect, seed {given.seed}; {given.steps} steps of "
        f"{given.batch} rows; {len(held_out)} held-out rows; {given.seeds} seeds",
        ["arm", "rows", "tokens", "cut", "without a defect", "held-out loss", *columns],
        (
            [
                name,
                *(one.get(key, "") for key in ("rows", "tokens", "cut")),
                f"{one['clean']:.2f}" if "clean" in one else "",
                mean(one["loss"]),
                *(
                    f"{one['tasks'][c]['mean']:.3f}"
                    + (
                        f" ± {one['tasks'][c]['spread']:.3f}"
                        if one["tasks"][c]["spread"] is not None
                        else ""
                    )
                    for c in columns
                ),
            ]
            for name, one in facts.items()
        ),
    )
    last_line(seed=given.seed, steps=given.steps, arms=facts)


if __name__ == "__main__":
    main()
