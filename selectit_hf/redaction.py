"""Removing access tokens, in any form, from text."""

import os
import re

__all__ = ["HIDDEN", "SECRET", "holds_token", "redacted"]

HIDDEN = "***"
SECRET = r"(?:\w*_)?(?:TOKEN|SECRETS?|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?)"
"""Names of environment variables and options that hold secrets."""

KNOWN = re.compile(
    r"(?<![A-Za-z0-9])(?:(hf_|api_org_)[A-Za-z0-9_]{8,}"
    r"|(gh[opsu]_|github_pat_|glpat-|xox[abp]-|sk-)[A-Za-z0-9_-]{20,})"
)
"""Tokens that can be recognised by their prefix."""
HEADER = re.compile(r"\b(Bearer|Basic)(\s+|%20|\+)(?=\S{16})[^\s\"',;)\]}>]+", re.IGNORECASE)
USER = re.compile(r"([a-z][a-z0-9+.-]{0,30}://)[^\s/?#@\"'<>]+@", re.IGNORECASE)
"""Name and password in a URL."""
NAMED = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=%3F)|(?<=%26))((?:[a-z0-9]+[-_]){0,8}(?:token|api[-_]?key|signature|secret|password|credential)"
    r"[\"']?(?:=|%3D|:\s*)[\"']?)(?!\*)[^\s&\"'<>,;)\]}#]{4,}",
    re.IGNORECASE,
)
"""A URL parameter or JSON field with the name of a secret."""


def holds_token(text: str) -> bool:
    """Whether a text certainly holds an access token."""
    return _without_known(text) != text


def redacted(text: str) -> str:
    """``text`` without access tokens, and without secrets in URLs, headers or variables.

    >>> redacted("GET https://me:pass@host/a?token=abcd1234 with Bearer abcdefgh12345678")
    'GET https://***@host/a?token=*** with Bearer ***'
    """
    text = HEADER.sub(r"\1\2***", _without_known(text))
    return NAMED.sub(r"\1***", USER.sub(r"\1***@", text))


def _without_known(text: str) -> str:
    for name, value in os.environ.items():
        if len(value.strip()) >= 8 and re.fullmatch(SECRET, name, re.IGNORECASE):
            text = text.replace(value.strip(), HIDDEN)
    return KNOWN.sub(lambda found: f"{found[1] or found[2]}***", text)
