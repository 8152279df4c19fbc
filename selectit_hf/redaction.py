"""Removing access tokens, in any form, from text."""

import os
import re

__all__ = ["HIDDEN", "SECRET", "holds_token", "redacted"]

HIDDEN = "***"
NAME = r"(?:token|signature|secrets?|pass(?:word|wd|phrase)|(?:api|access)[-_]?key|credentials?)"
SECRET = rf"(?:\w*_)?{NAME}"
"""Names of environment variables and options that hold secrets, in any case."""

KNOWN = re.compile(
    r"(?<![A-Za-z0-9])(?:(hf_|api_org_)[A-Za-z0-9_]{8,}"
    r"|(gh[opsu]_|github_pat_|glpat-|xox[abp]-|sk-)[A-Za-z0-9_-]{20,})"
)
"""Tokens that can be recognised by their prefix."""
HEADER = re.compile(r"\b(Bearer|Basic)(\s+|%20|\+)(?=\S{16})[^\s\"',;)\]}>]+", re.IGNORECASE)
USER = re.compile(r"([a-z][a-z0-9+.-]{0,30}://)[^\s/?#@\"'<>]+@", re.IGNORECASE)
"""Name and password in a URL."""
NAMED = re.compile(
    rf"((?:(?<![A-Za-z0-9])|(?<=%3F)|(?<=%26))(?:[a-z0-9]+[-_]){{0,8}}{NAME}[\"']?(?:=|%3D|:\s*))"
    r"(?:(?P<quote>[\"'])(?!\*)(?:(?!(?P=quote)).){4,1000}(?P=quote)"
    r"|(?P<open>[\"']?)(?!\*)[^\s&\"'<>,;)\]}#]{4,})",
    re.IGNORECASE,
)
"""A URL parameter, variable or JSON field with the name of a secret; its value may be quoted."""


def holds_token(text: str) -> bool:
    """Whether a text certainly holds an access token."""
    return _without_known(text) != text


def redacted(text: str) -> str:
    """``text`` without access tokens, and without secrets in URLs, headers or variables.

    >>> redacted("GET https://me:pass@host/a?token=abcd1234 with Bearer abcdefgh12345678")
    'GET https://***@host/a?token=*** with Bearer ***'
    """
    text = HEADER.sub(r"\1\2***", _without_known(text))
    return NAMED.sub(_hidden, USER.sub(r"\1***@", text))


def _hidden(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    return f"{found[1]}{found['open'] or quote}{HIDDEN}{quote}"


def _without_known(text: str) -> str:
    for name, value in os.environ.items():
        if len(value.strip()) >= 8 and re.fullmatch(SECRET, name, re.IGNORECASE):
            text = text.replace(value.strip(), HIDDEN)
    return KNOWN.sub(lambda found: f"{found[1] or found[2]}***", text)
