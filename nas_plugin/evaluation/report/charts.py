"""The charts, painted on a matplotlib figure in the palette's placeholder colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_plugin.evaluation.logs import Drift
from nas_plugin.evaluation.report.axes import SEVERAL, Range
from nas_plugin.evaluation.report.palette import placeholder
from nas_plugin.evaluation.report.runs import Run, Style
from nas_plugin.evaluation.stability import COLLAPSED, TOTAL, Trajectory

WIDTH, HEIGHT = 372, 250
"""Natural size of a chart, CSS pixels: what a telephone's page has room for."""
_INK, _MUTED, _LINE, _SURFACE = (placeholder(role) for role in ("ink", "muted", "line", "surface"))
_CHI2_95 = -2 * math.log(0.05)
"""95 % quantile of chi-squared with two degrees of freedom."""
_LONGEST_TITLE = 60
_BINS = 24
_MARKED = 8


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    trajectory: Trajectory
    style: Style


def paint_trajectories(figure: Any, runs: Sequence[Run], edits: int, norms: Range) -> None:
    """Paint score (left axis, coloured) and R_n (right axis, grey) against edits, collapse points marked (paper Fig. 6a).

    Args:
        figure: Where to paint.
        runs: Runs of one method.
        edits: End of the axis of edits.
        norms: Range of R_n.
    """
    scores = _axes(figure, edits, Range(0, 100), "score, %")
    growth = scores.twinx()
    growth.spines["right"].set_visible(True)
    growth.tick_params(axis="y", labelcolor=_MUTED)
    growth.set_title(norms.remark("‖Wₙ‖ / ‖W₀‖"), loc="right", fontsize=12, color=_MUTED)
    norms.apply(growth, "y")
    # Scores lie over norms, whichever axis was made first.
    scores.set_zorder(growth.get_zorder() + 1)
    scores.axhline(COLLAPSED, color=_MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    for run in runs:
        norm = run.growth[TOTAL]
        growth.plot(norm.edits, norm.values, color=_MUTED, linestyle=run.style.line, linewidth=1.1)
        _plot(scores, Line(run.scores, run.style))
        if run.collapse is not None:
            _mark_collapse(scores, run, run.collapse, edits)


def paint_lines(
    figure: Any, lines: Sequence[Line], edits: int, values: Range, name: str, marks: Sequence[int] = ()
) -> None:
    """Paint values against edits.

    Args:
        figure: Where to paint.
        lines: What to paint.
        edits: End of the axis of edits.
        values: Range of the values.
        name: What they are.
        marks: Numbers of edits with a vertical line.
    """
    axis = _axes(figure, edits, values, values.remark(name))
    for mark in marks:
        axis.axvline(mark, color=_MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    for line in lines:
        _plot(axis, line)


def bin_edges(norms: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], bool]:
    """Choose bins that fit several sets of values.

    Args:
        norms: Sets of finite values, not all of them empty.

    Returns:
        Edges, [bins + 1], and whether they are equal ratios apart rather than equal differences.
    """
    values = np.concatenate(norms)
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low >= SEVERAL:
        return np.geomspace(low, high, _BINS + 1), True
    if low == high:
        low, high = 0.95 * low, 1.05 * high
    return np.linspace(low, high, _BINS + 1), False


def paint_histogram(
    figure: Any,
    counts: Sequence[tuple[NDArray[np.int64], Style]],
    edges: NDArray[np.float64],
    highest: int,
    logarithmic: bool,
    anchors: Sequence[float],
) -> None:
    """Paint how often values had which norm, and the norm anchor.

    Args:
        figure: Where to paint.
        counts: Edits per bin, [bins], with the style of their run.
        edges: Edges of the bins, [bins + 1].
        highest: Largest count of any panel.
        logarithmic: Whether the edges are equal ratios apart.
        anchors: Norm anchors.
    """
    axis = _blank(figure, "edits")
    span = Range(edges[0], edges[-1], logarithmic)
    span.apply(axis, "x")
    axis.set(ylim=(0, 1.15 * highest), xlabel=span.remark("solved |v*|"))
    for heights, style in ((np.where(count, count, np.nan), style) for count, style in counts):
        axis.stairs(heights, edges, fill=True, color=placeholder(style.hue), alpha=0.16, linewidth=0)
        axis.stairs(heights, edges, linewidth=1.8, color=placeholder(style.hue), linestyle=style.line)
    for anchor in anchors:
        axis.axvline(anchor, color=_INK, linewidth=1.5)
        to_left = axis.transLimits.transform(axis.transScale.transform((anchor, 1)))[0] > 0.6
        axis.annotate(
            f"anchor {anchor:.3g}", (anchor, 1), (-4 if to_left else 4, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", ha="right" if to_left else "left",
        )  # fmt: skip


def ellipse_of(cloud: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find where 95 % of a normal distribution with the cloud's mean and covariance lie.

    Args:
        cloud: Points, [n, 2], n > 1.

    Returns:
        The centre, [2], and points of the ellipse's outline, [points, 2].
    """
    centre = cloud.mean(0)
    variances, directions = np.linalg.eigh(np.cov(cloud.T))
    angles = np.linspace(0, 2 * np.pi, 73)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    radii = np.sqrt(_CHI2_95 * variances.clip(min=0))
    return centre, centre + (circle * radii) @ directions.T


def paint_drift(figure: Any, before: Drift, after: Sequence[tuple[Drift, Style]]) -> None:
    """Paint hidden states of held-out prompts before and after the edits (paper Fig. 4).

    Args:
        figure: Where to paint.
        before: Of the unedited model.
        after: Of edited ones, in the same plane.
    """
    axis = _blank(figure, "second component")
    axis.set(xlabel="first component", aspect="equal")
    axis.set_adjustable("datalim")
    for drift, style in [(before, Style("muted", "o", "-")), *after]:
        points = np.asarray(drift.cloud, float).reshape(-1, 2)
        points = points[np.isfinite(points).all(1)]
        colour = placeholder(style.hue)
        hollow = {"facecolors": "none", "edgecolors": colour} if style.line != "-" else {"color": colour}
        axis.scatter(*points.T, s=7, marker=style.marker, alpha=0.45, linewidths=0.7, **hollow)
        if len(points) > 1:
            centre, outline = ellipse_of(points)
            axis.plot(*outline.T, linewidth=1.6, color=colour, linestyle=style.line)
            axis.plot(*centre, marker="X", markersize=7, color=colour, markeredgecolor=_SURFACE)


def paint_symbol(figure: Any, style: Style) -> None:
    """Paint the sample of a line for legends.

    Args:
        figure: Where to paint.
        style: Of the line.
    """
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set(xlim=(0, 1), ylim=(-1, 1))
    axis.plot([0, 1], [0, 0], **style.keywords())
    axis.plot([0.5], [0], marker=style.marker, markersize=6, color=placeholder(style.hue))


def _mark_collapse(axis: Any, run: Run, point: int, edits: int) -> None:
    colour = placeholder(run.style.hue)
    height = np.nan_to_num(run.scores.values[run.scores.edits == point][0])
    axis.axvline(point, color=colour, linewidth=0.8)
    axis.plot([point], [height], marker="o", markersize=9, color=colour, markeredgecolor=_SURFACE, markeredgewidth=1.5)
    # Scores fall: there is room below and to the left of the point, or above it where the axis leaves none.
    room = point > 0.15 * edits
    axis.annotate(
        str(point), (point, height), (-7, -16) if room else (7, 8), textcoords="offset points",
        ha="right" if room else "left", fontweight="bold", bbox={"facecolor": _SURFACE, "edgecolor": "none", "pad": 1},
    )  # fmt: skip


def _blank(figure: Any, name: str) -> Any:
    axis = figure.subplots()
    # Of a task's metric it is a name from a log: no formula, and only what a drawing can hold.
    shown = "".join(sign if sign.isprintable() else " " for sign in name[:_LONGEST_TITLE])
    axis.set_title(shown, loc="left", fontsize=12, parse_math=False)
    axis.tick_params(length=3, labelsize=11)
    axis.grid(True, axis="y")
    return axis


def _axes(figure: Any, edits: int, values: Range, name: str) -> Any:
    from matplotlib.ticker import MaxNLocator

    axis = _blank(figure, name)
    values.apply(axis, "y")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=(1, 2, 5, 10)))
    axis.set(xlabel="edits", xlim=(0, max(1, edits) * 1.02))
    return axis


def _plot(axis: Any, line: Line) -> None:
    points = len(line.trajectory.edits)
    every = list(range(points - 1, -1, -max(1, points // _MARKED)))
    axis.plot(
        line.trajectory.edits, line.trajectory.values, marker=line.style.marker, markersize=4, markevery=every,
        **line.style.keywords(),
    )  # fmt: skip
