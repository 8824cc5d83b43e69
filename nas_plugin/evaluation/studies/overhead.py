"""What norm anchoring costs in run time (paper, C.12)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, ClassVar

from nas_plugin.anchor import anchored
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.report.content import Row, Table, number
from nas_plugin.evaluation.studies.pilots import Pilots, drawn, pilot_pool
from nas_plugin.evaluation.studies.shared import SIDES, Advance, Setting, Study, Trial, moments_of

_WARM_UP = 3
_RESCALES = 200


@dataclass(frozen=True)
class Overhead(Study):
    """Single edits without and with norm anchoring in turn, in one process at one thread.

    Attributes:
        edits: Number of edits that are timed on each side.
    """

    name: ClassVar[str] = "overhead"
    title: ClassVar[str] = "Run-time overhead"
    alone: ClassVar[bool] = True
    edits: int = 100

    @property
    def units(self) -> int:
        """Units of work for one editor."""
        return self.edits

    def run(self, setting: Setting, method: str, advance: Advance = lambda _: None) -> dict[str, Any]:
        """Time edits, the rescaling alone, and the anchor.

        Args:
            setting: On what.
            method: The editor.
            advance: Told of edits done.

        Returns:
            "clock"; "seconds" of both sides, [edits]; of either side and of the paired "difference" what `described` returns;
            "rescaling", seconds of one; "anchor": seconds it took, once, and "pilots".
        """
        trial = Trial(setting, method, self.edits)
        name, clock = trial.clock
        for case in trial.cases[:_WARM_UP]:
            _times(trial, case, SIDES, clock)
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for turn, case in enumerate(trial.cases):
            # In turn the other one first: what the first leaves in the caches must not favour a side.
            sides = SIDES if turn % 2 == 0 else SIDES[::-1]
            for side, taken in _times(trial, case, sides, clock).items():
                seconds[side].append(taken)
            advance(1)
        paired = [with_nas - plain for plain, with_nas in zip(*(seconds[side] for side in SIDES), strict=True)]
        return {
            "clock": name,
            "seconds": seconds,
            **{side: described(taken) for side, taken in seconds.items()},
            "difference": described(paired),
            "rescaling": _rescaling(trial, clock),
            "anchor": _anchor(trial, clock),
        }

    def tables(self, results: Mapping[str, Mapping[str, Any]]) -> list[Table]:
        """Lay out the times; see `Study.tables`."""
        columns = ("editor", "plain, ms", "NAS, ms", "NAS − plain, ms", "in %", "rescaling, µs", "in %", "anchor, s")
        pilots = sorted({result["anchor"]["pilots"] for result in results.values()})
        clocks = ", ".join(sorted({result["clock"] for result in results.values()}))
        text = (
            f"{clocks} per edit at one thread: median (first to third quartile) of {self.edits} single edits a side, in turn in "
            "one process, each from the original model. NAS − plain: paired differences of the same edit. Rescaling: the "
            f"function that does it, median of {_RESCALES} calls with an anchor less that without. In %: of the plain median. "
            f"Anchor: once, on the original model, from {', '.join(map(str, pilots))} pilots."
        )
        rows = tuple(Row(method, _cells(result)) for method, result in results.items())
        return [Table(self.title, columns, (rows,), text)]


def described(seconds: Sequence[float]) -> dict[str, Any]:
    """Describe times: "median", "quartiles", "mean", "std" and "count"."""
    first, _, third = quantiles(seconds, n=4, method="inclusive")
    return {"median": median(seconds), "quartiles": [first, third], **moments_of(seconds)}


def _times(trial: Trial, case: Case, sides: Sequence[str], clock: Callable[[], float]) -> dict[str, float]:
    """Return the seconds of an edit by side; the model is left unedited."""
    taken = {}
    for side in sides:
        session = trial.session(side)
        started = clock()
        session.edit(case.requests)
        taken[side] = clock() - started
        session.rollback()
    return taken


def _rescaling(trial: Trial, clock: Callable[[], float]) -> float:
    """Return the seconds that giving one value the anchor's norm takes, the work of a plain edit taken off."""
    solved = trial.nas.solve(trial.cases[0].requests)
    taken = []
    for anchor in (None, trial.nas.anchor):
        calls = []
        for _ in range(_RESCALES):
            started = clock()
            anchored(solved, anchor, trial.hparams.nas_skip_factor)
            calls.append(clock() - started)
        taken.append(median(calls))
    return taken[1] - taken[0]


def _anchor(trial: Trial, clock: Callable[[], float]) -> dict[str, Any]:
    pool = pilot_pool(trial.hparams.nas_pilots)
    sample = drawn(pool, min(trial.hparams.nas_n_pilots, len(pool)), trial.hparams.nas_seed)
    started = clock()
    Pilots(trial.plain, sample).anchor_of(sample)
    return {"seconds": clock() - started, "pilots": len(sample)}


def _cells(result: Mapping[str, Any]) -> tuple[str, ...]:
    plain, with_nas, difference = (result[name] for name in (*SIDES, "difference"))
    return (
        *(_milliseconds(times) for times in (plain, with_nas)),
        _milliseconds(difference, 2),
        number(100 * difference["median"] / plain["median"], 2),
        number(1e6 * result["rescaling"], 1),
        number(100 * result["rescaling"] / plain["median"], 2),
        number(result["anchor"]["seconds"], 2),
    )


def _milliseconds(times: Mapping[str, Any], digits: int = 1) -> str:
    middle, first, third = (number(1000 * seconds, digits) for seconds in (times["median"], *times["quartiles"]))
    return f"{middle} ({first} to {third})"
