"""A language model behind an endpoint as the judge of each row (AlpaGasus, arXiv 2307.08701).

AlpaGasus asks ChatGPT for a score from 0 to 5 and keeps the rows with 4.5 or more, which is
``select(..., threshold=JUDGE_THRESHOLD)`` here. The wording of the prompt is our own.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Value

from selectit_hf.errors import SettingError
from selectit_hf.formats import Pair, RowReader
from selectit_hf.rating import Batch, slug
from selectit_hf.selectors.endpoint import Endpoint
from selectit_hf.selectors.journal import Answer, Journal
from selectit_hf.selectors.selector import (
    Measured,
    Measurement,
    Progress,
    Scores,
    Selector,
    key_of,
    numbers,
    texts,
)

__all__ = ["JUDGE_PROMPT", "JUDGE_THRESHOLD", "Estimate", "Judge", "read_score"]

JUDGE_VERSION = 1
JUDGE_THRESHOLD = 4.5

JUDGE_PROMPT = (
    "Below are an instruction and a response to it, taken from a data set for training an "
    "assistant.\n\n"
    "[Instruction]\n{instruction}\n\n"
    "[Response]\n{response}\n\n"
    "[Your task]\nJudge the {dimension} of the response to this instruction. Write a score from 0 "
    "(useless) to 5 (could not be better) alone on the first line; halves such as 3.5 are allowed. "
    "Give your reason in one sentence on the second line."
)
"""The default prompt. Its fields are replaced and never formatted."""

CHARACTERS_PER_TOKEN = 4
ROWS = 1000


class Estimate(NamedTuple):
    """What a judge would cost, before it is asked.

    Attributes:
        requests: prompts that have no answer yet.
        stored: rows whose answer is stored, or whose prompt occurs in another row.
        prompt_tokens: tokens to be sent, estimated at four characters each.
        answer_tokens: the most tokens that may come back.
        cost: the highest cost, in the unit of the prices; ``None`` without prices.
    """

    requests: int
    stored: int
    prompt_tokens: int
    answer_tokens: int
    cost: float | None


@dataclass(frozen=True)
class Judge(Selector):
    """A judge's score from 0 to 5 for each row.

    Writes ``judgement__slug`` (the answer and its score), ``score__judge_slug`` and
    ``status__judge_slug``: ``unparsable`` where the answer holds no clear score, ``refused`` where
    the endpoint did not take the prompt (too long, for one), ``unanswered`` where it gave no answer
    in all attempts; those are asked again by the next run.

    Attributes:
        endpoint: who is asked, and how fast.
        journal: the file that holds every paid answer; see `Journal`.
        prompt: a text with ``{instruction}``, ``{response}`` and optionally ``{dimension}``.
        dimension: what is judged (AlpaGasus: accuracy).
        reader: how rows are read.
        slug: replaces the model's name in the column names.

    Raises:
        SettingError: the prompt lacks a field.

    Example:
        >>> judge = Judge(Endpoint("my-model", "http://localhost:8000/v1"), "answers.jsonl")
        >>> ds = ds.map(judge, batched=True)  # doctest: +SKIP
    """

    endpoint: Endpoint
    journal: str | Path
    prompt: str = JUDGE_PROMPT
    dimension: str = "accuracy"
    reader: RowReader = field(default_factory=RowReader)
    slug: str | None = None

    fields: ClassVar[dict[str, Any]] = {
        "score": Value("float32"),
        "answer": Value("string"),
        "status": Value("string"),
    }

    def __post_init__(self) -> None:
        for name in ("instruction", "response"):
            if f"{{{name}}}" not in self.prompt:
                raise SettingError(f"The judge's prompt must hold {{{name}}}.")

    @property
    def name(self) -> str:
        """``judge_slug``."""
        return f"judge_{self.slug or slug(self.endpoint.model)}"

    @property
    def column(self) -> str:
        """``judgement__slug``."""
        return f"judgement__{self.slug or slug(self.endpoint.model)}"

    def key(self) -> str:
        """A hash of everything that can change a judgement; the endpoint's URL is left out."""
        return key_of(
            {
                "prompt": self.prompt,
                "dimension": self.dimension,
                "model": self.endpoint.model,
                "max_tokens": self.endpoint.max_tokens,
                "reader": asdict(self.reader),
                "version": JUDGE_VERSION,
            }
        )

    def measurements(self) -> tuple[Measurement, ...]:
        """The judgements."""
        return (self,)

    def measure(
        self, batch: Batch, rank: int | None = None, progress: Progress | None = None
    ) -> Measured:
        """Ask for each row that has no stored answer; see `Endpoint.ask` for the errors."""
        pairs = self.reader.pairs(batch)
        prompts = [self.render(pair) for pair in pairs if isinstance(pair, Pair)]
        answers = iter(self.endpoint.ask(prompts, Journal(Path(self.journal)), progress))
        rows = [_row(next(answers) if isinstance(pair, Pair) else pair) for pair in pairs]
        paid = [answer for answer in rows if answer["status"] in ("ok", "unparsable")]
        types = {"score": pa.float32(), "answer": pa.string(), "status": pa.string()}
        tokens = sum(answer["tokens"] for answer in paid)
        return Measured(pa.Table.from_pylist(rows, pa.schema(types)), len(paid), tokens)

    def scores(self, tables: Sequence[pa.Table]) -> Scores:
        """The judge's scores."""
        return Scores(numbers(tables[0], "score"), texts(tables[0], "status"))

    def render(self, pair: Pair) -> str:
        """The text that is sent for one pair."""
        values = {**pair._asdict(), "dimension": self.dimension}
        return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), self.prompt)

    def estimate(
        self,
        batches: Iterable[Batch],
        prompt_price: float | None = None,
        answer_price: float | None = None,
    ) -> Estimate:
        """What judging these batches of rows would cost; nothing is asked.

        Prices are for a million tokens.

        Raises:
            SettingError: one price without the other.
        """
        if (prompt_price is None) != (answer_price is None):
            raise SettingError("Give both prices, for prompt and answer tokens, or none.")
        journal = Journal(Path(self.journal))
        rows, wanted = 0, {}
        for batch in batches:
            for pair in self.reader.pairs(batch):
                if isinstance(pair, Pair):
                    rows += 1
                    text = self.render(pair)
                    wanted[self.endpoint.key(text)] = -(-len(text) // CHARACTERS_PER_TOKEN)
        todo = [tokens for key, tokens in wanted.items() if journal.get(key) is None]
        sent, received = sum(todo), len(todo) * self.endpoint.max_tokens
        cost = None
        if prompt_price is not None and answer_price is not None:
            cost = (sent * prompt_price + received * answer_price) / 1e6
        return Estimate(len(todo), rows - len(todo), sent, received, cost)


def _row(answer: Answer | str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"score": None, "answer": None, "status": answer, "tokens": 0}
    score = read_score(answer.text)
    return {
        "score": score,
        "answer": answer.text,
        "status": "unparsable" if score is None else "ok",
        "tokens": answer.prompt_tokens + answer.answer_tokens,
    }


def read_score(answer: str) -> float | None:
    """The score on the first line of an answer, ``None`` where there is no clear one.

    "4.5", "Score: 4", "**3.5/5**" and "4 out of 5" are clear; a line with two different numbers, or
    with one that is not from 0 to 5, is not.

    Example:
        >>> read_score("Score: 4.5 / 5"), read_score("between 2 and 4")
        (4.5, None)
    """
    line = next((line for line in answer.splitlines() if line.strip()), "")
    line = re.sub(r"(?:/|out of)\s*5(?:\.0+)?(?![\d.])", " ", line, flags=re.IGNORECASE)
    found = {float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", line)}
    (score,) = found if len(found) == 1 else (np.nan,)
    return score if 0 <= score <= 5 else None
