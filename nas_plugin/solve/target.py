"""The one target solver: an additive correction to the last edited block's output that makes the model say the target.

Source: ROME (Meng et al., 2022), Eq. 4, in the form of MEMIT's released `compute_z`, for all requests of a step at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_plugin.errors import NonFiniteError
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.sequences import Locator
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import as_found, hidden_of
from nas_plugin.request import EditRequest
from nas_plugin.solve.forward import CorrectedForward, clean_pass, corrected_forward
from nas_plugin.solve.rows import TargetRows, target_rows
from nas_plugin.solve.stopping import LossBelow, StepView, StoppingRule

_REQUESTS_PER_BATCH = 16
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


@dataclass(frozen=True)
class SolverSettings:
    """Numbers of the optimisation.

    Attributes:
        steps: `v_num_grad_steps`; the last one only evaluates in the released code, so there are `steps - 1` updates.
        learning_rate: Adam's.
        kl_factor: Weight of KL(current || initial) on "<subject> is a".
        weight_decay: Weight of |delta| / |h0|^2.
        clamp: Largest |delta| in units of |h0|.
    """

    steps: int
    learning_rate: float
    kl_factor: float
    weight_decay: float
    clamp: float

    @classmethod
    def from_hparams(cls, hparams: Any) -> SolverSettings:
        """Read the numbers from a method's hyperparameters."""
        return cls(
            hparams.v_num_grad_steps, hparams.v_lr, hparams.kl_factor, hparams.v_weight_decay, hparams.clamp_norm_factor
        )


@dataclass(frozen=True)
class SolvedTargets:
    """Result for n requests, in the compute dtype.

    Attributes:
        delta: Correction at the output of the last edited block, `(n, d_out)`.
        h0: That output before the edit, bare prompt, subject's last token, `(n, d_out)`.
        v0: Output of that block's MLP at the same place, `(n, d_out)`.
        loss: Objective at the last evaluation, `(n,)`.
        updates: Number of updates made, `(n,)`.
    """

    delta: Tensor
    h0: Tensor
    v0: Tensor
    loss: Tensor
    updates: Tensor

    @property
    def values(self) -> Tensor:
        """Solved values v* = v0 + delta, `(n, d_out)`."""
        return self.v0 + self.delta


@dataclass(frozen=True)
class _Evaluation:
    loss: Tensor
    nll: Tensor
    correct: Tensor


class TargetSolver:
    """Solves values on the current weights; the model is left as it was found."""

    def __init__(
        self,
        em: EditableModel,
        locator: Locator,
        contexts: ContextTemplates,
        settings: SolverSettings,
        rule: StoppingRule | None = None,
    ) -> None:
        """Bind the solver.

        Args:
            em: The model.
            locator: Builds the sequences.
            contexts: Templates; the bare prompt is the first.
            settings: Numbers of the optimisation.
            rule: When to stop; by default when the loss is below 0.05.
        """
        self.em = em
        self.locator = locator
        self.contexts = contexts
        self.settings = settings
        self.rule = rule if rule is not None else LossBelow()

    def solve(self, requests: Sequence[EditRequest]) -> SolvedTargets:
        """Solve the values of a step's requests, each independently of the others.

        Args:
            requests: Requests.

        Returns:
            Corrections and what they were measured against.

        Raises:
            NonFiniteError: A loss or a correction is NaN or infinite.
        """
        size = _REQUESTS_PER_BATCH
        with as_found(self.em.model):
            parts = [self._solve_batch(requests[i : i + size]) for i in range(0, len(requests), size)]
        return SolvedTargets(
            *(torch.cat([getattr(p, name) for p in parts]) for name in ("delta", "h0", "v0", "loss", "updates"))
        )

    def _solve_batch(self, requests: Sequence[EditRequest]) -> SolvedTargets:
        rows = target_rows(requests, self.locator, self.contexts, self.em.input_device)
        clean = clean_pass(self.em, rows.inputs)
        bare = rows.bare_rows, rows.inputs.lookup[rows.bare_rows]
        h0, v0 = (states[bare].to(self.em.compute_dtype) for states in (hidden_of(clean.block), clean.value))
        with torch.no_grad():
            reference = self._log_probabilities(clean.final[rows.kl_rows, rows.inputs.lookup[rows.kl_rows]])
        whole = corrected_forward(self.em, rows.inputs, clean)
        count, device = len(requests), h0.device
        delta, first, second = torch.zeros_like(h0), torch.zeros_like(h0), torch.zeros_like(h0)
        loss = torch.full((count,), float("nan"), dtype=h0.dtype, device=device)
        updates = torch.zeros(count, dtype=torch.long, device=device)
        decide = self.rule.start(count, device)
        active, view, forward = torch.arange(count, device=device), rows, whole
        for step in range(1, self.settings.steps):
            row = delta[active].requires_grad_(True)
            evaluation = self._evaluate(view, forward, row, h0[active], reference[active])
            loss[active] = evaluation.loss.detach()
            if not bool(torch.isfinite(evaluation.loss).all()):
                raise _not_finite(requests[int(active[~torch.isfinite(evaluation.loss)][0])], step)
            seen = (evaluation.loss.detach(), evaluation.nll, evaluation.correct, view.target_length)
            stop = decide(StepView(active, *seen))
            (gradient,) = torch.autograd.grad(evaluation.loss.sum(), row)
            if bool(stop.any()):
                active, gradient = active[~stop], gradient[~stop]
                if len(active) == 0:
                    break
                view, forward = rows.take(active), whole.take(rows.rows_of(active))
            # Adam as torch.optim has it. All requests still active have made the same number of updates.
            first[active] = _BETAS[0] * first[active] + (1 - _BETAS[0]) * gradient
            second[active] = _BETAS[1] * second[active] + (1 - _BETAS[1]) * gradient**2
            scale = (second[active] / (1 - _BETAS[1] ** step)).sqrt() + _EPSILON
            moved = delta[active] - self.settings.learning_rate * (first[active] / (1 - _BETAS[0] ** step)) / scale
            delta[active] = _clamped(moved, self.settings.clamp * h0[active].norm(dim=1))
            updates[active] += 1
        if not bool(torch.isfinite(delta).all()):
            raise NonFiniteError("a solved correction is not finite; lower v_lr, or load the model in float32.")
        return SolvedTargets(delta, h0, v0, loss, updates)

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        return torch.log_softmax(self.em.logits(hidden), dim=1)

    def _evaluate(
        self, rows: TargetRows, forward: CorrectedForward, delta: Tensor, h0: Tensor, reference: Tensor
    ) -> _Evaluation:
        """Evaluate the objective; the head runs only where a target token or the KL term is read."""
        lookup, tokens = rows.inputs.lookup, len(rows.token_label)
        places = torch.cat([rows.token_row, rows.kl_rows]), torch.cat([rows.token_position, lookup[rows.kl_rows]])
        shift = delta.repeat_interleave(rows.per_request, 0)
        logp = self._log_probabilities(forward.states(shift, *places))
        target, current = logp[:tokens], logp[tokens:]
        cells = rows.token_request * rows.contexts + rows.token_context
        summed = torch.zeros(len(delta) * rows.contexts, dtype=logp.dtype, device=logp.device)
        nll = summed.index_add(0, cells, -target.gather(1, rows.token_label[:, None])[:, 0])
        nll = nll.reshape(len(delta), rows.contexts) / rows.target_length[:, None]
        right = (target.detach().argmax(1) == rows.token_label).long()
        correct = torch.zeros_like(summed, dtype=torch.long).index_add(0, cells, right).reshape(nll.shape)
        kl = (current.exp() * (current - reference)).sum(1)
        decay = delta.norm(dim=1) / h0.norm(dim=1) ** 2
        loss = nll.mean(1) + self.settings.kl_factor * kl + self.settings.weight_decay * decay
        return _Evaluation(loss, nll.detach(), correct)


def _not_finite(request: EditRequest, step: int) -> NonFiniteError:
    return NonFiniteError(
        f"the loss of {request.prompt!r} -> {request.target!r} is not finite at step {step}; the model is damaged or "
        "overflows."
    )


def _clamped(delta: Tensor, limit: Tensor) -> Tensor:
    """Project each row onto the ball of its radius."""
    norm = delta.norm(dim=1)
    factor = torch.where(norm > limit, limit / norm, torch.ones_like(norm))
    return delta * factor[:, None]
