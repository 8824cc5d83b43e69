"""The demo's edits with the fast target solver and with the plain one: time, and whether the scores are the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

from benchmarks.measure import Contender, Save, Section, interleaved
from nas_plugin.demo.stream import Plan, Stream, run

_COLUMNS = (
    "stream",
    "edits",
    "plain s",
    "fast s",
    "plain ÷ fast",
    "scores identical",
    "largest difference of a norm ratio",
)


def measure(quick: bool, save: Save) -> Section:
    """Run the demo's streams both ways.

    Args:
        quick: 40 edits of AlphaEdit only, 1 round.
        save: Called with the section after each row.

    Returns:
        The table.
    """
    methods, edits, rounds = (("AlphaEdit",), 40, 1) if quick else (("MEMIT", "AlphaEdit"), 150, 3)
    section = Section(
        "demo",
        "The demo's streams",
        "The embedded model, one edit after another with scoring at checkpoints, in one process. Plain: every optimisation step "
        f"runs all layers and all tokens (the fallback for families without a usable cache). Medians of {rounds} interleaved "
        "rounds of CPU time, one thread.",
        _COLUMNS,
    )
    for method in methods:
        for use_nas in (False, True):
            section.rows.append(_row(Plan(method, use_nas, edits, edits // 4), rounds))
            save(section)
    section.notes.append(
        "Both sides include loading the model, statistics, the anchor and the scoring, which are the same code. The plain side "
        "is today's code with the plain solver, not the code as it was before the fast one: this is no measurement of that."
    )
    return section


def _row(plan: Plan, rounds: int) -> dict[str, Any]:
    results: dict[str, Stream] = {}

    def once(name: str, context: Callable[[], Any]) -> Callable[[int], None]:
        def go(_number: int) -> None:
            with context():
                results[name] = run(plan)

        return go

    plain = once("plain", lambda: mock.patch("nas_plugin.solve.target.can_reuse_prefix", lambda *_: False))
    times = interleaved({"plain": Contender(plain), "fast": Contender(once("fast", nullcontext))}, rounds)
    pairs = list(zip(results["plain"].checkpoints, results["fast"].checkpoints, strict=True))
    return {
        "stream": plan.label,
        "edits": plan.edits,
        "plain s": times["plain"].median,
        "fast s": times["fast"].median,
        "plain ÷ fast": times["plain"].median / times["fast"].median,
        "scores identical": "yes" if all(_scores(a) == _scores(b) for a, b in pairs) else "no",
        "largest difference of a norm ratio": max(abs(a.norm_ratio - b.norm_ratio) for a, b in pairs),
    }


def _scores(checkpoint: Any) -> tuple[float, ...]:
    names = ("score", "efficacy", "generalization", "specificity", "held_out")
    return tuple(getattr(checkpoint, name) for name in names)
