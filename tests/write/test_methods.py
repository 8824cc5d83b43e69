"""Every method against its dense twin, and what each promises on its own."""

from __future__ import annotations

import math

import pytest
import torch

from nas_plugin.errors import NonFiniteError, StatisticsError
from nas_plugin.write import METHODS, Gain
from nas_plugin.write.methods.prune import squashed
from nas_plugin.write.methods.rect import kept_changes
from nas_plugin.write.priors import covariance_prior, null_space_prior
from tests.twins.dense import DENSE, Numbers

D_IN, D_OUT = 40, 24


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64)
    q, _ = torch.linalg.qr(mixing)
    spectrum = torch.logspace(1, -4, D_IN, dtype=torch.float64)
    moment = (q * spectrum) @ q.T
    w0 = torch.randn(D_OUT, D_IN, generator=generator, dtype=torch.float64)
    return w0, (moment + moment.T) / 2, generator


def stream(generator: torch.Generator, n: int, steps: int):
    for _ in range(steps):
        keys = torch.randn(D_IN, n, generator=generator, dtype=torch.float64)
        residual = torch.randn(D_OUT, n, generator=generator, dtype=torch.float64)
        yield keys, residual


def run_ours(name: str, numbers: Numbers, n: int, steps: int):
    w0, moment, generator = problem()
    editor, w = METHODS[name](w0, moment, numbers), w0
    for keys, residual in stream(generator, n, steps):
        editor.fold()
        proposal = editor.propose(w, keys, residual)
        w = editor.finish(proposal, proposal.applied())
        editor.absorb(proposal, w)
    return editor, w, editor.view(w)


def run_twin(name: str, numbers: Numbers, n: int, steps: int):
    w0, moment, generator = problem()
    twin = DENSE[name](w0, moment, numbers)
    for keys, residual in stream(generator, n, steps):
        twin.step(keys, residual)
    return twin


def relative_error(ours: torch.Tensor, twin: torch.Tensor, w0: torch.Tensor) -> float:
    return float((ours - twin).norm() / (twin - w0).norm())


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("name", METHODS)
def test_equals_the_dense_twin_over_fifty_steps(name: str, n: int) -> None:
    editor, _, served = run_ours(name, Numbers(), n, 50)
    twin = run_twin(name, Numbers(), n, 50)
    assert relative_error(served, twin.matrix(), editor.w0) <= 1e-8


@pytest.mark.parametrize("name", METHODS)
def test_twins_differ_from_each_other(name: str) -> None:
    """The comparison above has teeth only if no two methods give the same matrix."""
    mine = run_twin(name, Numbers(), 5, 20).matrix()
    for other in METHODS:
        if other != name:
            assert (run_twin(other, Numbers(), 5, 20).matrix() - mine).norm() > 1e-3 * mine.norm()


def test_prune_double_add_equals_its_twin() -> None:
    numbers = Numbers(prune_double_add=True)
    editor, _, served = run_ours("PRUNE", numbers, 1, 10)
    assert relative_error(served, run_twin("PRUNE", numbers, 1, 10).matrix(), editor.w0) <= 1e-8


def test_prune_leaves_small_changes_alone_and_edits_on_unpruned() -> None:
    w0, _, _ = problem()
    editor, edited, served = run_ours("PRUNE", Numbers(mom2_update_weight=1e6), 1, 1)
    assert served is edited
    editor, edited, served = run_ours("PRUNE", Numbers(), 5, 50)
    assert not torch.equal(edited, served)
    assert torch.equal(edited, run_ours("MEMIT", Numbers(), 5, 50)[1])


def test_squash_matches_a_hand_computed_case() -> None:
    change = torch.diag(torch.tensor([8.0, 1.0], dtype=torch.float64))
    expected = torch.diag(torch.tensor([math.log(8) - math.log(2) + 2, 1.0], dtype=torch.float64))
    assert torch.allclose(squashed(change, 2.0, math.e), expected, atol=1e-12)


def test_rect_keeps_the_stated_share() -> None:
    w0, _, generator = problem()
    delta = torch.randn(w0.shape, generator=generator, dtype=torch.float64)
    kept = kept_changes(delta, w0, 0.4)
    share = float((kept != 0).double().mean())
    assert abs(share - 0.4) <= 1.5 / delta.numel()
    relative = (delta / w0).abs()
    assert relative[kept != 0].min() >= relative[kept == 0].max()
    assert torch.equal(kept_changes(delta, w0, 1.0), delta)


def test_lyaplock_queue_follows_the_unreduced_one_and_moves() -> None:
    w0, moment, generator = problem()
    numbers = Numbers()
    editor, twin, w, queues = METHODS["LyapLock"](w0, moment, numbers), DENSE["LyapLock"](w0, moment, numbers), w0, []
    for keys, residual in stream(generator, 1, 30):
        queues.append(editor.queue)
        proposal = editor.propose(w, keys, residual)
        w = editor.finish(proposal, proposal.applied())
        editor.absorb(proposal, w)
        twin.step(keys, residual)
    assert max(queues) > 1.5
    assert queues == pytest.approx(twin.queues, rel=1e-8)


@pytest.mark.parametrize("name", METHODS)
def test_snapshot_takes_a_step_back_bit_for_bit(name: str) -> None:
    w0, moment, generator = problem()
    editor, w = METHODS[name](w0, moment, Numbers()), w0
    steps = list(stream(generator, 3, 40))
    for keys, residual in steps:
        editor.fold()
        snapshot = editor.snapshot()
        first = editor.propose(w, keys, residual)
        first_w = editor.finish(first, first.applied())
        editor.absorb(first, first_w)
        editor.restore(snapshot)
        again = editor.propose(w, keys, residual)
        assert torch.equal(first.delta, again.delta)
        w = editor.finish(again, again.applied())
        editor.absorb(again, w)


@pytest.mark.parametrize("name", ["AlphaEdit", "ENCORE", "LyapLock"])
def test_carrying_methods_remember_and_the_others_do_not(name: str) -> None:
    w0, moment, generator = problem()
    keys, residual = next(stream(generator, 1, 1))
    for method, remembers in ((name, True), ("MEMIT", False)):
        editor = METHODS[method](w0, moment, Numbers())
        first = editor.propose(w0, keys, residual)
        editor.absorb(first, w0 + first.delta)
        second = editor.propose(w0 + first.delta, keys, residual)
        assert (float((second.delta - first.delta).norm()) > 1e-6) is remembers


def test_rebuilt_gain_equals_the_recursion() -> None:
    _, moment, generator = problem()
    gain = Gain(covariance_prior(moment, 1.0), carries=True)
    for keys, _ in stream(generator, 2, 50):
        gain.fold()
        gain.absorb(gain.solve(keys), keys)
    rebuilt = gain.rebuilt()
    probe = torch.randn(D_IN, 3, generator=generator, dtype=torch.float64)
    assert torch.allclose(gain.apply(probe), rebuilt.apply(probe), rtol=1e-8, atol=1e-10)


def test_nan_in_a_solve_is_named() -> None:
    gain = Gain(torch.eye(3, dtype=torch.float64), carries=True)
    with pytest.raises(NonFiniteError, match="Nothing was written"):
        gain.solve(torch.full((3, 1), float("nan"), dtype=torch.float64))


def test_priors_refuse_what_they_cannot_use(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StatisticsError, match="nullspace_threshold"):
        null_space_prior(torch.eye(4, dtype=torch.float64), 0.02, 10.0)
    with pytest.raises(StatisticsError, match="not positive definite"):
        covariance_prior(-torch.eye(4, dtype=torch.float64), 1.0)
    singular = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    assert torch.isfinite(covariance_prior(singular, 1.0)).all()
    assert "singular" in caplog.text


def test_a_gain_that_lost_its_accuracy_is_rebuilt(caplog: pytest.LogCaptureFixture) -> None:
    _, moment, generator = problem()
    gain, honest = (Gain(covariance_prior(moment, 1.0), carries=True) for _ in range(2))
    for number, (keys, _) in enumerate(stream(generator, 4, 140)):
        for each in (gain, honest):
            each.fold()
            each.absorb(each.solve(keys), keys)
        if number == 100:
            assert gain.error() <= 1e-8
            gain.base.mul_(1.001)
            assert gain.error() > 1e-4
    assert "rebuilding it from its keys" in caplog.text
    probe = torch.randn(D_IN, 3, generator=generator, dtype=torch.float64)
    wanted = honest.apply(probe)
    assert float((gain.apply(probe) - wanted).norm()) <= 1e-7 * float(wanted.norm())


def test_a_gain_without_history_keeps_no_prior_and_no_keys() -> None:
    _, moment, generator = problem()
    gain = Gain(covariance_prior(moment, 1.0), carries=False)
    keys, _ = next(stream(generator, 1, 1))
    gain.absorb(gain.solve(keys), keys)
    assert gain._prior is None and gain.keys.shape[1] == 0 and gain.error() == 0.0


@pytest.mark.parametrize("n", [1, 40, 100])
def test_the_latest_step_can_be_taken_back_after_a_fold_for_a_step_that_failed(n: int) -> None:
    """The next step folds, then fails; the step before it must still come out whole."""
    _, moment, generator = problem()
    gain = Gain(covariance_prior(moment, 1.0), carries=True)
    probe = torch.randn(D_IN, 2, generator=generator, dtype=torch.float64)
    for keys, _ in stream(generator, n, 200 // n + 2):
        gain.fold()
        before = gain.snapshot()
        wanted = gain.apply(probe)
        gain.absorb(gain.solve(keys), keys)
        gain.fold()
        failed = gain.snapshot()
        gain.restore(failed)
        gain.restore(before)
        assert float((gain.apply(probe) - wanted).norm() / wanted.norm()) <= 1e-8
        gain.absorb(gain.solve(keys), keys)
    assert gain.error() <= 1e-8 and gain.keys.shape[1] == n * (200 // n + 2)
