"""Fine-tune a base model on the rows that were kept, with TRL's SFTTrainer.

DATA is a run folder, whose selected.parquet is read, or anything else that 'selectit run' reads.
Each row becomes a prompt (its instruction) and a completion (its response); the loss is that of the
completion. --out gets the model, or with --lora the adapter, and training.json: the data with its
hash, the settings and the losses. A killed training resumes from its last checkpoint with the same
command; the checkpoints are removed at the end.

    bash scripts/install.sh '[train]'
    python scripts/finetune.py RUN --model Qwen/Qwen3-0.6B-Base --out models/sentence-0 --seed 0
    python scripts/finetune.py rows.json --arm all --model BASE --out models/all-0 --lora 16

The paper trains 3 epochs at a learning rate of 2e-5 with 128 rows a step, which are the defaults.
To compare arms fairly, give all of them the same --steps. scripts/evaluate.py evaluates the models.
The last line of stdout is JSON.
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint

try:
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    sys.exit(f"Error: {error}. In a clone: bash scripts/install.sh '[train]'")

from selectit_hf.errors import SelectItError, SettingError
from selectit_hf.formats import Pair, RowReader, fingerprint
from selectit_hf.formats.sources import load
from selectit_hf.json_files import as_json
from selectit_hf.whole_files import write

DONE = "training.json"
BEGUN = "begun.json"
PROMPT = "Instruction:\n{instruction}\n\nResponse:\n"
LAYERS = "all-linear"
"""Where LoRA adds its matrices."""
ROWS = 1000
FEW_STEPS = 30


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="A run folder, or a dataset, file or folder to read.")
    parser.add_argument("--split", help="The split of a dataset.")
    parser.add_argument("--model", required=True, help="The base model: a Hub name or a folder.")
    parser.add_argument("--revision", help="The model's commit, branch or tag.")
    parser.add_argument("--out", required=True, type=Path, help="The folder of the trained model.")
    parser.add_argument("--arm", help="What the rows are called in tables. Default: DATA's name.")
    parser.add_argument("--seed", type=int, default=0, help="Of the order of rows and of LoRA.")
    parser.add_argument("--epochs", type=float, default=3, help="Passes over the rows. Default: 3.")
    parser.add_argument("--steps", type=int, help="Optimizer steps, instead of --epochs.")
    parser.add_argument("--batch", type=int, default=128, help="Rows a step. Default: 128.")
    parser.add_argument("--device-batch", type=int, default=8, help="Rows at once. Default: 8.")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="Default: 2e-5.")
    parser.add_argument("--max-length", type=int, default=2048, help="Tokens a row. Default: 2048.")
    parser.add_argument("--lora", type=int, metavar="RANK", help="Train an adapter of this rank.")
    parser.add_argument(
        "--chat",
        action="store_true",
        help="Use the chat template, not plain prompts.",
    )
    parser.add_argument("--held-out", help="Rows whose mean loss is measured before and after.")
    parser.add_argument("--save-every", type=int, default=100, help="Steps. Default: 100.")
    return parser.parse_args(given)


def pairs(data: str, split: str | None) -> tuple[dict[str, Any], list[Pair]]:
    """What is said of some rows, and those that are pairs."""
    selected = Path(data) / "selected.parquet"
    rows, source = load(str(selected) if selected.is_file() else data, split)
    reader = RowReader()
    columns = list(reader.columns(rows.column_names))
    read = [
        pair
        for start in range(0, len(rows), ROWS)
        for pair in reader.pairs(rows.select_columns(columns)[start : start + ROWS])
    ]
    found = [pair for pair in read if isinstance(pair, Pair)]
    if not found:
        raise SettingError(f"No row of {data} has an instruction and a response to train on.")
    if len(found) < len(read):
        print(f"{len(read) - len(found)} of {len(read)} rows are not pairs and are left out.")
    name = Path(source.name).name
    return {"name": name, "rows": len(found), "fingerprint": fingerprint(rows)}, found


def prepared(found: list[Pair], chat: bool) -> Dataset:
    """Prompt and completion, in one of the forms that TRL reads."""
    if chat:
        return Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": pair.instruction}],
                    "completion": [{"role": "assistant", "content": pair.response}],
                }
                for pair in found
            ]
        )
    return Dataset.from_list(
        [
            {
                "prompt": PROMPT.replace("{instruction}", pair.instruction),
                "completion": pair.response,
            }
            for pair in found
        ]
    )


def settings(
    given: argparse.Namespace, data: dict[str, Any], held_out: dict[str, Any] | None
) -> dict[str, Any]:
    """What the trained model and its losses depend on."""
    kept = ("model", "revision", "seed", "epochs", "steps", "batch", "learning_rate", "max_length")
    facts = {key: getattr(given, key) for key in (*kept, "lora", "chat")}
    facts["epochs"] = None if given.steps else given.epochs
    if Path(given.model).is_dir():
        facts["model"] = Path(given.model).resolve().name
    return facts | {
        "arm": given.arm or data["name"],
        "data": data,
        "held_out": held_out,
    }


def config(given: argparse.Namespace, rows: int) -> SFTConfig:
    at_once = min(given.device_batch, given.batch)
    if given.batch % at_once:
        raise SettingError(f"--batch {given.batch} is not a multiple of --device-batch {at_once}.")
    on_gpu = torch.cuda.is_available()
    # A share of few steps is rounded up to one, whose learning rate is zero.
    long = (given.steps or given.epochs * rows / given.batch) > FEW_STEPS
    return SFTConfig(
        output_dir=str(given.out / "checkpoints"),
        max_length=given.max_length,
        completion_only_loss=True,
        num_train_epochs=given.epochs,
        max_steps=given.steps or -1,
        per_device_train_batch_size=at_once,
        per_device_eval_batch_size=1,  # the loss is then the mean over rows, whatever their lengths
        gradient_accumulation_steps=given.batch // at_once,
        learning_rate=given.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03 if long else 0,
        activation_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        bf16=on_gpu,
        seed=given.seed,
        save_steps=given.save_every,
        save_total_limit=1,
        logging_steps=1,
        report_to="none",
    )


def trainer(given: argparse.Namespace, train: Dataset, held_out: Dataset | None) -> SFTTrainer:
    where = {"revision": given.revision, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(
        given.model, dtype=torch.float32, use_safetensors=True, **where
    )
    lora = given.lora and LoraConfig(r=given.lora, lora_alpha=2 * given.lora, target_modules=LAYERS)
    return SFTTrainer(
        model,
        config(given, len(train)),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(given.model, **where),
        peft_config=lora or None,
    )


def begin(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether there is work left; refuse a folder of another training."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / BEGUN).exists():
        if any(out.iterdir()):
            raise SettingError(f"--out {out} is not empty and not from this script; give another.")
        write(out / BEGUN, as_json(wanted))
    before = json.loads((out / BEGUN).read_bytes())
    other = [key for key in wanted if before.get(key) != wanted[key]]
    if other:
        raise SettingError(
            f"--out {out} holds a training with another {', '.join(other)}; give another folder."
        )
    return not (out / DONE).exists()


def train(given: argparse.Namespace) -> dict[str, Any]:
    """Train, or resume, and write the model and training.json."""
    data, found = pairs(given.data, given.split)
    about, held_out = pairs(given.held_out, None) if given.held_out else (None, None)
    wanted = settings(given, data, about)
    if not begin(given.out, wanted):
        return finished(given.out)
    work = trainer(given, prepared(found, given.chat), held_out and prepared(held_out, given.chat))
    loss = {"before": work.evaluate()["eval_loss"]} if held_out else {}
    checkpoints = given.out / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    made = work.train(resume_from_checkpoint=last)
    if held_out:
        loss["after"] = work.evaluate()["eval_loss"]
    if not math.isfinite(made.training_loss):
        raise SettingError(f"The loss became {made.training_loss}; lower --learning-rate.")
    work.save_model(str(given.out))
    facts = wanted | {
        "trained": trained_on(work.train_dataset, given.max_length),
        "steps_done": work.state.global_step,
        "training_loss": made.training_loss,
        "held_out_loss": loss,
    }
    write(given.out / DONE, as_json(facts))
    return finished(given.out)


def trained_on(rows: Dataset, max_length: int) -> dict[str, int]:
    """How many rows there were after TRL dropped those without a completion, and cut the others."""
    sizes = [len(ids) for ids in rows["input_ids"]]
    return {
        "rows": len(sizes),
        "tokens": sum(sizes),
        "at_max_length": sum(size >= max_length for size in sizes),
    }


def finished(out: Path) -> dict[str, Any]:
    """What a finished training wrote; its checkpoints, three times its size, are removed."""
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return dict(json.loads((out / DONE).read_bytes()))


def main() -> None:
    given = arguments()
    try:
        facts = train(given)
        print(f"\nThe trained {'adapter' if given.lora else 'model'} is in {given.out}.")
        print(json.dumps(facts))
    except SelectItError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
