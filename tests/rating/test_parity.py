"""The same scores as the released procedure, done literally: one prompt at a time, no padding.

Once on rows and a model of ours, once on real rows with the real Llama-2 vocabulary and the
released rating prompts, where those are at hand.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import released_loop
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from selectit_hf import ModelScore, SentenceScore
from selectit_hf.selection.selection import Cut, decide

GAP = 1e-5
APART = 3 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 54
"""How far apart the real rows that are rated lie."""
WIDTHS = {"small": 16, "middle": 24, "large": 32}


def literal_probabilities(
    folder: Path, rows: Sequence[dict[str, str]], prompts: Sequence[str]
) -> NDArray[np.float64]:
    """(n, k, k) probabilities of the ratings, by a batch-of-one loop."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rating_ids = [
        tokenizer("\n" + str(rating), add_special_tokens=False)["input_ids"][-1]
        for rating in range(1, len(prompts) + 1)
    ]
    return np.array(
        [
            [
                released_loop.rating_probabilities(
                    model, released_loop.encode(tokenizer, text), rating_ids
                )
                for text in released_loop.prompt_texts(row, prompts)
            ]
            for row in rows
        ]
    )


def literal_paper_token_score(logprobs: Sequence[float]) -> float:
    """Token level as published, from log-probabilities, in Python floats."""
    probabilities = [math.exp(value) for value in logprobs]
    total = sum(probabilities)
    final = [p / total for p in probabilities]
    base = final.index(max(final))
    return (base + 1) * sum(abs(p - final[base]) for p in final) / (len(final) - 1)


def agree(name: str, literal: NDArray[Any], ours: NDArray[Any], flipped: NDArray[Any]) -> None:
    """Both order the rows alike, outside of near-ties and of rows whose argmax flipped."""
    literal_rank = np.empty(len(literal), dtype=int)
    literal_rank[released_loop.released_order(list(literal))] = np.arange(len(literal))
    rank = decide(ours, Cut(proportion=0.2, variant="released"))["rank"].to_numpy()
    apart = np.abs(literal[:, None] - literal[None, :]) > GAP
    settled = apart & ~flipped[:, None] & ~flipped[None, :]
    before = literal_rank[:, None] < literal_rank[None, :]
    wrong = settled & (before != (rank[:, None] < rank[None, :]))
    pairs = len(literal) * (len(literal) - 1) // 2
    close = pairs - int(np.triu(apart, 1).sum())
    moved = int((literal_rank != rank).sum())
    print(
        f"{name}: {len(literal)} rows, {int(flipped.sum())} argmax flips, {close} of {pairs} pairs "
        f"within {GAP}, {moved} rows at another rank, {int(np.triu(wrong, 1).sum())} pairs wrong"
    )
    assert not wrong.any()
    assert settled.sum() > 0.9 * len(literal) * (len(literal) - 1)


def compare(folders: dict[str, Path], rows: list[dict[str, str]], prompts: list[str]) -> None:
    data = Dataset.from_list(rows)
    sentences, flips = [], []
    for name, folder in folders.items():
        scorer = SentenceScore(
            str(folder), variant="released", rating_prompts=prompts, name=name, token_budget=1500
        )
        data = data.map(scorer, batched=True, batch_size=100)
        literal = literal_probabilities(folder, rows, prompts)
        logprobs = np.array(data[f"rating_logprobs__{name}"])
        np.testing.assert_allclose(logprobs, np.log(literal), rtol=0, atol=1e-4)
        flipped = (logprobs.argmax(-1) != literal.argmax(-1)).any(-1)
        tokens = [[released_loop.released_token_score(p) for p in row] for row in literal]
        sentence = [released_loop.sentence_score(row, alpha=0.2) for row in tokens]
        first = np.array([row[0] for row in tokens])
        agree(f"{name} token", first, np.array(data[f"token_score__{name}"]), flipped)
        ours = np.array(data[f"sentence_score__{name}"])
        agree(f"{name} sentence", np.array(sentence), ours, flipped)
        sentences.append(sentence)
        flips.append(flipped)
    data = data.map(ModelScore(variant="released"), batched=True)
    model_level = [released_loop.released_model_score(row) for row in zip(*sentences, strict=True)]
    ours = np.array(data["model_score"])
    agree("model level", np.array(model_level), ours, np.any(flips, axis=0))
    check_paper(data, list(folders))


def check_paper(data: Dataset, names: list[str]) -> None:
    """The paper's formulas in Python floats, from the ratings that are stored."""
    expected = []
    thetas = [data[0][f"rater__{name}"]["parameters"] for name in names]
    for row in data:
        per_model = []
        for name in names:
            tokens = [literal_paper_token_score(p) for p in row[f"rating_logprobs__{name}"]]
            per_model.append(released_loop.sentence_score(tokens, alpha=0.2))
        expected.append(sum(t / sum(thetas) * s for t, s in zip(thetas, per_model, strict=True)))
    rescored = data.map(ModelScore(variant="paper"), batched=True)
    np.testing.assert_allclose(rescored["model_score"], expected, rtol=0, atol=1e-6)


def test_parity_on_our_rows(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folders = {
        name: make_checkpoint(
            tmp_path / name, seed=i, hidden_size=width, layers=2, initializer_range=0.3
        )
        for i, (name, width) in enumerate(WIDTHS.items())
    }
    numbers = np.random.default_rng(0)
    words = ["red", "blue", "cat", "dog", "add", "name", "list", "the", "and", "of", "7", "42"]
    rows = [
        {
            "instruction": " ".join(numbers.choice(words, numbers.integers(1, 20))),
            "input": " ".join(numbers.choice(words, numbers.integers(0, 8))),
            "output": " ".join(numbers.choice(words, numbers.integers(1, 60))),
        }
        for _ in range(60)
    ]
    prompts = [f"Prompt {i}: give a number from 1 to 5." for i in range(5)]
    compare(folders, rows, prompts)


@pytest.mark.timeout(600)
def test_parity_on_real_rows(shared_data: Path, tmp_path: Path) -> None:
    rows = json.loads((shared_data / "alpaca_gpt4_999.json").read_text("utf-8"))
    rows = rows[::APART]
    prompts = (shared_data / "released_rating_prompts.txt").read_text("utf-8").split("\n")[:5]
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "llama2_tokenizer")
    folders = {}
    for seed, (name, width) in enumerate(WIDTHS.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=4096,
            initializer_range=0.3,
        )
        folders[name] = tmp_path / name
        LlamaForCausalLM(config).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    compare(folders, rows, prompts)
