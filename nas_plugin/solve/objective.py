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
        current: Log-probabilities at the KL places, `(k, vocabulary)`.
        surprise: Negative log-likelihood of each target token, `(t,)`.
        logits: At the places that predict them, `(t, vocabulary)`.
        rows: Where the requests are read.
    """

    loss: Tensor
    current: Tensor
    surprise: Tensor
    logits: Tensor
    rows: TargetRows

    def nll(self) -> Tensor:
        """Return the mean negative log-likelihood of the target in each context, `(k, contexts)`."""
        return self._per_context(self.surprise) / self.rows.target_length[:, None]

    def correct(self) -> Tensor:
        """Return how many target tokens are the argmax in each context, `(k, contexts)`."""
        return self._per_context((self.logits.argmax(1) == self.rows.token_label).to(self.surprise.dtype))

    def _per_context(self, of_tokens: Tensor) -> Tensor:
        requests, contexts = len(self.rows.target_length), self.rows.contexts
        summed = torch.zeros(requests * contexts, dtype=of_tokens.dtype, device=of_tokens.device)
        return summed.index_add(0, self.rows.token_cell, of_tokens).reshape(requests, contexts)


class Objective:
    """Mean NLL over contexts + kl_factor KL(current || initial) + weight_decay |delta| / |h0|^2.

    Source: MEMIT's released `compute_z`; ROME (Meng et al., 2022), Eq. 4.
    """

    def __init__(
        self, em: EditableModel, rows: TargetRows, forward: CorrectedForward, origin: Tensor, settings: SolverSettings
    ) -> None:
        """Bind the requests.

        Args:
            em: The model.
            rows: Where they are read.
            forward: Their rows as a function of the correction.
            origin: What the corrections are added to, `(k, d_out)`: h0 in the formula, or the values behind which a norm stands.
            settings: Numbers of the optimisation.
        """
        self._em, self._rows, self._forward, self._settings = em, rows, forward, settings
        self._decay = settings.weight_decay / origin.norm(dim=1) ** 2
        # Mean over a target's tokens, then over contexts.
        self._share = (1.0 / (rows.contexts * rows.target_length.to(origin.dtype)))[rows.token_request]
        self._nothing = torch.zeros_like(self._decay)

    def __call__(self, delta: Tensor, reference: Tensor | None) -> Evaluation:
        """Evaluate corrections; the head runs only where a target token or the KL term is read.

        Args:
            delta: Corrections, `(k, d_out)`.
            reference: Log-probabilities before the edit at the KL places; None at the first step, where the correction is
                zero and the current ones are these.

        Returns:
            The objective.
        """
        rows, tokens = self._rows, len(self._share)
        logits = self._em.logits(self._forward.states(delta[rows.row_request]))
        target, current = logits[:tokens], torch.log_softmax(logits[tokens:], dim=1)
        # Not log_softmax: only one entry of each row is wanted, and the vocabulary is wide.
        surprise = target.logsumexp(1) - target.gather(1, rows.token_label[:, None])[:, 0]
        nll = self._nothing.index_add(0, rows.token_request, surprise * self._share)
        known = current.detach() if reference is None else reference
        kl = (current.exp() * (current - known)).sum(1)
        loss = nll + self._settings.kl_factor * kl + self._decay * delta.norm(dim=1)
        return Evaluation(loss, current.detach(), surprise.detach(), target.detach(), rows)
