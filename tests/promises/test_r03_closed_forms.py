"""R3: every update is the closed form's, as a dense float64 solve gives it, and stays it over a thousand keys.

One step agrees to 1e-10 in float64; with a second moment of condition 1e8, and after 1,000 keys of history, the weights that were
written still agree to 1e-4.
"""

from __future__ import annotations

import math

import pytest
import torch

from nas_plugin.write import METHODS
from tests.twins.dense import DENSE, Numbers

D_IN, D_OUT = 32, 16


def error_after(method: str, keys: int, per_step: int, condition: float, dtype: torch.dtype = torch.float64) -> float:
    """Relative difference of the whole change from the dense twin's."""
    g = torch.Generator().manual_seed(4)
    q, _ = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=g, dtype=torch.float64))
    moment = (q * torch.logspace(0, -math.log10(condition), D_IN, dtype=torch.float64)) @ q.T
    moment = (moment + moment.T) / 2
    w0 = torch.randn(D_OUT, D_IN, generator=g, dtype=torch.float64).to(dtype)
    editor, twin, w = (
        METHODS[method](w0, moment, Numbers(nullspace_threshold=0.3)),
        DENSE[method](w0.double(), moment, Numbers(nullspace_threshold=0.3)),
        w0,
    )
    for _ in range(keys // per_step):
        k = torch.randn(D_IN, per_step, generator=g, dtype=torch.float64)
        r = torch.randn(D_OUT, per_step, generator=g, dtype=torch.float64) * 0.1
        editor.fold()
        proposal = editor.propose(w, k, r)
        w = editor.finish(proposal, proposal.applied())
        editor.absorb(proposal, w)
        twin.step(k, r)
    change = twin.matrix() - w0.double()
    assert float(change.norm()) > 0
    return float((editor.view(w).double() - w0.double() - change).norm() / change.norm())


@pytest.mark.parametrize("per_step", [1, 7, 50])
@pytest.mark.parametrize("method", METHODS)
def test_one_step_is_the_closed_form(method: str, per_step: int) -> None:
    assert error_after(method, per_step, per_step, condition=1e3) <= 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_one_step_in_float32_and_an_ill_conditioned_one(method: str) -> None:
    if method != "RECT":  # an entry at the threshold may fall on either side of it
        assert error_after(method, 5, 5, condition=1e3, dtype=torch.float32) <= 1e-4
    assert error_after(method, 5, 5, condition=1e8) <= 1e-4


@pytest.mark.parametrize(
    ("method", "per_step"),
    [("MEMIT", 1), ("PRUNE", 10), ("AlphaEdit", 1), ("AlphaEdit", 10), ("ENCORE", 1), ("ENCORE", 10), ("LyapLock", 20)],
)
def test_no_drift_over_a_thousand_keys(method: str, per_step: int) -> None:
    assert error_after(method, 1000, per_step, condition=1e6) <= 1e-4
