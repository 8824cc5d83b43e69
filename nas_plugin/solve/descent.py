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
    """Corrections of n requests under way. A request that has stopped keeps its correction.

    Attributes:
        delta: Corrections of all requests, up to date once they have left, `(n, d_out)`.
        loss: Objective when last evaluated, likewise, `(n,)`.
        updates: Updates made, likewise, `(n,)`.
        running: Corrections of the k requests that have not left, `(k, d_out)`.
        going: Which of these go on, `(k,)`.
    """

    def __init__(self, h0: Tensor, settings: SolverSettings) -> None:
        """Start all corrections at zero.

        Args:
            h0: Hidden states that the clamp is relative to, `(n, d_out)`.
            settings: Numbers of the optimisation.
        """
        n, device = len(h0), h0.device
        self._rate = settings.learning_rate
        self.delta = torch.zeros_like(h0)
        self.loss = torch.full((n,), float("nan"), dtype=h0.dtype, device=device)
        self.updates = torch.zeros(n, dtype=torch.long, device=device)
        self.running = torch.zeros_like(h0)
        self.going = torch.ones(n, dtype=torch.bool, device=device)
        self._number = torch.arange(n, device=device)
        self._limit = settings.clamp * h0.norm(dim=1)
        self._first, self._second = torch.zeros_like(h0), torch.zeros_like(h0)
        self._loss, self._updates = self.loss.clone(), self.updates.clone()

    def record(self, loss: Tensor, stop: Tensor) -> None:
        """Note losses, and stop requests before their next update.

        Args:
            loss: Objective, `(k,)`.
            stop: Whether each is done, `(k,)`.
        """
        self._loss = torch.where(self.going, loss, self._loss)
        self.going = self.going & ~stop

    def update(self, gradient: Tensor, step: int) -> None:
        """Make one update of the requests that go on; all of them have made `step - 1` so far.

        Args:
            gradient: Of the objective, `(k, d_out)`.
            step: Number of the update, from 1.
        """
        # Moments of stopped requests run on unused: a request never starts again.
        self._first.mul_(_BETAS[0]).add_(gradient, alpha=1 - _BETAS[0])
        self._second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        scale = (self._second / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPSILON)
        held = self.running.detach()
        moved = held.addcdiv(self._first, scale, value=-self._rate / (1 - _BETAS[0] ** step))
        self.running = torch.where(self.going[:, None], _clamped(moved, self._limit), held)
        self._updates += self.going

    def keep(self, stays: Tensor) -> None:
        """Note how the others ended and go on without them.

        Args:
            stays: Their places among those that have not left, `(m,)`.
        """
        self.delta[self._number] = self.running.detach()
        self.loss[self._number], self.updates[self._number] = self._loss, self._updates
        for name in ("running", "going", "_number", "_limit", "_first", "_second", "_loss", "_updates"):
            setattr(self, name, getattr(self, name).detach()[stays])


def _clamped(delta: Tensor, limit: Tensor) -> Tensor:
    """Project each row onto the ball of its radius."""
    factor = (limit / delta.norm(dim=1)).clamp_max(1.0)
    # A row of zeros within a ball of radius zero has no factor.
    return delta * torch.where(factor.isnan(), torch.ones_like(factor), factor)[:, None]
