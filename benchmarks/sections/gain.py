"""Gain solve: one layer's update per edit, dense from scratch as released against the recursion."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import workload
from benchmarks.measure import Contender, Save, Section, interleaved
from nas_plugin.write.methods import METHODS

_OURS_PER_ROUND = 64
# Both sides at once would need more than 8 GiB.
_TOO_LARGE_TO_INTERLEAVE = 8192
_COLUMNS = ("method", "d", "d_out", "keys in a step", "dense s", "ours s", "dense ÷ ours", "largest scatter")


@dataclass(frozen=True)
class _Case:
    """One row: matrix `(d_out, d)`, keys in a step, rounds of the dense reference."""

    d: int
    d_out: int
    keys: int
    rounds: int


def measure(quick: bool, save: Save) -> Section:
    """Measure both methods at two widths.

    Args:
        quick: One round of the dense reference at the large width; no steps of 100 keys there.
        save: Called with the section after each row.

    Returns:
        The table.
    """
    cases = [_Case(2048, 768, 1, 3), _Case(2048, 768, 100, 3), _Case(14336, 4096, 1, 1 if quick else 3)]
    if not quick:
        cases.append(_Case(14336, 4096, 100, 1))
    section = Section(
        "gain",
        "Gain solve",
        "CPU seconds of one step at one layer, from keys and residuals to the finished matrix, one thread. Dense: the released "
        "forms, AlphaEdit P(KK' + S) + L2 I in float32 with its LU and d_out right-hand sides, MEMIT lambda C + KK' in float64. "
        f"Ours: mean over {_OURS_PER_ROUND} steps of one key (or 2 of 100), so that deferred folding is included. Medians of 3 "
        "interleaved rounds at 2,048; at 14,336 one side after the other, for memory; d_out = 4,096 there, as in Llama-3-8B.",
        _COLUMNS,
    )
    for method in ("AlphaEdit", "MEMIT"):
        for case in cases:
            section.rows.append(_row(method, case))
            save(section)
            if case.rounds < 3:
                section.notes.append(
                    f"{method}, d = {case.d}, {case.keys} keys: {case.rounds} round of the dense reference, measured in full."
                )
            gc.collect()
    return section


def _row(method: str, case: _Case) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(case.d)
    steps = _OURS_PER_ROUND if case.keys == 1 else 2
    contenders = {
        "dense": lambda: Contender(_dense(method, case, generator), rounds=case.rounds),
        "ours": lambda: Contender(_ours(method, case, generator, steps), units=steps),
    }
    if case.d < _TOO_LARGE_TO_INTERLEAVE:
        times = interleaved({name: make() for name, make in contenders.items()}, 3)
    else:
        times = {}
        for name, make in contenders.items():
            times |= interleaved({name: make()}, 3)
            gc.collect()
    return {
        "method": method,
        "d": case.d,
        "d_out": case.d_out,
        "keys in a step": case.keys,
        "dense s": times["dense"].median,
        "ours s": times["ours"].median,
        "dense ÷ ours": times["dense"].median / times["ours"].median,
        "largest scatter": max(time.scatter for time in times.values()),
    }


def _symmetric(d: int, generator: torch.Generator) -> Tensor:
    """Return I - Q Q' with 64 orthonormal columns: a projector as good as any other for timing, made without d^3 work."""
    q = torch.linalg.qr(torch.randn(d, 64, generator=generator)).Q
    projector = -(q @ q.T)
    projector.diagonal().add_(1)
    return projector


def _dense(method: str, case: _Case, generator: torch.Generator) -> Callable[[int], object]:
    keys = torch.randn(case.d, case.keys, generator=generator) * 0.5
    residual = torch.randn(case.d_out, case.keys, generator=generator)
    matrix = _symmetric(case.d, generator)
    if method == "MEMIT":
        matrix.diagonal().add_(1)

        def memit(_number: int) -> Tensor:
            wide = keys.double()
            adjoint = torch.linalg.solve(15000.0 * matrix.double() + wide @ wide.T, wide)
            return residual.double() @ adjoint.T

        return memit
    history = torch.zeros_like(matrix)

    def alphaedit(_number: int) -> Tensor:
        ridge = 10.0 * torch.eye(case.d)
        update = torch.linalg.solve(matrix @ (keys @ keys.T + history) + ridge, matrix @ keys @ residual.T)
        history.add_(keys @ keys.T)
        return update

    return alphaedit


def _ours(method: str, case: _Case, generator: torch.Generator, steps: int) -> Callable[[int], object]:
    weight = torch.randn(case.d_out, case.d, generator=generator)
    prior = _symmetric(case.d, generator).double()
    given = type(f"Given{method}", (METHODS[method],), {"prior": classmethod(lambda _cls, _moment, _hparams: prior)})
    editor: Any = given(weight, weight[:1], workload.numbers(method, [0]))
    draws = [
        (torch.randn(case.d, case.keys, generator=generator) * 0.5, torch.randn(case.d_out, case.keys, generator=generator))
        for _ in range(steps)
    ]  # fmt: skip

    def run(_number: int) -> None:
        for keys, residual in draws:
            editor.fold()
            editor.snapshot()
            proposal = editor.propose(weight, keys, residual)
            applied = editor.finish(proposal, proposal.applied())
            editor.absorb(proposal, applied)

    return run
