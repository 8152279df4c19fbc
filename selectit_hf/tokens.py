"""From rating prompts to token ids: rating tokens in context, special tokens, a length that fits.

The text of a sample is only ever text: a literal ``</s>`` in it becomes the pieces of that text,
never the token that ends a sequence.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from selectit_hf.errors import SettingError, TokenizerError
from selectit_hf.prompts import Template
from selectit_hf.rows import Pair
from selectit_hf.seams import Joint, common_beginning, find_joint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["Encoded", "PromptEncoder", "context_length", "text_ids"]

UNLIMITED = 10**9
BEGINNINGS = ("Name a colour.", "a", " the", "\n\n", "1", "...", "/home", "-", "é", "")
PLAIN_PAIR = Pair("Name a colour.", "Blue")


class Encoded(NamedTuple):
    """One pair's rating prompts as ids, a list for each; none where ``status`` is ``encoding``."""

    ids: list[list[int]]
    status: str


def context_length(config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Tokens that model and tokenizer can take, or ``None`` where neither sets a limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [n for n in (positions, tokenizer.model_max_length) if n is not None and n < UNLIMITED]
    return int(min(limits)) if limits else None


def text_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text and nothing else: none is added, and a special token in it is text."""
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

    Attributes:
        rating_token_ids: the ids of the ratings ``1..k`` in the place where they are read.
        prefixes: what every row's ids begin with, for each rating prompt.

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
    ) -> None:
        if chat and not tokenizer.chat_template:
            raise TokenizerError(
                "chat=True needs a tokenizer with a chat template, and this one has none; leave "
                "chat unset for a base model."
            )
        self.tokenizer = tokenizer
        self.template = template
        self.rating_prompts = tuple(rating_prompts)
        self.max_length = max_length
        self.chat = chat
        self._start = [] if chat else self._leading_special_ids()
        self.rating_token_ids = self._rating_token_ids(k)
        self._special_ids = self._ids_samples_must_not_hold()
        self._special_count = self._count_special(self._encode([self._texts(PLAIN_PAIR)[0]])[0])
        shortest = self._length(Pair("", ""))
        if max_length is not None and shortest >= max_length:
            raise SettingError(
                f"max_length={max_length} tokens leave no room for a sample: the longest rating "
                f"prompt alone takes {shortest}. Raise max_length, or use shorter rating prompts "
                "or a model with a longer context."
            )

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """Encode each pair under every rating prompt, in order.

        A pair that is too long loses the end of its response, then of its instruction, until the
        longest of its prompts fits, and gets the status ``truncated``; rating prompt and suffix
        stay whole, and all prompts of a pair see the same text. Where a sample would still yield a
        special token, its status is ``encoding``.
        """
        rows = self._rows(pairs)
        return [self._checked(pair, ids) for pair, ids in zip(pairs, rows, strict=True)]

    @cached_property
    def prefixes(self) -> tuple[tuple[int, ...], ...]:
        """For each rating prompt the ids it begins with, whatever the instruction.

        What all of `BEGINNINGS` leave alone; another instruction may still merge with the end of
        it, so a row's ids are compared with a prefix before it is used.
        """
        rows = [self._encode(self._texts(Pair(text, text))) for text in BEGINNINGS]
        return tuple(common_beginning(ids) for ids in zip(*rows, strict=True))

    def _checked(self, pair: Pair, ids: list[list[int]]) -> Encoded:
        status = "ok"
        if self.max_length is not None and max(map(len, ids)) > self.max_length:
            ids = self._rows([self._fitted(pair)])[0]
            status = "truncated"
        if any(self._count_special(row) != self._special_count for row in ids):
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
        """Each pair's ids under every rating prompt, which are those of its k whole texts."""
        if self._joint is not None:
            bare = text_ids(self.tokenizer, [self.template.render("", pair) for pair in pairs])
            return [self._joint.join(ids) for ids in bare]
        flat = self._encode([text for pair in pairs for text in self._texts(pair)])
        count = len(self.rating_prompts)
        return [flat[i : i + count] for i in range(0, len(flat), count)]

    @cached_property
    def _joint(self) -> Joint | None:
        """What makes k prompts of a pair that is tokenized once, without a rating prompt."""
        if self.chat:
            return None
        texts = [self.template.render(text, PLAIN_PAIR) for text in ("", *self.rating_prompts)]
        rows = text_ids(self.tokenizer, texts)
        return find_joint(self.tokenizer, self.template, rows, self._start)

    def _texts(self, pair: Pair) -> list[str]:
        return [self.template.render(prompt, pair) for prompt in self.rating_prompts]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self.chat:
            return [self._encode_chat(text) for text in texts]
        ids = text_ids(self.tokenizer, texts)
        return [self._start + row for row in ids] if self._start else ids

    def _encode_chat(self, text: str) -> list[int]:
        ids: Any = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            return_dict=False,
        )
        return list(ids)

    def _leading_special_ids(self) -> list[int]:
        """What the tokenizer puts before a text; what it puts behind one would hide the rating."""
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
        before = self._open_ids("")
        found = []
        for rating in range(1, k + 1):
            after = self._open_ids(str(rating))
            if len(after) != len(before) + 1 or after[:-1] != before:
                raise TokenizerError(
                    f"The rating {rating} is not one token of its own after "
                    f"{self.template.suffix!r}: the tokenizer turns it into {after[-3:]}, and the "
                    f"text without it ends in {before[-3:]}. Use another model, or a template "
                    "whose end does not merge with a digit."
                )
            found.append(after[-1])
        if len(set(found)) != k:
            raise TokenizerError(
                f"The ratings 1..{k} share token ids {found}, so they cannot be told apart; the "
                "tokenizer has no digits. Use another model."
            )
        return tuple(found)

    def _open_ids(self, rating: str) -> list[int]:
        """A whole prompt with ``rating`` written where the model would answer."""
        text = self._texts(PLAIN_PAIR)[0]
        if not self.chat:
            return self._encode([text + rating])[0]
        opened: Any = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        ids: list[int] = self.tokenizer(opened + rating, add_special_tokens=False)["input_ids"]
        return ids

    def _ids_samples_must_not_hold(self) -> frozenset[int]:
        """Special ids, save the one for text that the vocabulary does not know."""
        marked = {
            i
            for i, token in self.tokenizer.added_tokens_decoder.items()
            if token.special and token.content != self.tokenizer.unk_token
        }
        edges = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id} - {None}
        return frozenset(marked | edges)

    def _count_special(self, ids: Sequence[int]) -> int:
        return sum(map(self._special_ids.__contains__, ids))


def _longest(text: str, fits: Callable[[str], bool]) -> str:
    """A start of ``text`` that fits while one more character does not; ``""`` always fits."""
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
