"""The plots of a card: PNG or SVG files, the same bytes for the same numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selectit_hf.analysis import Finished
from selectit_hf.report.check_plot import check_plot
from selectit_hf.report.figures import Form, figure_of, image_of, shortened

__all__ = [
    "agreement_plot",
    "card_plots",
    "lengths_plot",
    "rank_correlations",
    "score_edges",
    "scores_plot",
]

KEPT, OTHER, INK = "#2563eb", "#cbd5e1", "#1f2937"
SCORE_BINS = 60
NAME_LENGTH = 22


def card_plots(finished: Finished) -> Iterator[tuple[str, Callable[..., bytes]]]:
    """The plots of a finished selection's card: the name of each, and what draws it in a form."""
    facts = finished.facts
    scores = finished.scores.scores(finished.by)
    kept = finished.scores.column("selected").to_numpy()
    yield "scores", partial(scores_plot, scores, kept, facts["selection"]["threshold"])
    contrast = facts["contrast"]
    if contrast and contrast["selected"]["rows"] and contrast["rejected"]["rows"]:
        yield "lengths", partial(lengths_plot, contrast["response_characters"])
    names = [model["name"] for model in facts["models"]]
    columns = [f"sentence_score__{name}" for name in names]
    if len(names) > 1 and set(columns) <= set(finished.scores.features):
        found = rank_correlations([finished.scores.scores(column) for column in columns])
        yield "agreement", partial(agreement_plot, names, found)
    if facts.get("check"):
        yield "check", partial(check_plot, facts["check"])


def scores_plot(
    scores: NDArray[np.float64],
    kept: NDArray[np.bool_],
    threshold: float | None,
    form: Form = "png",
) -> bytes:
    """A histogram of the scores, with the threshold; rows without a score are left out."""
    found = scores[np.isfinite(scores)]
    edges = score_edges(found, threshold)
    counts, _ = np.histogram(found, edges)
    figure, axes = figure_of(5.6, 3.0)
    axes.stairs(counts, edges, fill=True, color=OTHER, label="not kept")
    if threshold is not None:
        best, _ = np.histogram(scores[kept], edges)
        axes.stairs(best, edges, fill=True, color=KEPT, label="kept")
        axes.axvline(threshold, color=INK, linewidth=1, linestyle="--")
        axes.annotate(
            f"threshold {threshold:.3f}",
            (threshold, 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(5, 0),
            textcoords="offset points",
            va="top",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    _finish(axes, "score", "rows")
    return image_of(figure, form)


def score_edges(scores: NDArray[np.float64], threshold: float | None) -> NDArray[np.float64]:
    """The edges of bins for ``scores``, with one at the threshold: no bin holds both kinds."""
    edges = np.histogram_bin_edges(scores, SCORE_BINS)
    if threshold is None or not edges[0] < threshold <= edges[-1]:
        return edges
    width = edges[1] - edges[0]
    below = np.arange(np.ceil((threshold - edges[0]) / width), 0, -1)
    above = np.arange(1, np.floor((edges[-1] - threshold) / width) + 2)
    return np.concatenate([threshold - width * below, [threshold], threshold + width * above])


def lengths_plot(histogram: Mapping[str, Sequence[float]], form: Form = "png") -> bytes:
    """Response lengths of kept and rejected rows, each group as a share of its rows."""
    figure, axes = figure_of(5.6, 3.0)
    edges = np.asarray(histogram["edges"])
    for name, label, color in (("rejected", "not kept", OTHER), ("selected", "kept", KEPT)):
        counts = np.asarray(histogram[name], dtype=np.float64)
        share = 100 * counts / max(counts.sum(), 1)
        axes.stairs(share, edges, fill=name == "rejected", color=color, label=label, linewidth=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    _finish(axes, "characters of the response (log scale)", "% of the group")
    return image_of(figure, form)


def agreement_plot(
    names: Sequence[str], correlations: NDArray[np.float64], form: Form = "png"
) -> bytes:
    """How similarly the models rank the rows: Spearman's correlation of each pair."""
    count = len(names)
    side = 1.6 + 0.9 * count
    figure, axes = figure_of(side + 1.4, side)
    axes.imshow(correlations, cmap="Blues", vmin=-0.2, vmax=1.2)
    short = [shortened(name, NAME_LENGTH) for name in names]
    axes.set_xticks(range(count), short, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(count), short, fontsize=8)
    for (row, column), value in np.ndenumerate(correlations):
        color = "white" if value > 0.7 else INK
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    axes.tick_params(length=0)
    return image_of(figure, form)


def rank_correlations(scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Spearman's correlation of each pair of models, over the rows that all of them rated."""
    table = np.stack(scores)
    table = table[:, np.isfinite(table).all(axis=0)]
    if table.shape[1] < 2:
        return np.eye(len(table))
    with np.errstate(divide="ignore", invalid="ignore"):  # a model whose scores are all equal
        found = np.corrcoef([_ranks(row) for row in table])
    return np.asarray(np.nan_to_num(np.atleast_2d(found)))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks, with the mean rank where values are equal."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def _finish(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.yaxis.set_major_formatter(
        lambda value, _: f"{value:,.0f}" if value == round(value) else f"{value:g}"
    )
    axes.legend(frameon=False, fontsize=9)
