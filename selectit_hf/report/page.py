"""The report page of a finished run: one HTML file that shows what was kept and why.

The page loads nothing from other files or servers: its Content-Security-Policy forbids it, and
allows only the embedded scripts. Texts of rows are embedded as JSON and shown as text, never as
HTML.
"""

import base64
import hashlib
import json
import posixpath
import re
import shlex
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from selectit_hf.analysis import Finished, check_unchanged, from_run
from selectit_hf.report.charts import ablation_figures, bokeh_script, figures, on_page
from selectit_hf.report.check_plot import check_plot
from selectit_hf.report.data import gather
from selectit_hf.report.figures import Form
from selectit_hf.report.plots import card_plots
from selectit_hf.report.words import (
    cautions,
    cut_words,
    level_of,
    points_words,
    reason,
    select_command,
    weights_of,
)
from selectit_hf.runs import Run, open_results, open_store
from selectit_hf.selection import cut_flags
from selectit_hf.templates import templates

__all__ = ["PAGE", "render", "write_report"]

PAGE = "report/report.html"
"""Where the page lies in a run folder."""
POLICY = "default-src 'none'; script-src {}; style-src 'unsafe-inline'; img-src data:; \
base-uri 'none'; form-action 'none'"


def write_report(
    run: Run | str | Path,
    dataset: Dataset,
    out: str | Path | None = None,
    *,
    embeddings: str | None = None,
    ablation: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = None,
) -> str:
    """Write ``report.html``, and the plots of the card as PNG and SVG files.

    Args:
        run: a finished run, its folder or its URL.
        dataset: the rows that were rated, with all their columns.
        out: the folder to write to, or its URL; by default ``report`` in the run folder.
        embeddings: a column of embeddings to draw the map from, instead of the rows' words.
        ablation: what other settings would have kept, to be drawn; see
            `selectit_hf.analysis.ablation.Ablation.to_dict`.
        tell: called with each reason not to trust the scores that the page gives.

    Returns:
        The path or URL of the page.

    Raises:
        RunError: the run is not finished, its files do not belong together, or another process
            selected from it meanwhile.
        InputError: ``dataset`` is not what was rated, or ``embeddings`` is not a column of
            embeddings.
        SettingError: bokeh, scikit-learn or matplotlib is not installed.
    """
    run = run if isinstance(run, Run) else open_results(run)
    finished = from_run(run)
    page = render(finished, dataset, embeddings=embeddings, ablation=ablation, tell=tell)
    forms: tuple[Form, ...] = ("png", "svg")
    plots = [(name, form, draw(form)) for name, draw in card_plots(finished) for form in forms]
    check_unchanged(run, finished)
    folder, file = posixpath.split(PAGE)
    store, inside = (run.results, f"{folder}/") if out is None else (open_store(out), "")
    for name, form, image in plots:
        store.write(f"{inside}images/{name}.{form}", image)
    store.write(f"{inside}{file}", page.encode())
    return f"{store}/{inside}{file}"


def render(
    finished: Finished,
    dataset: Dataset,
    *,
    embeddings: str | None = None,
    ablation: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = None,
) -> str:
    """The page of a finished selection as HTML; see `write_report`."""
    bokeh, script = bokeh_script(), _piece("report.js")
    data = gather(finished, dataset, embeddings)
    doubts = cautions(finished, data)
    if tell is not None:
        for words in doubts:
            tell(words)
    curves = ablation_figures(ablation or {})
    drawn = figures(data.numbers["points"]["count"], data.explained)
    drawn |= {f"ablation {i}": chart for i, chart in enumerate(curves.values())}
    numbers = data.numbers | {"charts": {name: on_page(name, one) for name, one in drawn.items()}}
    return _environment().get_template("report.html.jinja").render(
        **{"check": None, **finished.facts},
        check_image=_check_image(finished),
        policy=POLICY.format(" ".join(map(_hash, (bokeh, script)))),
        style=Markup(_piece("report.css")),
        bokeh=Markup(bokeh),
        script=Markup(script),
        numbers=numbers,
        numbers_json=Markup(_json(numbers)),
        version=version("selectit-hf"),
        reason=reason(finished),
        command=select_command(finished),
        cut_flag=shlex.join(cut_flags(finished.facts["selection"]["cut"])),
        level=level_of(finished),
        cut=cut_words(finished),
        weights=", ".join(f"{weight:.3f}" for weight in weights_of(finished)),
        warnings=doubts,
        points=points_words(data),
        between_models=data.models,
        between_prompts=data.prompts,
        embeddings=data.embeddings,
        explained=sum(data.explained or ()),
        categories=data.categories,
        ablations=list(curves),
    )  # fmt: skip


def _check_image(finished: Finished) -> str:
    """The plot of the trust check as an image in the page; empty without one."""
    facts = finished.facts.get("check")
    if not facts:
        return ""
    return f"data:image/png;base64,{base64.b64encode(check_plot(facts)).decode('ascii')}"


# The file


def _json(numbers: Mapping[str, Any]) -> str:
    """JSON for a script element: nothing in it can end or begin one."""
    text = json.dumps(numbers, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", _as_escape, text)


def _as_escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@cache
def _piece(name: str) -> str:
    return templates().joinpath(name).read_text("utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_piece),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "percent": "{:.1%}".format,
        "decimals": lambda number, digits=4: f"{number:.{digits}f}",
    }
    return environment
