"""A row that is tokenized once has the ids of its k whole texts, with any tokenizer and any text.

What is expected comes from the tokenizers library itself, a whole text at a time.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXTS, byte_level, wrapped
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    PreTokenizedString,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
)
from transformers import (
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import selectit_hf
from selectit_hf import tokens
from selectit_hf.prompts import RELEASED_TEMPLATE, Template, load_rating_prompts
from selectit_hf.rows import Pair
from selectit_hf.seams import Joint, common_beginning
from selectit_hf.tokens import Encoded, PromptEncoder

DATA = Path(selectit_hf.__file__).parent / "data"
PROMPTS = load_rating_prompts(None, 5)
END = "\nThe answer is: \n"
COLOUR = Pair("Name a colour of the rainbow.", "Red.")

# What tokenizers of known models cut at
SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = rf"{SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
LLAMA_3 += SPACES
QWEN_2 = LLAMA_3.replace("{1,3}", "")
QWEN_3_5 = QWEN_2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}")
GPT_4O = rf"{CASED[0]}{SHORT}?|{CASED[1]}{SHORT}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*"
GPT_4O += SPACES
MISTRAL = GPT_4O.replace(f"{SHORT}?", "").replace("{1,3}", "")

PARTS = [
    *["\n", "\n\n", "\r\n", "\r", "\t", " ", "  ", "\u00a0", "\u2028", "\ufeff", "\x00", "\x85"],
    *[
        "e",
        "\u0301",
        "\u0308",
        "\u093f",
        "\u200d",
        "é",
        "ﬁ",
        "\uff29",
        "İ",
        "가",
        "\u1161",
        "数",
        "🙂",
    ],
    *["👩‍👩‍👧", "1", "2024", "٣", "½", "'s", "'", "...", ".", "/", "-", "{instruction}", "</s>"],
    *["<s>", "<|end|>", "<unk>", "<tool>", "<think>", "▁", "Ġ", "Ċ", "<0x0A>", "##s"],
    *["I", "In", "nstruction:", "Instruction:", "\nInstruction:", "\nResponse:", "the answer"],
]
TEXT = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=12).map("".join)
PAIRS = st.builds(Pair, TEXT, TEXT)
LAYOUTS = [
    RELEASED_TEMPLATE,
    "Hm: {rating_prompt}\nQ.{instruction}\n{response}" + END,
    "\nIn{rating_prompt} \nIn{instruction}{response}" + END,
    "{rating_prompt}\nI{instruction}\n{response}" + END,
    "{rating_prompt}\n{instruction}\n{response}" + END,
    "{rating_prompt}{instruction}{response}" + END,
    "{rating_prompt}: {instruction}\nIn{response}" + END,
]


def encoder(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] = PROMPTS,
    layout: str = RELEASED_TEMPLATE,
) -> PromptEncoder:
    return PromptEncoder(tokenizer, Template(layout), prompts, 5, None)


def expected(
    tokenizer: PreTrainedTokenizerBase,
    pair: Pair,
    prompts: Sequence[str] = PROMPTS,
    layout: str = RELEASED_TEMPLATE,
) -> Encoded:
    backend = tokenizer.backend_tokenizer
    special = set(tokenizer.all_special_ids)
    start = [one for one in tokenizer("a")["input_ids"][:1] if one in special]
    backend.encode_special_tokens = True
    texts = [Template(layout).render(prompt, pair) for prompt in prompts]
    rows = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    if any((special - {tokenizer.unk_token_id}) & set(row) for row in rows):
        return Encoded([], "encoding")
    return Encoded([[*start, *row] for row in rows], "ok")


# Known tokenizers


def split(expression: str, normalizer: Any = None, ignore: bool = False) -> PreTrainedTokenizerBase:
    """Byte-level BPE that cuts at an expression."""
    cut = pre_tokenizers.Split(Regex(expression), "isolated")
    splits = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer = byte_level(splits, ["<|end|>"], TEXTS * 2, 420)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.model.ignore_merges = ignore
    return wrapped(tokenizer, eos_token="<|end|>")


def metaspace(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)


def gemma(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")


def composing(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), tokenizer.normalizer])
    tokenizer.pre_tokenizer = pre_tokenizers.Digits(True)


SPLIT = {
    "gpt_2": lambda: split(GPT_2),
    "llama_3": lambda: split(LLAMA_3, ignore=True),
    "qwen_2": lambda: split(QWEN_2, normalizers.NFC()),
    "qwen_3_5": lambda: split(QWEN_3_5, normalizers.NFC()),
    "mistral": lambda: split(MISTRAL),
    "gpt_4o": lambda: split(GPT_4O),
    "tiny_rater": lambda: AutoTokenizer.from_pretrained(DATA / "tiny-rater"),
}
UNCUT = {"metaspace": metaspace, "gemma": gemma, "composing": composing}
JOINED = ["bpe_split", "bpe_merge", "sentencepiece", *SPLIT, *UNCUT]
WHOLE = ["unigram", "wordpiece"]


@pytest.fixture(scope="module")
def made(built_tokenizers) -> dict[str, PreTrainedTokenizerBase]:
    """All of them, with tokens added that are not special."""
    found = {kind: build() for kind, build in SPLIT.items()}
    for kind in ["bpe_split", "bpe_merge", "sentencepiece", *WHOLE]:
        found[kind] = copy.deepcopy(built_tokenizers[kind])
    for kind, change in UNCUT.items():
        found[kind] = copy.deepcopy(built_tokenizers["sentencepiece"])
        change(found[kind].backend_tokenizer)
    for tokenizer in found.values():
        tool = AddedToken("<tool>", lstrip=True, rstrip=True, normalized=False)
        tokenizer.add_tokens([tool, AddedToken("<think>", normalized=True)])
    return found


@pytest.fixture(scope="module")
def encoders(made) -> dict[str, PromptEncoder]:
    return {kind: encoder(tokenizer) for kind, tokenizer in made.items()}


@pytest.mark.parametrize("kind", JOINED + WHOLE)
@given(pair=PAIRS)
def test_a_row_has_the_ids_of_its_whole_texts(encoders, made, kind, pair):
    (read,) = encoders[kind].encode([pair])
    assert read == expected(made[kind], pair)


@pytest.mark.parametrize("kind", JOINED)
@given(
    pair=PAIRS,
    prompts=st.lists(TEXT, min_size=1, max_size=4),
    layout=st.sampled_from(LAYOUTS),
)
def test_so_it_has_with_any_rating_prompts_and_layout(made, kind, pair, prompts, layout):
    (read,) = encoder(made[kind], prompts, layout).encode([pair])
    assert read == expected(made[kind], pair, prompts, layout)


@pytest.fixture
def texts(monkeypatch) -> list[str]:
    """The texts that are tokenized."""
    seen: list[str] = []
    text_ids = tokens.text_ids

    def watched(tokenizer: PreTrainedTokenizerBase, given: Sequence[str]) -> list[list[int]]:
        seen.extend(given)
        return text_ids(tokenizer, given)

    monkeypatch.setattr(tokens, "text_ids", watched)
    return seen


@pytest.mark.parametrize(("kinds", "times"), [(JOINED, 1), (WHOLE, 5)])
def test_how_often_a_row_is_tokenized(encoders, texts, kinds, times):
    for kind in kinds:
        texts.clear()
        encoders[kind].encode([COLOUR, Pair("Call <tool>.", "<think>"), COLOUR])
        assert len(texts) == 3 * times, kind


@pytest.mark.parametrize(("layout", "times"), [*zip(LAYOUTS, [1, 1, 1, 5, 5, 5, 5], strict=True)])
def test_a_layout_without_a_seam_is_tokenized_whole(made, texts, layout, times):
    one = encoder(made["bpe_merge"], layout=layout)
    texts.clear()
    one.encode([COLOUR])
    assert len(texts) == times


def test_an_added_token_in_a_rating_prompt_leaves_all_whole(made, texts):
    one = encoder(made["bpe_merge"], ["Rate.", "Rate <think> it."])
    texts.clear()
    one.encode([COLOUR])
    assert len(texts) == 2


def test_the_bundled_sample(texts):
    lines = (DATA / "sample.jsonl").read_text("utf-8").splitlines()
    pairs = [Pair(row["instruction"], row["output"]) for row in map(json.loads, lines)]
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-rater")
    one = encoder(tokenizer)
    texts.clear()
    assert one.encode(pairs) == [expected(tokenizer, pair) for pair in pairs]
    assert len(texts) == len(pairs) > 200


@pytest.fixture(scope="module")
def llama(shared_data) -> PreTrainedTokenizerBase:
    folder = str(shared_data / "llama2_tokenizer")
    return LlamaTokenizer.from_pretrained(folder, add_bos_token=True)


@given(pair=PAIRS)
def test_llama_2_on_any_text(llama, pair):
    assert encoder(llama).encode([pair]) == [expected(llama, pair)]


def test_llama_2_on_real_rows(llama, shared_data, texts):
    rows = json.loads((shared_data / "alpaca_gpt4_999.json").read_text("utf-8"))
    pairs = [Pair(row["instruction"], row["output"]) for row in rows]
    one = encoder(llama)
    texts.clear()
    assert one.encode(pairs) == [expected(llama, pair) for pair in pairs]
    assert len(texts) == len(pairs) == 999


# Any vocabulary

PIECES = st.sampled_from([*"\nIaaae.", "aa", "\n\n", "Ia", "ea", ". "])
SMALL = st.lists(PIECES, max_size=8).map("".join)
SPLITS = [
    None,
    pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
    pre_tokenizers.Digits(True),
    pre_tokenizers.Split(Regex(GPT_2), "isolated"),
    pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated"),
    pre_tokenizers.Punctuation(),
]


MERGES = [
    *[("e", "\n"), (".", "\n"), ("\n", "\n"), ("\n", "I"), ("\n", "Ia"), ("I", "a"), ("\nI", "a")],
    *[("a", "a"), ("aa", "a"), ("aa", "aa"), ("a", "e"), ("Ia", "a"), ("Ia", "aa"), ("▁", "a")],
]


def bpe(found: Sequence[tuple[str, str]], **settings: Any) -> Tokenizer:
    """A BPE of all ASCII characters, some others and the entries that ``found`` merges to."""
    parts, merged = [part for pair in found for part in pair], map("".join, found)
    entries = dict.fromkeys([*map(chr, range(128)), *"▁éÏĊĠ", "<unk>", *parts, *merged])
    vocab = {entry: i for i, entry in enumerate(entries)}
    return Tokenizer(models.BPE(vocab, list(found), unk_token="<unk>", **settings))


@given(
    found=st.lists(st.sampled_from(MERGES), unique=True, min_size=3, max_size=9),
    ignore=st.booleans(),
    splits=st.sampled_from(SPLITS),
    prompts=st.lists(SMALL, min_size=1, max_size=3).map(lambda some: ["ee", *some]),
    pairs=st.lists(st.builds(Pair, SMALL, SMALL), min_size=1, max_size=4),
)
def test_any_merges(found, ignore, splits, prompts, pairs):
    backend = bpe(found, ignore_merges=ignore)
    if splits is not None:
        backend.pre_tokenizer = splits
    tokenizer = wrapped(backend, unk_token="<unk>")
    layout = "{rating_prompt}\nIa{instruction}a{response}" + END
    read = encoder(tokenizer, prompts, layout).encode(pairs)
    assert read == [expected(tokenizer, pair, prompts, layout) for pair in pairs]


# Tokenizers that cannot be parted: joined all the same, their ids would be wrong.

CHAIN = [("e", "\n"), ("\n", "I"), ("I", "a"), ("a", "a")]
"""What comes before the newline decides how the letters behind it pair up, however many."""


class Reversing(PreTrainedTokenizerFast):
    """Looks into a text before the tokenizer sees it."""

    def _encode_plus(self, text: Any, *given: Any, **settings: Any) -> Any:
        turned = [one[::-1] if "Z" in one else one for one in text]
        return super()._encode_plus(turned, *given, **settings)


class Counting:
    """Cuts behind every second character."""

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        text.split(lambda _, part: [part[i : i + 2] for i in range(0, len(str(part)), 2)])


def merging_across() -> PreTrainedTokenizerBase:
    return wrapped(bpe(CHAIN), unk_token="<unk>")


def merging_bytes_across() -> PreTrainedTokenizerBase:
    chain = [tuple(one.replace("\n", "Ċ") for one in pair) for pair in CHAIN]
    backend = bpe(chain)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    return wrapped(backend, unk_token="<unk>")


def merging_fallen_bytes_across() -> PreTrainedTokenizerBase:
    chain = [tuple(one.replace("\n", "<0x0A>") for one in pair) for pair in CHAIN]
    entries = dict.fromkeys([*map(chr, range(32, 127)), "<unk>", "<0x0A>", *map("".join, chain)])
    vocab = {entry: i for i, entry in enumerate(entries)}
    model = models.BPE(vocab, chain, unk_token="<unk>", byte_fallback=True)
    return wrapped(Tokenizer(model), unk_token="<unk>")


def cutting_bytes() -> PreTrainedTokenizerBase:
    tokenizer = merging_bytes_across()
    cut = pre_tokenizers.Split(Regex(GPT_2), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [tokenizer.backend_tokenizer.pre_tokenizer, cut]
    )
    return tokenizer


def looking_ahead() -> PreTrainedTokenizerBase:
    backend = bpe([("e", "\n")])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]*Z|\s+|\S+"), "isolated")
    return wrapped(backend, unk_token="<unk>")


def passing_newlines_over() -> PreTrainedTokenizerBase:
    backend = bpe(CHAIN)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\s\p{L}\p{N}]+[\r\n]*"), "isolated")
    return wrapped(backend, unk_token="<unk>")


def written_in_python() -> PreTrainedTokenizerBase:
    tokenizer = wrapped(bpe([("a", "a")]), unk_token="<unk>")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Counting())
    return tokenizer


def cutting_nowhere() -> PreTrainedTokenizerBase:
    backend = bpe(CHAIN)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(GPT_2), "contiguous")
    return wrapped(backend, unk_token="<unk>")


def fusing_the_unknown() -> PreTrainedTokenizerBase:
    chain = [("e", "<unk>"), ("<unk>", "a"), ("a", "a")]
    entries = [*map(chr, range(32, 127)), "<unk>", *map("".join, chain)]
    vocab = {entry: i for i, entry in enumerate(entries) if entry != "I"}
    model = models.BPE(vocab, chain, unk_token="<unk>", fuse_unk=True)
    return wrapped(Tokenizer(model))


def merging_the_unknown() -> PreTrainedTokenizerBase:
    chain = [("e", "<unk>"), ("<unk>", "I"), ("I", "a"), ("a", "a")]
    entries = [*map(chr, range(32, 127)), "<unk>", *map("".join, chain)]
    vocab = {entry: i for i, entry in enumerate(entries)}
    return wrapped(Tokenizer(models.BPE(vocab, chain, unk_token="<unk>")))


def replacing() -> PreTrainedTokenizerBase:
    backend = bpe([])
    backend.normalizer = normalizers.Replace(Regex(r"e\nI[\s\S]*Z"), "")
    return wrapped(backend, unk_token="<unk>")


def replacing_the_letter() -> PreTrainedTokenizerBase:
    backend = bpe([("e", "\n"), ("\n", "E"), ("E", "a"), ("a", "a")])
    backend.normalizer = normalizers.Replace("I", "E")
    return wrapped(backend, unk_token="<unk>")


def composing_the_letter() -> PreTrainedTokenizerBase:
    backend = bpe([("e", "\n"), ("\n", "Ï"), ("Ï", "a"), ("a", "a")])
    backend.normalizer = normalizers.NFC()
    return wrapped(backend, unk_token="<unk>")


def adding_at_the_seam() -> PreTrainedTokenizerBase:
    backend = bpe([("\n", "\n")])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(GPT_2), "isolated")
    tokenizer = wrapped(backend, unk_token="<unk>")
    tokenizer.add_tokens([AddedToken("IaZ", normalized=False)])
    return tokenizer


def adding_another_form_at_the_seam() -> PreTrainedTokenizerBase:
    backend = bpe([("\n", "\n")])
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(GPT_2), "isolated")
    tokenizer = wrapped(backend, unk_token="<unk>")
    tokenizer.add_tokens([AddedToken("\uff29aZ", normalized=True)])
    return tokenizer


def adding_across_the_seam() -> PreTrainedTokenizerBase:
    tokenizer = wrapped(bpe([]), unk_token="<unk>")
    tokenizer.add_tokens([AddedToken("e\nIaZ", normalized=False)])
    return tokenizer


def adding_before_the_seam() -> PreTrainedTokenizerBase:
    backend = bpe([("▁", "I"), ("I", "a"), ("a", "a")])
    backend.normalizer = normalizers.Prepend("▁")
    tokenizer = wrapped(backend, unk_token="<unk>")
    tokenizer.add_tokens([AddedToken("te\n", normalized=False)])
    return tokenizer


def looking_into_texts() -> PreTrainedTokenizerBase:
    return Reversing(tokenizer_object=bpe([]), unk_token="<unk>")


def unigram() -> PreTrainedTokenizerBase:
    scores = {"e\nI": -1.0, "Iaaaa": -1.0, "aaaa": -1.0}
    pieces = [("<unk>", 0.0), *((chr(i), -9.0) for i in range(128)), *scores.items()]
    return wrapped(Tokenizer(models.Unigram(pieces, unk_id=0)), unk_token="<unk>")


def joined_anyway(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    rows: Sequence[Sequence[int]],
    start: Sequence[int],
) -> Joint:
    """`find_joint`, had it nothing to find out."""
    same = len(common_beginning([row[::-1] for row in rows]))
    given, *prompted = [list(row[: len(row) - same]) for row in rows]
    return Joint(tuple([*start, *head] for head in prompted), len(given))


LETTERS = "{rating_prompt}\nIa{instruction}\n{response}" + END
LETTER = "{rating_prompt}\nI{instruction}\n{response}" + END


@pytest.mark.parametrize(
    ("build", "layout", "instruction"),
    [
        (merging_across, LETTERS, "aaa"),
        (merging_bytes_across, LETTERS, "aaa"),
        (merging_fallen_bytes_across, LETTERS, "aaa"),
        (cutting_bytes, LETTERS, "aaa"),
        (looking_ahead, LETTERS, "Z"),
        (passing_newlines_over, LETTERS, "aaa"),
        (cutting_nowhere, LETTERS, "aaa"),
        (fusing_the_unknown, LETTERS, "aaa"),
        (merging_the_unknown, LETTERS, "aaa"),
        (written_in_python, LETTERS, "aaa"),
        (replacing, LETTERS, "Z"),
        (replacing_the_letter, LETTERS, "aaa"),
        (composing_the_letter, LETTER, "\u0308aaa"),
        (adding_at_the_seam, LETTERS, "Z"),
        (adding_another_form_at_the_seam, LETTERS, "Z"),
        (adding_across_the_seam, LETTERS, "Z"),
        (adding_before_the_seam, LETTERS, "aaa"),
        (looking_into_texts, LETTERS, "Z"),
        (unigram, LETTERS, "aaa"),
    ],
)
def test_what_cannot_be_parted_is_tokenized_whole(build, layout, instruction, monkeypatch):
    tokenizer = build()
    prompts, pair = ["Rate", "Rate\n", "Rat."], Pair(instruction, "")
    texts = [Template(layout).render(prompt, pair) for prompt in prompts]
    settings = {"add_special_tokens": False, "split_special_tokens": True}
    whole = [tokenizer([text], **settings)["input_ids"][0] for text in texts]
    assert encoder(tokenizer, prompts, layout).encode([pair]) == [Encoded(whole, "ok")]
    monkeypatch.setattr(tokens, "find_joint", joined_anyway)
    assert encoder(tokenizer, prompts, layout).encode([pair]) != [Encoded(whole, "ok")]
