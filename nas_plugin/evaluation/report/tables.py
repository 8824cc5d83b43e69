"""The tables that compare runs, and those behind charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nas_plugin.evaluation import stability
from nas_plugin.evaluation.logs import LoggedCheckpoint, Statistic
from nas_plugin.evaluation.report.content import ABSENT, Row, Table, number, short
from nas_plugin.evaluation.report.runs import Run, by_method

_PARTS = ("score", "efficacy", "generalization", "specificity")


def headline(runs: Sequence[Run]) -> Table:
    """Sum up every run in a row, those that could not run included.

    Args:
        runs: All runs.

    Returns:
        One group per method.
    """
    used = {
        named[0] for run in runs if run.last for part in _PARTS if (named := stability.headline(run.last.final, part))
    }
    cohorts = sorted({run.log.cohort for run in runs if run.available})
    columns = (
        "run", "collapse point", "score, %", "efficacy, %", "generalization, %", "specificity, %",
        f"score of the first {' or '.join(map(str, cohorts))}, %", "‖Wₙ‖/‖W₀‖", "seconds per edit", "edits",
    )  # fmt: skip
    text = (
        "At each run's last checkpoint. Collapse point: first checkpoint with a score of 60 or less, so the model broke down "
        "somewhere between it and the one before. First edits: when all of them had been written → at the end."
    )
    if used:
        text += f" Measured as {', '.join(sorted(used))}; defined below."
    groups = (tuple(_headline_row(run) for run in members) for members in by_method(runs).values())
    return Table("Results", columns, tuple(groups), text)


def growth(runs: Sequence[Run]) -> Table:
    """Give the norm growth of each layer, its fit and its correlation with the score.

    Args:
        runs: Runs that were measured.

    Returns:
        One group per method.
    """
    rows = {}
    for run in runs:
        total = run.growth[stability.TOTAL]
        layers = [
            f"{layer}: {short(line.values[-1])}" for layer, line in run.growth.items() if layer != stability.TOTAL
        ]
        fit = stability.log_linear_fit(total)
        rho = stability.norm_score_correlation(total, run.scores)
        cells = (
            short(total.values[-1]) if len(total.values) else ABSENT,
            ", ".join(layers) or ABSENT,
            short(1000 * fit.slope if fit else None),
            number(fit.intercept if fit else None, 3),
            number(fit.r_squared if fit else None, 3),
            number(rho, 2),
        )
        rows[run.symbol] = Row(run.label, cells, run.symbol)
    text = (
        "Rₙ = ‖Wₙ‖/‖W₀‖ (Frobenius) at the last checkpoint, over all edited layers and in each; least-squares line through "
        "log Rₙ against n; Spearman's rank correlation of Rₙ with the score over the checkpoints."
    )
    columns = ("run", "Rₙ", "Rₙ per layer", "slope per 1000 edits", "intercept", "R²", "ρ(Rₙ, score)")
    return Table("Norm growth", columns, _grouped(runs, rows), text)


def success(runs: Sequence[Run]) -> Table | None:
    """Set success with the answer given and success in free writing side by side, at three times.

    Args:
        runs: Runs that were measured.

    Returns:
        One group per method, None if no efficacy was measured.
    """
    names = sorted({name for run in runs if run.last for name in run.last.final if name.startswith("efficacy/")})
    rows = {}
    for run in runs:
        times = (run.immediate, run.last.final if run.last else {}, run.last.cohort if run.last else {})
        cells = tuple(number(_mean(statistics, name)) for name in names for statistics in times)
        rows[run.symbol] = Row(run.label, cells, run.symbol)
    if not names:
        return None
    text = (
        "In %, by every protocol that was measured: with the answer given (teacher forcing) and written freely. At once: "
        "right after the edit's own step. All: over all edits, at the last checkpoint. First: over the first edits, there."
    )
    columns = ("run", *(time for _ in names for time in ("at once", "all", "first")))
    return Table("Efficacy", columns, _grouped(runs, rows), text, tuple((name, 3) for name in names))


def value_norms(runs: Sequence[Run]) -> Table:
    """Describe the solved values of each run.

    Args:
        runs: Runs that solved values.

    Returns:
        One group per method.
    """
    rows = {}
    for run in runs:
        if norms := run.value_norms:
            cells = (
                short(run.log.anchor), f"{short(norms.mean)} ± {short(norms.std)}", short(norms.median),
                f"{short(norms.minimum)} – {short(norms.maximum)}", number(norms.trend, 2), str(norms.skipped),
                str(norms.non_finite),
            )  # fmt: skip
            rows[run.symbol] = Row(run.label, cells, run.symbol)
    text = (
        "Norms of the values as solved. Trend: Spearman's rank correlation with the number of the edit. Skipped: edits of "
        "which nothing was written."
    )
    columns = ("run", "anchor", "mean ± std", "median", "range", "trend", "skipped", "not finite")
    return Table("Solved values", columns, _grouped(runs, rows), text)


def histogram(edges: NDArray[np.float64], counts: Sequence[tuple[str, NDArray[np.int64]]]) -> Table:
    """Tabulate a histogram.

    Args:
        edges: Edges of the bins, [bins + 1].
        counts: Label and counts, [bins], of each run.

    Returns:
        A row for every bin that is not empty.
    """
    rows = [
        Row(f"{short(low)} – {short(high)}", tuple(str(count[i]) for _, count in counts))
        for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True))
        if any(count[i] for _, count in counts)
    ]
    return Table("Edits by solved-value norm", ("norm", *(label for label, _ in counts)), (tuple(rows),))


def drift(measured: Sequence[tuple[str, Sequence[LoggedCheckpoint]]]) -> Table:
    """Tabulate how far hidden states moved, at every layer and checkpoint that measured it.

    Args:
        measured: Label and checkpoints of each run.

    Returns:
        One group per run.
    """
    groups = tuple(
        tuple(
            Row(label, (str(c.edits), layer, short(d.pca_distance), short(d.full_distance), short(d.spread)))
            for c in checkpoints
            for layer, d in c.drift.items()
        )
        for label, checkpoints in measured
    )
    columns = ("run", "edits", "layer", "distance of means in the plane", "in all dimensions", "spread")
    return Table("Drift of hidden states", columns, groups)


def capability(runs: Sequence[Run], task: str) -> Table:
    """Tabulate all metrics of a task at every checkpoint that measured it.

    Args:
        runs: Runs that measured it.
        task: The task.

    Returns:
        One group per run.
    """
    measured = {run.label: [c for c in run.log.checkpoints if task in c.capability] for run in runs}
    metrics = list(
        dict.fromkeys(name for checkpoints in measured.values() for c in checkpoints for name in c.capability[task])
    )
    groups = tuple(
        tuple(
            Row(label, (str(c.edits), *(short(c.capability[task].get(name)) for name in metrics))) for c in checkpoints
        )
        for label, checkpoints in measured.items()
    )
    return Table(task, ("run", "edits", *metrics), groups)


def along(title: str, columns: Sequence[tuple[str, Sequence[tuple[str, stability.Trajectory, int]]]]) -> Table:
    """Tabulate trajectories against edits.

    Args:
        title: Of the table.
        columns: A run's label with its trajectories, each with its name and decimals.

    Returns:
        A row for every number of edits that any of them has.
    """
    lines = [line for _, named in columns for line in named]
    known = [dict(zip(line.edits.tolist(), line.values.tolist(), strict=True)) for _, line, _ in lines]
    rows = [
        Row(str(n), tuple(number(values.get(n), digits) for values, (_, _, digits) in zip(known, lines, strict=True)))
        for n in sorted({n for values in known for n in values})
    ]
    spans = tuple((label, len(named)) for label, named in columns)
    return Table(title, ("edits", *(name for name, _, _ in lines)), (tuple(rows),), spans=spans)


def _headline_row(run: Run) -> Row:
    if not run.available:
        return Row(run.label, note=f"unavailable: {run.log.unavailable}")
    if run.last is None:
        return Row(run.label, symbol=run.symbol, note="nothing measured yet")
    kept = run.retention.kept(run.retention.score)
    parts = [stability.headline(run.last.final, part) for part in _PARTS]
    collapse = ABSENT if not len(run.scores.edits) else str(run.collapse or "none")
    cells = (
        collapse, *(number(named[1].mean) if named else ABSENT for named in parts),
        f"{number(kept[0])} → {number(kept[1])}" if kept else ABSENT,
        short(run.last.norm), short(stability.seconds_per_edit(run.log.edits)), str(run.last.edits),
    )  # fmt: skip
    return Row(run.label, cells, run.symbol)


def _grouped(runs: Sequence[Run], rows: Mapping[str, Row]) -> tuple[tuple[Row, ...], ...]:
    return tuple(tuple(rows[run.symbol] for run in members) for members in by_method(runs).values())


def _mean(statistics: Mapping[str, Statistic], name: str) -> float | None:
    return statistics[name].mean if name in statistics else None
