"""Anything at all goes in: parsers, rows, prompts, lengths and selections against naive oracles.

Short here; ``python scripts/checks/fuzz.py --long`` runs 10,000 examples of each.
"""

import copy
import functools
import json
import math
import operator
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from finished_runs import make_plan, make_rows
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from selectit_hf.errors import InputError, RunError
from selectit_hf.formats.rows import STATUSES, Pair, RowReader
from selectit_hf.rating.prompts.prompt_encoder import PromptEncoder
from selectit_hf.rating.prompts.rating_prompts import Template
from selectit_hf.runs import open_run
from selectit_hf.runs.plans import encoded
from selectit_hf.runs.shards import Part, Shards
from selectit_hf.runs.store import Store
from selectit_hf.selection.selection import Cut, decide, kept_rows

EXAMPLES: Counter[str] = Counter()
"""How many examples of each property were tried in this process, and how many got far."""


def counted(test: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(test)
    def tried(*args: Any, **kwargs: Any) -> None:
        EXAMPLES[test.__name__] += 1
        test(*args, **kwargs)

    return tried


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 10)
    | st.sampled_from([2**31, 2**62, -(2**63)])
    | st.floats()
    | st.text(max_size=5)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a JSON value."""
    if not isinstance(value, (dict, list)):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


NUMBERS = st.sampled_from([0, 1, 2, 3, 5, 9, 10, -1, 2**31, 2**62, 10**30]) | st.integers(-2, 12)
NAMES = st.sampled_from(["", "x", "all", "de:en", "..", "a/b", "_", "\0", "a" * 30, "é", "{k}"])


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with something in it, or two things, replaced, taken away or added.

    Mostly by something of its own kind, which the checks of kinds let through.
    """
    other = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(other)))
        if not place:
            other = draw(JSON)
            continue
        holder = functools.reduce(operator.getitem, place[:-1], other)
        old, what = holder[place[-1]], draw(st.integers(0, 9))
        if what == 0:
            del holder[place[-1]]
        elif what == 1 and isinstance(old, dict):
            old[draw(st.text(max_size=5))] = draw(JSON)
        elif what <= 3:
            holder[place[-1]] = draw(JSON)
        elif isinstance(old, (dict, list)):
            holder[place[-1]] = draw(st.sampled_from([type(old)(), old, [*old, *old]]))
        else:
            kind = st.booleans() if isinstance(old, bool) else NUMBERS
            holder[place[-1]] = draw(NAMES if isinstance(old, (str, type(None))) else kind)
    return other


@st.composite
def cut_or_flipped(draw: st.DrawFn, whole: bytes) -> bytes:
    """Some bytes, cut short or with one replaced."""
    data = bytearray(whole)
    place = draw(st.integers(0, len(data) - 1))
    if draw(st.booleans()):
        return bytes(data[:place])
    data[place] = draw(st.integers(0, 255))
    return bytes(data)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# Parsers

PLAN = make_plan(make_rows(10), ("org/small", "org/large"), 4)


@given(
    JSON.map(json.dumps).map(str.encode)
    | changed(PLAN).map(json.dumps).map(str.encode)
    | cut_or_flipped(json.dumps(PLAN).encode())
    | st.binary(max_size=20)
)
@counted
def test_any_plan_is_what_was_written_or_refused(folder, data):
    (folder / "plan.json").write_bytes(data)
    with pytest.raises(RunError, match=r"plan\.json"):
        open_run(folder)
    (folder / "plan.json").write_bytes(encoded(PLAN))
    assert open_run(folder).plan == PLAN


SHARD = pa.table({"row": [0, 1], "value": [0.5, 1.5]})
CUT = [Part(range(2), "f"), Part(range(2, 3), "f")]


def shards_in(folder: Path) -> Shards:
    return Shards(Store(folder), "shards", CUT, "key")


@pytest.fixture(scope="module")
def committed(folder: Path) -> dict[Path, bytes]:
    """The sidecar and the table of a shard, and what they hold."""
    shards_in(folder).commit(0, SHARD, {"seconds": 1.0, "rater": {"a": "b"}})
    return {path: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


@given(st.data())
@counted
def test_any_shard_is_as_it_was_committed_or_no_commit(folder, committed, data):
    table, sidecar = sorted(committed, key=lambda path: path.suffix, reverse=True)
    said = json.loads(committed[sidecar])
    damaged = data.draw(
        changed(said).map(json.dumps).map(str.encode).map(lambda new: {sidecar: new})
        | cut_or_flipped(committed[sidecar]).map(lambda new: {sidecar: new})
        | cut_or_flipped(committed[table]).map(lambda new: {table: new})
    )
    for path, held in (committed | damaged).items():
        path.write_bytes(held)
    shards = shards_in(folder)
    found = shards.committed()
    whole = {number for number, facts in found.items() if shards.table(facts) is not None}
    if 0 in whole:
        del said["facts_sha256"]
        assert found[0] == said
        assert shards.table(found[0]) == SHARD
    else:
        assert 0 in shards.missing() or damaged.keys() == {table}


# Rows

WORDS = st.sampled_from(["", " ", "\n", "a", "b\n", "é", "{text}", "\ud800", "1 "]).flatmap(
    lambda word: st.just(word) | st.text(max_size=4).map(lambda more: word + more)
)
JUNK = st.recursive(
    st.none() | WORDS | st.integers(-1, 1) | st.booleans() | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "type", "de"]), inner)
    ),
    max_leaves=4,
)
ROLES = st.sampled_from(["user", "assistant", "system", "human", "GPT", "tool", "x", None, 1])
CONTENT = (
    WORDS
    | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}), max_size=2)
    | JUNK
)
TURN = (
    st.fixed_dictionaries({"role": ROLES, "content": CONTENT})
    | st.fixed_dictionaries({"from": ROLES, "value": CONTENT})
    | JUNK
)
TALK = st.lists(TURN, max_size=4) | JUNK
TEXT_COLUMNS = ("instruction", "output", "response", "input", "context", "question", "answer")
VALUES = {
    "messages": TALK,
    "conversations": TALK,
    "prompt": TALK | WORDS,
    "completion": TALK | WORDS,
    "translation": st.fixed_dictionaries({"de": WORDS | JUNK, "en": WORDS | JUNK}) | JUNK,
    **dict.fromkeys((*TEXT_COLUMNS, "system_prompt"), WORDS | WORDS | JUNK),
}
COLUMNS = st.sampled_from(
    [
        ["messages"],
        ["conversations", "system_prompt"],
        ["instruction", "output"],
        ["instruction", "input", "output"],
        ["context", "instruction", "input", "response"],
        ["prompt", "completion"],
        ["system_prompt", "question", "response"],
        ["translation"],
        ["answer"],
    ]
) | st.lists(st.sampled_from(list(VALUES)), unique=True, max_size=4)
READERS = st.sampled_from(
    [
        RowReader(turns=turns, translation="de:en", **named)
        for turns in (None, "first", "all")
        for named in ({}, {}, {"instruction_column": "question", "response_column": "answer"})
    ]
)


@st.composite
def batches(draw: st.DrawFn) -> dict[str, list[Any]]:
    count = draw(st.integers(0, 4))
    return {
        name: draw(st.lists(VALUES[name], min_size=count, max_size=count)) for name in draw(COLUMNS)
    }


def plain_text_pair(needed: Any, optional: Sequence[Any], order: int, response: Any) -> Any:
    """The pair of a layout of texts; the optional one stands before (0) or behind (1)."""
    parts = [(needed, False), *((one, True) for one in optional)]
    parts = parts[::-1] if order == 0 else parts
    for value, may_lack in [*parts, (response, False)]:
        if value is None and not may_lack:
            return "empty"
        if value is not None and not isinstance(value, str):
            return "type"
    asked = "\n".join(value for value, _ in parts if value is not None and value.strip())
    if not asked.strip() or not response.strip():
        return "empty"
    whole = asked + response
    return "encoding" if any(0xD800 <= ord(c) < 0xE000 for c in whole) else Pair(asked, response)


def expected(row: dict[str, Any], reader: RowReader) -> Any:
    """What is read of a row of texts; ``None`` where the layout is another."""
    if any(not isinstance(value, (str, type(None))) for value in row.values()):
        return None
    if reader.instruction_column:
        asked, answered = row["question"], row["answer"]
        return plain_text_pair(asked, (), 1, answered)
    if "messages" in row or "conversations" in row:
        return None
    for answer in ("output", "response"):
        if {"instruction", answer} <= {*row}:
            answer = "output" if "output" in row else "response"
            extra = row["input"] if "input" in row else row.get("context")
            return plain_text_pair(row["instruction"], (extra,), 1, row[answer])
    if {"prompt", "completion"} <= {*row} or not {"question", "response"} <= {*row}:
        return None
    return plain_text_pair(row["question"], (row.get("system_prompt"),), 0, row["response"])


def texts_of(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        return {text for inner in value.values() for text in texts_of(inner)}
    if isinstance(value, list):
        return {text for inner in value for text in texts_of(inner)}
    return set()


def alone(row: dict[str, Any], reader: RowReader, otherwise: Any) -> Any:
    """What is read of a batch of this row only, unless that looks like a row and no batch."""
    if any(isinstance(row.get(name), dict) for name in ("messages", "conversations")):
        return otherwise
    return reader.pairs({name: [value] for name, value in row.items()})[0]


@given(batches(), READERS)
@counted
def test_any_rows_are_pairs_or_statuses_in_their_place(batch, reader):
    count = len(next(iter(batch.values()), []))
    try:
        pairs = reader.pairs(batch)
    except InputError:
        return  # the columns do not fit
    assert len(pairs) == count
    for i, pair in enumerate(pairs):
        row = {name: values[i] for name, values in batch.items()}
        assert pair == alone(row, reader, pair)
        wanted = expected(row, reader)
        assert wanted is None or pair == wanted
        if not isinstance(pair, Pair):
            assert pair in STATUSES[2:7]
            continue
        EXAMPLES["rows that are pairs"] += 1
        there = "\n".join(texts_of(list(row.values())))
        assert all(line in there for line in pair.response.split("\n"))
        assert pair.instruction.strip()
        assert pair.response.strip()
        "".join(pair).encode()


# Prompts and lengths

FIELDS = ("{rating_prompt}", "{instruction}", "{response}")
SAMPLES = st.lists(
    st.sampled_from([*FIELDS, "{", "}", "{k}", "{0}", "\\1", "a", "数", "\n", "%s"]), max_size=6
).map("".join)


@given(st.tuples(SAMPLES, SAMPLES, SAMPLES, SAMPLES), SAMPLES, SAMPLES, SAMPLES)
@counted
def test_any_prompt_is_plain_concatenation(around, rating_prompt, instruction, response):
    between = list(around)
    for field in FIELDS:
        between = [text.replace(field, "") for text in between]
    before, first, second, after = between
    layout = f"{before}{FIELDS[0]}{first}{FIELDS[1]}{second}{FIELDS[2]}{after or '?'}"
    if sum(layout.count(field) for field in FIELDS) > 3:
        return  # what was left between two fields made another
    text = Template(layout).render(rating_prompt, Pair(instruction, response))
    assert text == f"{before}{rating_prompt}{first}{instruction}{second}{response}{after or '?'}"


START = {
    "bpe_split": "<|begin|>",
    "bpe_merge": None,
    "sentencepiece": "<s>",
    "unigram": None,
    "wordpiece": "[CLS]",
}
PROMPTS = ("1 to 5?", "From 1 to 5, how good is the response?")
PARTS = [*"abrt 15.\n{}", "é", "数", "👍🏽", "the answer", "Response:", "\u200b", "e\u0301"]
TEXT = st.lists(st.sampled_from(PARTS), max_size=10).map("".join) | st.text(
    st.characters(codec="utf-8"), max_size=10
)


def naive_ids(tokenizer: PreTrainedTokenizerBase, kind: str, pair: Pair) -> list[list[int]]:
    start = START[kind]
    bare = tokenizer.backend_tokenizer
    before = [] if start is None else [tokenizer.convert_tokens_to_ids(start)]
    texts = [
        f"{p}\n\nInstruction:{pair.instruction}\nResponse:{pair.response}\nThe answer is: \n"
        for p in PROMPTS
    ]
    return [before + bare.encode(text, add_special_tokens=False).ids for text in texts]


def starts(pair: Pair) -> Iterator[tuple[Pair, Pair]]:
    """Every shorter pair with the one that is a character longer, the longest first."""
    longer = pair
    for cut in range(len(pair.response) - 1, -1, -1):
        shorter = Pair(pair.instruction, pair.response[:cut])
        yield shorter, longer
        longer = shorter
    for cut in range(len(pair.instruction) - 1, -1, -1):
        shorter = Pair(pair.instruction[:cut], "")
        yield shorter, longer
        longer = shorter


@functools.cache
def encoder_of(tokenizer: PreTrainedTokenizerBase) -> PromptEncoder:
    return PromptEncoder(tokenizer, Template(), PROMPTS, 5, None)


@given(st.sampled_from(list(START)), st.builds(Pair, TEXT, TEXT), st.integers(1, 30))
@counted
def test_any_pair_fits_with_its_suffix_whole(built_tokenizers, kind, pair, room):
    tokenizer = built_tokenizers[kind]
    encoder = encoder_of(tokenizer)
    whole, bare = naive_ids(tokenizer, kind, pair), naive_ids(tokenizer, kind, Pair("", ""))
    encoder.max_length = limit = max(map(len, bare)) + room
    ((ids, status),) = encoder.encode([pair])
    if status == "encoding":
        marks = tokenizer.all_special_tokens
        assert any(mark in "".join(pair) for mark in marks)
        return
    if max(map(len, whole)) <= limit:
        assert (ids, status) == (whole, "ok")
        return
    assert status == "truncated"
    EXAMPLES["pairs that are cut"] += 1
    assert max(map(len, ids)) <= limit
    found = [
        (shorter, longer)
        for shorter, longer in starts(pair)
        if naive_ids(tokenizer, kind, shorter) == ids
    ]
    assert found, "no start of the sample has these ids under all prompts"
    longest = found[0][1]
    assert max(map(len, naive_ids(tokenizer, kind, longest))) > limit


# Selection

SCORES = st.lists(
    st.tuples(
        st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, math.nan, math.inf, -math.inf, 5e-324])
        | st.floats(0, 5),
        st.sampled_from([None, "", "empty", "oom", "selected?", "below the threshold"]),
    ),
    max_size=20,
)
CUTS = st.one_of(
    st.builds(lambda n: {"n": n}, st.integers(1, 25)),
    st.builds(lambda p: {"proportion": p / 1000}, st.integers(1, 1000)),
    st.builds(lambda t: {"threshold": t}, st.sampled_from([0.0, 0.5, 2.0]) | st.floats(-1, 6)),
)


@given(SCORES, CUTS, st.sampled_from(["paper", "released"]), st.booleans())
@counted
def test_any_selection_is_sorting_by_hand(rows, how, variant, arrow):
    scores = [score for score, _ in rows]
    statuses: Any = [status for _, status in rows]
    scored = [i for i, score in enumerate(scores) if math.isfinite(score)]
    ranking = sorted(scored, key=lambda i: (-scores[i], -i if variant == "released" else i))
    if "n" in how:
        kept = set(ranking[: how["n"]])
    elif "threshold" in how:
        kept = {i for i in ranking if scores[i] >= how["threshold"]}
    elif variant == "released":
        kept = set(ranking[: int(len(rows) * how["proportion"])])
    else:
        kept = set(ranking[: math.floor(Fraction(str(how["proportion"])) * len(rows))])
    given_statuses = pa.chunked_array([pa.array(statuses, pa.string())]) if arrow else statuses
    decisions = decide(np.array(scores, float), Cut(**how, variant=variant), given_statuses)
    literal = [
        {
            "row": i,
            "score": scores[i] if i in scored else None,
            "rank": ranking.index(i) if i in scored else None,
            "reason": ("selected" if i in kept else "below the threshold")
            if i in scored
            else statuses[i] or "no score",
        }
        for i in range(len(rows))
    ]
    assert decisions.to_pylist() == literal
    assert set(np.flatnonzero(kept_rows(decisions)).tolist()) == kept
