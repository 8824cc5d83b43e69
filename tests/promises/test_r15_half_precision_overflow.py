"""R15: an edit that float16 cannot hold is refused, and the weights stay as they were, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nas_plugin.errors import NonFiniteError
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests, build_tokenizer
from tests.promises.watching import digests
from tests.support import METHOD_NAMES, TEMPLATES, tiny_hparams


def half_session(method: str, anchor: float, model: Any = None) -> EditSession:
    more = {"nullspace_threshold": 1.0} if method == "AlphaEdit" else {"mom2_update_weight": 1e-3}
    moment = torch.diag(torch.linspace(0.5, 1.5, 48, dtype=torch.float64))
    return EditSession(
        model if model is not None else build_model("llama", torch.float16),
        build_tokenizer(),
        tiny_hparams(method, **more, **({"rect_keep": 1.0} if method == "RECT" else {})),
        contexts=TEMPLATES,
        moments={0: moment, 1: moment},
        anchor=anchor,
        progress=False,
    )


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_an_update_beyond_float16_is_refused(method: str) -> None:
    session = half_session(method, anchor=1e12)
    session.prepare()
    before = digests(session.model)
    with pytest.raises(NonFiniteError):
        session.edit(build_requests(2))
    assert digests(session.model) == before and session.steps == 0


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_an_ordinary_update_is_written_and_finite(method: str) -> None:
    """The refusal above has teeth only if the same session writes what float16 can hold."""
    session = half_session(method, anchor=2.0)
    before = digests(session.model)
    session.edit(build_requests(2))
    assert {name for name, seen in digests(session.model).items() if seen != before[name]} == set(
        session.parameter_names
    )
    assert all(bool(torch.isfinite(parameter).all()) for parameter in session.model.parameters())


def test_activations_beyond_float16_are_refused() -> None:
    model = build_model("llama", torch.float16)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(6e4)
        model.model.layers[0].mlp.gate_proj.weight.fill_(6e4)
    session = half_session("MEMIT", anchor=2.0, model=model)
    before = digests(model)
    with pytest.raises(NonFiniteError):
        session.edit(build_requests(1))
    assert digests(model) == before and session.steps == 0
