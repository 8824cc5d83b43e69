"""Adam over many corrections at once, each stopping on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


@dataclass(frozen=True)
class SolverSettings:
    """Numbers of the optimisation.

    Attributes:
        steps: `v_num_grad_steps`; the last one only evaluates in the released code, so there are `steps - 1` updates.
        learning_rate: Adam's.
        kl_factor: Weight of KL(current || initial) on "<subject> is a".
        weight_decay: Weight of |delta| / |h0|^2.
        clamp: Largest |delta| in units of |h0|.
    """

    steps: int
    learning_rate: float
    kl_factor: float
    weight_decay: float
    clamp: float

    @classmethod
    def from_hparams(cls, hparams: Any) -> SolverSettings:
        """Read the numbers from a method's hyperparameters."""
        return cls(
            hparams.v_num_grad_steps,
            hparams.v_lr,
            hparams.kl_factor,
            hparams.v_weight_decay,
            hparams.clamp_norm_factor,
        )


class Descent:
    """Corrections of n requests under way. A request that has stopped keeps its correction and its moments.

    Attributes:
        delta: Corrections, `(n, d_out)`.
        loss: Objective when last evaluated, `(n,)`.
        updates: Updates made, `(n,)`.
        alive: Requests that go on, `(n,)`.
    """

    def __init__(self, h0: Tensor, settings: SolverSettings) -> None:
        """Start all corrections at zero.

        Args:
            h0: Hidden states that the clamp is relative to, `(n, d_out)`.
            settings: Numbers of the optimisation.
        """
        self._settings = settings
        self._limit = settings.clamp * h0.norm(dim=1)
        self._first, self._second = torch.zeros_like(h0), torch.zeros_like(h0)
        self.delta = torch.zeros_like(h0)
        self.loss = torch.full_like(self._limit, float("nan"))
        self.updates = torch.zeros(len(h0), dtype=torch.long, device=h0.device)
        self.alive = torch.ones(len(h0), dtype=torch.bool, device=h0.device)

    def record(self, rows: Tensor, loss: Tensor, stop: Tensor) -> None:
        """Note losses, and stop requests before their next update.

        Args:
            rows: Requests that were evaluated, `(k,)`.
            loss: Their objective, `(k,)`.
            stop: Whether each is done, `(k,)`.
        """
        going = self.alive[rows]
        self.loss[rows] = torch.where(going, loss, self.loss[rows])
        self.alive[rows] = going & ~stop

    def update(self, rows: Tensor, gradient: Tensor, step: int) -> None:
        """Make one update of the requests that go on; all of them have made `step - 1` so far.

        Args:
            rows: Requests that were evaluated, `(k,)`.
            gradient: Of the objective, `(k, d_out)`.
            step: Number of the update, from 1.
        """
        going = self.alive[rows]
        first = _BETAS[0] * self._first[rows] + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * self._second[rows] + (1 - _BETAS[1]) * gradient**2
        scale = (second / (1 - _BETAS[1] ** step)).sqrt() + _EPSILON
        moved = self.delta[rows] - self._settings.learning_rate * (first / (1 - _BETAS[0] ** step)) / scale
        moved = _clamped(moved, self._limit[rows])
        for held, new in ((self._first, first), (self._second, second), (self.delta, moved)):
            held[rows] = torch.where(going[:, None], new, held[rows])
        self.updates[rows] += going.long()


def _clamped(delta: Tensor, limit: Tensor) -> Tensor:
    """Project each row onto the ball of its radius."""
    norm = delta.norm(dim=1)
    factor = torch.where(norm > limit, limit / norm, torch.ones_like(norm))
    return delta * factor[:, None]
