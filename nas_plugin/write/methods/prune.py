"""PRUNE: "Perturbation-Restrained Sequential Model Editing" (Ma et al., 2024), Eq. 9, over MEMIT."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nas_plugin.write.methods.memit import MEMIT


class PRUNE(MEMIT):
    """Serves W0 plus the accumulated change with its large singular values squashed; editing goes on unpruned.

    The AlphaEdit and NAS repositories add the squashed change to the *edited* matrix (W0 + change + squashed change);
    `prune_double_add` reproduces that.
    """

    def view(self, edited: Tensor) -> Tensor:
        """Return the restrained matrix; see `LayerEditor.view`."""
        change = edited.to(torch.float64) - self.w0.to(torch.float64)
        base = edited if self.hparams.prune_double_add else self.w0
        if not self.hparams.prune_double_add and float(change.norm()) <= self._largest:
            # No singular value exceeds the Frobenius norm, so nothing is squashed.
            return edited
        return base + squashed(change, self._largest, self.hparams.prune_alpha).to(edited.dtype)

    @property
    def _largest(self) -> float:
        """Largest singular value of W0, found on first use."""
        if not hasattr(self, "_sigma0"):
            self._sigma0 = float(torch.linalg.matrix_norm(self.w0.to(torch.float64), ord=2))
        return self._sigma0


def squashed(change: Tensor, largest: float, alpha: float) -> Tensor:
    """Replace singular values s above `largest` by log_alpha(s) - log_alpha(largest) + largest.

    Args:
        change: Accumulated change, `(d_out, d_in)`, float64.
        largest: Largest singular value of the unedited matrix.
        alpha: Base of the logarithm.

    Returns:
        The restrained change, `(d_out, d_in)`.
    """
    squares, vectors = torch.linalg.eigh(change @ change.T)
    singular = squares.clamp_min(0).sqrt()
    above = singular > largest
    kept, left = singular[above], vectors[:, above]
    factor = (torch.log(kept / largest) / math.log(alpha) + largest) / kept - 1
    return change + left @ (factor[:, None] * (left.T @ change))
