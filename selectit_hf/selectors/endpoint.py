"""Asking a language model behind an endpoint, and never paying for the same answer twice.

An answer is written to an append-only journal, and made durable, before it is used. A kill can
lose only answers that the endpoint has not yet finished.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from httpx2 import HTTPError
from huggingface_hub import InferenceClient, get_token
from huggingface_hub.errors import HfHubHTTPError

from selectit_hf.errors import ModelError, SettingError
from selectit_hf.selectors.journal import Answer, Journal

__all__ = ["TOKEN", "Endpoint"]

logger = logging.getLogger(__name__)

TOKEN = "SELECTIT_JUDGE_TOKEN"
"""The environment variable with the token for an endpoint that is not Hugging Face's."""

OURS = ("huggingface.co", "huggingface.cloud", "hf.space")
"""Hosts that, with their subdomains, may receive the Hub login."""

TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504, 529)
REFUSED = (400, 413, 422)
IN_A_ROW = 5
LONGEST_WAIT = 3600
MALFORMED = (ValueError, TypeError, AttributeError, IndexError)


@dataclass(frozen=True)
class Endpoint:
    """A chat model behind an OpenAI-compatible URL, or at an inference provider of the Hub.

    The token for a ``url`` of Hugging Face, and for a provider, is the login (``hf auth login`` or
    ``HF_TOKEN``); for any other ``url`` it is in ``SELECTIT_JUDGE_TOKEN``, and the login is never
    sent there.

    Attributes:
        model: the endpoint's name for the model; answers are stored under it.
        url: base URL, as in ``http://localhost:8000/v1``; ``None`` for the Hub's providers.
        provider: which of the Hub's providers; ``None`` lets the Hub choose.
        max_tokens: longest answer.
        concurrency: the number of simultaneous requests.
        per_minute: the most requests started in a minute; ``None`` for no limit.
        attempts: how often a request is made before it is given up.
        timeout: seconds without a byte before a request is given up and made again.
        wait: seconds before the second attempt, doubled before each further one up to a minute,
            unless the endpoint's ``Retry-After`` is longer.

    Raises:
        SettingError: a setting out of range, or ``url`` and ``provider`` together.
    """

    model: str
    url: str | None = None
    provider: str | None = None
    max_tokens: int = 128
    concurrency: int = 4
    per_minute: float | None = None
    attempts: int = 6
    timeout: float = 120.0
    wait: float = 1.0

    def __post_init__(self) -> None:
        if self.url is not None and self.provider is not None:
            raise SettingError("url and provider contradict each other; give one of them.")
        if self.url is not None and urlsplit(self.url).scheme not in ("http", "https"):
            raise SettingError(f"url={self.url!r} must start with http:// or https://.")
        for name in ("max_tokens", "concurrency", "attempts", "timeout", "wait"):
            if getattr(self, name) <= 0:
                raise SettingError(f"{name}={getattr(self, name)} must be above 0.")
        if self.per_minute is not None and self.per_minute <= 0:
            raise SettingError(f"per_minute={self.per_minute} must be above 0.")

    def key(self, prompt: str) -> str:
        """The hash of prompt and model under which an answer is stored."""
        asked = json.dumps([self.model, self.max_tokens, prompt])
        return hashlib.sha256(asked.encode()).hexdigest()

    def ask(
        self,
        prompts: Sequence[str],
        journal: Journal,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer | str]:
        """An `Answer` to each prompt, or ``"unanswered"`` or ``"refused"``, in order.

        Prompts whose answer is in the journal, and prompts that occur twice, are not asked again.

        Raises:
            ModelError: the endpoint turns everything away (no access, no such model), or five
                prompts in a row were not answered in all their attempts.
        """
        wanted = {self.key(prompt): prompt for prompt in prompts}
        todo = {key: prompt for key, prompt in wanted.items() if journal.get(key) is None}
        problems: dict[str, str] = {}
        if todo:
            asking = _Asking(self, journal)
            with ThreadPoolExecutor(self.concurrency) as pool:
                futures = {key: pool.submit(asking.ask, key, text) for key, text in todo.items()}
                try:
                    problems = {key: f.result() for key, f in futures.items()}
                except BaseException as error:
                    asking.stopped.set()
                    pool.shutdown(cancel_futures=True)
                    if isinstance(error, _Stopped) and asking.cause is not None:
                        raise asking.cause from None
                    raise
        if progress is not None:
            progress(len(prompts))
        keys = map(self.key, prompts)
        return [journal.get(key) or problems[key] for key in keys]

    def client(self) -> InferenceClient:
        """The Hub's client, with the token that this endpoint may see.

        Raises:
            ModelError: a provider of the Hub without a login.
        """
        if self.url is None:
            if get_token() is None:
                raise ModelError(
                    "The Hub's inference providers need a login: 'hf auth login' or HF_TOKEN."
                )
            return InferenceClient(provider=self.provider, timeout=self.timeout)  # type: ignore[arg-type]
        token = os.environ.get(TOKEN) or (get_token() if _is_ours(self.url) else None)
        headers: dict[str, Any] = {} if token else {"authorization": None}
        return InferenceClient(
            base_url=self.url, api_key=token, timeout=self.timeout, headers=headers
        )


def _is_ours(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" and any(host == o or host.endswith(f".{o}") for o in OURS)


class _Stopped(Exception):
    """Another thread stopped the round and has the error."""


class _Asking:
    """One round of questions, shared by its threads."""

    def __init__(self, endpoint: Endpoint, journal: Journal) -> None:
        self.endpoint = endpoint
        self.journal = journal
        self.client = endpoint.client()
        self.stopped = threading.Event()
        self.cause: ModelError | None = None
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._failed_in_a_row = 0

    def ask(self, key: str, prompt: str) -> str:
        """Ask until there is an answer and store it; otherwise return the problem."""
        said = ""
        for attempt in range(self.endpoint.attempts):
            self._wait_for_turn()
            try:
                answer = self._request(prompt)
            except HfHubHTTPError as error:
                status, said = error.response.status_code, _said(error)
                if status in REFUSED:
                    logger.warning("The judge refused a prompt: %s", said)
                    return "refused"
                if status not in TRANSIENT:
                    raise self._stop(f"answered {status}: {said}") from error
                self._hold(_retry_after(error.response.headers.get("retry-after")))
                self._sleep(self._backoff(attempt))
            except (HTTPError, *MALFORMED) as error:
                said = f"{type(error).__name__}: {error}"
                self._sleep(self._backoff(attempt))
            else:
                self.journal.append(key, answer)
                self._failed_in_a_row = 0
                return ""
        return self._give_up(said)

    def _request(self, prompt: str) -> Answer:
        output = self.client.chat_completion(
            [{"role": "user", "content": prompt}],
            model=self.endpoint.model,
            max_tokens=self.endpoint.max_tokens,
            temperature=0.0,
        )
        text = output.choices[0].message.content or ""
        usage = output.usage
        if usage is None:
            return Answer(text)
        return Answer(text, int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0))

    def _wait_for_turn(self) -> None:
        """Sleep until the rate limit and the endpoint's ``Retry-After`` allow another request."""
        interval = 60 / self.endpoint.per_minute if self.endpoint.per_minute else 0
        with self._lock:
            turn = max(self._free_at, time.monotonic())
            self._free_at = turn + interval
        self._sleep(turn - time.monotonic())

    def _hold(self, seconds: float) -> None:
        """Let no thread ask for a while."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() + seconds)

    def _backoff(self, attempt: int) -> float:
        return float(min(self.endpoint.wait * 2.0**attempt, 60))

    def _sleep(self, seconds: float) -> None:
        if self.stopped.wait(max(seconds, 0)):
            raise _Stopped

    def _give_up(self, said: str) -> str:
        logger.warning("A prompt was not answered in %d attempts: %s", self.endpoint.attempts, said)
        with self._lock:
            self._failed_in_a_row += 1
        if self._failed_in_a_row >= IN_A_ROW:
            raise self._stop(f"did not answer {IN_A_ROW} prompts in a row: {said}")
        return "unanswered"

    def _stop(self, problem: str) -> ModelError:
        self.cause = ModelError(
            f"The judge {self.endpoint.model!r} {problem} Every answer so far is stored in "
            f"{self.journal.path.name!r}; run the same command to resume when this is solved."
        )
        self.stopped.set()
        return self.cause


def _said(error: HfHubHTTPError) -> str:
    return (error.server_message or str(error)).strip().split("\n", 1)[0].rstrip(".") + "."


def _retry_after(value: str | None) -> float:
    """Seconds that an endpoint asks to wait, given as a number or as a date; 0 for neither."""
    if not value:
        return 0
    if value.strip().isdecimal():
        return min(float(value), LONGEST_WAIT)
    try:
        seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0
    return min(max(seconds, 0), LONGEST_WAIT)
