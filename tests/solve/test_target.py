"""The target solver against its naive twin; a whole step against the dense editors on naive keys and targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nas_plugin.request import as_requests
from nas_plugin.solve.descent import SolverSettings
from nas_plugin.solve.stopping import BatchMeanLoss, LossBelow, MostProbable, StepView
from nas_plugin.solve.target import TargetSolver
from tests.conftest import build_requests
from tests.support import FLAT, METHOD_NAMES, moments, tiny_session, without_float32_inside
from tests.twins.dense import DENSE
from tests.twins.naive import naive_step, naive_target


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_values_equal_the_naive_twin(
    family: str, dtype: torch.dtype, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tiny_session(family, "MEMIT", dtype=dtype, use_nas=False, v_num_grad_steps=25)
    if dtype == torch.float64:
        without_float32_inside(session.model, monkeypatch)
    requests = as_requests(build_requests(5))
    solved = session.solve(requests)
    for row, request in enumerate(requests):
        twin = naive_target(session.model, session.tok, request, FLAT, session.hparams)
        assert difference(solved.h0[row], twin.h0) <= limit
        assert difference(solved.v0[row], twin.v0) <= limit
        assert difference(solved.delta[row], twin.delta) <= limit
        assert int(solved.updates[row]) == twin.updates == 24


def test_requests_stop_on_their_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request stops where it would stop alone, and its Adam state is frozen there."""
    session = tiny_session(
        family, "MEMIT", dtype=torch.float64, use_nas=False, v_num_grad_steps=15, v_lr=0.03, clamp_norm_factor=9.0
    )
    without_float32_inside(session.model, monkeypatch)
    requests = as_requests(build_requests(5))
    settings = SolverSettings.from_hparams(session.hparams)
    # A threshold in the middle of the losses after a few updates: some requests pass it early, some late or never.
    probe = TargetSolver(session.em, session.locator, session.foundation.contexts, replace(settings, steps=7)).solve(
        requests
    )
    threshold = float(probe.loss.median())
    solver = TargetSolver(session.em, session.locator, session.foundation.contexts, settings, LossBelow(threshold))
    together = solver.solve(requests)
    assert len(set(together.updates.tolist())) > 1
    for row, request in enumerate(requests):
        alone = solver.solve([request])
        twin = naive_target(session.model, session.tok, request, FLAT, session.hparams, threshold)
        assert int(together.updates[row]) == int(alone.updates[0]) == twin.updates
        assert difference(together.delta[row], alone.delta[0]) <= 1e-10
        assert difference(together.delta[row], twin.delta) <= 1e-10


def test_out_of_memory_halves_the_batch_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = tiny_session("gpt2", "MEMIT", use_nas=False)
    wanted = session.solve(build_requests(6))
    honest = TargetSolver._solve_batch

    def small_memory(self, step, batch):
        if len(batch) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")
        return honest(self, step, batch)

    monkeypatch.setattr(TargetSolver, "_solve_batch", small_memory)
    solved = session.solve(build_requests(6))
    assert difference(solved.delta, wanted.delta) <= 1e-3 and "out of memory with 6" in caplog.text
    assert session.solver().batch_size == 1
    monkeypatch.setattr(TargetSolver, "_solve_batch", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        session.solve(build_requests(2))


def test_clamp_holds() -> None:
    session = tiny_session("gpt2", "MEMIT", use_nas=False, clamp_norm_factor=0.1, v_lr=1.0)
    solved = session.solve(build_requests(3))
    assert (solved.delta.norm(dim=1) <= 0.1 * solved.h0.norm(dim=1) * (1 + 1e-6)).all()


@pytest.mark.parametrize("use_nas", [True, False])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_whole_steps_equal_the_dense_method_on_naive_targets(
    method: str, use_nas: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Atomic, then batched: tokens, targets, anchor, keys, spreading, writing, finishing, all against naive code."""
    if use_nas:
        # On a model this small neither sharing prefixes nor passes of their own for short rows would pay.
        for module in ("target", "suffix"):
            monkeypatch.setattr(f"nas_plugin.solve.{module}.pass_cost", lambda _em: 1)
    session = tiny_session("llama", method, dtype=torch.float64, use_nas=use_nas)
    reference = tiny_session("llama", method, dtype=torch.float64, use_nas=False)
    session.prepare()
    stats = moments("llama", (0, 1), torch.float64, 0)
    editors = {
        layer: DENSE[method](reference.em.matrix(layer).clone(), stats.matrices[layer], session.hparams)
        for layer in (0, 1)
    }
    for step in (build_requests(1), build_requests(4)[1:]):
        session.edit(step)
        if method == "RECT":
            rect_step(reference, step, editors, session)
        else:
            if method == "PRUNE":
                for layer, editor in editors.items():
                    reference.em.write(layer, editor.w)
            naive_step(
                reference.model, reference.tok, as_requests(step), FLAT, session.hparams, editors, session.anchor_value
            )
    for layer, editor in editors.items():
        start = reference.weights.base[layer]
        assert difference(session.em.matrix(layer) - start, editor.matrix() - start) <= 1e-7


def rect_step(reference, step, editors, session) -> None:
    """RECT writes full MEMIT updates in the loop and masks all layers afterwards."""
    before = {layer: editor.w.clone() for layer, editor in editors.items()}
    full = {layer: DENSE["MEMIT"](before[layer], editor.moment, editor.numbers) for layer, editor in editors.items()}
    naive_step(reference.model, reference.tok, as_requests(step), FLAT, session.hparams, full, session.anchor_value)
    for layer, editor in editors.items():
        delta = full[layer].w - before[layer]
        relative = (delta / (before[layer] + 1e-8)).abs().flatten()
        threshold = relative.sort().values[int(0.6 * relative.numel()) - 1]
        editor.w = before[layer] + delta * (relative >= threshold).reshape(delta.shape)
        reference.em.write(layer, editor.w)


def view(correct: list[list[int]], nll: list[list[float]], length: int = 1) -> StepView:
    rows = len(correct)
    return StepView(
        torch.arange(rows),
        torch.full((rows,), 9.0),
        lambda: torch.tensor(nll),
        lambda: torch.tensor(correct),
        torch.full((rows,), length),
    )


def test_most_probable_counts_in_total_and_ignores_the_bare_prompt() -> None:
    decide = MostProbable(-2.0).start(1, torch.device("cpu"))
    hit, miss = view([[0, 1, 1, 1, 1, 1]], [[9.0] * 6]), view([[1, 1, 1, 1, 1, 0]], [[9.0] * 6])
    assert [bool(decide(v)) for v in (hit, miss, hit)] == [False, False, True]


def test_most_probable_on_longer_targets_and_the_released_rule() -> None:
    two_tokens = view([[2, 2, 2, 2, 2, 2]], [[9.0] * 6], length=2)
    assert bool(MostProbable(-1.0).start(1, torch.device("cpu"))(two_tokens))
    assert not bool(MostProbable(-1.0, exactly_five=True).start(1, torch.device("cpu"))(two_tokens))
    five_of_ten = view([[2, 1, 1, 1, 1, 1]], [[9.0] * 6], length=2)
    assert bool(MostProbable(-1.0, exactly_five=True).start(1, torch.device("cpu"))(five_of_ten))


def test_positive_cutoff_is_a_probability_and_zero_is_off() -> None:
    likely = view([[0] * 6], [[0.1] * 6])
    assert bool(MostProbable(0.8).start(1, torch.device("cpu"))(likely))
    assert not bool(MostProbable(0.95).start(1, torch.device("cpu"))(likely))
    assert not bool(MostProbable(0.0).start(1, torch.device("cpu"))(view([[0, 1, 1, 1, 1, 1]], [[0.0] * 6])))


def test_batch_mean_stops_all_or_none() -> None:
    decide = BatchMeanLoss(1.0).start(2, torch.device("cpu"))
    both = view([[0] * 6] * 2, [[0.0] * 6] * 2)
    assert decide(
        StepView(both.active, torch.tensor([0.1, 1.5]), both.nll, both.correct, both.target_length)
    ).tolist() == [True, True]
    assert decide(
        StepView(both.active, torch.tensor([0.1, 2.5]), both.nll, both.correct, both.target_length)
    ).tolist() == [False, False]
