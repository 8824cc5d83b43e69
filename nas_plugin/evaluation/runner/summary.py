"""The figures that EasyEdit's example scripts print, from run folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_plugin.evaluation.logs import Statistic, read_run
from nas_plugin.evaluation.stability import immediate

KNOWEDIT = {
    "Edit_Succ": "efficacy/token_accuracy",
    "Portability": "portability/token_accuracy",
    "Locality": "locality/unchanged_tokens",
    "Fluency": "fluency",
}
"""KnowEdit's figures and the metrics they are means of."""
WIKIBIGEDIT = {
    "ES": "efficacy/token_accuracy",
    "GS": "generalization/token_accuracy",
    "LS": "locality/unchanged_tokens",
    "Personas": "portability/personas/token_accuracy",
    "Multi-hop": "portability/mhop/token_accuracy",
}
"""WikiBigEdit's figures and the metrics they are means of."""


def figures(folder: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """Read a benchmark's figures off a run.

    Args:
        folder: Run folder.
        names: `KNOWEDIT` or `WIKIBIGEDIT`.

    Returns:
        "immediate", means of what each case gave right after its own step, as EasyEdit measures; "final", after all edits,
        which EasyEdit does not measure; "edits", how many there were; and "unavailable", why there were none. A figure is
        None where the data have nothing to measure it with.
    """
    run = read_run(folder)
    last = run.checkpoints[-1].final if run.checkpoints else {}
    return {
        "label": run.label,
        "edits": len(run.edits),
        "immediate": _means(immediate(run.edits), names),
        "final": _means(last, names),
        "unavailable": run.unavailable,
    }


def _means(statistics: Mapping[str, Statistic], names: Mapping[str, str]) -> dict[str, float | None]:
    return {name: statistics[metric].mean if metric in statistics else None for name, metric in names.items()}
