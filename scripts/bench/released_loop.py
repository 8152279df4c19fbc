"""SelectIT as its authors released it, literally: one prompt at a time, all logits, plain Python.

Slow on purpose. The tests compare the package with it, and ``bench.py`` measures against it. It
shares no code with the package: prompts are put together by hand, numbers are Python floats.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

RELEASED_WEIGHTS = (7 / 20, 13 / 20, 70 / 90)


def prompt_texts(row: dict[str, str], rating_prompts: Sequence[str]) -> list[str]:
    """The k prompts of one Alpaca row."""
    instruction = row["instruction"]
    if row.get("input"):
        instruction = instruction + "\n" + row["input"]
    middle = "Instruction:" + instruction + "\n" + "Response:" + row["output"]
    return [prompt + "\n\n" + middle + "\nThe answer is: \n" for prompt in rating_prompts]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of one text; a special token written in it stays text."""
    return list(tokenizer(text, split_special_tokens=True)["input_ids"])


@torch.no_grad()
def rating_probabilities(model: Any, ids: Sequence[int], rating_ids: Sequence[int]) -> list[float]:
    """Probabilities of the ratings as the next token: one sequence, whole-vocabulary logits."""
    tensor = torch.tensor([list(ids)], device=model.device)
    logits = model(input_ids=tensor, attention_mask=torch.ones_like(tensor)).logits[:, -1, :]
    softmax = torch.softmax(logits.float(), dim=-1)[0]
    return [float(softmax[i]) for i in rating_ids]


def released_token_score(probabilities: Sequence[float]) -> float:
    """Token level with the second softmax."""
    k = len(probabilities)
    total = sum(probabilities)
    powers = [math.exp(p / total) for p in probabilities]
    final = [power / sum(powers) for power in powers]
    base = final.index(max(final))
    spread = 0.0
    for p in final:
        spread += final[base] - p
    return (base + 1) * spread / (k - 1)


def sentence_score(token_scores: Sequence[float], alpha: float) -> float:
    """Sentence level, population standard deviation."""
    mean = sum(token_scores) / len(token_scores)
    variance = sum((score - mean) ** 2 for score in token_scores) / len(token_scores)
    return mean / (1 + alpha * math.sqrt(variance))


def released_model_score(sentence_scores: Sequence[float]) -> float:
    """Model level with the weights of the released code."""
    small, middle, large = sentence_scores
    return small * RELEASED_WEIGHTS[0] + middle * RELEASED_WEIGHTS[1] + large * RELEASED_WEIGHTS[2]


def released_order(scores: Sequence[float]) -> list[int]:
    """Row numbers, best first; of equal scores the later row is first."""
    pairs = sorted(enumerate(scores), key=lambda pair: (pair[1], pair[0]), reverse=True)
    return [row for row, _ in pairs]
