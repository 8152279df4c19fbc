"""From a response to token ids, given its instruction or alone.

The text of a sample never becomes a special token, as in
`selectit_hf.rating.prompts.prompt_encoder`.
"""

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from selectit_hf.errors import SettingError, TokenizerError
from selectit_hf.formats import Pair
from selectit_hf.rating.prompts.prompt_encoder import text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EncodedResponse", "ResponseEncoder"]


class EncodedResponse(NamedTuple):
    """Ids of the context before a response, and of the response; empty if it cannot be read."""

    context: list[int]
    response: list[int]
    status: str


class ResponseEncoder:
    """Encodes the context and the response of pairs, each by itself.

    Args:
        tokenizer: the model's own tokenizer.
        context: the layout before the response, with one ``{instruction}``.
        max_length: longest sequence in tokens, ``None`` for no limit.

    Attributes:
        start: the first id of every sequence: BOS, else EOS.

    Raises:
        TokenizerError: the tokenizer has neither.
        SettingError: ``max_length`` leaves no room for a response.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", context: str, max_length: int | None
    ) -> None:
        start = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if start is None else start
        if start is None:
            raise TokenizerError(
                "The tokenizer has neither a BOS nor an EOS token to stand before a response; use "
                "another model."
            )
        self.start = int(start)
        self.tokenizer = tokenizer
        self.context = context
        self.max_length = max_length
        special = (t for t in tokenizer.added_tokens_decoder.items() if t[1].special)
        unknown = tokenizer.unk_token_id
        self._special = {i for i, _ in special if i != unknown} | {self.start}
        shortest = 1 + len(text_ids(self.tokenizer, [self._before("")])[0])
        if max_length is not None and max_length < 2 * shortest:
            raise SettingError(
                f"max_length={max_length} tokens leave no room for a response: the context alone "
                f"takes {shortest}. Raise max_length, or use a model with a longer context."
            )

    def encode(self, pairs: Sequence[Pair]) -> list[EncodedResponse]:
        """Encode each pair, in order.

        If a pair is too long, the end of its response is cut, down to half of ``max_length``, then
        the end of its instruction. Its status is ``truncated``. Text that yields a special token
        gets the status ``encoding``, a response without any token ``empty``.
        """
        contexts = text_ids(self.tokenizer, [self._before(pair.instruction) for pair in pairs])
        responses = text_ids(self.tokenizer, [pair.response for pair in pairs])
        both = zip(pairs, contexts, responses, strict=True)
        return [self._checked(*one) for one in both]

    def _checked(self, pair: Pair, context: list[int], response: list[int]) -> EncodedResponse:
        status = "ok"
        if self.max_length is not None and 1 + len(context) + len(response) > self.max_length:
            context, response = self._fitted(pair, context, response, self.max_length - 1)
            status = "truncated"
        if not self._special.isdisjoint(context + response):
            return EncodedResponse([], [], "encoding")
        return EncodedResponse(context, response, status if response else "empty")

    def _fitted(
        self, pair: Pair, context: list[int], response: list[int], room: int
    ) -> tuple[list[int], list[int]]:
        kept = min(len(response), max(room - len(context), room // 2))
        if len(context) + kept > room:
            text = pair.instruction

            def length(characters: int) -> int:
                return len(text_ids(self.tokenizer, [self._before(text[:characters])])[0])

            characters = bisect.bisect_right(range(len(text)), room - kept, key=length)
            context = text_ids(self.tokenizer, [self._before(text[: max(characters - 1, 0)])])[0]
        return context, response[:kept]

    def _before(self, instruction: str) -> str:
        return self.context.replace("{instruction}", instruction)
