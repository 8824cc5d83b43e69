"""The one target solver: an additive correction to the last edited block's output that makes the model say the target.

Source: ROME (Meng et al., 2022), Eq. 4, in the form of MEMIT's released `compute_z`, for all requests of a step at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from nas_plugin.errors import NonFiniteError
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.sequences import Locator
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import as_found, hidden_of
from nas_plugin.request import EditRequest
from nas_plugin.solve.descent import Descent, SolverSettings
from nas_plugin.solve.forward import CleanPass, CorrectedForward, clean_pass, corrected_forward
from nas_plugin.solve.rows import TargetRows, target_rows
from nas_plugin.solve.stopping import LossBelow, StepView, StoppingRule

logger = logging.getLogger(__name__)

_REQUESTS_PER_BATCH = 16
_ASK_EVERY = 4


@dataclass(frozen=True)
class SolvedTargets:
    """Result for n requests, in the compute dtype.

    Attributes:
        delta: Correction at the output of the last edited block, `(n, d_out)`.
        h0: That output before the edit, bare prompt, subject's last token, `(n, d_out)`.
        v0: Output of that block's MLP at the same place, `(n, d_out)`.
        loss: Objective at the last evaluation, `(n,)`.
        updates: Number of updates made, `(n,)`.
        first_keys: Keys at the first edited layer, seen in the same pass, `(n, d_in)`.
    """

    delta: Tensor
    h0: Tensor
    v0: Tensor
    loss: Tensor
    updates: Tensor
    first_keys: Tensor

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
    """Solves values on the current weights; the model is left as it was found.

    Attributes:
        batch_size: Most requests solved at once.
    """

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
        self.batch_size = _REQUESTS_PER_BATCH

    def solve(self, requests: Sequence[EditRequest]) -> SolvedTargets:
        """Solve the values of a step's requests, each independently of the others.

        Args:
            requests: Requests.

        Returns:
            Corrections and what they were measured against.

        Raises:
            NonFiniteError: A loss or a correction is NaN or infinite.
        """
        # Alike in the tokens that every step runs over, from the subject's last one on, so that a batch holds little padding.
        bare = [self.locator.sequence(request, "{}", self.locator.target_ids(request)) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: (len(bare[i].ids) - bare[i].lookup, len(bare[i].ids)))
        with as_found(self.em.model):
            parts = self._in_batches([requests[i] for i in order])
        back = torch.tensor(sorted(range(len(order)), key=lambda i: order[i]), device=parts[0].delta.device)
        return SolvedTargets(*(torch.cat([getattr(p, f.name) for p in parts])[back] for f in fields(SolvedTargets)))

    def _in_batches(self, requests: Sequence[EditRequest]) -> list[SolvedTargets]:
        """Solve batch by batch, halving the batch when memory runs out; it stays halved for the next steps."""
        parts: list[SolvedTargets] = []
        done = 0
        while done < len(requests):
            batch = requests[done : done + self.batch_size]
            try:
                parts.append(self._solve_batch(batch))
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or len(batch) == 1:
                    raise
                self.batch_size = len(batch) // 2
                logger.warning("out of memory with %d requests at once: going on with %d", len(batch), self.batch_size)
                clear_device_cache(garbage_collection=True)
                continue
            done += len(batch)
        return parts

    def _solve_batch(self, requests: Sequence[EditRequest]) -> SolvedTargets:
        rows = target_rows(requests, self.locator, self.contexts, self.em.input_device)
        clean = clean_pass(self.em, rows.inputs)
        bare = rows.bare_rows, rows.inputs.lookup[rows.bare_rows]
        h0, v0 = (states[bare].to(self.em.compute_dtype) for states in (hidden_of(clean.block), clean.value))
        with torch.no_grad():
            kl_logits = self.em.logits(clean.final[rows.kl_rows, rows.inputs.lookup[rows.kl_rows]])
            reference = torch.log_softmax(kl_logits, dim=1)
            keys = self._first_keys(rows, clean)
        whole = corrected_forward(self.em, rows.inputs, clean)
        descent = Descent(h0, self.settings)
        decide = self.rule.start(len(requests), h0.device)
        # Asking which requests have stopped makes an accelerator wait; there, finished ones run along for a few steps.
        ask_every = 1 if h0.device.type == "cpu" else _ASK_EVERY
        active = torch.arange(len(requests), device=h0.device)
        view, forward = rows, whole
        for step in range(1, self.settings.steps):
            delta = descent.delta[active].requires_grad_(True)
            seen = self._evaluate(view, forward, delta, h0[active], reference[active])
            loss = seen.loss.detach()
            stop = decide(StepView(active, loss, seen.nll, seen.correct, view.target_length))
            descent.record(active, loss, stop)
            (gradient,) = torch.autograd.grad(seen.loss.sum(), delta)
            descent.update(active, gradient, step)
            if step % ask_every == 0 and not bool(descent.alive[active].all()):
                active = descent.alive.nonzero()[:, 0]
                if len(active) == 0:
                    break
                view, forward = rows.take(active), whole.take(rows.rows_of(active))
        self._check_finite(requests, descent)
        return SolvedTargets(descent.delta, h0, v0, descent.loss, descent.updates, keys)

    def _first_keys(self, rows: TargetRows, clean: CleanPass) -> Tensor:
        """Average the keys of the first edited layer, which the clean pass has seen, over the contexts."""
        every = torch.arange(len(rows.inputs.lookup), device=clean.keys.device)
        keys = clean.keys[every, rows.inputs.lookup].to(self.em.compute_dtype)
        keys = keys.reshape(len(rows.target_length), rows.per_request, -1)[:, : rows.contexts]
        share = torch.tensor(self.contexts.weights, dtype=keys.dtype, device=keys.device)
        return torch.einsum("nct,c->nt", keys, share)

    def _check_finite(self, requests: Sequence[EditRequest], descent: Descent) -> None:
        good = torch.isfinite(descent.delta).all(1) & (torch.isfinite(descent.loss) | (self.settings.steps == 1))
        if not bool(good.all()):
            bad = requests[int((~good).nonzero()[0])]
            raise NonFiniteError(
                f"the value of {bad.prompt!r} -> {bad.target!r} came out NaN or infinite; the model is damaged or overflows: "
                "load it in a wider dtype, or lower v_lr."
            )

    def _evaluate(
        self, rows: TargetRows, forward: CorrectedForward, delta: Tensor, h0: Tensor, reference: Tensor
    ) -> _Evaluation:
        """Evaluate the objective; the head runs only where a target token or the KL term is read."""
        lookup, tokens = rows.inputs.lookup, len(rows.token_label)
        places = torch.cat([rows.token_row, rows.kl_rows]), torch.cat([rows.token_position, lookup[rows.kl_rows]])
        shift = delta.repeat_interleave(rows.per_request, 0)
        logits = self.em.logits(forward.states(shift, *places))
        target, current = logits[:tokens], torch.log_softmax(logits[tokens:], dim=1)
        # Not log_softmax: only one entry of each row is wanted, and the vocabulary is wide.
        surprise = target.logsumexp(1) - target.gather(1, rows.token_label[:, None])[:, 0]
        cells = rows.token_request * rows.contexts + rows.token_context
        summed = torch.zeros(len(delta) * rows.contexts, dtype=logits.dtype, device=logits.device)
        nll = summed.index_add(0, cells, surprise)
        nll = nll.reshape(len(delta), rows.contexts) / rows.target_length[:, None]
        right = (target.detach().argmax(1) == rows.token_label).long()
        correct = torch.zeros_like(summed, dtype=torch.long).index_add(0, cells, right).reshape(nll.shape)
        kl = (current.exp() * (current - reference)).sum(1)
        decay = delta.norm(dim=1) / h0.norm(dim=1) ** 2
        loss = nll.mean(1) + self.settings.kl_factor * kl + self.settings.weight_decay * decay
        return _Evaluation(loss, nll.detach(), correct)
