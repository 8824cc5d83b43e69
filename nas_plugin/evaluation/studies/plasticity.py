"""Single edits (paper, C.1): does norm anchoring weaken an edit that starts from the original model?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, ClassVar

from nas_plugin.evaluation.report.content import Row, Table, number
from nas_plugin.evaluation.studies.shared import PARTS, SIDES, Advance, Setting, Study, Trial, moments_of, parts

_SHARE = 4
_GROUPS = {
    "all": (
        "All edits, %",
        "Every edit starts from the original model. Scale: anchor over norm of the solved value, the factor that NAS multiplies "
        "the value with, mean over the edits. Difference: NAS minus plain, mean ± standard error of the paired difference of an "
        "edit; of the score, the difference alone.",
    ),
    "quarter": (
        "The quarter of the edits that NAS scales down most, %",
        "The edits with the smallest factors, the same ones on both sides. Otherwise as above.",
    ),
}


@dataclass(frozen=True)
class Plasticity(Study):
    """Every edit alone, without and with norm anchoring.

    Attributes:
        edits: Number of single edits.
    """

    name: ClassVar[str] = "plasticity"
    title: ClassVar[str] = "Single-edit plasticity"
    edits: int = 400

    @property
    def units(self) -> int:
        """Units of work for one editor."""
        return self.edits * len(SIDES)

    def run(self, setting: Setting, method: str, advance: Advance = lambda _: None) -> dict[str, Any]:
        """Write every case into the unedited model, plain and with norm anchoring.

        Args:
            setting: On what.
            method: The editor.
            advance: Told of edits done.

        Returns:
            "anchor", "metrics", "edits" (per case the solved norm, the scale factor and both sides' metrics), and for "all" and
            the "quarter" what `compared` returns.
        """
        trial = Trial(setting, method, self.edits)
        lines: list[dict[str, Any]] = []
        for case in trial.cases:
            line: dict[str, Any] = {"case_id": case.id}
            for side in SIDES:
                report, line[side] = trial.write_alone(trial.session(side), case)
                advance(1)
            # The session with norm anchoring was the last.
            line["value_norm"] = fmean(edit.value_norm for edit in report.edits)
            line["scale"] = fmean(edit.written_norm / edit.value_norm for edit in report.edits)
            lines.append(line)
        quarter = most_scaled_down([line["scale"] for line in lines])
        everything = compared(lines)
        return {
            "anchor": trial.nas.anchor_value,
            "metrics": {part: found["metric"] for part, found in everything["plain"].items()},
            "edits": lines,
            "all": everything,
            "quarter": compared([lines[place] for place in quarter]),
        }

    def tables(self, results: Mapping[str, Mapping[str, Any]]) -> list[Table]:
        """Lay out all edits, and the quarter; see `Study.tables`."""
        columns = ("editor", "edits", "scale", *PARTS)
        return [
            Table(title, columns, tuple(_rows(method, result[group]) for method, result in results.items()), text)
            for group, (title, text) in _GROUPS.items()
        ]


def most_scaled_down(scales: Sequence[float]) -> list[int]:
    """Choose the quarter of the edits with the smallest scale factors.

    Args:
        scales: Scale factor of each edit.

    Returns:
        Their places, the smallest factor first and equal ones in order; a quarter rounded down, one at least.
    """
    return sorted(range(len(scales)), key=scales.__getitem__)[: max(1, len(scales) // _SHARE)]


def compared(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare both sides over some edits.

    Args:
        lines: Entries of "edits".

    Returns:
        "scale" (mean, standard deviation, count), "smallest" and "largest" factor; for each side the metrics that stand for
        `PARTS`; "difference": per part the paired difference, None where a part has no values of cases.
    """
    sides = {side: parts([line[side] for line in lines]) for side in SIDES}
    difference: dict[str, Any] = {}
    for part, found in sides["plain"].items():
        name = found["metric"]
        paired = [line["nas"][name] - line["plain"][name] for line in lines if name in line["plain"]]
        # A score is one number for all cases.
        mean = fmean(paired) if paired else sides["nas"][part]["mean"] - found["mean"]
        error = stdev(paired) / len(paired) ** 0.5 if len(paired) > 1 else None
        difference[part] = {"mean": mean, "standard_error": error}
    scales = [line["scale"] for line in lines]
    return {
        "scale": moments_of(scales),
        "smallest": min(scales),
        "largest": max(scales),
        **sides,
        "difference": difference,
    }


def _rows(method: str, group: Mapping[str, Any]) -> tuple[Row, ...]:
    count, scale = str(group["scale"]["count"]), number(group["scale"]["mean"], 2)
    rows = []
    for side, label, factor in (("plain", method, "1"), ("nas", f"NAS-{method}", scale)):
        cells = (number(group[side][part]["mean"]) if part in group[side] else number(None) for part in PARTS)
        rows.append(Row(label, (count, factor, *cells)))
    return (*rows, Row("difference", ("", "", *(_difference(group["difference"].get(part)) for part in PARTS))))


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None or found["standard_error"] is None:
        return number(found["mean"] if found else None)
    return f"{number(found['mean'])} ± {number(found['standard_error'])}"
