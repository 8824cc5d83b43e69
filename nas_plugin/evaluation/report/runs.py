"""Runs as the page shows them: in order, named, styled, with what their logs say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nas_plugin.evaluation import stability
from nas_plugin.evaluation.logs import LoggedCheckpoint, RunLog, Statistic
from nas_plugin.evaluation.report.palette import HUES, MARKERS, placeholder

# First run of its kind, second, ...: norm anchoring is drawn in long strokes, the plain editor in short ones.
_NAS_LINES: tuple[Any, ...] = ("-", (0, (9, 1.5, 1.5, 1.5)))
_PLAIN_LINES: tuple[Any, ...] = ((0, (3.5, 1.8)), (0, (1.2, 1.5)))


@dataclass(frozen=True)
class Style:
    """How a run is drawn.

    Attributes:
        hue: Role in the palette, the same for all runs of a method.
        marker: matplotlib's name of the method's marker.
        line: matplotlib's line style: solid with norm anchoring, dashed without.
    """

    hue: str
    marker: str
    line: Any

    def keywords(self) -> dict[str, Any]:
        """Return the style as matplotlib takes it for a line."""
        return {"color": placeholder(self.hue), "linestyle": self.line}


@dataclass(frozen=True)
class Run:
    """A run and what its logs say.

    Attributes:
        log: Its folder's content.
        label: Its name on the page, unique there.
        style: How it is drawn.
        symbol: Identifier of its line sample on the page.
    """

    log: RunLog
    label: str
    style: Style
    symbol: str

    @property
    def available(self) -> bool:
        """Whether the method could run at all."""
        return self.log.unavailable is None

    @property
    def last(self) -> LoggedCheckpoint | None:
        """The last checkpoint after an edit, if it came to one."""
        return self.log.checkpoints[-1] if self.log.checkpoints and self.log.checkpoints[-1].edits else None

    @cached_property
    def scores(self) -> stability.Trajectory:
        """Score along the stream."""
        return stability.part_trajectory(self.log.checkpoints, "score")

    @cached_property
    def growth(self) -> dict[str, stability.Trajectory]:
        """R_n along the stream, over all layers and per layer."""
        return stability.norm_growth(self.log.checkpoints)

    @cached_property
    def collapse(self) -> int | None:
        """CP@60."""
        return stability.collapse_point(self.scores)

    @cached_property
    def retention(self) -> stability.Retention:
        """The first cases along the stream."""
        return stability.retention(self.log)

    @cached_property
    def immediate(self) -> dict[str, Statistic]:
        """Metrics right after each edit's own step, over the edits that were asked about then."""
        return stability.immediate(self.log.edits)

    @cached_property
    def value_norms(self) -> stability.ValueNorms | None:
        """Statistics of the solved values."""
        return stability.value_norms(self.log.edits)


def arrange(logs: Iterable[RunLog]) -> list[Run]:
    """Put runs of one method together, the plain ones first, and give each a name and a style.

    Args:
        logs: Runs in any order.

    Returns:
        Methods in the order of their first run.
    """
    logs = list(logs)
    methods = list(dict.fromkeys(log.method for log in logs))
    names = Counter(log.label for log in logs)
    drawn: Counter[tuple[str, bool]] = Counter()
    runs: list[Run] = []
    for log in sorted(logs, key=lambda log: (methods.index(log.method), log.use_nas)):
        number, lines = methods.index(log.method), _NAS_LINES if log.use_nas else _PLAIN_LINES
        # Where hues come round again, the marker has moved on by one.
        marker = MARKERS[(number + number // HUES) % len(MARKERS)]
        style = Style(f"hue-{number % HUES}", marker, lines[drawn[log.method, log.use_nas] % len(lines)])
        drawn[log.method, log.use_nas] += 1
        label = log.label if names[log.label] == 1 else f"{log.label} ({log.folder.name})"
        runs.append(Run(log, label, style, f"run-{len(runs)}"))
    return runs


def by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs.

    Args:
        runs: Runs.

    Returns:
        Method to its runs, in their order.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.log.method, []).append(run)
    return groups


def longest(runs: Sequence[Run]) -> int:
    """Find how far the longest run came.

    Args:
        runs: Runs.

    Returns:
        Edits at the last checkpoint of any.
    """
    return max((run.last.edits for run in runs if run.last), default=0)
