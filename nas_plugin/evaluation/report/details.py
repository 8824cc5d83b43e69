"""The tables about one run, and the definitions of what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nas_plugin.evaluation.logs import Statistic
from nas_plugin.evaluation.report.content import ABSENT, Row, Table, number
from nas_plugin.evaluation.report.runs import Run


def metrics(run: Run) -> Table:
    """List all metrics of a run at all times.

    Args:
        run: A run.

    Returns:
        One row per metric.
    """
    first = run.log.checkpoints[0] if run.log.checkpoints and run.log.checkpoints[0].edits == 0 else None
    unedited: Mapping[str, Statistic] = (first.cohort or first.final) if first else {}
    final, cohort = (run.last.final, run.last.cohort) if run.last else ({}, {})
    rows = [
        Row(name, tuple(_spread(name, statistics.get(name)) for statistics in (unedited, run.immediate, final, cohort)))
        for name in dict.fromkeys([*final, *cohort, *run.immediate, *unedited])
    ]
    text = "Mean ± population standard deviation over cases (number of cases). 0 to 100 unless the definition says otherwise."
    columns = ("metric", "unedited model", "right after the edit", "at the end", f"first {run.log.cohort} at the end")
    return Table("All metrics", columns, (tuple(rows),), text)


def settings(run: Run) -> Table:
    """List how a run was made.

    Args:
        run: A run.

    Returns:
        One row per fact; hyperparameters last.
    """
    log = run.log
    facts: list[tuple[str, Any]] = [
        ("command", log.command), ("model", log.model),
        *((f"stream: {name}", value) for name, value in log.stream.items()),
        ("edits per step", log.edits_per_step), ("checkpoints after", ", ".join(map(str, log.grid))),
        ("norm anchor", log.anchor), ("status", log.status),
    ]  # fmt: skip
    groups = (
        tuple(Row(name, (_text(value),)) for name, value in facts),
        tuple(Row(f"version of {name}", (_text(value),)) for name, value in log.versions.items()),
        tuple(Row(name, (_text(value),)) for name, value in log.hparams.items()),
    )
    return Table("How it was run", ("setting", "value"), tuple(group for group in groups if group), prose=True)


def protocols(runs: Sequence[Run]) -> Table:
    """Define every metric, as the runs define it.

    Args:
        runs: All runs.

    Returns:
        One row per definition; a metric that runs define differently has several.
    """
    defined: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for name, definition in run.log.protocols.items():
            defined.setdefault((name, _text(definition)), []).append(run.label)
    several = {name for name, _ in defined if sum(other == name for other, _ in defined) > 1}
    rows = [
        Row(f"{name} ({', '.join(labels)})" if name in several else name, (definition,))
        for (name, definition), labels in sorted(defined.items())
    ]
    return Table("Definitions", ("metric", "definition"), (tuple(rows),), prose=True)


def _spread(name: str, statistic: Statistic | None) -> str:
    if statistic is None:
        return ABSENT
    if name.startswith("score/"):
        # A score is made from means over all cases: no case has one.
        return number(statistic.mean)
    return f"{number(statistic.mean)} ± {number(statistic.std)} ({statistic.count})"


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
