"""What a correction is judged by: the target's likelihood in every context, what the subject is, and its own size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_plugin.model.editable import EditableModel
from nas_plugin.solve.descent import SolverSettings
from nas_plugin.solve.forward import CorrectedForward
from nas_plugin.solve.rows import TargetRows


@dataclass(frozen=True)
class Evaluation:
    """The objective of k requests.

    Attributes:
        loss: With its graph, `(k,)`.
        nll: Mean negative log-likelihood of the target in each context, `(k, contexts)`.
        correct: Target tokens that are the argmax, `(k, contexts)`.
        current: Log-probabilities at the KL places, `(k, vocabulary)`.
    """

    loss: Tensor
    nll: Tensor
    correct: Tensor
    current: Tensor


class Objective:
    """Mean NLL over contexts + kl_factor KL(current || initial) + weight_decay |delta| / |h0|^2.

    Source: MEMIT's released `compute_z`; ROME (Meng et al., 2022), Eq. 4.
    """

    def __init__(
        self, em: EditableModel, rows: TargetRows, forward: CorrectedForward, h0: Tensor, settings: SolverSettings
    ) -> None:
        """Bind the requests.

        Args:
            em: The model.
            rows: Where they are read.
            forward: Their rows as a function of the correction.
            h0: Hidden states before the edit, `(k, d_out)`.
            settings: Numbers of the optimisation.
        """
        self._em, self._rows, self._forward, self._settings = em, rows, forward, settings
        self._decay = settings.weight_decay / h0.norm(dim=1) ** 2

    def __call__(self, delta: Tensor, reference: Tensor | None) -> Evaluation:
        """Evaluate corrections; the head runs only where a target token or the KL term is read.

        Args:
            delta: Corrections, `(k, d_out)`.
            reference: Log-probabilities before the edit at the KL places; None at the first step, where the correction is
                zero and the current ones are these.

        Returns:
            The objective.
        """
        rows = self._rows
        tokens, shape = len(rows.token_label), (len(delta), rows.contexts)
        logits = self._em.logits(self._forward.states(delta[rows.row_request]))
        target, current = logits[:tokens], torch.log_softmax(logits[tokens:], dim=1)
        # Not log_softmax: only one entry of each row is wanted, and the vocabulary is wide.
        surprise = target.logsumexp(1) - target.gather(1, rows.token_label[:, None])[:, 0]
        summed = torch.zeros(len(delta) * rows.contexts, dtype=logits.dtype, device=logits.device)
        nll = summed.index_add(0, rows.token_cell, surprise).reshape(shape) / rows.target_length[:, None]
        with torch.no_grad():
            right = (target.argmax(1) == rows.token_label).to(logits.dtype)
            correct = summed.index_add(0, rows.token_cell, right).reshape(shape)
        known = current.detach() if reference is None else reference
        kl = (current.exp() * (current - known)).sum(1)
        loss = nll.mean(1) + self._settings.kl_factor * kl + self._decay * delta.norm(dim=1)
        return Evaluation(loss, nll.detach(), correct, current.detach())
