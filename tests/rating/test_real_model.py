"""Real language models: what breaks on them breaks for users.

SmolLM2 is brought by ``scripts/bring_models.py``, which ``scripts/check`` runs first. With the long
profile (``HYPOTHESIS_PROFILE=long``) Gemma 3 is asked too.
"""

import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import bring_models
import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from selectit_hf import SentenceScore, TokenScore
from selectit_hf.cli.app import app
from selectit_hf.rating.prompts.rating_prompts import load_rating_prompts

pytestmark = pytest.mark.real_model

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
ROWS = [
    {"instruction": row["instruction"], "input": row["input"], "output": row["output"]}
    for row in map(
        json.loads, files("selectit_hf").joinpath("data/sample.jsonl").read_text().splitlines()[:20]
    )
]


@pytest.fixture(
    scope="module", params=["smollm2-135m-instruct", *(["gemma-3-270m"] if LONG else [])]
)
def real(request: pytest.FixtureRequest) -> Path:
    folder = bring_models.folder_of(request.param)
    if not folder.is_dir():
        pytest.fail(f"{folder} is not there: run 'python scripts/bring_models.py --gemma'.")
    return folder


@pytest.fixture(scope="module")
def loaded(real: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(real)


def texts(row: dict[str, str], count: int = 5) -> list[str]:
    """The rating prompts of a row, by hand."""
    asked = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
    sample = f"\n\nInstruction:{asked}\nResponse:{row['output']}\nThe answer is: \n"
    return [prompt + sample for prompt in load_rating_prompts(None, 5)[:count]]


@torch.no_grad()
def literal(loaded: tuple[Any, Any], asked: Sequence[str], **how: Any) -> np.ndarray:
    """(n, 5) log-probabilities of the ratings: one prompt at a time, every digit tokenized."""
    model, tokenizer = loaded
    found = []
    for text in asked:
        with_digits = [tokenizer(text + str(digit), **how)["input_ids"] for digit in range(1, 6)]
        fed = with_digits[0][:-1]
        assert all(ids[:-1] == fed for ids in with_digits)
        logits = model(input_ids=torch.tensor([fed])).logits[0, -1].double()
        logprobs = torch.log_softmax(logits, dim=-1)
        found.append([float(logprobs[ids[-1]]) for ids in with_digits])
    return np.array(found)


def test_the_default_template_rates_as_a_literal_loop_does(real: Path, loaded: Any) -> None:
    scorer = SentenceScore(str(real), name="real", device="cpu")
    rated = Dataset.from_list(ROWS).map(scorer, batched=True)
    assert set(rated["status__real"]) == {"ok"}
    expected = [literal(loaded, texts(row)) for row in ROWS]
    np.testing.assert_allclose(rated["rating_logprobs__real"], expected, rtol=0, atol=1e-4)
    scores = np.array(rated["sentence_score__real"])
    assert np.isfinite(scores).all()
    assert len(set(scores.round(4))) > 10


def test_the_way_is_the_fastest_and_compared(real: Path) -> None:
    read = SentenceScore(str(real), name="real").rate(Dataset.from_list(ROWS[:6])[:]).reading
    assert read is not None
    assert read.way == "shared prefix, last MLP at one position"
    assert read.compared >= 2
    assert read.gap < 1e-4


def test_there_is_one_bos_at_most(real: Path, loaded: Any) -> None:
    from selectit_hf.formats.rows import Pair
    from selectit_hf.rating.prompts.prompt_encoder import PromptEncoder
    from selectit_hf.rating.prompts.rating_prompts import Template

    tokenizer = loaded[1]
    made = PromptEncoder(tokenizer, Template(), load_rating_prompts(None, 5), 5, None)
    (read,) = made.encode([Pair("Say hi.", "Hi.")])
    adds_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert [ids.count(tokenizer.bos_token_id) for ids in read.ids] == [int(adds_bos)] * 5


def test_chat(real: Path, loaded: Any) -> None:
    tokenizer = loaded[1]
    if not tokenizer.chat_template:
        return
    ratings = TokenScore(str(real), name="real", chat=True).rate(Dataset.from_list(ROWS[:3])[:])
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": texts(row, 1)[0]}], tokenize=False,
            add_generation_prompt=True,
        )
        for row in ROWS[:3]
    ]  # fmt: skip
    expected = literal(loaded, asked, add_special_tokens=False)
    np.testing.assert_allclose(ratings.logprobs[:, 0], expected, rtol=0, atol=1e-4)


def test_a_response_that_is_too_long_is_cut_and_the_question_stays(real: Path, loaded: Any) -> None:
    long = {"instruction": "Count.", "input": "", "output": "one two three " * 100}
    scorer = TokenScore(str(real), name="real", max_length=140)
    ratings = scorer.rate(Dataset.from_list([long, ROWS[1]])[:])
    assert ratings.statuses == ["truncated", "ok"]

    def longest(cut: str) -> int:
        asked = [text + "1" for text in texts({**long, "output": cut})]
        return max(len(ids) - 1 for ids in loaded[1](asked)["input_ids"])

    # All rating prompts see the same text, so the longest of them decides how much.
    cuts = (long["output"][:end] for end in range(len(long["output"]), 0, -1))
    cut = next(cut for cut in cuts if longest(cut) <= 140)
    (expected,) = literal(loaded, texts({**long, "output": cut}, 1))
    np.testing.assert_allclose(ratings.logprobs[0, 0], expected, rtol=0, atol=1e-4)


def test_run_and_select(real: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:10]))
    out = tmp_path / "run"
    say = CliRunner()
    asked = ["run", str(data), "--model", str(real), "--out", str(out), "--proportion", "0.2"]
    ran = say.invoke(app, [*asked, "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    kept = Dataset.from_parquet(str(out / "selected.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(kept) == 2
    scores = np.array(Dataset.from_parquet(
        str(out / "scores.parquet"), cache_dir=str(tmp_path / "cache")
    )[f"sentence_score__{real.name.replace('-', '_')}"])  # fmt: skip
    assert sorted(kept[f"sentence_score__{real.name.replace('-', '_')}"]) == sorted(scores)[-2:]
    again = ["select", str(out), "--data", str(data), "--out", str(tmp_path / "b"), "--n", "3"]
    chosen = say.invoke(app, again, catch_exceptions=False)
    assert chosen.exit_code == 0, chosen.output
