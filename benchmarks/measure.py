"""Interleaved CPU-time measurements of contenders that do the same work, and the tables they fill."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        run: Does it once; called with the number of the round, from 0.
        units: Divide the time by this to get the time of one unit (requests, edits).
        rounds: Take part in the first so many rounds only; None for all. For what takes minutes.
        before: Called before each round, outside the measurement.
    """

    run: Callable[[int], object]
    units: float = 1.0
    rounds: int | None = None
    before: Callable[[int], object] | None = None


@dataclass(frozen=True)
class Timing:
    """CPU seconds of one unit.

    Attributes:
        samples: One per round.
    """

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.samples)

    @property
    def scatter(self) -> float:
        """(largest - smallest) / median."""
        return (max(self.samples) - min(self.samples)) / self.median


def interleaved(contenders: Mapping[str, Contender], rounds: int) -> dict[str, Timing]:
    """Run all contenders in turn, round after round, so that a slow minute of the machine hits all of them.

    Args:
        contenders: By name.
        rounds: Number of rounds.

    Returns:
        CPU seconds per unit, by name.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            if contender.rounds is not None and number >= contender.rounds:
                continue
            if contender.before is not None:
                contender.before(number)
            samples[name].append(cpu_seconds(partial(contender.run, number)) / contender.units)
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU time of one call. Wall clock says nothing on a shared machine.

    Args:
        run: The work.

    Returns:
        Seconds of this process, system time included.
    """
    gc.collect()
    started = time.process_time()
    run()
    return time.process_time() - started


@dataclass
class Section:
    """Result of one section: a table, what it was measured with, and remarks.

    Attributes:
        name: File name of the results.
        title: Heading.
        setting: What was measured, in one paragraph.
        columns: Column names.
        rows: Cells by column name; floats are kept in full in the JSON file.
        notes: Remarks below the table.
    """

    name: str
    title: str
    setting: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Return the section as Markdown."""
        head = [f"# {self.title}", "", self.setting, ""]
        lines = [" | ".join(self.columns), " | ".join("---" for _ in self.columns)]
        lines += [" | ".join(_cell(row.get(column)) for column in self.columns) for row in self.rows]
        return "\n".join([*head, *(f"| {line} |" for line in lines), "", *(f"- {note}" for note in self.notes), ""])


def significant(value: float) -> str:
    """Write a number with three significant digits.

    Args:
        value: Any number.

    Returns:
        Text.
    """
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.1e}"


Save = Callable[[Section], None]
"""Writes a section as far as it has come: the full form takes hours."""


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return significant(value) if isinstance(value, float) else str(value)
