"""Whole atomic edits over five layers, one request and many in a step, against the twin's step and EasyEdit's own editors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import workload
from benchmarks.measure import Contender, Save, Section, cpu_seconds, interleaved
from benchmarks.reference import EasyEditEditor, dense_editors, easyedit_missing, wheel_verdict
from nas_plugin.session import EditSession
from tests.twins.naive import naive_step

_LAYERS = (4, 5, 6, 7, 8)
_TAU = 20.0
_COLUMNS = ("model", "method", "requests in a step", "ours s/edit", "twin s/edit", "twin ÷ ours", "EasyEdit s/edit",
            "EasyEdit ÷ ours", "largest scatter")  # fmt: skip


def measure(quick: bool, save: Save) -> Section:
    """Measure both methods on both models.

    Args:
        quick: Fewer updates, 32 requests instead of 100 in the large step, no MEMIT on the GPT-2 shape.
        save: Called with the section after each row.

    Returns:
        The table.
    """
    steps, many = (9, 32) if quick else (25, 100)
    missing = easyedit_missing()
    section = Section(
        "edit",
        "Whole edits over five layers",
        f"Layers 4 to 8 of 12, d = 768, vocabulary 32,000, float32, {steps - 1} updates (early stop on as released, threshold "
        "0.05), NAS on for ours and the twin. "
        f"{workload.lengths(workload.requests(100))} A stream of edits on a copy of the model each, another request each round; "
        "nothing is rolled back. The twin's dense solves use the released number types (AlphaEdit float32, MEMIT float64). "
        "CPU seconds, one thread, medians of 3 interleaved rounds.",
        _COLUMNS,
    )
    combinations = [(family, method) for family in ("llama", "gpt2") for method in ("AlphaEdit", "MEMIT")]
    for family, method in combinations[: 3 if quick else 4]:
        section.rows += _combination(family, method, steps, many, missing is None, section.notes)
        save(section)
    section.notes += [
        f"{many} requests in a step: ours measured whole, one round; the references are extrapolated from their steps of one "
        f"request: {many} times all but the solves, plus five solves with {many} keys, which were measured.",
        wheel_verdict(),
    ]
    if missing is not None:
        section.notes.append(missing)
    if quick:
        section.notes.append(f"Quick form: {steps - 1} updates instead of 24, which understates the ratios.")
    return section


def _combination(
    family: str, method: str, steps: int, many: int, easyedit: bool, notes: list[str]
) -> list[dict[str, Any]]:
    statistics = workload.statistics(workload.D_FF[family])
    hparams = workload.numbers(method, _LAYERS, v_num_grad_steps=steps)
    model, tok = workload.random_model(family), workload.tokenizer()
    asked, records = workload.requests(100), workload.records(100)
    session = open_session(model, tok, hparams, statistics)
    twin_model = copy.deepcopy(model)
    editors = dense_editors(method, session, statistics)
    flat = list(workload.CONTEXTS.flat)
    picks = [7, 2, 12]

    def twin(number: int) -> None:
        naive_step(twin_model, tok, [asked[picks[number]]], flat, hparams, editors, _TAU)

    updates: list[int] = []

    def ours(number: int) -> None:
        report = session.edit([asked[picks[number]]])
        updates.append(report.edits[0].updates)

    contenders = {"twin": Contender(twin), "ours": Contender(ours)}
    if easyedit:
        host = EasyEditEditor(method, copy.deepcopy(model), tok, hparams, statistics)
        contenders["easyedit"] = Contender(lambda number: host.edit([records[picks[number]]]))
    times = interleaved(contenders, 3)
    notes.append(
        f"{family}, {method}: after the three edits ours and the twin's change of the weights differ by "
        f"{_difference(session, editors):.1e} (relative, Frobenius); updates made: {updates}."
    )
    one, several = (_solve_seconds(editors, n) for n in (1, many))
    session.revert()
    whole = cpu_seconds(lambda: session.edit(asked[:many])) / many
    rows = []
    for count, mine in ((1, times["ours"].median), (many, whole)):
        reference = {
            name: times[name].median if count == 1 else times[name].median - one + several / many
            for name in ("twin", "easyedit")
            if name in times
        }
        host_time = reference.get("easyedit")
        rows.append({
            "model": family,
            "method": method,
            "requests in a step": count,
            "ours s/edit": mine,
            "twin s/edit": reference["twin"],
            "twin ÷ ours": reference["twin"] / mine,
            "EasyEdit s/edit": host_time,
            "EasyEdit ÷ ours": host_time / mine if host_time is not None else None,
            "largest scatter": max(t.scatter for t in times.values()) if count == 1 else None,
        })  # fmt: skip
    return rows


def open_session(model: Any, tok: Any, hparams: Any, statistics: workload.Statistics, **more: Any) -> EditSession:
    """Open a prepared session with contexts, statistics and anchor given.

    Args:
        model: The model.
        tok: Its tokenizer.
        hparams: Hyperparameters.
        statistics: Statistics of all layers.
        **more: Further arguments of the session.

    Returns:
        The session.
    """
    moment = statistics.moment
    given: dict[str, Any] = {"contexts": workload.CONTEXTS, "anchor": _TAU, "progress": False} | more
    session = EditSession(model, tok, hparams, moments=dict.fromkeys(hparams.layers, moment), **given)
    with workload.known_priors(statistics):
        session.prepare()
    return session


def _solve_seconds(editors: dict[int, Any], keys: int) -> float:
    """Time the twin's dense solve of a step's layers; the editors' history grows by random keys."""
    editor = copy.deepcopy(next(iter(editors.values())))
    d_out, d = editor.w0.shape

    def solve(draw: Callable[..., Tensor] = torch.randn) -> None:
        editor.step(draw(d, keys) * 0.1, draw(d_out, keys) * 0.1)

    return len(editors) * sorted(cpu_seconds(solve) for _ in range(3))[1]


def _difference(session: EditSession, editors: dict[int, Any]) -> float:
    error = change = 0.0
    for layer, editor in editors.items():
        base = session.weights.base[layer].double()
        error += float((session.weights.master[layer].double() - editor.w.double()).norm() ** 2)
        change += float((editor.w.double() - base).norm() ** 2)
    return float((error / change) ** 0.5)
