"""The gain recursion that all six editors share.

With gain H (d x d, symmetric), keys K (d x n) and residual R (d_out x n), one step is

    B = H K,   M = I + K' B,   A = B M^-1,   update = R A',   H <- H - A B'  (if the method carries its history).

It is recursive least squares; RLSEdit (arXiv 2601.15686) published it for sequential editing. Each released editor solves the
same system from scratch at every step (algebra: Woodbury identity).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_plugin.errors import NonFiniteError
from nas_plugin.reading import number

logger = logging.getLogger(__name__)

MAX_PENDING = 64
_PROBE_EVERY = 500
_TOLERATED = 1e-8
_BAND = 512


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
    """A gain at one point of the stream, as counts of what it had absorbed."""

    keys: int
    steps: int
    settled: int


class Gain:
    """Symmetric gain H = base - Y Y', Y being the factors of the latest steps, a column for each key.

    Factors are folded into the base once there are 64 columns of them (one large product instead of many small ones), and
    never those of the latest step, so that it can be taken back bit for bit. A carried gain is probed at every 500th key and
    rebuilt from prior and keys should it have lost its accuracy.

    Memory: d^2 float64 for the base; if the history is carried, d^2 more on the CPU for the prior, d numbers for each key so
    far, and at most 64 + 2 n columns of d pending.
    """

    def __init__(self, prior: Tensor, carries: bool) -> None:
        """Start from a prior.

        Args:
            prior: H before the first step, `(d, d)`, float64; taken over, not copied.
            carries: Whether later steps see earlier keys.
        """
        self.base = prior
        self.carries = carries
        self.pending = prior[:, :0]
        self._settled = 0  # pending columns of steps before the latest
        self._prior = prior.to("cpu", copy=True) if carries else None
        self._scale = 1.0
        self._keys: list[Tensor] = []
        self._absorbed = 0
        self._next_probe = _PROBE_EVERY

    @property
    def keys(self) -> Tensor:
        """All keys absorbed, `(d, t)`."""
        return torch.cat(self._keys, 1) if self._keys else self.base[:, :0]

    def prior(self) -> Tensor:
        """Return H before the first step, `(d, d)`; without history the tensor in use, else a copy."""
        return self.base if self._prior is None else self._prior.to(self.base.device, copy=True)

    def apply(self, vectors: Tensor) -> Tensor:
        """Multiply by the gain.

        Args:
            vectors: `(d, m)`.

        Returns:
            H times the vectors, `(d, m)`.
        """
        product = self.base @ vectors
        return (
            torch.addmm(product, self.pending, self.pending.T @ vectors, alpha=-1) if self.pending.shape[1] else product
        )

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
                f"the gain system of {keys.shape[1]} keys is not positive definite or not finite; the keys are damaged or "
                "the gain has lost its accuracy. Nothing was written."
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
            self._settled = self.pending.shape[1]
            # All that is kept lies in memory by rows: sums over it depend on that order in their last bits, and a gain that
            # was read from a file has to go on like the one that was saved.
            self.pending = torch.cat([self.pending, step.Y], 1).contiguous()
            self._keys.append(keys)
            self._absorbed += keys.shape[1]

    def fold(self) -> bool:
        """Fold settled factors into the base if there are many, and probe it from time to time.

        Returns:
            Whether it had lost its accuracy and was rebuilt.
        """
        if self._settled >= MAX_PENDING:
            self._fold_settled()
        if self._absorbed < self._next_probe:
            return False
        self._next_probe = self._absorbed + _PROBE_EVERY
        error = self.error()
        if error <= _TOLERATED:
            return False
        logger.warning("the gain of %d keys is off by %.1e: rebuilding it from its keys", self._absorbed, error)
        self._rebuild()
        return True

    def _fold_settled(self) -> None:
        settled = self.pending[:, : self._settled]
        self.base.addmm_(settled, settled.T, alpha=-1)
        # Rounding makes the product asymmetric in the last bit; left alone it would grow.
        _symmetrise(self.base)
        self.pending, self._settled = self.pending[:, self._settled :].contiguous(), 0

    def _rebuild(self) -> None:
        latest = self._keys.pop()
        self._absorbed -= latest.shape[1]
        fresh = self.rebuilt()
        fresh._fold_settled()
        self.base, self.pending, self._settled = fresh.base, fresh.pending, 0
        self.absorb(self.solve(latest), latest)

    def error(self) -> float:
        """Measure how far H is from (prior^-1 + K K')^-1, on a random vector.

        Returns:
            |H v + H0 K K' H v - H0 v| / |H0 v|, which is zero in exact arithmetic; 0 for a gain without history.
        """
        if self._prior is None or not self._keys:
            return 0.0
        prior, keys = self._prior.to(self.base.device) * self._scale, self.keys
        generator = torch.Generator().manual_seed(self._absorbed)
        probe = torch.randn(len(prior), 1, generator=generator, dtype=torch.float64).to(prior.device)
        wanted, got = prior @ probe, self.apply(probe)
        return float((got + prior @ (keys @ (keys.T @ got)) - wanted).norm() / wanted.norm())

    def rebuilt(self, scale: float | None = None) -> Gain:
        """Return the gain that prior and keys give when computed at once.

        Args:
            scale: Factor on the prior the gain was made with; None keeps the present one.

        Returns:
            A new gain with the same history.
        """
        return self._of(self._keys, self._scale if scale is None else scale)

    def without(self, columns: Sequence[int]) -> Gain:
        """Return the gain that has never seen some of its keys, computed at once from the others.

        Args:
            columns: Columns of `keys`.

        Returns:
            A new gain; this one without columns, or if no history is carried.
        """
        if not columns or not self.carries:
            return self
        gone = torch.zeros(self._absorbed, dtype=torch.bool)
        gone[list(columns)] = True
        flags = gone.split([keys.shape[1] for keys in self._keys])
        return self._of(
            [keys[:, ~flag.to(keys.device)].contiguous() for keys, flag in zip(self._keys, flags, strict=True)],
            self._scale,
        )

    def _of(self, keys: Sequence[Tensor], scale: float) -> Gain:
        prior = self._prior if self._prior is not None else self.base
        fresh = Gain((prior * scale).to(self.base.device), carries=False)
        fresh.carries, fresh._prior, fresh._scale = self.carries, self._prior, scale
        fresh._keys = [part for part in keys if part.shape[1]]
        fresh._absorbed, fresh._next_probe = sum(part.shape[1] for part in keys), self._next_probe
        if fresh._keys:
            fresh.pending = fresh.solve(fresh.keys).Y.contiguous()
            fresh._settled = fresh.pending.shape[1]
        return fresh

    def snapshot(self) -> GainSnapshot:
        """Return the present point of the stream; one can go back to it until a second step has been absorbed after it."""
        return GainSnapshot(self._absorbed, len(self._keys), self._settled)

    def restore(self, snapshot: GainSnapshot) -> None:
        """Go back to a snapshot, bit for bit.

        Args:
            snapshot: Taken before the latest step, or before the present one.
        """
        folded = self._absorbed - self.pending.shape[1]
        self.pending = self.pending[:, : snapshot.keys - folded].contiguous()
        self._settled = min(snapshot.settled, self.pending.shape[1])
        del self._keys[snapshot.steps :]
        self._absorbed = snapshot.keys

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what the history has made of the prior, without the keys: tensors, and numbers.

        Without history there is nothing.
        """
        if not self.carries:
            return {}, {}
        numbers = {
            "settled": self._settled,
            "scale": self._scale,
            "next_probe": self._next_probe,
            "steps": [keys.shape[1] for keys in self._keys],
        }
        return {"gain": self.base, "pending": self.pending}, numbers

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], keys: Tensor) -> None:
        """Go to where a saved gain of the same prior was, bit for bit.

        Args:
            tensors: First part of `state`.
            numbers: Second part.
            keys: Its keys `(d, t)`.

        Raises:
            ValueError: They do not fit together, or this gain.
        """
        if not self.carries:
            return
        base, pending = tensors["gain"].to(self.base.device), tensors["pending"].to(self.base.device)
        settled, next_probe = number(numbers, "settled", int), number(numbers, "next_probe", int)
        counts = [number({"steps": count}, "steps", int) for count in numbers["steps"]]
        width, dtype = len(self.base), self.base.dtype
        fits = base.shape == (width, width) and pending.dim() == 2 and len(pending) == width
        if not fits or base.dtype != dtype or pending.dtype != dtype or not settled <= pending.shape[1] <= sum(counts):
            raise ValueError(
                f"a gain of shape {tuple(base.shape)} with factors {tuple(pending.shape)}, {settled} settled"
            )
        if keys.shape != (width, sum(counts)):
            raise ValueError(f"keys of shape {tuple(keys.shape)} for {sum(counts)} columns of {width}")
        self.base, self.pending = base, pending
        self._settled, self._scale, self._next_probe = settled, number(numbers, "scale", float), next_probe
        self._keys = [part.contiguous() for part in keys.to(base.device, dtype).split(counts, 1)] if counts else []
        self._absorbed = sum(counts)


def _symmetrise(matrix: Tensor) -> None:
    """Replace a square matrix by the mean of itself and its transpose, in place, a band of rows at a time."""
    for start in range(0, len(matrix), _BAND):
        stop = start + _BAND
        band = (matrix[start:stop, start:] + matrix[start:, start:stop].T) / 2
        matrix[start:stop, start:] = band
        matrix[start:, start:stop] = band.T
