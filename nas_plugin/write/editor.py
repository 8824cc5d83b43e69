"""What the six methods share for one edited layer: prior, recursion, carry rule, and the hooks in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nas_plugin.solve.stopping import LossBelow, StoppingRule
from nas_plugin.write.gain import Gain, GainStep


@dataclass(frozen=True)
class Proposal:
    """An update that is computed but not yet part of the history, kept as factors: left right' (+ dense).

    Attributes:
        before: W before the update, `(d_out, d_in)`.
        keys: K `(d_in, n)`, float64.
        residual: R `(d_out, n)`, float64.
        step: Factors of the gain step.
        left: `(d_out, m)`, float64; the residual, and what a method adds.
        right: `(d_in, m)`, float64.
        dense: A part of full rank, `(d_out, d_in)`, or None.
    """

    before: Tensor
    keys: Tensor
    residual: Tensor
    step: GainStep
    left: Tensor
    right: Tensor
    dense: Tensor | None = None

    @property
    def delta(self) -> Tensor:
        """The update as one matrix, `(d_out, d_in)`, float64."""
        product = self.left @ self.right.T
        return product if self.dense is None else product + self.dense

    def applied(self) -> Tensor:
        """Return W after the update, in the type of W."""
        dtype = self.before.dtype
        after = torch.addmm(self.before, self.left.to(dtype), self.right.T.to(dtype))
        return after if self.dense is None else after + self.dense.to(dtype)


class LayerEditor:
    """Edits one matrix W `(d_out, d_in)`, step by step; a method overrides the prior and whichever hooks it needs.

    Attributes:
        carries: Whether the gain remembers earlier keys.
    """

    carries: ClassVar[bool] = False

    def __init__(self, w0: Tensor, moment: Tensor, hparams: Any, prior: Tensor | None = None) -> None:
        """Factorise the prior once.

        Args:
            w0: Matrix before the first edit, `(d_out, d_in)`.
            moment: C `(d_in, d_in)`.
            hparams: The method's numbers.
            prior: What `prior` returned for the same moment and numbers; taken over, not copied. By default it is made.

        Raises:
            StatisticsError: C cannot serve as this method's prior.
        """
        self.w0 = w0
        self.moment = moment
        self.hparams = hparams
        if prior is None:
            prior = self.prior(moment.to(w0.device, torch.float64), hparams)
        # By rows in memory, as everything that is kept: a prior that was made and one that was read differ in it.
        self.gain = Gain(prior.to(w0.device).contiguous(), self.carries)

    def afresh(self, w0: Tensor) -> LayerEditor:
        """Return an editor as before the first edit, without factorising again; this one is not to be used any more.

        Args:
            w0: Matrix that it starts from, `(d_out, d_in)`.

        Returns:
            The editor.
        """
        return type(self)(w0, self.moment, self.hparams, self.gain.prior())

    @classmethod
    def prior_name(cls, hparams: Any) -> str:
        """Return a name for the prior that these numbers make of a moment; equal names mean equal priors.

        Args:
            hparams: The method's numbers.

        Returns:
            Characters that a file name may hold.
        """
        raise NotImplementedError

    @classmethod
    def prior(cls, moment: Tensor, hparams: Any) -> Tensor:
        """Return H before the first step.

        Args:
            moment: C `(d_in, d_in)`, float64.
            hparams: The method's numbers.

        Returns:
            H `(d_in, d_in)`, float64, a new tensor.
        """
        raise NotImplementedError

    @classmethod
    def stopping_rule(cls, hparams: Any) -> StoppingRule:
        """Return the method's target rule: when to stop optimising a value."""
        return LossBelow()

    def propose(self, before: Tensor, keys: Tensor, residual: Tensor) -> Proposal:
        """Compute the update for one step; nothing is changed yet.

        Args:
            before: W now, `(d_out, d_in)`.
            keys: K `(d_in, n)`.
            residual: R `(d_out, n)`, this layer's share.

        Returns:
            The proposal.
        """
        keys = keys.to(before.device, torch.float64).contiguous()
        residual = residual.to(before.device, torch.float64).contiguous()
        step = self.gain.solve(keys)
        return Proposal(before, keys, residual, step, residual, step.A)

    def finish(self, proposal: Proposal, applied: Tensor) -> Tensor:
        """Return W as it stays, once all layers of the step are written; by default the update as proposed.

        Args:
            proposal: What `propose` returned.
            applied: W with the proposal applied.

        Returns:
            W as it stays, `(d_out, d_in)`.
        """
        return applied

    def absorb(self, proposal: Proposal, after: Tensor) -> None:
        """Make a step part of the history.

        Args:
            proposal: What `propose` returned.
            after: W as it stays.
        """
        self.gain.absorb(proposal.step, proposal.keys)

    def view(self, edited: Tensor) -> Tensor:
        """Return the matrix that the model is served with; editing goes on from `edited` itself."""
        return edited

    def forget(self, columns: Sequence[int]) -> None:
        """Take keys out of the history: their edits were replaced by later ones.

        A key that stayed would hold its old value: the new edit would be solved to a compromise between the two.

        Args:
            columns: Columns of the gain's keys.
        """
        self.gain = self.gain.without(columns)

    def fold(self) -> bool:
        """Do deferred work; called at the start of a step, before its snapshot.

        Returns:
            Whether the gain had to be rebuilt from its keys.
        """
        return self.gain.fold()

    def snapshot(self) -> dict[str, Any]:
        """Return all state that a step changes."""
        return {"gain": self.gain, "at": self.gain.snapshot()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a snapshot of this editor.

        Args:
            state: What `snapshot` returned.
        """
        self.gain = state["gain"]
        self.gain.restore(state["at"])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that the edits so far have changed, without the gain's keys: tensors, and numbers."""
        return self.gain.state()

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], keys: Tensor) -> None:
        """Go to where a saved editor of the same prior was, bit for bit.

        Args:
            tensors: First part of `state`.
            numbers: Second part.
            keys: Keys of its gain `(d_in, t)`.
        """
        self.gain.load_state(tensors, numbers, keys)
