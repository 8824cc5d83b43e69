"""From an MLP's output to the residual stream and back, in families that put a norm between the two.

Everywhere else the two are the same: a change of the value is the change of the block's output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Coordinates that the norm as good as erases cannot be told from its output.
_ERASED = 1e-6


class MlpNorm:
    """A root-mean-square norm behind an MLP, as in Gemma 2, Gemma 3 and OLMo 2.

    It gives every value the same size, so that the direction of what a down-projection writes decides alone and its norm is free:
    `n(v) = g v / rms(v)` with the gains g `(d_out,)`, and `n(c v) = n(v)` for every c > 0.
    """

    def __init__(self, module: Any) -> None:
        """Wrap a module.

        Args:
            module: The norm.
        """
        self.module = module

    def __call__(self, values: Tensor) -> Tensor:
        """Return what of values reaches the residual stream.

        Args:
            values: MLP outputs, `(..., d_out)`.

        Returns:
            The same, normed.
        """
        device = next(self.module.parameters()).device
        normed: Tensor = self.module(values if device.type == "meta" else values.to(device))
        return normed.to(values.device)

    def change(self, values: Tensor, delta: Tensor) -> Tensor:
        """Return what a change of values does to the residual stream.

        Args:
            values: MLP outputs, `(n, d_out)`.
            delta: What is added to them, `(n, d_out)`.

        Returns:
            What is added to the block's output, `(n, d_out)`.
        """
        return self(values + delta) - self(values)

    def behind(self, values: Tensor, change: Tensor, norms: Tensor) -> Tensor:
        """Find what has to be added to values so that the residual stream changes as wanted.

        The norm's output lies on an ellipsoid, so that only the direction of `n(v) + change` can be met; a change that leads from
        one of its outputs to another is met exactly.

        Args:
            values: MLP outputs, `(n, d_out)`.
            change: Wanted change of the block's output, `(n, d_out)`.
            norms: Norms that the values are to have, `(n,)`.

        Returns:
            What to add to the values, `(n, d_out)`.
        """
        with torch.no_grad():
            # A vector of ones shows the gains, up to a factor that does not matter here.
            gains = self(torch.ones_like(values[:1]))
            erased = gains.abs() <= _ERASED * gains.abs().max()
            size = values.norm(dim=1, keepdim=True) / values.shape[1] ** 0.5
            wanted = (self(values) + change) / gains.masked_fill(erased, 1.0)
            wanted = torch.where(erased, values / size.clamp_min(torch.finfo(values.dtype).tiny), wanted)
            return wanted * (norms / wanted.norm(dim=1))[:, None] - values
