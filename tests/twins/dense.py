"""The six editors as papers and released code write them: dense, float64, a fresh solve at every step.

Orientation as in the released code; every class has `step(K, R) -> update` and `matrix()`, the matrix the model is served.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Numbers:
    """Hyperparameters of all six."""

    mom2_update_weight: float = 3.0
    L2: float = 2.0
    nullspace_threshold: float = 0.05
    update_norm_lambda: float = 0.5
    prune_alpha: float = math.e
    prune_double_add: bool = False
    rect_keep: float = 0.4
    lyap_alpha: float = 1.5
    prob_cutoff: float = -2.0
    mpes_exact5: bool = False


class DenseMEMIT:
    def __init__(self, w0: Tensor, moment: Tensor, numbers) -> None:
        self.w0, self.w, self.moment, self.numbers = w0.clone(), w0.clone(), moment, numbers

    def delta(self, k: Tensor, r: Tensor) -> Tensor:
        adjoint = torch.linalg.solve(self.numbers.mom2_update_weight * self.moment + k @ k.T, k)
        return r @ adjoint.T

    def step(self, k: Tensor, r: Tensor) -> None:
        self.w = self.w + self.delta(k, r)

    def matrix(self) -> Tensor:
        return self.w


class DensePRUNE(DenseMEMIT):
    def matrix(self) -> Tensor:
        u, s, vt = torch.linalg.svd(self.w - self.w0, full_matrices=False)
        top = torch.linalg.svdvals(self.w0).max()
        base = math.log(self.numbers.prune_alpha)
        s = torch.where(s > top, torch.log(s) / base - torch.log(top) / base + top, s)
        pruned = u @ torch.diag(s) @ vt
        return (self.w if self.numbers.prune_double_add else self.w0) + pruned


class DenseRECT(DenseMEMIT):
    def delta(self, k: Tensor, r: Tensor) -> Tensor:
        delta = super().delta(k, r)
        relative = (delta / (self.w + 1e-8)).abs().flatten()
        threshold = relative.sort().values[int(0.6 * relative.numel()) - 1]
        return delta * (relative >= threshold).reshape(delta.shape)


class DenseAlphaEdit(DenseMEMIT):
    def __init__(self, w0: Tensor, moment: Tensor, numbers) -> None:
        super().__init__(w0, moment, numbers)
        u, s, _ = torch.linalg.svd(moment)
        free = u[:, s < numbers.nullspace_threshold]
        self.p = free @ free.T
        self.s = torch.zeros_like(moment)

    def delta(self, k: Tensor, r: Tensor) -> Tensor:
        system = self.p @ (k @ k.T + self.s) + self.numbers.L2 * torch.eye(k.shape[0], dtype=k.dtype)
        self.s = self.s + k @ k.T
        return torch.linalg.solve(system, self.p @ k @ r.T).T


class DenseENCORE(DenseMEMIT):
    def __init__(self, w0: Tensor, moment: Tensor, numbers) -> None:
        super().__init__(w0, moment, numbers)
        self.s = torch.zeros_like(moment)

    def delta(self, k: Tensor, r: Tensor) -> Tensor:
        ridge = self.numbers.update_norm_lambda * torch.eye(k.shape[0], dtype=k.dtype)
        adjoint = torch.linalg.solve(self.numbers.mom2_update_weight * self.moment + ridge + self.s + k @ k.T, k)
        self.s = self.s + k @ k.T
        return r @ adjoint.T


class DenseLyapLock(DenseMEMIT):
    """With the unreduced queue: Z, a and the floor sqrt(alpha D_1), and D by the trace formula over three statistics."""

    def __init__(self, w0: Tensor, moment: Tensor, numbers) -> None:
        super().__init__(w0, moment, numbers)
        self.v0k0, self.v0v0 = w0 @ moment, w0 @ moment @ w0.T
        self.s, self.vk = torch.zeros_like(moment), torch.zeros_like(w0)
        self.first = None
        self.z = self.a = self.floor = math.nan
        self.queues: list[float] = []

    def deviation(self) -> float:
        value = (
            torch.trace(self.moment @ self.w.T @ self.w)
            - 2 * torch.trace(self.v0k0 @ self.w.T)
            + torch.trace(self.v0v0)
        )
        return float(value)

    def step(self, k: Tensor, r: Tensor) -> None:
        q = 1.0 if self.first is None else self.a * self.z
        self.queues.append(q)
        weight = q * self.numbers.mom2_update_weight
        system = k @ k.T + weight * self.moment + self.s
        gradient = r @ k.T + weight * (self.v0k0 - self.w @ self.moment) + (self.vk - self.w @ self.s)
        self.w = self.w + gradient @ torch.linalg.inv(system)
        self.s = self.s + k @ k.T
        self.vk = self.vk + self.w @ k @ k.T
        now = self.deviation()
        if self.first is None:
            self.first = now
            root = math.sqrt(self.numbers.lyap_alpha * now)
            self.a, self.z, self.floor = 1 / root, root, root
        self.z = max(self.z + self.a * (now - self.numbers.lyap_alpha * self.first), self.floor)


DENSE = {
    "MEMIT": DenseMEMIT,
    "PRUNE": DensePRUNE,
    "RECT": DenseRECT,
    "AlphaEdit": DenseAlphaEdit,
    "ENCORE": DenseENCORE,
    "LyapLock": DenseLyapLock,
}
