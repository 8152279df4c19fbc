"""From rating prompts to token ids: rating tokens in context, special tokens, maximum length.

A model gets the ids of the prompt followed by a rating, without the last id. A prompt tokenized by
itself can end in other ids: GPT-2's vocabulary merges the final ``" \\n"`` of the default template
into one token, which it never does before a digit.

The text of a sample never becomes a special token: a literal ``</s>`` in it becomes the pieces of
that text, not the token that ends a sequence.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from selectit_hf.errors import SettingError, TokenizerError
from selectit_hf.formats import Pair
from selectit_hf.rating.models.completeness import check_tokenizer
from selectit_hf.rating.prompts.chat_templates import check_chat_template, render_chat
from selectit_hf.rating.prompts.rating_prompts import Template

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["PLAIN_PAIR", "Encoded", "PromptEncoder", "context_length", "text_ids"]

UNLIMITED = 10**9
NOTHING = re.compile("(?!)")
LAST_NEWLINE = re.compile(r"(\r\n|\r|\n)\Z")
"""What Jinja drops at the end of a template."""
BEGINNINGS = ("Name a colour.", "a", " the", "\n\n", "1", "...", "/home", "-", "é", "")
PLAIN_PAIR = Pair("Name a colour.", "Blue")
"""The pair that prompts are tested with."""
RESPONSE_ENDS = ("", "\n", " ", "\n\n", "7", ".", ":", "é", "a ", " 1")
"""Ends of responses after which the ratings must stay separate tokens."""


class Encoded(NamedTuple):
    """One pair's rating prompts as ids, a list for each; none if ``status`` is ``encoding``."""

    ids: list[list[int]]
    status: str


def context_length(config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Tokens that model and tokenizer can take, or ``None`` where neither sets a limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [n for n in (positions, tokenizer.model_max_length) if n is not None and n < UNLIMITED]
    return int(min(limits)) if limits else None


def text_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text alone: no special tokens are added, and those in the text are text."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return ids


class PromptEncoder:
    """Encodes pairs under the same rating prompts with one tokenizer.

    Args:
        tokenizer: the rating model's own tokenizer.
        template: the layout; its end must lead to the rating.
        rating_prompts: the texts, as `load_rating_prompts` gives them.
        k: the rating tokens are the digits ``1..k``.
        max_length: longest sequence in tokens, ``None`` for no limit.
        chat: put the prompt into the tokenizer's chat template as the user's turn.
        chat_template_kwargs: the template's keyword arguments, as the JSON text of an object.
        embeddings: ids that the model knows, 0 to this number less one; ``None`` for all.

    Attributes:
        rating_token_ids: the ids of the ratings ``1..k`` in the place where they are read.
        prefixes: the ids that every row begins with, for each rating prompt.

    Raises:
        TokenizerError: the rating tokens cannot be told apart, or there is no chat template.
        SettingError: the rating prompts alone are longer than ``max_length``.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: Template,
        rating_prompts: Sequence[str],
        k: int,
        max_length: int | None,
        chat: bool = False,
        chat_template_kwargs: str | None = None,
        embeddings: int | None = None,
    ) -> None:
        if chat:
            check_chat_template(tokenizer, chat_template_kwargs)
        if embeddings is not None:
            check_tokenizer(embeddings, tokenizer)
        self.tokenizer = tokenizer
        self.template = template
        self.rating_prompts = tuple(rating_prompts)
        self.max_length = max_length
        self.chat = chat
        self._chat_kwargs = json.loads(chat_template_kwargs or "{}")
        self._embeddings = embeddings
        self._start = [] if chat else self._leading_special_ids()
        self.rating_token_ids = self._rating_token_ids(k)
        self._special_ids = self._ids_samples_must_not_hold()
        self._special_count = self._count_special(self._rows([PLAIN_PAIR])[0][0])
        shortest = self._length(Pair("", ""))
        if max_length is not None and shortest >= max_length:
            raise SettingError(
                f"max_length={max_length} tokens leave no room for a sample: the longest rating "
                f"prompt alone takes {shortest}. Raise max_length, or use shorter rating prompts "
                "or a model with a longer context."
            )

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """Encode each pair under every rating prompt, in order.

        If a pair is too long, the end of its response is cut, then of its instruction, until the
        longest of its prompts fits. Its status is then ``truncated``; rating prompt and suffix stay
        whole, and all prompts of a pair see the same text. The status is ``encoding`` if a sample
        would still yield a special token, one that the model does not know, or one that merges with
        the rating, or if the chat template fails or drops some of the text.
        """
        rows = self._rows(pairs)
        return [self._checked(pair, ids) for pair, ids in zip(pairs, rows, strict=True)]

    @cached_property
    def prefixes(self) -> tuple[tuple[int, ...], ...]:
        """For each rating prompt, the ids it begins with, whatever the instruction.

        These are the ids that no instruction in `BEGINNINGS` changes. Another instruction may still
        merge with the last of them, so a row's ids are compared with a prefix before it is used.
        """
        rows = self._rows([Pair(text, text) for text in BEGINNINGS])
        return tuple(_common_beginning(ids) for ids in zip(*rows, strict=True))

    @property
    def prompt_end(self) -> list[str]:
        """The last three tokens before the rating, as the vocabulary spells them."""
        return self._pieces(self._rows([PLAIN_PAIR])[0][0])

    def _checked(self, pair: Pair, ids: list[list[int]]) -> Encoded:
        status = "ok"
        if self.max_length is not None and max(map(len, ids)) > self.max_length:
            ids = self._rows([self._fitted(pair)])[0]
            status = "truncated"
        if any(not row or self._count_special(row) != self._special_count for row in ids):
            return Encoded([], "encoding")
        if self._embeddings is not None and max(map(max, ids)) >= self._embeddings:
            return Encoded([], "encoding")
        return Encoded(ids, status)

    def _fitted(self, pair: Pair) -> Pair:
        """The pair with the longest start of its response, then its instruction, that fits."""
        if self._fits(Pair(pair.instruction, "")):
            cut = _longest(pair.response, lambda text: self._fits(Pair(pair.instruction, text)))
            return Pair(pair.instruction, cut)
        return Pair(_longest(pair.instruction, lambda text: self._fits(Pair(text, ""))), "")

    def _fits(self, pair: Pair) -> bool:
        return self.max_length is None or self._length(pair) <= self.max_length

    def _length(self, pair: Pair) -> int:
        return max(map(len, self._rows([pair])[0]))

    def _rows(self, pairs: Sequence[Pair]) -> list[list[list[int]]]:
        """Each pair's ids under every rating prompt; none if the rating is not a separate token.

        The texts go to the tokenizer in one call, which uses all cores.
        """
        texts = [text for pair in pairs for text in self._texts(pair)]
        rated = self._with_rating(texts, "1")
        flat = [ids[:-1] if ids and ids[-1] == self.rating_token_ids[0] else [] for ids in rated]
        count = len(self.rating_prompts)
        return [flat[i : i + count] for i in range(0, len(flat), count)]

    def _texts(self, pair: Pair) -> list[str]:
        return [self.template.render(prompt, pair) for prompt in self.rating_prompts]

    def _with_rating(self, texts: Sequence[str], rating: str) -> list[list[int]]:
        """The ids of each text followed by a rating, where the model would answer."""
        if self.chat:
            return [self._chat_with_rating(text, rating) for text in texts]
        ids = text_ids(self.tokenizer, [text + rating for text in texts])
        return [self._start + row for row in ids] if self._start else ids

    def _chat_with_rating(self, text: str, rating: str) -> list[int]:
        """No ids if the template fails or drops some text, or the text yields a special token."""
        from transformers.utils.chat_template_utils import mark_control_tokens

        try:
            said = render_chat(self.tokenizer, text, self._chat_kwargs)
            # transformers drops the characters that it marks control tokens with.
            if text.strip() not in said or mark_control_tokens(text, NOTHING) != text:
                return []
            return self._chat_ids(text, rating)
        except (TokenizerError, ValueError):
            return []

    def _chat_ids(self, text: str, rating: str) -> list[int]:
        # The chat template itself writes the rating, so that it is tokenized in its place. Jinja
        # drops a newline at the end of a template, and keeps one before more text.
        template = self.tokenizer.get_chat_template()
        ids: Any = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            chat_template=LAST_NEWLINE.sub("", template) + rating,
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            return_dict=False,
            **self._chat_kwargs,
        )
        return list(ids)

    def _leading_special_ids(self) -> list[int]:
        """The special ids before a text; ids after it would hide the rating and are left out."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        for i in range(len(full) - len(bare) + 1):
            if full[i : i + len(bare)] == bare:
                return list(full[:i])
        raise TokenizerError(
            "The tokenizer changes a text when it adds special tokens, so the place of the rating "
            "is not known; use another model."
        )

    def _rating_token_ids(self, k: int) -> tuple[int, ...]:
        """The ids of the ratings, which are the same after every end that a response may have.

        Raises:
            TokenizerError: a rating merges with what stands before it, or two share an id.
        """
        pairs = [PLAIN_PAIR, *(Pair("Name a colour.", end) for end in RESPONSE_ENDS)]
        texts = [self._texts(pair)[0] for pair in pairs]
        rated = [self._with_rating(texts, str(rating)) for rating in range(1, k + 1)]
        if not all(ids for rows in rated for ids in rows):
            raise TokenizerError(
                "Leave chat unset, or use another model: the chat template drops or changes what "
                f"the user says (tried with {texts[0]!r}, and other ends of the response)."
            )
        for rating, rows in enumerate(rated, 1):
            for ids, first in zip(rows, rated[0], strict=True):
                if ids[:-1] != first[:-1] or ids[-1] != rows[0][-1]:
                    raise TokenizerError(
                        f"The rating {rating} is not one token of its own after "
                        f"{self.template.suffix!r}: this tokenizer turns the end of the prompt "
                        f"with it into {self._pieces(ids)}, and with 1 into {self._pieces(first)}."
                    )
        found = [rows[0][-1] for rows in rated]
        if len(set(found)) != k:
            raise TokenizerError(
                f"The ratings 1..{k} share token ids {found}, so they cannot be told apart: the "
                "tokenizer has no digits."
            )
        return tuple(found)

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [str(piece) for piece in self.tokenizer.convert_ids_to_tokens(list(ids[-3:]))]

    def _ids_samples_must_not_hold(self) -> frozenset[int]:
        """Special ids, except those of unknown text and of one character, such as ``"!"``."""
        marked = {
            i
            for i, token in self.tokenizer.added_tokens_decoder.items()
            if token.special
            and token.content != self.tokenizer.unk_token
            and len(token.content) > 1
        }
        edges = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id} - {None}
        return frozenset(marked | edges)

    def _count_special(self, ids: Sequence[int]) -> int:
        return sum(map(self._special_ids.__contains__, ids))


def _common_beginning(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The longest beginning that all rows share."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return tuple(column[0] for column in same)


def _longest(text: str, fits: Callable[[str], bool]) -> str:
    """The longest start of ``text`` that fits, found by bisection; ``""`` always fits."""
    low, high = 0, 1
    while high < len(text) and fits(text[:high]):
        low, high = high, 2 * high
    high = min(high, len(text))
    while low < high:
        middle = (low + high + 1) // 2
        if fits(text[:middle]):
            low = middle
        else:
            high = middle - 1
    return text[:low]
