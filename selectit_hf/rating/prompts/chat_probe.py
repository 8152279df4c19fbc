"""Whether a chat template ends at all, tried in a separate process that can be killed.

A template is somebody else's program. Nested loops, a macro that calls itself twice, or a power of
powers take forever, and nothing within the same process can stop the last.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from selectit_hf.errors import TokenizerError

__all__ = ["check_ends"]

SECONDS = 5
"""Limit for all renderings; real templates take less than a hundredth of a second."""
STARTING = 120
"""Seconds within which the process itself must start."""
MEMORY = 4 * 2**30
"""Bytes of address space for the process, of which transformers itself takes less than one GiB."""
CHARACTERS = 1_000_000
"""More than any template adds to a question."""

PROGRAM = f"""
import faulthandler, json, os, sys
from transformers.utils.chat_template_utils import render_jinja_template
asked = json.loads(sys.stdin.buffer.read())
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
except (ImportError, OSError, ValueError):
    pass
print("started", flush=True)
faulthandler.dump_traceback_later({SECONDS}, exit=True, file=open(os.devnull, "w"))
said = 0
try:
    for text in asked["texts"]:
        chats = [[{{"role": "user", "content": text}}]]
        said += len(render_jinja_template(chats, **asked["values"])[0][0]) - len(text)
except MemoryError:
    said = {CHARACTERS} + 1
except Exception:
    pass
print(said, flush=True)
"""
"""Its watchdog runs outside the interpreter, so it ends even a single long computation."""


def check_ends(template: str, values: Mapping[str, Any], texts: Sequence[str]) -> None:
    """Refuse a chat template that takes forever, or all memory, to render one of ``texts``.

    A template that fails is let through, since rendering it later gives the error. ``values`` are
    its variables.

    Raises:
        TokenizerError: it does not end within `SECONDS`, or writes more than `CHARACTERS`.
    """
    all_values = {"chat_template": template, "add_generation_prompt": True, **values}
    _try(json.dumps({"values": all_values, "texts": list(texts)}))


@lru_cache(maxsize=16)
def _try(asked: str) -> None:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=asked.encode(),
        capture_output=True,
        timeout=STARTING,
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        check=False,
    )
    started, _, said = done.stdout.decode().partition("\n")
    if started.strip() != "started":
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise TokenizerError(
            "Run again, or omit chat (--chat): no process could be started to try the chat "
            f"template in ({words[-1]})."
        )
    if not said.strip():
        raise TokenizerError(
            "Leave chat unset, or use another model: the chat template does not end (tried for "
            f"{SECONDS} seconds)."
        )
    if int(said) > CHARACTERS:
        raise TokenizerError(
            "Leave chat unset, or use another model: the chat template writes more than "
            f"{CHARACTERS:,} characters around a question."
        )
