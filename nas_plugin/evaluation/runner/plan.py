"""What a run is to do: how many edits at once, when to measure, and what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nas_plugin.errors import RunError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.measures import PROTOCOLS

CHECKPOINTS = 10
"""Checkpoints of a run whose grid nobody gave."""
COHORT = 50
"""Cases that are followed from the beginning of a stream to its end."""
_SAMPLED = frozenset({"fluency", "consistency"})


@dataclass(frozen=True)
class Measures:
    """What is measured. Teacher-forced metrics and success in greedy writing always are.

    Attributes:
        generate: Sample long texts too, for fluency and consistency; a hundred forward passes each.
        own_prompts: Sample them from the edited prompts in cases that bring no generation prompts.
        text: Local file of held-out text for perplexity, see `nas_plugin.locate.texts.texts_of`.
        drift: Held-out cases, at most, whose hidden states are followed; 0 for none.
        tasks: Capability tasks.
        tasks_at: Checkpoints that measure them, 0 among them for the unedited model; the first and the last when None.
        tasks_data: Folder with the data of the shipped tasks.
        tasks_limit: Records of a task, at most.
        tasks_protocol: "standard" or "paper".
    """

    generate: bool = False
    own_prompts: bool = False
    text: str | None = None
    drift: int = 100
    tasks: tuple[str, ...] = ()
    tasks_at: tuple[int, ...] | None = None
    tasks_data: str | None = None
    tasks_limit: int | None = None
    tasks_protocol: str = "standard"

    @property
    def protocols(self) -> frozenset[str]:
        """Metrics wanted, keys of `PROTOCOLS`."""
        return frozenset(PROTOCOLS) if self.generate else frozenset(PROTOCOLS) - _SAMPLED

    def asked(self, cases: Sequence[Case]) -> list[Case]:
        """Return cases with what is asked of them here.

        Args:
            cases: Cases of a stream.

        Returns:
            The same, those without generation prompts getting their edited prompts as such where `own_prompts` says so.
        """
        if not self.own_prompts:
            return list(cases)
        return [
            case
            if case.generation_prompts
            else replace(case, generation_prompts=tuple(request.prompt for request in case.requests))
            for case in cases
        ]


@dataclass(frozen=True)
class Plan:
    """How a stream is gone through; `plan_run` makes one.

    Attributes:
        per_step: Cases written at once.
        grid: Numbers of cases written after which everything is measured, the whole stream's last.
        cohort: Number of first cases that are followed to the end.
        measures: What is measured.
    """

    per_step: int
    grid: tuple[int, ...]
    cohort: int
    measures: Measures = field(default_factory=Measures)

    @property
    def edits(self) -> int:
        """Length of the stream, in cases."""
        return self.grid[-1]

    @property
    def tasks_at(self) -> frozenset[int]:
        """Checkpoints that measure capability tasks."""
        if not self.measures.tasks:
            return frozenset()
        return frozenset((0, self.edits) if self.measures.tasks_at is None else self.measures.tasks_at)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of `run.json` that describe the plan."""
        measures = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.measures).items()
        }
        return {
            "edits_per_step": self.per_step,
            "grid": list(self.grid),
            "cohort": self.cohort,
            "measures": measures,
        }


def plan_run(
    edits: int,
    *,
    per_step: int = 1,
    every: int | None = None,
    grid: Sequence[int] | None = None,
    cohort: int = COHORT,
    measures: Measures | None = None,
) -> Plan:
    """Plan a run.

    Args:
        edits: Cases to write.
        per_step: Cases written at once.
        every: Cases between two checkpoints; a tenth of the stream, rounded up to whole steps, when None.
        grid: The checkpoints themselves instead; the end of the stream is always one.
        cohort: Number of first cases that are followed to the end.
        measures: What is measured.

    Returns:
        The plan.

    Raises:
        RunError: A number is out of range, or a checkpoint falls into the middle of a step.
    """
    measures = measures if measures is not None else Measures()
    for name, value, least in (
        ("edits", edits, 1), ("edits per step", per_step, 1), ("cohort", cohort, 0), ("drift", measures.drift, 0),
    ):  # fmt: skip
        if value < least:
            raise RunError(f"{name}: {value}; give {least} or more.")
    if every is not None and grid is not None:
        raise RunError("both a distance between checkpoints and a grid were given; give one of them.")
    if grid is None:
        step = per_step * -(-edits // (CHECKPOINTS * per_step)) if every is None else every
        if step < 1:
            raise RunError(f"checkpoints every {step} edits; give 1 or more.")
        grid = range(step, edits, step)
    plan = Plan(per_step, (*_checked(grid, edits, per_step), edits), cohort, measures)
    if stray := sorted(plan.tasks_at - {0, *plan.grid}):
        raise RunError(
            f"tasks are wanted after {stray[0]} edits, where there is no checkpoint; there are 0, {plan.grid}."
        )
    return plan


def _checked(grid: Sequence[int], edits: int, per_step: int) -> list[int]:
    points = sorted({point for point in grid if point != edits})
    for point in points:
        if not 0 < point < edits:
            raise RunError(f"a checkpoint after {point} edits; the stream has {edits}.")
        if point % per_step:
            raise RunError(
                f"a checkpoint after {point} edits falls into a step of {per_step}; give multiples of {per_step}."
            )
    return points
