"""LyapLock: "Bounded Knowledge Preservation in Sequential LLM Editing" (Wang et al., EMNLP 2025), in reduced form.

The method re-solves a ridge regression over all keys at every step, with weight q lambda on the preserved text. Because the last
solution was stationary, all its extra terms reduce to three small ones: with A_t the system matrix, H = A_t^-1,

    update = R (H K)' - rho (H K_last)' - (q - q_last) lambda (W - W0) C H,

rho being what the last step asked for and did not achieve. D(W) = tr((W - W0) C (W - W0)') needs no value statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from nas_plugin.errors import NonFiniteError
from nas_plugin.reading import number
from nas_plugin.write.editor import LayerEditor, Proposal
from nas_plugin.write.priors import covariance_prior


class LyapLock(LayerEditor):
    """Preservation weight q grows with a virtual queue while the deviation on text exceeds alpha times the first step's.

    Attributes:
        queue: q of the next step; starts at 1 and never falls below it.
    """

    carries: ClassVar[bool] = True

    def __init__(self, w0: Tensor, moment: Tensor, hparams: Any, prior: Tensor | None = None) -> None:
        """Factorise the prior and start the queue; see `LayerEditor`."""
        super().__init__(w0, moment, hparams, prior)
        self._moment64 = moment.to(w0.device, torch.float64)
        self.queue = 1.0
        self._solved_queue = 1.0
        self._first_deviation: float | None = None
        self._last: tuple[Tensor, Tensor] | None = None

    @classmethod
    def prior_name(cls, hparams: Any) -> str:
        """Return a name; see `LayerEditor.prior_name`."""
        return f"inverse-{hparams.mom2_update_weight!r}"

    @classmethod
    def prior(cls, moment: Tensor, hparams: Any) -> Tensor:
        """Return (lambda C)^-1; see `LayerEditor.prior`."""
        return covariance_prior(moment, hparams.mom2_update_weight)

    def propose(self, before: Tensor, keys: Tensor, residual: Tensor) -> Proposal:
        """Compute the update with its corrections; see `LayerEditor.propose`."""
        gain, change = self.gain, self.queue - self._solved_queue
        if change:
            self.gain = gain.rebuilt(1 / self.queue)
        try:
            plain = super().propose(before, keys, residual)
        except NonFiniteError:
            self.gain = gain
            raise
        left, right, dense = plain.left, plain.right, None
        if self._last is not None:
            last_keys, unachieved = self._last
            left = torch.cat([left, -unachieved], 1)
            right = torch.cat([right, self._after(plain, last_keys)], 1)
        if change:
            pull = change * self.hparams.mom2_update_weight * self._change(before) @ self._moment64
            dense = -self._after(plain, pull.T).T.contiguous()
        return replace(plain, left=left, right=right, dense=dense)

    def absorb(self, proposal: Proposal, after: Tensor) -> None:
        """Absorb the keys and move the queue (LyapLock, Eq. 9 in the normalised form); see `LayerEditor.absorb`."""
        super().absorb(proposal, after)
        moved = after.to(torch.float64) - proposal.before.to(torch.float64)
        self._last = (proposal.keys, proposal.residual - moved @ proposal.keys)
        self._solved_queue = self.queue
        deviation = self.deviation(after)
        if self._first_deviation is None and deviation > 0:
            self._first_deviation = deviation
        if self._first_deviation is not None:
            excess = deviation / (self.hparams.lyap_alpha * self._first_deviation) - 1
            self.queue = max(self.queue + excess, 1.0)

    def deviation(self, matrix: Tensor) -> float:
        """Return D(W) = tr((W - W0) C (W - W0)'), the mean squared change of outputs on the text.

        Args:
            matrix: W `(d_out, d_in)`.

        Returns:
            The deviation.
        """
        change = self._change(matrix)
        return float(((change @ self._moment64) * change).sum())

    def snapshot(self) -> dict[str, Any]:
        """Return all state that a step changes; see `LayerEditor.snapshot`."""
        queue = (self.queue, self._solved_queue, self._first_deviation, self._last)
        return {**super().snapshot(), "queue": queue}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a snapshot; see `LayerEditor.restore`."""
        super().restore(state)
        self.queue, self._solved_queue, self._first_deviation, self._last = state["queue"]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the queue too; see `LayerEditor.state`."""
        tensors, numbers = super().state()
        if self._last is not None:
            tensors |= {"last_keys": self._last[0], "unachieved": self._last[1]}
        queue = {
            "queue": self.queue,
            "solved_queue": self._solved_queue,
            "first_deviation": self._first_deviation,
            "has_last": self._last is not None,
        }
        return tensors, numbers | queue

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], keys: Tensor) -> None:
        """Load the queue too; see `LayerEditor.load_state`.

        Raises:
            ValueError: Something does not fit.
        """
        super().load_state(tensors, numbers, keys)
        self.queue, self._solved_queue = number(numbers, "queue", float), number(numbers, "solved_queue", float)
        first = numbers["first_deviation"]
        self._first_deviation = None if first is None else number(numbers, "first_deviation", float)
        self._last = None
        if numbers["has_last"]:
            last, unachieved = (tensors[name].to(self.gain.base.device) for name in ("last_keys", "unachieved"))
            if last.shape[0] != len(self.gain.base) or unachieved.shape != (len(self.w0), *last.shape[1:]):
                raise ValueError(f"last keys {tuple(last.shape)} and unachieved values {tuple(unachieved.shape)}")
            self._last = last, unachieved

    def _change(self, matrix: Tensor) -> Tensor:
        return matrix.to(torch.float64) - self.w0.to(torch.float64)

    def _after(self, proposal: Proposal, vectors: Tensor) -> Tensor:
        """Multiply by the gain as it is once this step's keys are absorbed."""
        factor = proposal.step.Y
        return self.gain.apply(vectors) - factor @ (factor.T @ vectors)
