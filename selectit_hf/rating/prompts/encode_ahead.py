"""Encoding the next pairs while the model works, so that it need not wait for its tokenizer."""

import threading
from collections.abc import Sequence
from contextlib import suppress

from selectit_hf.formats import Pair
from selectit_hf.rating.prompts.prompt_encoder import Encoded, PromptEncoder

__all__ = ["Ahead"]


class Ahead:
    """Encodes one list of pairs in a thread."""

    def __init__(self) -> None:
        self._key: object = None
        self._thread: threading.Thread | None = None
        self._done: list[list[Encoded]] = []

    def begin(self, encoder: PromptEncoder, pairs: Sequence[Pair]) -> None:
        """Begin to encode ``pairs``."""
        done: list[list[Encoded]] = []

        def work() -> None:
            with suppress(Exception):  # it is raised again when these pairs are needed
                done.append(encoder.encode(pairs))

        self._key, self._done = (encoder, tuple(pairs)), done
        self._thread = threading.Thread(target=work, name="tokenizer", daemon=True)
        self._thread.start()

    def encode(self, encoder: PromptEncoder, pairs: Sequence[Pair]) -> list[Encoded]:
        """The encoded ``pairs``; computed now if `begin` was not called for them."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()  # a tokenizer serves one thread at a time
        done, self._thread, self._done = self._done, None, []
        return done[0] if done and self._key == (encoder, tuple(pairs)) else encoder.encode(pairs)
