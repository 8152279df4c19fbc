r"""Where the ids of a text can be parted: what is left of a seam never changes what is right of it.

The k texts of a row differ in the rating prompt alone. Where their ids can be parted before the
instruction, the row is tokenized once, and each rating prompt's ids are put before its own.

A seam is a newline before an ASCII letter before another ASCII character, as in
``\nInstruction:``. The ids on its left depend on the text to the left alone, and those on its right
on the text to the right, if the tokenizer's own description says all of this:

- No added token lies across the seam or starts at it. (One that comes later cuts all texts alike.)
- Every step of the normalizer works on each side alone and keeps the seam. Unicode's normal forms
  do, since they never compose an ASCII character with what stands before it.
- Every step of the pre-tokenizer cuts beside a space or a digit, or at the matches of an expression
  that ends a match at every seam, never looks back, and looks ahead by one character at most.
- If a step cuts at every seam, the model gets no piece that holds both sides, and it works piece by
  piece. If none does, the model is BPE with an entry for the letter and without any entry that
  holds a newline before the letter. BPE merges neighbours into entries, the best merge first: no
  merge goes across the seam, and those of each side come in the order they have by themselves.

What is not known to be so counts as not so: the k texts are then tokenized whole.
"""

import json
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers.models import BPE

from selectit_hf.prompts import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Joint", "common_beginning", "find_joint"]

NORMAL_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = (
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", CONTRACTIONS),
    r" ?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    *(
        rf"[^\r\n\p{{L}}\p{{N}}]?{LETTERS[0]}{few}{LETTERS[1]}{many}{after}"
        for few, many in ("*+", "+*")
        for after in ("", CONTRACTIONS + "?")
    ),
    *(r"\d", r"\p{N}", r"\p{N}{1,3}", r" ?\p{N}+"),
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
    *(r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\d] ?", r" {2,}", r"\s+(?!\S)"),
)
NEWLINES = (r"\s+", r"\s", r"\n", r"\s*[\r\n]+")
"""The alternatives of the expressions at which GPT-2, GPT-4, Llama 3, Qwen, Mistral and others cut.

None takes a letter behind a newline, looks back, or looks further ahead than one character. With
one of `NEWLINES` among them no newline is passed over, so a match ends at every seam.
"""


class Joint(NamedTuple):
    """What makes a row's ids under every rating prompt of its ids without one.

    Attributes:
        heads: for each rating prompt the ids that come first.
        drop: how many of the given ids they replace.
    """

    heads: tuple[list[int], ...]
    drop: int

    def join(self, given: Sequence[int]) -> list[list[int]]:
        """The ids under each rating prompt."""
        rest = list(given[self.drop :])
        return [head + rest for head in self.heads]


def common_beginning(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The longest beginning that all rows share."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return tuple(column[0] for column in same)


def find_joint(
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    rows: Sequence[Sequence[int]],
    start: Sequence[int],
) -> Joint | None:
    """The `Joint` that gives the ids of whole texts, or ``None`` where that is not shown.

    ``rows`` are the ids of any one pair: without a rating prompt, then under each of them.
    ``start`` comes before the ids of every whole text.
    """
    seam = _find_seam(template)
    if seam is None or not _parts(tokenizer, seam):
        return None
    if any(tokenizer.added_tokens_decoder.keys() & row for row in rows):
        return None  # behind an added token the text starts anew, at the seam perhaps
    # All rows are the same from the seam on, if not earlier; the heads are what differs.
    same = len(common_beginning([row[::-1] for row in rows]))
    given, *prompted = [list(row[: len(row) - same]) for row in rows]
    return Joint(tuple([*start, *head] for head in prompted), len(given))


def _find_seam(template: Template) -> str | None:
    """The first newline, letter and ASCII character between rating prompt and instruction."""
    between = template.text.partition("{rating_prompt}")[2].partition("{instruction}")[0]
    found = re.search(r"\n[A-Za-z][!-~]", between)
    return found[0] if found else None


def _parts(tokenizer: "PreTrainedTokenizerBase", seam: str) -> bool:
    """Whether the tokenizer is known to part the ids of every text at ``seam``."""
    from transformers import PreTrainedTokenizerFast

    kind: Any = type(tokenizer)
    for name in ("__call__", "_encode_plus"):
        # A class of its own may look for marks in a text before the tokenizer sees it.
        if getattr(kind, name, None) is not getattr(PreTrainedTokenizerFast, name):
            return False
    backend: Any = tokenizer.backend_tokenizer
    normalizer, splits = _steps(backend.normalizer), _steps(backend.pre_tokenizer)
    if not all(_keeps(step, seam) for step in normalizer) or _adds_tokens_at(backend, seam):
        return False
    if any(step["type"] == "ByteLevel" for step in splits[:-1]):
        return False  # for the steps behind it a newline is the letter Ċ
    cuts = [_cuts(step, seam) for step in splits]
    return None not in cuts and (True in cuts or _never_merges(backend, seam))


def _steps(part: Any) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer does, step by step, as ``tokenizer.json`` says it."""
    if part is None:
        return []
    try:
        return _flat(json.loads(part.__getstate__()))
    except Exception:  # a part written in Python has no description, and the error no class
        return [{"type": "unknown"}]


def _flat(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    steps = step.get("normalizers") or step.get("pretokenizers") or []
    return [one for inner in steps for one in _flat(inner)]


def _keeps(step: dict[str, Any], seam: str) -> bool:
    if step["type"] == "Replace":
        return _is_other_character(step["pattern"], seam)
    return step["type"] in {*NORMAL_FORMS, "Prepend"}


def _is_other_character(pattern: dict[str, str], seam: str) -> bool:
    text = pattern.get("String", "")
    return len(text) == 1 and text not in seam


def _adds_tokens_at(backend: Any, seam: str) -> bool:
    texts = {token.content for token in backend.get_added_tokens_decoder().values()}
    if backend.normalizer is not None:
        texts |= {backend.normalizer.normalize_str(text) for text in texts}
    return any(text.startswith(seam[1]) or seam[:2] in text for text in texts)


def _cuts(step: dict[str, Any], seam: str) -> bool | None:
    """Whether a step of the pre-tokenizer cuts at every seam, or at none; ``None``: not known."""
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"])
    if step["type"] == "Digits" or (step["type"] == "Metaspace" and step["replacement"] == "▁"):
        return False
    if step["type"] != "Split":
        return None
    if "Regex" in step["pattern"]:
        kept = (step["behavior"], step["invert"]) in {("Isolated", False), ("Removed", True)}
        return True if kept and _takes_newlines(step["pattern"]["Regex"]) else None
    return False if _is_other_character(step["pattern"], seam) and not step["invert"] else None


def _takes_newlines(expression: str) -> bool:
    """Whether an expression is made of known alternatives, one of which takes every newline."""
    known = "|".join(map(re.escape, sorted((*WORDS, *NEWLINES), key=len, reverse=True)))
    if not re.fullmatch(f"(?:{known})(?:\\|(?:{known}))*", expression):
        return False
    return any(f"|{one}|" in f"|{expression}|" for one in NEWLINES)


def _never_merges(backend: Any, seam: str) -> bool:
    model, letter = backend.model, seam[1]
    if not isinstance(model, BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    # As itself, as a byte of a byte-level vocabulary, as a byte that falls back, or unknown.
    newlines = ("\n", "Ċ", "<0x0A>", model.unk_token or "\n")
    entries = backend.get_vocab(with_added_tokens=False)
    across = re.compile("|".join(re.escape(newline + letter) for newline in newlines))
    return letter in entries and not any(map(across.search, entries))
