"""Digests of weights, cheap enough for every edit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

MOMENTS_FILE = "moments.safetensors"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ROWS = 512
_FACTOR, _START = 6364136223846793005, 1442695040888963407


def weights_digest(parameters: Mapping[str, Tensor]) -> str:
    """Hash every element of some parameters, on the device they lie on.

    Each row is summed up with odd weights modulo 2^64 and the sums go into a SHA-256: a change of any one element shows for
    certain, any other but for chance. This is against damage and mix-ups, not against an adversary.

    Args:
        parameters: Matrices by name.

    Returns:
        The digest as hex.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters.items()):
        matrix = parameter.detach()
        digest.update(f"{name}|{tuple(matrix.shape)}|{matrix.dtype}".encode())
        digest.update(_row_sums(matrix.reshape(len(matrix), -1)).to("cpu").numpy().tobytes())
    return digest.hexdigest()


def moments_digest(matrices: Mapping[int, Tensor]) -> str:
    """Hash second moments, which a ledger names by that.

    Args:
        matrices: Layer -> matrix.

    Returns:
        The digest as hex.
    """
    return weights_digest({str(layer): matrix for layer, matrix in matrices.items()})


def _row_sums(matrix: Tensor) -> Tensor:
    """Return the weighted sum of each row's bit patterns modulo 2^64, `(rows,)`."""
    kind = _BITS[matrix.element_size()]
    columns = torch.arange(matrix.shape[1], device=matrix.device, dtype=torch.int64)
    weights = (columns * _FACTOR + _START) | 1
    parts = [
        (matrix[start : start + _ROWS].contiguous().view(kind).to(torch.int64) * weights).sum(1)
        for start in range(0, len(matrix), _ROWS)
    ]
    return torch.cat(parts)
