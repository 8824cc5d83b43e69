"""Priors of the gain: what the text that should stay says about how each direction may be written to."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from nas_plugin.errors import StatisticsError

logger = logging.getLogger(__name__)

# Jitter is tried in units of the mean eigenvalue.
_JITTERS = (0.0, 1e-12, 1e-10, 1e-8, 1e-6)


def covariance_prior(moment: Tensor, weight: float, ridge: float = 0.0) -> Tensor:
    """Return (weight C + ridge I)^-1.

    Args:
        moment: C `(d, d)`, float64, positive definite up to rounding.
        weight: lambda (`mom2_update_weight`).
        ridge: lambda_n of ENCORE.

    Returns:
        The inverse `(d, d)`, float64.

    Raises:
        StatisticsError: The matrix is not positive definite even with jitter; collect over more text.
    """
    # In place where it can be: a matrix takes 1.6 GB at the width of Llama 3 8B.
    system = (moment + moment.T).mul_(weight).div_(2)
    system.diagonal().add_(ridge)
    scale = float(system.diagonal().mean())
    diagonal = system.diagonal().clone()
    for jitter in _JITTERS:
        system.diagonal().copy_(diagonal + jitter * scale)
        factor, info = torch.linalg.cholesky_ex(system)
        if int(info) == 0 and bool(torch.isfinite(factor).all()):
            if jitter:
                logger.warning(
                    "second moments are singular: added %.0e of their mean to the diagonal; more text would avoid it",
                    jitter,
                )
            del system
            # Row by row in memory, as a prior read back from disk is: the order decides the last bits of products.
            return torch.cholesky_inverse(factor).contiguous()
    raise StatisticsError(
        f"second moments ({moment.shape[0]} x {moment.shape[0]}) are not positive definite; collect "
        "them over more tokens than that."
    )


def null_space_prior(moment: Tensor, threshold: float, ridge: float) -> Tensor:
    """Return P / ridge with P the projector on directions that the text hardly uses (AlphaEdit, Eq. 8).

    Args:
        moment: C `(d, d)`, float64.
        threshold: Directions with an eigenvalue of C below this are free to write.
        ridge: L2.

    Returns:
        P / L2 `(d, d)`, float64.

    Raises:
        StatisticsError: No direction lies below the threshold, so nothing could be written.
    """
    values, vectors = torch.linalg.eigh((moment + moment.T) / 2)
    free = vectors[:, values < threshold]
    if free.shape[1] == 0:
        raise StatisticsError(
            f"no eigenvalue of the second moments lies below nullspace_threshold {threshold} (smallest "
            f"{float(values[0]):.3g}, largest {float(values[-1]):.3g}); raise the "
            "threshold, or check that the statistics are a mean and not a sum."
        )
    logger.info("null space: %d of %d directions lie below %g", free.shape[1], len(values), threshold)
    return (free @ free.T) / ridge
