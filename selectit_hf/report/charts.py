"""The charts of a report page as Bokeh figures: axes and glyphs, which the page's script fills.

Glyphs are named after their colour: ``kept``, ``other``, and ``cut`` for the threshold. Their data
sources are named ``kept data`` and so on. The script also sets colours that differ between the
light and the dark theme.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from selectit_hf.errors import SettingError, how_to_install

__all__ = ["ablation_figures", "bokeh_script", "figures", "on_page"]

KEPT, OTHER, CUT = "#0072b2", "#b8bec6", "#d55e00"
"""Okabe and Ito's blue and vermillion, and a grey: distinct for any colour vision."""

POINT, SMALL_POINT, MANY = 4.5, 3, 3000
LABEL = 8
TICKS = 12
"""At most so many on the axis of a setting."""


def figures(points: int, explained: Sequence[float] | None) -> dict[str, Any]:
    """The charts of a page, by name.

    Args:
        points: the number of rows that are drawn as points.
        explained: the share of the variance along each axis of the map; ``None`` without a map.
    """
    size = POINT if points <= MANY else SMALL_POINT
    charts = {
        "scores": _scores(),
        "lengths": _shares("characters of the response (log scale)", "log"),
        "spread": _points("score", "standard deviation over the rating prompts", size),
    }
    if explained is not None:
        names = ("first", "second")
        axes = [
            f"{name} principal component ({100 * share:.0f} % of the variance)"
            for name, share in zip(names, explained, strict=True)
        ]
        charts["map"] = _points(axes[0], axes[1], size)
        charts["distance"] = _shares("distance to the centre", "linear")
    return charts


ABLATIONS = {
    "prompts": ("prompts", "mean", "rating prompts (mean of subsets)"),
    "alphas": ("alpha", "overlap", "alpha"),
    "proportions": ("proportion", "token_overlap", "proportion (one prompt alone)"),
    "variants": ("variant", "overlap", "variant"),
    "levels": ("level", "overlap", "level"),
}
"""For each part of an ablation: the setting, the share of the selection that stays, the title."""


def ablation_figures(ablation: Mapping[str, Any]) -> dict[str, Any]:
    """One chart for each setting that was varied, by name; non-numeric settings get no line.

    Args:
        ablation: see `Ablation`; parts with fewer than two points are left out.
    """
    charts = {}
    for part, (setting, share, name) in ABLATIONS.items():
        points = [(one[setting], one[share]) for one in ablation.get(part, ())]
        points = [(value, found) for value, found in points if found is not None]
        if len(points) > 1:
            charts[name] = _curve(name, points)
    return charts


def on_page(name: str, chart: Any) -> dict[str, Any]:
    """A chart in the form that the page's script embeds; saved, it is a file of its name."""
    from bokeh.embed import json_item
    from bokeh.models import SaveTool

    for tool in chart.select({"type": SaveTool}):
        tool.filename = f"selectit-{name.replace(' ', '-')}"
    return dict(json_item(chart))


@cache
def bokeh_script() -> str:
    """BokehJS itself, to be written into the page.

    Raises:
        SettingError: bokeh is not installed.
    """
    try:
        from bokeh.resources import Resources
    except ImportError as error:
        raise SettingError(
            f"The report needs bokeh and scikit-learn: {how_to_install('report')}."
        ) from error
    return "\n".join(Resources(mode="inline", components=["bokeh"], log_level="error").js_raw)


def _scores() -> Any:
    chart = _figure("score", "rows", height=300)
    for name, color in (("other", OTHER), ("kept", KEPT)):
        chart.quad(
            left="left",
            right="right",
            bottom=0,
            top="top",
            source=_source(name, "left", "right", "top"),
            fill_color=color,
            line_color=None,
            name=name,
        )
    chart.vspan("x", source=_source("cut", "x"), line_color=CUT, line_width=2, name="cut")
    return chart


def _shares(x: str, scale: str) -> Any:
    """Kept and other rows over a quantity, each group as a share of its rows."""
    from bokeh.models import NumeralTickFormatter

    chart = _figure(x, "% of the group", height=260, x_axis_type=scale)
    if scale == "log":
        chart.xaxis.formatter = NumeralTickFormatter(format="0,0")
    source = _source("other", "left", "right", "top")
    chart.quad(
        left="left",
        right="right",
        bottom=0,
        top="top",
        source=source,
        fill_color=OTHER,
        line_color=None,
        name="other",
    )
    source = _source("kept", "x", "y")
    chart.step("x", "y", source=source, mode="after", line_width=2, line_color=KEPT, name="kept")
    return chart


def _points(x: str, y: str, size: float) -> Any:
    from bokeh.models import HoverTool

    chart = _figure(x, y, height=380, tools="tap,box_zoom,pan,wheel_zoom,reset,save")
    for name, color in (("other", OTHER), ("kept", KEPT)):
        chart.scatter(
            "x",
            "y",
            source=_source(name, "x", "y", "row", "score"),
            size=size,
            fill_color=color,
            fill_alpha=0.7,
            nonselection_fill_alpha=0.7,
            line_color=None,
            name=name,
        )
    tips = [("row", "@row{0,0}"), ("score", "@score{0.0000}")]
    chart.add_tools(HoverTool(tooltips=tips, attachment="vertical"))
    chart.toolbar.active_drag = chart.toolbar.active_scroll = None
    return chart


def _curve(name: str, points: Sequence[tuple[float | str, float]]) -> Any:
    values, shares = [value for value, _ in points], [100 * share for _, share in points]
    named = any(isinstance(value, str) for value in values)
    texts: dict[str, Any] = {"x_range": _labels(values)} if named else {}
    chart = _figure(name, "% of the selection kept", height=260, **texts)
    if not named:
        chart.xaxis.ticker = _ticks(values)
        chart.line(values, shares, line_width=2, line_color=KEPT, name="kept")
    elif max(map(len, texts["x_range"])) > LABEL:
        chart.xaxis.major_label_orientation = 0.6
    at = texts.get("x_range", values)
    chart.scatter(at, shares, size=7, fill_color=KEPT, line_color=None, name="kept")
    chart.y_range.start, chart.y_range.end = 0, 105
    return chart


def _labels(values: Sequence[Any]) -> list[str]:
    """The values as texts; of one model's levels the levels alone, as in ``token:name``."""
    texts = [str(value) for value in values]
    levels = [text.partition(":")[0] for text in texts]
    return levels if len({*levels}) == len(levels) else texts


def _ticks(values: Sequence[Any]) -> list[Any]:
    """The values that get a tick: all that are not too close to the one before."""
    least = (max(values) - min(values)) / TICKS
    kept: list[Any] = []
    for value in sorted(values):
        if not kept or value - kept[-1] >= least:
            kept.append(value)
    return kept


def _source(name: str, *columns: str) -> Any:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource({column: [] for column in columns}, name=f"{name} data")


def _figure(x: str, y: str, height: int, tools: str = "save", **settings: Any) -> Any:
    from bokeh.plotting import figure

    chart = figure(
        height=height,
        sizing_mode="stretch_width",
        min_width=200,
        tools=tools,
        toolbar_location="right",
        x_axis_label=x,
        y_axis_label=y,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        **settings,
    )
    chart.toolbar.logo = None
    chart.xgrid.grid_line_color = None
    chart.yaxis.axis_line_color = chart.yaxis.major_tick_line_color = None
    for axis in chart.axis:
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font = axis.major_label_text_font = "system-ui, sans-serif"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
    return chart
