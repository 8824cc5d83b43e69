"""The same edits in other orders (paper, C.3): does a fixed anchor depend on which edits come first?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.report.content import Row, Table, number
from nas_plugin.evaluation.studies.shared import (
    SIDES,
    Advance,
    Setting,
    Study,
    Trial,
    moments_of,
)
from nas_plugin.evaluation.studies.written import plus_minus, points

_NAMED = ("given", "low to high", "high to low")


@dataclass(frozen=True)
class Order(Study):
    """One set of edits in the stream's order, by difficulty both ways, and shuffled.

    Attributes:
        edits: Length of the stream.
        every: Edits between checkpoints.
        shuffles: Number of shuffled orders, with seeds 1, 2, ...
    """

    name: ClassVar[str] = "order"
    title: ClassVar[str] = "Edit order"
    edits: int = 240
    every: int = 30
    shuffles: int = 3

    @property
    def units(self) -> int:
        """Units of work for one editor."""
        return self.edits * len(SIDES) * (len(_NAMED) + self.shuffles)

    def run(self, setting: Setting, method: str, advance: Advance = lambda _: None) -> dict[str, Any]:
        """Go through every order, plain and with norm anchoring.

        Args:
            setting: On what.
            method: The editor.
            advance: Told of edits done.

        Returns:
            "anchor", "metrics", "difficulty" (|v*| on the original model by case), and for each side what `go_through` returned
            by order.
        """
        trial = Trial(setting, method, self.edits)
        difficulty = difficulties(trial)
        orders = dict(self._orders(setting, trial.cases, difficulty))
        courses = {
            side: {
                name: trial.go_through(trial.session(side), cases, self.every, advance)
                for name, cases in orders.items()
            }
            for side in SIDES
        }
        metrics = courses["plain"]["given"]["metrics"]
        return {"anchor": trial.nas.anchor_value, "metrics": metrics, "difficulty": difficulty, **courses}

    def _orders(
        self, setting: Setting, cases: tuple[Case, ...], difficulty: Mapping[str, float]
    ) -> Iterator[tuple[str, tuple[Case, ...]]]:
        rising = tuple(sorted(cases, key=lambda case: difficulty[case.id]))
        yield from zip(_NAMED, (cases, rising, rising[::-1]), strict=True)
        for seed in range(1, self.shuffles + 1):
            yield f"shuffle {seed}", setting.cases(self.edits, seed)

    def tables(self, results: Mapping[str, Mapping[str, Any]]) -> list[Table]:
        """Lay out scores half-way and at the end, and collapse points; see `Study.tables`."""
        checkpoints = next(iter(results.values()))["plain"]["given"]["checkpoints"]
        half = checkpoints[(len(checkpoints) - 1) // 2]["edits"]
        shuffled = f"shuffled, n = {self.shuffles}"
        of_scores = (
            "Over all edits so far. Low to high: by the norm of the value that the editor solves on the original model. Range: "
            "of these three orders. Shuffled: mean ± standard deviation (n − 1) over the shuffled orders."
        )
        of_collapses = (
            "First checkpoint with a score of 60 or less; a dash: none within the stream. Shuffled: mean ± standard deviation "
            "over the orders that collapsed, and how many did."
        )
        tables = [
            Table(
                f"Score after {edits} edits, %",
                ("editor", *_NAMED, "range", shuffled),
                _grouped(results, partial(_scores, edits)),
                of_scores,
            )
            for edits in dict.fromkeys((half, self.edits))
        ]
        columns = ("editor", *_NAMED, shuffled)
        return [*tables, Table("Collapse point, edits", columns, _grouped(results, _collapses), of_collapses)]


def difficulties(trial: Trial) -> dict[str, float]:
    """Measure the norms of the values of cases on the original model, which stand for how hard they are to write.

    Args:
        trial: Editor, unedited model and cases.

    Returns:
        |v*| by case, mean over its requests.
    """
    solved = trial.plain.solve([request for case in trial.cases for request in case.requests])
    norms = iter(solved.values.norm(dim=1).tolist())
    return {case.id: sum(next(norms) for _ in case.requests) / len(case.requests) for case in trial.cases}


def _grouped(
    results: Mapping[str, Mapping[str, Any]], cells: Callable[[Mapping[str, Any]], tuple[str, ...]]
) -> tuple[tuple[Row, ...], ...]:
    return tuple(
        (Row(method, cells(result["plain"])), Row(f"NAS-{method}", cells(result["nas"])))
        for method, result in results.items()
    )


def _scores(edits: int, courses: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    at = {
        name: next(point["score"] for point in course["checkpoints"] if point["edits"] == edits)
        for name, course in courses.items()
    }
    named = [at[name] for name in _NAMED]
    shuffled = [score for name, score in at.items() if name not in _NAMED]
    spread = plus_minus(moments_of(shuffled)) if shuffled else number(None)
    return (*map(number, named), number(max(named) - min(named)), spread)


def _collapses(courses: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    shuffled = [course["collapse_point"] for name, course in courses.items() if name not in _NAMED]
    collapsed = [point for point in shuffled if point is not None]
    many = f"{len(collapsed)} of {len(shuffled)}"
    cell = f"{plus_minus(moments_of(collapsed), 0)} ({many})" if collapsed else many
    return (*(points(courses[name]["collapse_point"]) for name in _NAMED), cell)
