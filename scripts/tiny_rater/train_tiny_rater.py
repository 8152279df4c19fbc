"""Train tiny-rater, the small bundled checkpoint that rates responses to simple tasks.

Why: a demo and a test suite need a rater that is quick, needs no download and can tell a good
response from a broken one; a random checkpoint cannot. tiny-rater learns that, supervised, on text
that `tiny_rater_data.py` makes up. It is no evidence for SelectIT and of no use on real data.

How: one sequence holds a rating prompt and an instruction once, followed by several responses as
*branches* that cannot see each other, so a step rates many responses for few tokens. The loss is
the soft cross-entropy of the rating digit, plus half a language-model loss on the good responses,
plus the loss of a throw-away head that predicts at every token whether the response can still
become a good one: it shows *where* a response goes wrong, unlike the single digit at its end.
Matrices are trained with Muon, embeddings and norms with AdamW; the learning rate falls to zero.
The number of steps is fixed, so a seed gives the same metrics again on the same versions.

    python scripts/tiny_rater/train_tiny_rater.py                    # the bundled checkpoint
    python scripts/tiny_rater/train_tiny_rater.py --quick --out /tmp/rater  # in seconds

Progress goes to stderr; the last line of stdout is a JSON object with the metrics.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tiny_rater_data import (
    PACKAGE_DATA,
    SEEN_FAMILIES,
    K,
    draw_defect,
    draw_with_neighbours,
    length_auc,
    rating_target,
    rating_text,
    respond,
    rows,
    seen_rating_prompts,
    training_rating_prompt,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TAIL = "\nThe answer is: \n"
POOL = 16  # batches drawn together, so that sequences of like length share one
FAMILIES = tuple(SEEN_FAMILIES)


# --- tokenizer ---------------------------------------------------------------------------------


def train_tokenizer(seed: int, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a digit, a newline and a punctuation mark never merge with others."""
    rng = random.Random(f"tokenizer {seed}")
    prompts = seen_rating_prompts()
    texts = [
        rating_text(training_rating_prompt(rng, prompts), g.prompt, b.text)
        for g in (draw_group(rng, prompts) for _ in range(4000))
        for b in g.branches[:1]
    ]
    bpe = Tokenizer(models.BPE())
    pieces = Regex(r"\d| ?\p{L}+|\n| {2,}| ?[^\s\p{L}\d] ?|\s")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        model_max_length=1024, clean_up_tokenization_spaces=False,
    )  # fmt: skip


# --- data --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Branch:
    """A response and what is wrong with it."""

    text: str
    defect: str


@dataclass(frozen=True)
class Group:
    """One rating prompt and instruction with several responses."""

    rating_prompt: str
    prompt: str
    branches: list[Branch]
    good: list[str]  # every good response, or empty if there are too many to list

    @property
    def prefix(self) -> str:
        """What all branches share."""
        return rating_text(self.rating_prompt, self.prompt, "").removesuffix(TAIL)


def draw_group(rng: random.Random, prompts: list[str], good: int = 2, bad: int = 4) -> Group:
    family = rng.choice(FAMILIES)
    task, sibling, stranger = draw_with_neighbours(rng, family, FAMILIES, held_out=False)
    branches = [Branch(respond(task, "none", rng, sibling, stranger), "none") for _ in range(good)]
    while len(branches) < good + bad:
        defect = draw_defect(rng)
        text = respond(task, defect, rng, sibling, stranger)
        if text is not None:
            branches.append(Branch(text, defect))
    known = [] if task.is_open else task.good
    return Group(training_rating_prompt(rng, prompts), task.prompt, branches, known)


@dataclass
class Batch:
    """Padded sequences, and the positions where something is predicted."""

    ids: torch.Tensor  # (sequences, length)
    positions: torch.Tensor
    branch: torch.Tensor  # -1 in the shared prefix, -2 in the padding, else the branch's number
    rating_at: torch.Tensor  # (ratings, 2): sequence, position
    targets: torch.Tensor  # (ratings, K)
    text_at: torch.Tensor  # (tokens, 2): where a token of a good response is predicted
    text_ids: torch.Tensor
    alive_at: torch.Tensor  # (tokens, 2): the tokens of responses whose good ones are all known
    alive: torch.Tensor  # whether a good response begins like this

    @property
    def mask(self) -> torch.Tensor:
        """What may be seen: earlier tokens of the prefix and of the token's own branch."""
        seen, seeing = self.branch[:, None, None, :], self.branch[:, None, :, None]
        return ((seen == -1) | (seen == seeing)).tril()


@dataclass(frozen=True)
class Sequence:
    """A group as ids; `alive[i]` tokens of branch `i` begin a good response, -1 if unknown."""

    group: Group
    prefix: list[int]
    branches: list[list[int]]
    alive: list[int]

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prefix) + sum(map(len, self.branches))


def shared(a: list[int], b: list[int]) -> int:
    """How many tokens two lists begin with in common."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


class Encoder:
    """Groups to token ids; the tokenizer puts token boundaries around each response."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.tail = tokenizer.encode(TAIL, add_special_tokens=False)

    def sequence(self, group: Group) -> Sequence:
        """The ids of the shared prefix and of every branch with its tail."""
        good = self._responses(group.good)
        branches = self._responses([b.text for b in group.branches])
        alive = [max(map(partial(shared, ids), good), default=-1) for ids in branches]
        return Sequence(group, self.tokenizer.encode(group.prefix), branches, alive)

    def _responses(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [tokens + self.tail for tokens in ids]

    def batch(self, sequences: list[Sequence]) -> Batch:
        """Lay each sequence out as its prefix and its branches, one after the other."""
        shape = (len(sequences), max(s.length for s in sequences))
        ids = torch.full(shape, self.tokenizer.pad_token_id)
        positions, branch = torch.zeros(shape, dtype=torch.long), torch.full(shape, -2)
        rating_at, targets, text_at, text_ids, alive_at, alive = [], [], [], [], [], []
        for row, s in enumerate(sequences):
            begin = end = len(s.prefix)
            ids[row, :end], branch[row, :end] = torch.tensor(s.prefix), -1
            positions[row, :end] = torch.arange(end)
            for number, (source, tokens) in enumerate(
                zip(s.group.branches, s.branches, strict=True)
            ):
                start, end = end, end + len(tokens)
                ids[row, start:end], branch[row, start:end] = torch.tensor(tokens), number
                positions[row, start:end] = torch.arange(begin, begin + len(tokens))
                rating_at.append((row, end - 1))
                targets.append(rating_target(source.defect))
                if source.defect == "none":
                    told = len(tokens) - len(self.tail) + 1  # with the newline that ends it
                    text_at += [(row, at) for at in (begin - 1, *range(start, start + told - 1))]
                    text_ids += tokens[:told]
                if s.alive[number] >= 0:
                    alive_at += [(row, at) for at in range(start, end)]
                    alive += [float(at < s.alive[number]) for at in range(len(tokens))]
        indices = map(torch.tensor, (rating_at, targets, text_at, text_ids, alive_at, alive))
        return Batch(ids, positions, branch, *indices)


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, size: int
) -> Iterator[Batch]:
    rng = random.Random(f"training {seed}")
    prompts = seen_rating_prompts()
    encoder = Encoder(tokenizer)
    for first in range(0, steps, POOL):
        pool = [encoder.sequence(draw_group(rng, prompts)) for _ in range(POOL * size)]
        pool.sort(key=lambda sequence: sequence.length)
        chunks = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(chunks)
        for chunk in chunks[: steps - first]:
            yield encoder.batch(chunk)


# --- model and optimiser -----------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast, layers: int, width: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is orthogonalised by five Newton-Schulz iterations, in float32.

    Matrices of one shape are iterated together, which is what makes it cheap on a CPU.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Move every matrix by its orthogonalised direction."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, parameters in by_shape.items():
                directions = torch.stack(
                    [self._direction(p, group["momentum"]) for p in parameters]
                )
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(parameters, orthogonalise(directions), strict=True):
                    p.add_(update, alpha=-group["lr"] * scale)

    def _direction(self, p: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        state = self.state[p]
        velocity = state.setdefault("velocity", torch.zeros_like(p))
        velocity.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(velocity, momentum)


def orthogonalise(x: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Push the singular values of a stack of matrices towards one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def optimisers(
    model: LlamaForCausalLM, head: torch.nn.Linear, args: argparse.Namespace
) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    rest += head.parameters()
    return [
        Muon(matrices, lr=args.matrix_lr),
        torch.optim.AdamW(rest, lr=args.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


# --- training ----------------------------------------------------------------------------------


def losses(
    model: LlamaForCausalLM, alive_head: torch.nn.Linear, batch: Batch, digits: list[int]
) -> torch.Tensor:
    """The losses of rating, text and aliveness, each a mean over its items."""
    hidden = model.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    ratings = model.lm_head(hidden[tuple(batch.rating_at.T)]).log_softmax(-1)[:, digits]
    text = model.lm_head(hidden[tuple(batch.text_at.T)])
    alive = alive_head(hidden[tuple(batch.alive_at.T)]).squeeze(-1)
    return torch.stack(
        [
            -(batch.targets * ratings).sum(-1).mean(),
            F.cross_entropy(text, batch.text_ids),
            F.binary_cross_entropy_with_logits(alive, batch.alive),
        ]
    )


def rate_at(step: int, steps: int, warmup: int) -> float:
    return min((step + 1) / warmup, (steps - step) / (steps - warmup))


def train(args: argparse.Namespace) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, dict]:
    torch.manual_seed(args.seed)
    started = time.monotonic()
    tokenizer = train_tokenizer(args.seed, args.vocabulary)
    model = new_model(tokenizer, args.layers, args.width)
    digits = [tokenizer.convert_tokens_to_ids(str(grade)) for grade in range(1, K + 1)]
    alive_head = torch.nn.Linear(args.width, 1)
    steppers = optimisers(model, alive_head, args)
    base = [group["lr"] for o in steppers for group in o.param_groups]
    weights = torch.tensor([1.0, args.text_weight, args.alive_weight])
    averages = torch.zeros(3)
    for step, batch in enumerate(batches(tokenizer, args.seed, args.steps, args.batch_size)):
        for group, lr in zip((g for o in steppers for g in o.param_groups), base, strict=True):
            group["lr"] = lr * rate_at(step, args.steps, args.warmup)
        parts = losses(model, alive_head, batch, digits)
        (weights * parts).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        averages.lerp_(parts.detach(), max(0.02, 1 / (step + 1)))
        if (step + 1) % 25 == 0 or step + 1 == args.steps:
            report(step + 1, args, averages, time.monotonic() - started)
    metrics = {
        "steps": args.steps,
        "ratings": args.steps * args.batch_size * 6,
        "parameters": sum(p.numel() for p in model.parameters()),
        "rating_loss": round(averages[0].item(), 4),
        "text_loss": round(averages[1].item(), 4),
        "alive_loss": round(averages[2].item(), 4),
        "seconds": round(time.monotonic() - started),
    }
    return model.eval(), tokenizer, metrics


def report(step: int, args: argparse.Namespace, averages: torch.Tensor, seconds: float) -> None:
    left = seconds / step * (args.steps - step)
    print(
        f"step {step}/{args.steps}  rating {averages[0]:.4f}  text {averages[1]:.4f}"
        f"  alive {averages[2]:.4f}"
        f"  {step * args.batch_size * 6 / seconds:.0f} ratings/s  {left / 60:.1f} min left",
        file=sys.stderr, flush=True,
    )  # fmt: skip


# --- after training ----------------------------------------------------------------------------


@torch.inference_mode()
def quick_auc(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int) -> float:
    """A first look: AUC of the first prompt's expected grade on held-out instructions.

    `eval_tiny_rater.py` measures the scores themselves, by defect and family.
    """
    data = list(rows(seed=0, count=count))
    prompt = seen_rating_prompts()[0]
    digits = [tokenizer.convert_tokens_to_ids(str(grade)) for grade in range(1, K + 1)]
    grades = []
    for row in data:
        task = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
        ids = torch.tensor([tokenizer.encode(rating_text(prompt, task, row["output"]))])
        logits = model(ids).logits[0, -1, digits]
        grades.append((logits.softmax(-1) * torch.arange(1, K + 1)).sum().item())
    good = torch.tensor([g for g, r in zip(grades, data, strict=True) if r["defect"] == "none"])
    bad = torch.tensor([g for g, r in zip(grades, data, strict=True) if r["defect"] != "none"])
    difference = good[:, None] - bad[None, :]
    return ((difference > 0).float() + 0.5 * (difference == 0).float()).mean().item()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)  # nothing is ever generated


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=PACKAGE_DATA / "tiny-rater", help="the checkpoint's folder")
    add("--seed", type=int, default=1, help="data, tokenizer, initial weights (default: 1)")
    add("--steps", type=int, default=2200, help="optimiser steps (default: 2200)")
    add(
        "--batch-size",
        type=int,
        default=16,
        help="prompts in a step, six responses each (default: 16)",
    )
    add("--layers", type=int, default=5, help="default: 5")
    add("--width", type=int, default=160, help="default: 160")
    add("--vocabulary", type=int, default=1536, help="default: 1536")
    add("--matrix-lr", type=float, default=0.02, help="Muon's peak learning rate (default: 0.02)")
    add("--other-lr", type=float, default=0.004, help="AdamW's peak learning rate (default: 0.004)")
    add("--warmup", type=int, default=40, help="steps to the peak (default: 40)")
    add("--text-weight", type=float, default=0.5, help="of the language-model loss (default: 0.5)")
    add("--alive-weight", type=float, default=1.0, help="of the throw-away head (default: 1.0)")
    add(
        "--threads",
        type=int,
        default=2,
        help="CPU threads; part of what fixes the result (default: 2)",
    )
    add(
        "--quick",
        action="store_true",
        help="a small model for 60 steps: checks the pipeline, rates badly",
    )
    args = parser.parse_args()
    if args.quick:
        args.steps, args.batch_size, args.layers, args.width, args.warmup = 60, 8, 2, 64, 10
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    model, tokenizer, metrics = train(args)
    metrics["first_prompt_auc"] = round(quick_auc(model, tokenizer, 200 if args.quick else 1000), 4)
    metrics["length_auc"] = round(length_auc(list(rows(seed=0, count=1000))), 4)
    save(model, tokenizer, args.out)
    settings = {k: v for k, v in vars(args).items() if k != "out"}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    print(json.dumps(metrics | {"settings": settings, "versions": versions}))


if __name__ == "__main__":
    main()
