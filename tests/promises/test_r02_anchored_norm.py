"""R2: with NAS every written value has exactly the anchor's norm and still points where it pointed.

In float32 the norm is the anchor's to 1e-6, in bfloat16 to 4e-3; the cosine to the solved value is 1 to 1e-6; a value of norm
zero has no direction, so it is left alone and nothing becomes NaN.
"""

from __future__ import annotations

import pytest
import torch

from nas_plugin.anchor import Anchor, anchored
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.session import EditSession
from nas_plugin.solve.target import SolvedTargets
from tests.conftest import ARCHITECTURES, build_model, build_requests, build_tokenizer
from tests.support import METHOD_NAMES, tiny_hparams, tiny_session


def drawn(dtype: torch.dtype, n: int = 200, d: int = 64) -> SolvedTargets:
    """Values whose norms span eight decades."""
    g = torch.Generator().manual_seed(1)
    scale = torch.logspace(-4, 4, n)[:, None]
    h0, v0, delta = torch.randn(n, d, generator=g), torch.zeros(n, d), torch.randn(n, d, generator=g) * scale
    none = torch.zeros(n)
    return SolvedTargets(delta.to(dtype), h0.to(dtype), v0.to(dtype), none, none.long(), torch.zeros(n, 2), none == 0)


@pytest.mark.parametrize("tau", [0.37, 2.5, 150.0])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_norm_and_direction(dtype: torch.dtype, limit: float, tau: float) -> None:
    """Values are float32 whatever the model's dtype (see below); a bfloat16 model rounds what comes out."""
    solved = drawn(torch.float32)
    bare = SolvedTargets(
        solved.delta,
        torch.zeros_like(solved.h0),
        solved.v0,
        solved.loss,
        solved.updates,
        solved.first_keys,
        solved.finite,
    )
    written = anchored(bare, Anchor(tau), None).z.to(dtype).double()
    assert float((written.norm(dim=1) / tau - 1).abs().max()) <= limit
    # bfloat16 rounds an entry by 2^-9 of it at most, which turns a vector by no more: 1 - cos is about half its square.
    cosine = torch.cosine_similarity(written, solved.values.double())
    assert float(cosine.min()) >= 1 - (1e-6 if dtype == torch.float32 else 2.0**-18)


@pytest.mark.parametrize(
    ("family", "method"),
    [*zip(ARCHITECTURES, METHOD_NAMES, strict=True), *(("gpt2", name) for name in METHOD_NAMES[1:])],
)
def test_every_family_and_method_writes_the_anchors_norm(family: str, method: str) -> None:
    session = tiny_session(family, method)
    reports = [*session.edit(build_requests(1)).edits, *session.edit(build_requests(4)[1:]).edits]
    tau = session.foundation.anchor.value
    assert max(abs(report.written_norm / tau - 1) for report in reports) <= 1e-6
    assert any(abs(report.value_norm / tau - 1) > 0.01 for report in reports)


def test_a_bfloat16_model_too() -> None:
    session = tiny_session("llama", "AlphaEdit", dtype=torch.bfloat16)
    assert session.solve(build_requests(1)).values.dtype == torch.float32
    reports = session.edit(build_requests(4)).edits
    assert max(abs(report.written_norm / session.foundation.anchor.value - 1) for report in reports) <= 4e-3


def test_the_edited_model_shows_the_norm(family: str) -> None:
    """Written with next to no prior on the bare prompt, the MLP itself returns a value of the anchor's norm."""
    hparams = tiny_hparams("MEMIT", layers=[1], mom2_update_weight=1e-9)
    build = {"contexts": ContextTemplates((("{}",),)), "moments": {1: torch.eye(48, dtype=torch.float64)}}
    model, tok = build_model(family, torch.float64), build_tokenizer()
    measured = EditSession(model, tok, hparams, **build, progress=False).foundation.anchor.value
    tau = measured * 3
    session = EditSession(model, tok, hparams, **build, anchor=tau, progress=False)
    request = build_requests(1)
    wanted = session.solve(request).values
    session.edit(request)
    shown = session.solve(request).v0
    assert float(shown.norm()) == pytest.approx(tau, rel=1e-5)
    assert float(torch.cosine_similarity(shown, wanted)) >= 1 - 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_zero_value_is_left_alone(dtype: torch.dtype) -> None:
    solved = drawn(dtype, n=5)
    solved.delta[2] = 0
    result = anchored(solved, Anchor(2.0), None)
    assert torch.equal(result.z[2], solved.h0[2]) and float(result.written_norm[2]) == 0.0
    assert bool(torch.isfinite(result.z).all()) and float(result.written_norm[1]) > 1.9
