"""What NAS itself costs: the rescale per edit, and the one-off anchor, in units of single edits."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks import workload
from benchmarks.measure import Contender, Save, Section, cpu_seconds, interleaved
from benchmarks.sections.edit import open_session
from nas_plugin.anchor import Anchor, anchored, measure_anchor
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.request import EditRequest
from nas_plugin.solve import LossBelow, SolverSettings, TargetSolver

_LAYERS = (4, 5, 6, 7, 8)
_REPEATS = 200
_COLUMNS = ("model", "single edit s", "rescale of one edit s", "share of an edit %", "mode", "pilots", "anchor s",
            "anchor ÷ single edit", "per 100 pilots ÷ single edit")  # fmt: skip


def measure(quick: bool, save: Save) -> Section:
    """Measure both models.

    Args:
        quick: 32 pilots, fewer updates, the Llama shape only.
        save: Called with the section after each row.

    Returns:
        The table.
    """
    pilots, steps = (32, 9) if quick else (100, 25)
    section = Section(
        "anchor",
        "Cost of norm-anchor scaling",
        f"12 layers, d = 768, edits over layers 4 to 8 with {steps - 1} updates; median of 3 single edits; {pilots} pilots "
        "like the edits. Paper mode solves each pilot as an edit is solved, in all contexts; official mode on the bare prompt.",
        _COLUMNS,
    )
    for family in workload.FAMILIES[1:] if quick else workload.FAMILIES:
        section.rows += _rows(family, pilots, steps)
        save(section)
    section.notes.append(
        "A pilot in paper mode is a target solve, and a target solve is most of an edit: what bounds the ratio is how much "
        "cheaper a solve is in a batch (section target) than a single edit."
    )
    return section


def _rows(family: str, pilots: int, steps: int) -> list[dict[str, Any]]:
    hparams = workload.numbers("MEMIT", _LAYERS, v_num_grad_steps=steps)
    asked = workload.requests(16)
    session = open_session(
        workload.random_model(family), workload.tokenizer(), hparams, workload.statistics(workload.D_FF[family])
    )
    solved = session.solve(asked[:1])

    def rescale(_number: int) -> None:
        for _ in range(_REPEATS):
            anchored(solved, Anchor(3.0), None)

    single = interleaved(
        {
            "edit": Contender(lambda n: session.edit([asked[(7, 2, 12)[n]]])),
            "rescale": Contender(rescale, units=_REPEATS),
        },
        3,
    )
    edit, share = single["edit"].median, single["rescale"].median
    session.revert()
    # Not the builtin facts: the tokenizer here has not seen their words and would cut them to single letters.
    facts = workload.requests(pilots, seed=7)
    bare = TargetSolver(
        session.em, session.locator, ContextTemplates.bare(), SolverSettings.from_hparams(hparams), LossBelow()
    )
    own = TargetSolver(
        session.em, session.locator, workload.CONTEXTS, SolverSettings.from_hparams(hparams), LossBelow()
    )
    rows = []
    for mode, solver in (("paper", own), ("official", bare)):
        seconds = cpu_seconds(partial(_measure, solver, facts, mode, pilots))
        rows.append({
            "model": family,
            "single edit s": edit,
            "rescale of one edit s": share,
            "share of an edit %": 100 * share / edit,
            "mode": mode,
            "pilots": pilots,
            "anchor s": seconds,
            "anchor ÷ single edit": seconds / edit,
            "per 100 pilots ÷ single edit": 100 / pilots * seconds / edit,
        })  # fmt: skip
    return rows


def _measure(solver: TargetSolver, facts: list[EditRequest], mode: str, count: int) -> Anchor:
    provenance = {"model": "", "hparams": "", "contexts": ""}
    return measure_anchor(solver, facts, mode=mode, count=count, seed=0, provenance=provenance, progress=False)
