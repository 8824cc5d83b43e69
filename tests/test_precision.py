"""Half precision: float32 masters keep what the model's own numbers would lose; values and solves are float32 or wider."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nas_plugin.errors import NonFiniteError
from nas_plugin.locate.collecting import collect_moments
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests
from tests.support import TEXT, tiny_session

HALVES = (torch.bfloat16, torch.float16)


def half(dtype: torch.dtype, method: str = "AlphaEdit", **numbers: object) -> EditSession:
    return tiny_session("llama", method, dtype=dtype, **numbers)


@pytest.mark.parametrize("dtype", HALVES)
def test_small_updates_add_up_in_the_masters_and_vanish_without(dtype: torch.dtype) -> None:
    session = half(dtype)
    weights, layer = session.weights, 0
    base = weights.base[layer]
    # An eighth of the distance to the next number above.
    step = base.abs() * torch.finfo(dtype).eps / 8
    alone = session.em.matrix(layer).clone()
    for _ in range(64):
        master = dict(weights.master) | {layer: weights.master[layer] + step}
        weights.commit(master, master)
        alone += step.to(dtype)
    assert torch.equal(alone, base.to(dtype))
    wanted = (base.double() + 64 * step.double()).to(dtype)
    assert torch.equal(session.em.matrix(layer), wanted)
    assert not torch.equal(wanted, base.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_values_and_solves_are_not_in_half_precision(dtype: torch.dtype) -> None:
    session = half(dtype)
    solved = session.solve(build_requests(2))
    for tensor in (solved.delta, solved.h0, solved.v0, solved.loss, solved.first_keys):
        assert tensor.dtype == torch.float32
    session.edit(build_requests(2))
    for layer, editor in session.editors.items():
        assert editor.gain.base.dtype == editor.gain.keys.dtype == torch.float64
        assert session.weights.master[layer].dtype == torch.float32
        assert session.em.weight(layer).dtype == dtype
        assert torch.equal(session.em.matrix(layer), session.weights.master[layer].to(dtype))


def test_a_correction_below_the_models_resolution_is_solved() -> None:
    """The correction itself is float32: it need not be a number of the model's type."""
    solved = half(torch.bfloat16).solve(build_requests(2))
    assert not torch.equal(solved.delta, solved.delta.to(torch.bfloat16).float())


@pytest.mark.parametrize("dtype", HALVES)
def test_second_moments_of_half_precision_activations_are_summed_in_float64(dtype: torch.dtype) -> None:
    session, seen = half(dtype), []
    hook = session.em.rewrite[0].register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double()))
    for text in TEXT[:30]:
        with torch.no_grad():
            session.model(**session.tok(text, return_tensors="pt", return_token_type_ids=False))
    hook.remove()
    keys = torch.cat(seen)
    ours = collect_moments(
        session.em, session.locator, TEXT[:30], max_documents=30, max_tokens=None, dtype=torch.float64, fingerprint="",
        progress=False,
    )  # fmt: skip
    # The activations of a padded batch differ from those of single texts by the type's rounding.
    error = (ours.matrices[0] - keys.T @ keys / len(keys)).norm() / ours.matrices[0].norm()
    assert float(error) < torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALVES)
def test_a_kept_session_goes_on_from_the_masters(dtype: torch.dtype, tmp_path: Path) -> None:
    def kept() -> EditSession:
        session = half(dtype, snapshot_every=1, keep_dir=str(tmp_path))
        return session

    first = kept()
    first.edit(build_requests(2))
    again = kept()
    assert again.resume() == 2
    for layer, master in first.weights.master.items():
        assert torch.equal(again.weights.master[layer], master)
        assert not torch.equal(master, master.to(dtype).float())


def test_what_float16_cannot_hold_is_refused_before_it_is_written() -> None:
    session = half(torch.float16)
    session.prepare()
    before = session.weights_digest()
    beyond = {layer: matrix * 1e6 for layer, matrix in session.weights.master.items()}
    with pytest.raises(NonFiniteError, match="in torch.float16"):
        session.weights.check_finite(beyond)
    assert session.weights_digest() == before
    # The same numbers fit bfloat16, which has float32's range.
    wide = half(torch.bfloat16)
    wide.weights.check_finite({layer: matrix * 1e6 for layer, matrix in wide.weights.master.items()})


def test_second_moments_that_overflow_are_refused() -> None:
    model = build_model("llama", torch.float16)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(6e4)
    session = EditSession(model, half(torch.float16).tok, half(torch.float16).hparams, progress=False)
    with pytest.raises(NonFiniteError, match="overflowed; load the model in bfloat16 or float32"):
        collect_moments(
            session.em, session.locator, TEXT[:2], max_documents=2, max_tokens=None, dtype=torch.float32, fingerprint="",
            progress=False,
        )  # fmt: skip
