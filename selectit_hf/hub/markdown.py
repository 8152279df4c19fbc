"""Values as Markdown: escaped, as code or as links, and the environment that renders a card.

Values come from people, datasets and models, so every value that a template prints is escaped for
Markdown and HTML unless a filter already did.
"""

import re
from functools import cache

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from selectit_hf.rating import OF_BASE
from selectit_hf.templates import templates

__all__ = ["HUB_NAME", "environment", "escaped", "one_line"]

HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
UNKNOWN = "\ufffd"


def one_line(text: str) -> str:
    """A text on one line, without characters that change how others look."""
    return " ".join(UNSEEN.sub(UNKNOWN, text).split())


def escaped(value: object) -> Markup:
    """A value as inline Markdown that shows exactly its characters, on one line."""
    text = str(Markup.escape(one_line(str(value))))
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)
    text = text.replace("$", "&#36;").replace("@", "&#64;").replace("://", "&#58;//")
    text = re.sub(r"\b(www)\.", r"\1&#46;", text, flags=re.IGNORECASE)
    return Markup(re.sub(r"^([-+=#]|\d+(?=[.)](\s|$)))", _as_entity, text))


def _as_entity(match: re.Match[str]) -> str:
    return f"&#{ord(match[0][0])};{match[0][1:]}"


def _lines(value: object) -> Markup:
    """Text of several lines inside a list item."""
    return Markup("<br>").join(escaped(line) for line in str(value).splitlines() if line.strip())


def _block(value: object, language: str = "") -> Markup:
    """Text as a block of code: fenced, or as HTML if the text could close the fence."""
    text = UNSEEN.sub(UNKNOWN, str(value))
    if re.search(r"[<&]|```|~~~", text):
        shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return Markup(f"<pre><code>{shown}</code></pre>")
    return Markup(f"```{language}\n{text}\n```")


def _dataset_link(name: str, revision: str) -> Markup:
    return _link(name, f"https://huggingface.co/datasets/{name}/tree/{revision}", revision)


def _model_link(name: str, revision: str) -> Markup:
    own = revision.partition(OF_BASE)[0]
    return _link(name, f"https://huggingface.co/{name}/tree/{own}", own)


def _link(name: str, address: str, revision: str) -> Markup:
    linked = HUB_NAME.fullmatch(name) and re.fullmatch(r"[0-9a-f]{40}", revision)
    return Markup(f"[{escaped(name)}]({address})") if linked else escaped(name)


def _decimals(number: float, digits: int = 4) -> str:
    return f"{number:.{digits}f}"


def _short(revision: str) -> str:
    """A revision that fits on a phone; the manifest has all of it."""
    parts = revision.split(OF_BASE)
    short = (part[:23] + "…" if part.startswith("sha256:") else part for part in parts)
    return ", of its base ".join(short)


@cache
def environment() -> Environment:
    """Renders the templates of `hub_cards`."""
    environment = Environment(
        loader=FunctionLoader(lambda name: templates().joinpath(name).read_text("utf-8")),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else escaped(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "block": _block,
        "lines": _lines,
        "count": "{:,}".format,
        "short": _short,
        "percent": "{:.1%}".format,
        "decimals": _decimals,
    }
    environment.globals |= {"dataset_link": _dataset_link, "model_link": _model_link}
    return environment
