"""What a step tells the caller about itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nas_plugin.request import EditRequest

WRITTEN, SKIPPED, REJECTED, KNOWN = "written", "skipped", "rejected", "known"


@dataclass(frozen=True)
class EditReport:
    """What happened to one request.

    Attributes:
        request: The request; None if it was rejected because it is none.
        loss: Objective at the solver's last evaluation, nats; NaN if nothing was solved, as for the norms.
        updates: Solver updates made.
        value_norm: |v*| as solved.
        written_norm: |v| as written (the anchor, with NAS).
        skipped: Dropped by `nas_skip_factor`.
        id: Stable name of the edit: a digest of the request, with "-2" and so on if it is written again later.
        status: "written"; "skipped" (by `nas_skip_factor`, or because of an earlier or later edit of the same fact);
            "rejected" (unusable, or not finite); or "known": this edit was carried out before, nothing was done now.
        reason: Why it was not written, else None.
        replaces: Ids of edits of the same fact that this one takes the place of.
    """

    request: EditRequest | None
    loss: float = math.nan
    updates: int = 0
    value_norm: float = math.nan
    written_norm: float = math.nan
    skipped: bool = False
    id: str = ""
    status: str = WRITTEN
    reason: str | None = None
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        edits: One report per request, in order.
        norm_ratio: |W| / |W0| over all edited layers after the step.
        seconds: Wall-clock time.
        step: Number of the step, from 1; that of the step before if nothing was written.
    """

    edits: tuple[EditReport, ...]
    norm_ratio: float
    seconds: float
    step: int

    @property
    def skipped(self) -> int:
        """Number of requests that `nas_skip_factor` dropped."""
        return sum(edit.skipped for edit in self.edits)

    @property
    def rejected(self) -> int:
        """Number of requests that were rejected."""
        return sum(edit.status == REJECTED for edit in self.edits)
