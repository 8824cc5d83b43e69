"""The gain recursion that all six editors share.

With gain H (d x d, symmetric), keys K (d x n) and residual R (d_out x n), one step is

    B = H K,   M = I + K' B,   A = B M^-1,   update = R A',   H <- H - A B'  (if the method carries its history).

It is recursive least squares; RLSEdit (arXiv 2601.15686) published it for sequential editing. Each released editor solves the
same system from scratch at every step (algebra: Woodbury identity).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_plugin.errors import NonFiniteError

_MAX_PENDING = 64


@dataclass(frozen=True)
class GainStep:
    """One solved step, not yet part of the history.

    Attributes:
        A: Gain after the step times the keys, H_new K, `(d, n)`.
        Y: Factor of what the step takes away: H_new = H - Y Y', `(d, n)`.
    """

    A: Tensor
    Y: Tensor


@dataclass(frozen=True)
class GainSnapshot:
    """A gain at one point of the stream; cheap, because only factors are kept."""

    base: Tensor
    pending: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]


class Gain:
    """Symmetric gain H = base - sum of Y Y' over pending steps.

    Pending factors are folded into the base once there are enough of them (one large product instead of many small ones), and
    never those of the latest step, so that a step can be taken back bit for bit.

    Memory: d^2 numbers for the base, at most 64 + n columns of d pending, and the keys of all steps (d numbers an edit) if
    the history is carried.
    """

    def __init__(self, base: Tensor, carries: bool) -> None:
        """Start from a prior.

        Args:
            base: H before the first step, `(d, d)`, float64.
            carries: Whether later steps see earlier keys.
        """
        self.base = base
        self.carries = carries
        self.pending: list[Tensor] = []
        self.keys: list[Tensor] = []

    def apply(self, vectors: Tensor) -> Tensor:
        """Multiply by the gain.

        Args:
            vectors: `(d, m)`.

        Returns:
            H times the vectors, `(d, m)`.
        """
        product = self.base @ vectors
        for factor in self.pending:
            product = product - factor @ (factor.T @ vectors)
        return product

    def solve(self, keys: Tensor) -> GainStep:
        """Solve one step without absorbing it.

        Args:
            keys: K `(d, n)`.

        Returns:
            The step's factors.

        Raises:
            NonFiniteError: Keys or gain are not finite, or the system has lost positive definiteness.
        """
        product = self.apply(keys)
        system = keys.T @ product
        system = (system + system.T) / 2 + torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
        factor, info = torch.linalg.cholesky_ex(system)
        if int(info) != 0 or not bool(torch.isfinite(factor).all()):
            raise NonFiniteError(
                f"the gain system of {keys.shape[1]} keys is not positive definite or not finite; the "
                "keys are damaged or the gain has lost its accuracy. Nothing was written."
            )
        whitened = torch.linalg.solve_triangular(factor, product.T, upper=False)
        return GainStep(torch.linalg.solve_triangular(factor.T, whitened, upper=True).T, whitened.T)

    def absorb(self, step: GainStep, keys: Tensor) -> None:
        """Make a step part of the history, if the method carries one.

        Args:
            step: What `solve` returned.
            keys: Its keys.
        """
        if self.carries:
            self.pending.append(step.Y)
            self.keys.append(keys)

    def fold(self) -> None:
        """Fold pending factors into the base if there are many; call before a snapshot, never after."""
        if sum(factor.shape[1] for factor in self.pending) >= _MAX_PENDING:
            stacked = torch.cat(self.pending, 1)
            self.base.addmm_(stacked, stacked.T, alpha=-1)
            # Rounding makes the product asymmetric in the last bit; left alone it would grow.
            self.base.copy_((self.base + self.base.T) / 2)
            self.pending = []

    def rebuilt(self, prior: Tensor) -> Gain:
        """Return the gain that all keys so far give with another prior.

        Args:
            prior: New H before the first step, `(d, d)`; taken over, not copied.

        Returns:
            A new gain with the same history.
        """
        fresh = Gain(prior, self.carries)
        if self.keys:
            keys = torch.cat(self.keys, 1)
            fresh.pending = [fresh.solve(keys).Y]
            fresh.keys = list(self.keys)
        return fresh

    def snapshot(self) -> GainSnapshot:
        """Return the present state; it stays valid until the next `fold`."""
        return GainSnapshot(self.base, tuple(self.pending), tuple(self.keys))

    def restore(self, snapshot: GainSnapshot) -> None:
        """Go back to a snapshot, bit for bit.

        Args:
            snapshot: Taken since the last `fold`.
        """
        self.base, self.pending, self.keys = snapshot.base, list(snapshot.pending), list(snapshot.keys)
