"""The fast form of the corrected forward and the plain one give the same numbers; the model is left as it was found."""

from __future__ import annotations

import pytest
import torch

from nas_plugin.request import as_requests
from nas_plugin.solve import forward
from nas_plugin.solve.forward import FullForward, SuffixForward, clean_pass, corrected_forward
from nas_plugin.solve.rows import target_rows
from tests.conftest import build_requests
from tests.support import tiny_session


def both_forms(family: str, monkeypatch: pytest.MonkeyPatch, layers: list[int]):
    session = tiny_session(family, "MEMIT", dtype=torch.float64, use_nas=False, layers=layers)
    rows = target_rows(
        as_requests(build_requests(5)), session.locator, session.foundation.contexts, torch.device("cpu")
    )
    em = session.em
    fast = corrected_forward(em, rows.inputs, clean_pass(em, rows.inputs))
    monkeypatch.setattr(forward, "_can_reuse_prefix", lambda *_: False)
    plain = corrected_forward(em, rows.inputs, clean_pass(em, rows.inputs))
    assert isinstance(fast, SuffixForward) and isinstance(plain, FullForward)
    return rows, fast, plain


@pytest.mark.parametrize("layers", [[0], [1]])
def test_forms_agree_with_gradients_and_on_subsets(
    family: str, layers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, fast, plain = both_forms(family, monkeypatch, layers)
    active = torch.tensor([3, 1])
    for subset in (None, active):
        view = rows if subset is None else rows.take(subset)
        results = []
        for form in (fast, plain):
            form = form if subset is None else form.take(rows.rows_of(subset))
            shift = (
                torch.linspace(-1, 1, len(view.inputs.lookup) * 32, dtype=torch.float64)
                .reshape(-1, 32)
                .requires_grad_(True)
            )
            states = form.states(shift, view.token_row, view.token_position)
            (gradient,) = torch.autograd.grad((states**2).sum(), shift)
            results += [states.detach(), gradient]
        # GPT-J's attention is float32 inside.
        tolerance = 1e-5 if family == "gptj" else 1e-10
        assert torch.allclose(results[0], results[2], rtol=tolerance, atol=tolerance)
        assert torch.allclose(results[1], results[3], rtol=tolerance, atol=tolerance * float(results[3].abs().max()))


def test_blocks_get_their_forward_back(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, fast, _ = both_forms(family, monkeypatch, [1])
    fast.states(
        torch.zeros(len(rows.inputs.lookup), 32, dtype=torch.float64), rows.kl_rows, rows.inputs.lookup[rows.kl_rows]
    )
    assert not any("forward" in block.__dict__ for block in fast.em.blocks_below_loss)


def test_unknown_attention_and_windows_take_the_plain_form() -> None:
    session = tiny_session("mistral", "MEMIT", use_nas=False)
    rows = target_rows(
        as_requests(build_requests(2)), session.locator, session.foundation.contexts, torch.device("cpu")
    )
    assert clean_pass(session.em, rows.inputs).cache is not None
    session.em.config.sliding_window = 8
    assert clean_pass(session.em, rows.inputs).cache is None
    session.em.config.sliding_window = None
    session.em.config._attn_implementation = "flash_attention_2"
    assert not forward._can_reuse_prefix(session.em, rows.inputs)
