"""Error of long streams of gain steps against the dense float64 stream, ours and the reference's own float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks import workload
from benchmarks.measure import Save, Section
from benchmarks.reference import OfficialAlphaEdit, OfficialMEMIT
from nas_plugin.write.methods import METHODS
from tests.twins.dense import DenseMEMIT

_D_OUT = 64
_COLUMNS = (
    "method",
    "edits",
    "ours, float32 weights",
    "ours, float64 weights",
    "reference float32",
    "reference's type",
)


def measure(quick: bool, save: Save) -> Section:
    """Run one stream per method through all contenders.

    Args:
        quick: d = 384 and 200 edits instead of 1,024 and 1,000.
        save: Called with the section after each row.

    Returns:
        The table.
    """
    d, edits = (384, 200) if quick else (1024, 1000)
    section = Section(
        "accuracy",
        "Error of a stream of single edits",
        f"d = {d}, d_out = {_D_OUT}; C with eigenvalues 1e2 to 1e-5, keys drawn from it with noise and a common mean, residuals "
        "at random; L2 = 10, null space below 0.02, lambda = 15,000. Error of the whole change W - W0 after so many edits, "
        "relative (Frobenius), against the released form solved densely in float64 at every step.",
        _COLUMNS,
    )
    for method in ("AlphaEdit", "MEMIT"):
        section.rows += _stream(method, d, edits)
        save(section)
    section.notes.append(
        "Float32 weights round every written update once; the gain is float64 in both columns. The reference's AlphaEdit is "
        "float32 throughout; its MEMIT solves in float64 and writes float32 weights, as released."
    )
    return section


def _stream(method: str, d: int, edits: int) -> list[dict[str, Any]]:
    statistics, numbers = workload.statistics(d), workload.numbers(method, [0])
    moment, projector = statistics.moment, statistics.projector(0.02)
    generator = torch.Generator().manual_seed(1)
    root = statistics.vectors * statistics.values.sqrt()
    common = root @ torch.randn(d, 1, generator=generator, dtype=torch.float64) * 0.3
    w0 = torch.randn(_D_OUT, d, generator=generator, dtype=torch.float64) * 0.02
    exact, reference = _references(method, w0, moment, projector, numbers)
    # The package factorises C itself: its errors belong to the measurement.
    ours = {t: METHODS[method](w0.to(t), moment, numbers) for t in (torch.float32, torch.float64)}
    now = {t: w0.to(t) for t in ours}
    rows = []
    for number in range(1, edits + 1):
        key = root @ torch.randn(d, 1, generator=generator, dtype=torch.float64) + common
        key = key + 0.05 * torch.randn(d, 1, generator=generator, dtype=torch.float64)
        residual = torch.randn(_D_OUT, 1, generator=generator, dtype=torch.float64)
        exact.step(key, residual)
        reference.step(key.float(), residual.float())
        for dtype, editor in ours.items():
            editor.fold()
            proposal = editor.propose(now[dtype], key, residual)
            now[dtype] = editor.finish(proposal, proposal.applied())
            editor.absorb(proposal, now[dtype])
        if number in (1, 10, 100, edits // 2, edits):
            change = exact.w - w0
            rows.append({
                "method": method,
                "edits": number,
                "ours, float32 weights": _error(now[torch.float32], w0.float(), change),
                "ours, float64 weights": _error(now[torch.float64], w0, change),
                "reference float32": _error(reference.w, w0.float(), change),
                "reference's type": "float32" if method == "AlphaEdit" else "float64, written as float32",
            })  # fmt: skip
    return rows


def _references(method: str, w0: Tensor, moment: Tensor, projector: Tensor, numbers: Any) -> tuple[Any, Any]:
    if method == "MEMIT":
        return DenseMEMIT(w0, moment, numbers), OfficialMEMIT(w0.float(), moment, numbers)
    return OfficialAlphaEdit(w0, projector, numbers), OfficialAlphaEdit(w0.float(), projector.float(), numbers)


def _error(now: Tensor, base: Tensor, change: Tensor) -> float:
    return float(((now.double() - base.double()) - change).norm() / change.norm())
