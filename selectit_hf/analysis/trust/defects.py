"""Defects that are planted in copies of good rows, to see whether a score notices them.

A defect takes a pair, the pair of another row, and a seeded generator. It returns the broken pair,
or ``None`` if this pair cannot have the defect. Random choices depend on the seed, the row's number
and the defect's name, so they do not depend on the other defects.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from selectit_hf.errors import InputError
from selectit_hf.formats import Pair

__all__ = [
    "DEFECTS",
    "Defect",
    "Planted",
    "cut",
    "noise",
    "number",
    "plant",
    "refusal",
    "repeated",
    "shuffled",
    "swapped",
]

Defect = Callable[[Pair, Pair, np.random.Generator], Pair | None]

PHRASE = 6
REPEATS = 5
REFUSALS = (
    "I am sorry, but I cannot help with this.",
    "As a language model, I am not able to answer that.",
    "Thank you for your question. It depends.",
    "I do not have enough information to answer.",
)
NUMBER = re.compile("[0-9]+")
LIST_MARK = re.compile("^[ \t]*([0-9]+)[.):]", re.MULTILINE)
LONG_WORDS = 15
"""The mean length of what lies between spaces, beyond which a script has no spaces."""


def swapped(pair: Pair, other: Pair, rng: np.random.Generator) -> Pair | None:
    """The response of a row with another instruction."""
    return pair._replace(response=other.response)


def cut(pair: Pair, other: Pair, rng: np.random.Generator) -> Pair | None:
    """The response ends after a third of its words."""
    words, gaps = _words(pair.response)
    if len(words) < 3:
        return None
    return pair._replace(response=_joined(words[: -(-len(words) // 3)], gaps))


def shuffled(pair: Pair, other: Pair, rng: np.random.Generator) -> Pair | None:
    """The words of the response in random order; lines and spaces stay where they are."""
    words, gaps = _words(pair.response)
    return pair._replace(response=_joined([words[i] for i in rng.permutation(len(words))], gaps))


def repeated(pair: Pair, other: Pair, rng: np.random.Generator) -> Pair | None:
    """A phrase of up to six words of the response is repeated six times in a row."""
    words, gaps = _words(pair.response)
    start = int(rng.integers(max(len(words) - PHRASE, 0) + 1))
    end = min(start + PHRASE, len(words))
    space = " " if any(gaps) else ""
    phrase = space + _joined(words[start:end], ["", *gaps[start + 1 : end]])
    rest = _joined(words[end:], gaps[end:])
    return pair._replace(response=_joined(words[:end], gaps) + phrase * REPEATS + rest)


def refusal(pair: Pair, other: Pair, rng: np.random.Generator) -> Pair | None:
    """An empty refusal instead of the response."""
    return pair._replace(response=REFUSALS[int(rng.integers(len(REFUSALS)))])


def number(pair: Pair, other: Pair, rng: np.random.Generator) -> Pair | None:
    """One number in the response is replaced by one with as many digits; list numbers stay."""
    marks = {found.start(1) for found in LIST_MARK.finditer(pair.response)}
    found = [one for one in NUMBER.finditer(pair.response) if one.start() not in marks]
    if not found:
        return None
    one = found[int(rng.integers(len(found)))]
    digits = list(one[0])
    place = int(rng.integers(len(digits)))
    choices = sorted({*"0123456789"[int(len(digits) > 1 and place == 0) :]} - {digits[place]})
    digits[place] = choices[int(rng.integers(len(choices)))]
    text = pair.response
    return pair._replace(response=text[: one.start()] + "".join(digits) + text[one.end() :])


def noise(pair: Pair, other: Pair, rng: np.random.Generator) -> Pair | None:
    """Every letter of the instruction is replaced by a random one, so that it asks nothing."""
    letters = iter(rng.integers(26, size=len(pair.instruction)).tolist())
    made = "".join(chr(ord("a") + next(letters)) if c.isalpha() else c for c in pair.instruction)
    return pair._replace(instruction=made)


DEFECTS: dict[str, Defect] = {
    "swapped": swapped,
    "cut": cut,
    "shuffled": shuffled,
    "repeated": repeated,
    "refusal": refusal,
    "number": number,
    "noise": noise,
}
"""The defects that are planted by default."""


def _words(text: str) -> tuple[list[str], list[str]]:
    """The words of a text and the space before each; its characters where it has few spaces."""
    found = re.findall(r"(\s*)(\S+)", text)
    if len(found) < 3 or sum(len(word) for _, word in found) > LONG_WORDS * len(found):
        return list(text), [""] * len(text)
    return [word for _, word in found], [gap for gap, _ in found]


def _joined(words: Sequence[str], gaps: Sequence[str]) -> str:
    return "".join(gap + word for gap, word in zip(gaps, words, strict=False))


class Planted(NamedTuple):
    """Good rows, and copies with defects.

    Attributes:
        pairs: (n) the good rows, then the copies.
        source: (n) int64; the good row that each pair is, or was made from.
        defect: (n) int64; which of ``names`` each copy has, -1 for a good row.
        names: the names of the defects that at least one row has.
    """

    pairs: list[Pair]
    source: NDArray[np.int64]
    defect: NDArray[np.int64]
    names: list[str]

    @property
    def clean(self) -> int:
        """The number of good rows."""
        return int((self.defect < 0).sum())


def plant(
    pairs: Sequence[Pair],
    rows: Sequence[int],
    defects: Mapping[str, Defect],
    given: Mapping[str, Sequence[Pair | None]],
    seed: int = 0,
) -> Planted:
    """Make a copy of each row for each defect that it can have.

    Args:
        pairs: (n) the good rows.
        rows: (n) their numbers in the dataset.
        defects: the defects by name; a copy that is blank or equal to the row is left out.
        given: by name, (n) broken pairs that exist already, ``None`` for none.
        seed: the seed of all random choices.

    Raises:
        InputError: a defect that returns no pair, or none that any row can have.
    """
    made: list[tuple[Pair, int, int]] = []
    for at, (name, make) in enumerate(defects.items()):
        for i, pair in enumerate(pairs):
            rng = np.random.default_rng([seed, rows[i], zlib.crc32(name.encode())])
            start = i + 1 + int(rng.integers(max(len(pairs) - 1, 1)))
            turned = (pairs[j % len(pairs)] for j in range(start, start + len(pairs)))
            other = next((one for one in turned if one.instruction != pair.instruction), pair)
            made += [(one, i, at) for one in _copy(name, make(pair, other, rng), pair)]
    for at, (name, copies) in enumerate(given.items(), len(defects)):
        for i, pair in enumerate(pairs):
            made += [(one, i, at) for one in _copy(name, copies[i], pair)]
    names = [*defects, *given]
    there = sorted({at for _, _, at in made})
    if not there:
        raise InputError(f"None of the rows can have any of the defects {', '.join(names)}.")
    sources = [*range(len(pairs)), *(i for _, i, _ in made)]
    kinds = [-1] * len(pairs) + [there.index(at) for _, _, at in made]
    return Planted(
        [*pairs, *(one for one, _, _ in made)],
        np.array(sources, np.int64),
        np.array(kinds, np.int64),
        [names[at] for at in there],
    )


def _copy(name: str, made: object, pair: Pair) -> list[Pair]:
    """The broken pair, if it is a pair and differs."""
    if made is None:
        return []
    if not isinstance(made, Pair) or not all(isinstance(text, str) for text in made):
        raise InputError(
            f"The defect {name!r} returned {type(made).__name__}, not a Pair of texts or None; "
            "return pair._replace(response=...)."
        )
    texts, before = [text.strip() for text in made], [text.strip() for text in pair]
    return [] if not all(texts) or texts == before else [made]
