"""Target solve: the value optimisation of one request, and of batches, against one request at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from benchmarks import workload
from benchmarks.measure import Contender, Save, Section, interleaved
from benchmarks.reference import EasyEditEditor, easyedit_missing
from nas_plugin.locate.sequences import Locator
from nas_plugin.model.editable import EditableModel
from nas_plugin.request import EditRequest
from nas_plugin.solve import LossBelow, SolverSettings, TargetSolver
from tests.twins.naive import naive_target

_NEVER = 0.0
_COLUMNS = ("model", "edit layer", "requests", "ours s/request", "twin s/request", "twin ÷ ours", "EasyEdit s/request",
            "EasyEdit ÷ ours", "largest scatter")  # fmt: skip


def measure(quick: bool, save: Save) -> Section:
    """Measure all combinations.

    Args:
        quick: Fewer updates, edit layer 8 only, batches up to 32.
        save: Called with the section after each row.

    Returns:
        The table.
    """
    steps, layers, batches = (9, (8,), (1, 8, 32)) if quick else (25, (8, 5), (1, 8, 32))
    missing = easyedit_missing()
    section = Section(
        "target",
        "Target solve",
        f"12 layers, d = 768, vocabulary 32,000, float32, {steps - 1} updates each, early stop off. "
        f"{workload.lengths(workload.requests(100))} References solve one request at a time: one request per round (another "
        "one each round), not the whole batch. CPU seconds per request, one thread, medians of 3 interleaved rounds; one "
        "round for batches of 32.",
        _COLUMNS,
    )
    for layer in layers:
        for family in workload.FAMILIES:
            section.rows += _combination(family, layer, steps, batches, missing is None)
            save(section)
    if missing is not None:
        section.notes.append(missing)
    if quick:
        section.notes.append(
            f"Quick form: {steps - 1} updates instead of 24, so the one clean pass weighs three times as much as in a real "
            "solve; the ratios are lower bounds."
        )
    section.notes.append(
        "The twin computes log-probabilities once per step at all positions. EasyEdit's `compute_z` runs the head twice: in the "
        "model's own forward, and again on the loss layer's output."
    )
    return section


def _combination(
    family: str, layer: int, steps: int, batches: tuple[int, ...], easyedit: bool
) -> Iterable[dict[str, Any]]:
    model, tok = workload.random_model(family), workload.tokenizer()
    hparams = workload.numbers("MEMIT", [layer], v_num_grad_steps=steps)
    em = EditableModel(model, hparams)
    solver = TargetSolver(
        em,
        Locator(tok, em.max_positions, em.vocab_size),
        workload.CONTEXTS,
        SolverSettings.from_hparams(hparams),
        LossBelow(_NEVER),
    )
    asked, records = workload.requests(100), workload.records(100)
    flat = list(workload.CONTEXTS.flat)
    # Rounds draw their single request from all over the list, so that reference and ours see the same lengths.
    singles = [7, 2, 12]
    contenders = {
        "twin": Contender(lambda n: naive_target(model, tok, asked[singles[n % 3]], flat, hparams, threshold=_NEVER)),
        "ours 1": Contender(lambda n: solver.solve([asked[singles[n % 3]]])),
    }
    if easyedit:
        host = EasyEditEditor("MEMIT", model, tok, hparams, workload.statistics(workload.D_FF[family]))
        contenders["easyedit"] = Contender(lambda n: host.target(records[singles[n % 3]]))
    for size in batches[1:]:
        rounds = 1 if size >= 32 else None
        contenders[f"ours {size}"] = Contender(partial(_solve, solver, asked[:size]), units=size, rounds=rounds)
    solver.solve(asked[:1])
    times = interleaved(contenders, 3)
    for size in batches:
        ours, twin = times[f"ours {size}"], times["twin"]
        host_time = times.get("easyedit")
        used = [ours, twin] + ([host_time] if host_time else [])
        yield {
            "model": family,
            "edit layer": layer,
            "requests": size,
            "ours s/request": ours.median,
            "twin s/request": twin.median,
            "twin ÷ ours": twin.median / ours.median,
            "EasyEdit s/request": host_time.median if host_time else None,
            "EasyEdit ÷ ours": host_time.median / ours.median if host_time else None,
            "largest scatter": max(t.scatter for t in used),
        }


def _solve(solver: TargetSolver, asked: Sequence[EditRequest], _number: int) -> None:
    solver.solve(asked)
