"""RECT: "Model Editing Harms General Abilities" (Gu et al., EMNLP 2024), over MEMIT, as in its de-facto reference code."""

from __future__ import annotations

import torch
from torch import Tensor

from nas_plugin.write.editor import Proposal
from nas_plugin.write.methods.memit import MEMIT

_EPSILON = 1e-8


class RECT(MEMIT):
    """Keeps only the largest relative changes of each step (40 % in the reference)."""

    def finish(self, proposal: Proposal, applied: Tensor) -> Tensor:
        """Return W with the masked update; see `LayerEditor.finish`."""
        before = proposal.before.to(torch.float64)
        return (before + kept_changes(proposal.delta, before, self.hparams.rect_keep)).to(applied.dtype)


def kept_changes(delta: Tensor, before: Tensor, keep: float) -> Tensor:
    """Zero all but the largest entries of |delta / (W + 1e-8)|.

    Args:
        delta: Update, `(d_out, d_in)`, float64.
        before: W before the step, same shape.
        keep: Share of entries that stay.

    Returns:
        The masked update.
    """
    relative = (delta / (before + _EPSILON)).abs()
    drop = int((1 - keep) * delta.numel())
    if drop == 0:
        return delta
    threshold = relative.flatten().kthvalue(drop).values
    return torch.where(relative >= threshold, delta, torch.zeros_like(delta))
