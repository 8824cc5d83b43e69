"""From the metrics of cases to those of a set of cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from nas_plugin.evaluation.measures.protocols import SCORES


def summarise_cases(results: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float | int]]:
    """Average metrics over the cases that have them, and take the scores from the unrounded means.

    Args:
        results: What `measure` returned, possibly with a "case_id" each, which is left out.

    Returns:
        For each metric "mean", "std" (of the population) and "count". Scores are there if what they are made of is.
    """
    values: dict[str, list[float]] = {}
    for result in results:
        for name, value in result.items():
            if name != "case_id":
                values.setdefault(name, []).append(value)
    summary: dict[str, dict[str, float | int]] = {
        name: {"mean": fmean(given), "std": pstdev(given), "count": len(given)} for name, given in values.items()
    }
    for score, (required, others) in SCORES.items():
        if all(name in summary for name in required):
            parts = [summary[name]["mean"] for name in (*required, *others) if name in summary]
            summary[score] = {"mean": harmonic_mean(parts), "std": 0.0, "count": summary[required[0]]["count"]}
    return summary


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean, 0 if a value is not positive."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)
