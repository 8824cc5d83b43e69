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
from nas_plugin.locate.sequences import Locator, PaddedBatch, pad
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import as_found, forward_until, hidden_of, with_hidden
from nas_plugin.request import EditRequest
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
class _Batch:
    """Rows of n requests: for each, its contexts, then its KL sequence."""

    inputs: PaddedBatch
    contexts: int
    token_request: Tensor  # (t,) request of each target token
    token_context: Tensor  # (t,) its context
    token_position: Tensor  # (t,) position whose logits predict it
    token_label: Tensor  # (t,)
    target_length: Tensor  # (n,)

    @property
    def per_request(self) -> int:
        return self.contexts + 1

    def take(self, active: Tensor) -> _Batch:
        """Keep some requests, renumbered 0..k-1."""
        rows = (active[:, None] * self.per_request + torch.arange(self.per_request, device=active.device)).reshape(-1)
        renumber = torch.full_like(self.target_length, -1)
        renumber[active] = torch.arange(len(active), device=active.device)
        kept = renumber[self.token_request] >= 0
        return _Batch(
            self.inputs.rows(rows),
            self.contexts,
            renumber[self.token_request[kept]],
            self.token_context[kept],
            self.token_position[kept],
            self.token_label[kept],
            self.target_length[active],
        )


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
        batch = self._rows(requests)
        h0, v0, reference = self._clean_pass(batch)
        count, device = len(requests), h0.device
        delta, first, second = torch.zeros_like(h0), torch.zeros_like(h0), torch.zeros_like(h0)
        loss, updates = (
            torch.full((count,), float("nan"), dtype=h0.dtype, device=device),
            torch.zeros(count, dtype=torch.long, device=device),
        )
        decide = self.rule.start(count, device)
        active, view = torch.arange(count, device=device), batch
        for step in range(1, self.settings.steps):
            row = delta[active].requires_grad_(True)
            evaluation = self._evaluate(view, row, h0[active], reference[active])
            loss[active] = evaluation.loss.detach()
            if not bool(torch.isfinite(evaluation.loss).all()):
                bad = requests[int(active[~torch.isfinite(evaluation.loss)][0])]
                raise NonFiniteError(
                    f"the loss of {bad.prompt!r} -> {bad.target!r} is not finite at step {step}; the model is "
                    "damaged or overflows."
                )
            stop = decide(
                StepView(active, evaluation.loss.detach(), evaluation.nll, evaluation.correct, view.target_length)
            )
            (gradient,) = torch.autograd.grad(evaluation.loss.sum(), row)
            if bool(stop.any()):
                active, gradient = active[~stop], gradient[~stop]
                if len(active) == 0:
                    break
                view = batch.take(active)
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

    def _rows(self, requests: Sequence[EditRequest]) -> _Batch:
        templates = self.contexts.flat
        rows, tokens = [], []
        targets = [self.locator.target_ids(request) for request in requests]
        for number, (asked, target) in enumerate(zip(requests, targets, strict=True)):
            for column, template in enumerate(templates):
                row = self.locator.sequence(asked, template, target[:-1])
                tokens += [(number, column, row.prompt_length - 1 + j, wanted) for j, wanted in enumerate(target)]
                rows.append(row)
            rows.append(self.locator.essence(asked))
        device = self.em.input_device
        request, context, position, label = torch.tensor(tokens, device=device).T
        lengths = torch.tensor([len(target) for target in targets], device=device)
        inputs = pad(rows, self.locator.pad_id, device)
        return _Batch(inputs, len(templates), request, context, position, label, lengths)

    def _clean_pass(self, batch: _Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Record h0 and v0 at the bare prompts, and the KL reference."""
        blocks: list[Tensor] = []
        values: list[Tensor] = []
        with torch.no_grad():
            final = forward_until(
                self.em.model,
                batch.inputs.input_ids,
                batch.inputs.attention_mask,
                self.em.loss_block,
                outputs={
                    self.em.value_block: lambda output: blocks.append(hidden_of(output)),
                    self.em.value_mlp: lambda output: values.append(hidden_of(output)),
                },
            )
            lookup = batch.inputs.lookup
            bare = torch.arange(0, len(lookup), batch.per_request, device=lookup.device)
            reference = self._kl_log_probabilities(final, batch)
        h0, v0 = (states[0][bare, lookup[bare]].to(self.em.compute_dtype) for states in (blocks, values))
        return h0, v0, reference

    def _kl_log_probabilities(self, final: Tensor, batch: _Batch) -> Tensor:
        rows = torch.arange(batch.contexts, len(batch.inputs.lookup), batch.per_request, device=final.device)
        return torch.log_softmax(self.em.logits(final[rows, batch.inputs.lookup[rows]]), dim=1)

    def _evaluate(self, batch: _Batch, delta: Tensor, h0: Tensor, reference: Tensor) -> _Evaluation:
        lookup = batch.inputs.lookup
        rows = torch.arange(len(lookup), device=lookup.device)
        shift = delta.repeat_interleave(batch.per_request, 0)

        def add_delta(output: Any) -> Any:
            hidden = hidden_of(output)
            moved = (hidden[rows, lookup].to(shift.dtype) + shift).to(hidden.dtype)
            return with_hidden(output, hidden.index_put((rows, lookup), moved))

        final = forward_until(
            self.em.model,
            batch.inputs.input_ids,
            batch.inputs.attention_mask,
            self.em.loss_block,
            outputs={self.em.value_block: add_delta},
        )
        token_rows = batch.token_request * batch.per_request + batch.token_context
        logp = torch.log_softmax(self.em.logits(final[token_rows, batch.token_position]), dim=1)
        cells = batch.token_request * batch.contexts + batch.token_context
        shape = (len(delta), batch.contexts)
        summed = torch.zeros(shape[0] * shape[1], dtype=logp.dtype, device=logp.device).index_add(
            0, cells, -logp.gather(1, batch.token_label[:, None])[:, 0]
        )
        nll = summed.reshape(shape) / batch.target_length[:, None]
        right = (logp.argmax(1) == batch.token_label).long()
        correct = torch.zeros_like(summed, dtype=torch.long).index_add(0, cells, right).reshape(shape)
        current = self._kl_log_probabilities(final, batch)
        kl = (current.exp() * (current - reference)).sum(1)
        decay = delta.norm(dim=1) / h0.norm(dim=1) ** 2
        loss = nll.mean(1) + self.settings.kl_factor * kl + self.settings.weight_decay * decay
        return _Evaluation(loss, nll.detach(), correct)


def _clamped(delta: Tensor, limit: Tensor) -> Tensor:
    """Project each row onto the ball of its radius."""
    norm = delta.norm(dim=1)
    factor = torch.where(norm > limit, limit / norm, torch.ones_like(norm))
    return delta * factor[:, None]
