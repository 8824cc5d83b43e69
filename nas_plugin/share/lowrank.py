"""The change of one matrix as a product of two narrow ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A Gram matrix in float64 shows singular values down to about this share of the largest.
_SMALLEST = 1e-7


@dataclass(frozen=True)
class LowRank:
    """A change left right, `(d_out, d_in)`, by falling singular values.

    Attributes:
        left: `(d_out, r)`, float64.
        right: `(r, d_in)`, float64.
        kept: Squared Frobenius norm of the product.
        energy: Squared Frobenius norm of the change.
    """

    left: Tensor
    right: Tensor
    kept: float
    energy: float

    @property
    def rank(self) -> int:
        """Number of singular values."""
        return self.left.shape[1]

    @property
    def share(self) -> float:
        """How much of the change the product is, |left right|^2 / |change|^2; 1 for no change at all."""
        return min(self.kept / self.energy, 1.0) if self.energy else 1.0

    def truncated(self, rank: int) -> LowRank:
        """Return the nearest product of at most this rank (Eckart and Young, 1936)."""
        left, right = self.left[:, :rank], self.right[:rank]
        # Columns of `left` are orthogonal.
        kept = float((left.square().sum(0) * right.square().sum(1)).sum())
        return LowRank(left, right, kept, self.energy)


def low_rank(before: Tensor, after: Tensor) -> LowRank:
    """Factorise a change, leaving out what is no more than rounding.

    A master is rounded once per step, which is a change of full rank and no size. What counts is a singular value above
    eps |W| (Frobenius, eps of the type that masters have), the size of such noise after about a thousand steps of a
    4,096-row matrix.

    Args:
        before: W0 `(d_out, d_in)`, in the compute dtype.
        after: W, likewise.

    Returns:
        The factors, both scaled by the square roots of the singular values.
    """
    if before.shape[0] > before.shape[1]:
        found = low_rank(before.T, after.T)
        return LowRank(found.right.T.contiguous(), found.left.T.contiguous(), found.kept, found.energy)
    change = after.to(torch.float64) - before.to(torch.float64)
    squares, vectors = torch.linalg.eigh(change @ change.T)
    squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1)
    noise = torch.finfo(before.dtype).eps * max(float(before.norm()), float(after.norm()))
    largest = float(squares[0].sqrt())
    vectors = vectors[:, squares.sqrt() > max(noise, _SMALLEST * largest)]
    right = vectors.T @ change
    # More exact than the root of the square.
    roots = right.norm(dim=1).sqrt()
    kept = float(right.square().sum())
    return LowRank(vectors * roots, right / roots[:, None], kept, float(change.square().sum()))
