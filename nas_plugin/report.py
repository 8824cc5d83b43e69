"""What a step tells the caller about itself."""

from __future__ import annotations

from dataclasses import dataclass

from nas_plugin.request import EditRequest


@dataclass(frozen=True)
class EditReport:
    """What happened to one request.

    Attributes:
        request: The request.
        loss: Objective at the solver's last evaluation, nats.
        updates: Solver updates made.
        value_norm: |v*| as solved.
        written_norm: |v| as written (the anchor, with NAS).
        skipped: Dropped by `nas_skip_factor`.
    """

    request: EditRequest
    loss: float
    updates: int
    value_norm: float
    written_norm: float
    skipped: bool


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        edits: One report per request, in order.
        norm_ratio: |W| / |W0| over all edited layers after the step.
        seconds: Wall-clock time.
        step: Number of the step, from 1.
    """

    edits: tuple[EditReport, ...]
    norm_ratio: float
    seconds: float
    step: int

    @property
    def skipped(self) -> int:
        """Number of requests that `nas_skip_factor` dropped."""
        return sum(edit.skipped for edit in self.edits)
