"""Anchors measured with biased pilots (paper, C.2): how much does the anchor's value matter?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nas_plugin.evaluation.report.content import Row, Table, number
from nas_plugin.evaluation.studies.pilots import Pilots, drawn, pilot_pool
from nas_plugin.evaluation.studies.shared import Advance, Setting, Study, Trial
from nas_plugin.evaluation.studies.written import points

# Name -> which of the pilots, in order of their norms: from this share of them to that one.
_SOURCES = {
    "bottom 10 %": (0.0, 0.1),
    "bottom 25 %": (0.0, 0.25),
    "all pilots": (0.0, 1.0),
    "top 25 %": (0.75, 1.0),
    "top 10 %": (0.9, 1.0),
}


@dataclass(frozen=True)
class AnchorBias(Study):
    """One stream, with anchors from pilots of small, ordinary and large norms.

    Attributes:
        edits: Length of the stream.
        every: Edits between checkpoints.
    """

    name: ClassVar[str] = "anchor-bias"
    title: ClassVar[str] = "Anchor bias"
    edits: int = 240
    every: int = 30

    @property
    def units(self) -> int:
        """Units of work for one editor."""
        return self.edits * len(_SOURCES)

    def run(self, setting: Setting, method: str, advance: Advance = lambda _: None) -> dict[str, Any]:
        """Go through the stream once for each anchor.

        Args:
            setting: On what.
            method: The editor.
            advance: Told of edits done.

        Returns:
            "metrics", "norms" of the pilots' values, and "sources": per source the anchor, the number of pilots and what
            `go_through` returned.
        """
        trial = Trial(setting, method, self.edits)
        pool = pilot_pool(trial.hparams.nas_pilots)
        sample = drawn(pool, min(trial.hparams.nas_n_pilots, len(pool)), trial.hparams.nas_seed)
        pilots = Pilots(trial.plain, sample)
        sources = {}
        for source, (start, end) in _SOURCES.items():
            places = between(pilots.norms, start, end)
            anchor = pilots.anchor_of([sample[place] for place in places]).value
            session = trial.anchored_at(anchor)
            sources[source] = {
                "anchor": anchor,
                "pilots": len(places),
                **trial.go_through(session, trial.cases, self.every, advance),
            }
        return {"metrics": sources["all pilots"]["metrics"], "norms": pilots.norms, "sources": sources}

    def tables(self, results: Mapping[str, Mapping[str, Any]]) -> list[Table]:
        """Lay out the anchors; see `Study.tables`."""
        columns = ("editor, anchor from", "pilots", "anchor", f"score after {self.edits}", "collapse point")
        text = (
            "With NAS; scores in %. The pilots are ordered by the norms of their values; the anchor is the mean norm of the "
            "named part of them. One stream in one order. Collapse point: first checkpoint with a score of 60 or less; a dash: "
            "none."
        )
        return [Table(self.title, columns, tuple(_rows(method, result) for method, result in results.items()), text)]


def between(norms: Sequence[float], start: float, end: float) -> list[int]:
    """Choose values by rank.

    Args:
        norms: Values.
        start: Share of all values that are smaller than the chosen ones.
        end: Share that is not larger.

    Returns:
        Places of the values between both shares, rounded to whole values, one at least; smallest first.
    """
    ordered = sorted(range(len(norms)), key=norms.__getitem__)
    first, last = round(start * len(norms)), round(end * len(norms))
    return ordered[min(first, len(norms) - 1) : max(last, first + 1)]


def _rows(method: str, result: Mapping[str, Any]) -> tuple[Row, ...]:
    rows = [
        Row(
            f"NAS-{method}, {source}",
            (str(at["pilots"]), number(at["anchor"], 2), number(at["score"]), points(at["collapse_point"])),
        )
        for source, at in result["sources"].items()
    ]
    scores = [at["score"] for at in result["sources"].values()]
    anchors = [at["anchor"] for at in result["sources"].values()]
    span = (f"{number(max(values) - min(values), digits)}" for values, digits in ((anchors, 2), (scores, 1)))
    return (*rows, Row("largest − smallest", ("", *span, "")))
