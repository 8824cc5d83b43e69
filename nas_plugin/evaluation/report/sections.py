"""The parts of the page, each from the runs that have something to show in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from nas_plugin.evaluation.logs import Drift, LoggedCheckpoint
from nas_plugin.evaluation.report import charts, tables
from nas_plugin.evaluation.report.axes import Range
from nas_plugin.evaluation.report.charts import HEIGHT, WIDTH, Line
from nas_plugin.evaluation.report.content import Key, Panel, Section, Table, short
from nas_plugin.evaluation.report.runs import Run, by_method, longest
from nas_plugin.evaluation.report.svg import draw
from nas_plugin.evaluation.stability import TOTAL, Trajectory

BEFORE = "before"
"""Identifier of the unedited model's line sample."""
# Percentages. Where a task has several metrics, the first of these is drawn; its table has them all.
_CHARTED = ("acc", "f1")
_Shown = tuple[list[Key], Table, Callable[[Any], None]]


def trajectories(runs: Sequence[Run]) -> Section | None:
    """Show score and norm growth along the stream, one chart a method.

    Args:
        runs: Runs that could run.

    Returns:
        The section, None if nothing was measured.
    """
    runs = [run for run in runs if run.last]
    if not runs:
        return None
    edits = longest(runs)
    norms = Range.around([norm for run in runs for norm in run.growth[TOTAL].values], low=1.0)

    def show(members: list[Run]) -> _Shown:
        lines = [(run.label, (("score, %", run.scores, 1), ("‖Wₙ‖/‖W₀‖", run.growth[TOTAL], 3))) for run in members]
        return (
            [_key(run, _collapse(run)) for run in members],
            tables.along("Score and norm ratio", lines),
            partial(charts.paint_trajectories, runs=members, edits=edits, norms=norms),
        )

    text = (
        "Coloured, left axis: score over all edits so far. Grey, right axis: norm of the edited weights over that of the "
        "unedited ones. Solid with norm anchoring, dashed without. A large dot and its number mark the collapse point: the "
        "first checkpoint with a score of 60 or less. All charts share their axes."
    )
    panels = _per_method("trajectory", "score and norm growth against edits", runs, show)
    return Section("trajectories", "Score and norm growth", text, panels=panels, tables=(tables.growth(runs),))


def retention(runs: Sequence[Run]) -> Section | None:
    """Show what became of the first edits.

    Args:
        runs: Runs that could run.

    Returns:
        The section, None if nothing was measured.
    """
    runs = [run for run in runs if len(run.retention.score.edits)]
    if not runs:
        return None
    edits = longest(runs)

    def show(members: list[Run]) -> _Shown:
        kept = [(run, run.retention.kept(run.retention.score)) for run in members]
        parts = [(run.label, run.retention) for run in members]
        lines = [(label, (("score, %", part.score, 1), ("efficacy, %", part.efficacy, 1))) for label, part in parts]
        return (
            [_key(run, f"{ends[0]:.0f} → {ends[1]:.0f}" if ends else "") for run, ends in kept],
            tables.along("The first edits", lines),
            partial(
                charts.paint_lines,
                lines=[Line(run.retention.score, run.style) for run in members],
                edits=edits,
                values=Range(0, 100),
                name="score of the first edits, %",
                marks=sorted({run.log.cohort for run in members}),
            ),
        )

    cohorts = " or ".join(str(cohort) for cohort in sorted({run.log.cohort for run in runs}))
    text = (
        f"The first {cohorts} edits of the stream, asked about again at every checkpoint. The dotted line is where all of "
        "them had been written; the numbers are the score there and at the end."
    )
    panels = _per_method("retention", "score of the first edits against all edits", runs, show)
    success = tables.success(runs)
    return Section(
        "retention", "Are the first edits still there?", text, panels=panels, tables=(success,) if success else ()
    )


def value_norms(runs: Sequence[Run]) -> Section | None:
    """Show how large the solved values were.

    Args:
        runs: Runs that could run.

    Returns:
        The section, None if no editor solved values.
    """
    logged = {run.symbol: np.array([e.value_norm for e in run.log.edits if e.value_norm is not None]) for run in runs}
    norms = {symbol: values[np.isfinite(values)] for symbol, values in logged.items()}
    runs = [run for run in runs if len(norms[run.symbol])]
    if not runs:
        return None
    anchors = np.array([run.log.anchor for run in runs if run.log.anchor is not None])
    edges, logarithmic = charts.bin_edges([anchors, *(norms[run.symbol] for run in runs)])
    counts = {run.symbol: np.histogram(norms[run.symbol], edges)[0] for run in runs}
    highest = max(int(count.max()) for count in counts.values())

    def show(members: list[Run]) -> _Shown:
        return (
            [_key(run, f"median {short(float(np.median(norms[run.symbol])))}") for run in members],
            tables.histogram(edges, [(run.label, counts[run.symbol]) for run in members]),
            partial(
                charts.paint_histogram,
                counts=[(counts[run.symbol], run.style) for run in members],
                edges=edges,
                highest=highest,
                logarithmic=logarithmic,
                anchors=sorted({run.log.anchor for run in members if run.log.anchor is not None}),
            ),
        )

    text = (
        "How many edits had a solved value v* of which norm. With norm anchoring every value is rescaled to the anchor "
        "before it is written; what is counted is the value as solved. All charts share their axes."
    )
    panels = _per_method("values", "how many edits had which solved-value norm", runs, show)
    return Section("values", "Norms of the solved values", text, panels=panels, tables=(tables.value_norms(runs),))


def drift(runs: Sequence[Run]) -> Section | None:
    """Show how the hidden states of held-out prompts moved.

    Args:
        runs: Runs that could run.

    Returns:
        The section, None if drift was not measured before and after.
    """
    measured = {run.symbol: [c for c in run.log.checkpoints if c.drift] for run in runs}
    # Runs whose clouds before the edits differ were seen in different planes and must not share a chart.
    planes: dict[tuple[str, str, bytes], list[Run]] = {}
    for run in runs:
        if len(measured[run.symbol]) > 1 and measured[run.symbol][0].edits == 0:
            layer, before = list(measured[run.symbol][0].drift.items())[-1]
            planes.setdefault((run.log.method, layer, np.round(before.cloud, 3).tobytes()), []).append(run)
    panels = [
        _panel(
            f"drift-{number}",
            f"{method}, layer {layer}",
            "hidden states before and after the edits",
            _drifted(members, measured, layer),
        )
        for number, ((method, layer, _), members) in enumerate(planes.items())
    ]
    text = (
        "Hidden states of held-out prompts at the last edited layer, in the plane of the first two principal components "
        "before the edits. Ellipses hold 95 % of a normal distribution with a cloud's mean and covariance; crosses are "
        "means. Each chart has its own scale, the same in both directions."
    )
    return Section("drift", "Drift of hidden states", text, panels=tuple(panels)) if panels else None


def perplexity(runs: Sequence[Run]) -> Section | None:
    """Show perplexity on held-out text along the stream.

    Args:
        runs: Runs that could run.

    Returns:
        The section, None if it was not measured.
    """
    lines = {run.symbol: _measured(run, lambda checkpoint: checkpoint.perplexity) for run in runs}
    runs = [run for run in runs if len(lines[run.symbol].edits)]
    if not runs:
        return None
    edits = longest(runs)
    span = Range.around([value for run in runs for value in lines[run.symbol].values])

    def show(members: list[Run]) -> _Shown:
        ends = [(run, lines[run.symbol].values) for run in members]
        return (
            [_key(run, f"{short(values[0])} → {short(values[-1])}") for run, values in ends],
            tables.along("Perplexity", [(run.label, (("perplexity", lines[run.symbol], 2),)) for run in members]),
            partial(
                charts.paint_lines,
                lines=[Line(lines[run.symbol], run.style) for run in members],
                edits=edits,
                values=span,
                name="perplexity",
            ),
        )

    text = "On held-out text, with the first and the last measurement. All charts share their axes."
    return Section(
        "perplexity", "Perplexity", text, panels=_per_method("perplexity", "perplexity against edits", runs, show)
    )


def capabilities(runs: Sequence[Run]) -> Section | None:
    """Show what else the model still can do, one chart a task.

    Args:
        runs: Runs that could run.

    Returns:
        The section, None if it was not measured.
    """
    runs = [run for run in runs if any(c.capability for c in run.log.checkpoints)]
    tasks = dict.fromkeys(task for run in runs for c in run.log.checkpoints for task in c.capability)
    panels = [
        _panel(f"capability-{number}", task, "result against edits", _task(runs, task))
        for number, task in enumerate(tasks)
    ]
    text = "Benchmarks that have nothing to do with the edits. Solid with norm anchoring, dashed without."
    keys = tuple(_key(run) for run in runs)
    return Section("capabilities", "Capabilities", text, keys=keys, panels=tuple(panels)) if panels else None


def _drifted(members: Sequence[Run], measured: dict[str, list[LoggedCheckpoint]], layer: str) -> _Shown:
    def moved(checkpoint: LoggedCheckpoint) -> str:
        distances: Drift = checkpoint.drift[layer]
        plane, full = short(distances.pca_distance), short(distances.full_distance)
        return f"after {checkpoint.edits}, means {plane} apart in the plane, {full} in all dimensions"

    last = [(run, measured[run.symbol][-1]) for run in members]
    return (
        [Key(BEFORE, "before the edits"), *(_key(run, moved(checkpoint)) for run, checkpoint in last)],
        tables.drift([(run.label, measured[run.symbol]) for run in members]),
        partial(
            charts.paint_drift,
            before=measured[members[0].symbol][0].drift[layer],
            after=[(checkpoint.drift[layer], run.style) for run, checkpoint in last],
        ),
    )


def _task(runs: Sequence[Run], task: str) -> _Shown:
    runs = [run for run in runs if any(task in c.capability for c in run.log.checkpoints)]
    names = {name for run in runs for c in run.log.checkpoints for name in c.capability.get(task, {})}
    metric = min(names, key=lambda name: (_CHARTED.index(name) if name in _CHARTED else len(_CHARTED), name))
    lines = [Line(_measured(run, lambda c: c.capability.get(task, {}).get(metric)), run.style) for run in runs]
    share = metric in _CHARTED
    span = Range(0, 100) if share else Range.around([value for line in lines for value in line.trajectory.values])
    name = f"{metric}, %" if share else metric
    paint = partial(charts.paint_lines, lines=lines, edits=longest(runs), values=span, name=name)
    return [], tables.capability(runs, task), paint


def _per_method(name: str, what: str, runs: Sequence[Run], show: Callable[[list[Run]], _Shown]) -> tuple[Panel, ...]:
    groups = enumerate(by_method(runs).items())
    return tuple(_panel(f"{name}-{number}", method, what, show(members)) for number, (method, members) in groups)


def _panel(name: str, title: str, what: str, shown: _Shown) -> Panel:
    keys, table, paint = shown
    said = [f"{key.label}: {key.remark}." for key in keys if key.remark]
    description = " ".join([*said, "The numbers are in the table below."])
    return Panel(title, draw(paint, WIDTH, HEIGHT, name, f"{title}: {what}", description), tuple(keys), table)


def _key(run: Run, remark: str = "") -> Key:
    return Key(run.symbol, run.label, remark)


def _collapse(run: Run) -> str:
    if not len(run.scores.edits):
        return "no score measured"
    return f"collapse at {run.collapse}" if run.collapse is not None else f"no collapse in {run.scores.edits[-1]} edits"


def _measured(run: Run, take: Callable[[LoggedCheckpoint], float | None]) -> Trajectory:
    found = [(c.edits, value) for c in run.log.checkpoints if (value := take(c)) is not None]
    return Trajectory(np.array([n for n, _ in found], np.int64), np.array([value for _, value in found], float))
