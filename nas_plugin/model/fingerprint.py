"""Cheap identity of weights: which model is this, and has it been written to."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_SAMPLES = 4096


def _sampled_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    # A stride prime to most row lengths, so that the sample is not one column of the matrix.
    stride = max(1, flat.numel() // _SAMPLES) | 1
    return flat[::stride].to("cpu", torch.float32).contiguous().numpy().tobytes()


def tensor_digest(tensor: Tensor) -> str:
    """Hash every element of a tensor.

    Args:
        tensor: Any tensor.

    Returns:
        SHA-256 of its shape, dtype and bytes, as hex.
    """
    data = tensor.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{tuple(data.shape)}|{data.dtype}".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_fingerprint(model: nn.Module) -> str:
    """Identify a model by a strided sample of all its parameters.

    Hashing 16 GB per start would cost a minute; 4,096 elements of each tensor tell two checkpoints, or an edited model
    and its base, apart just as surely (an edit changes every element of the matrices it writes).

    Args:
        model: The model.

    Returns:
        SHA-256 over names, shapes, dtypes and sampled values, as hex.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        digest.update(f"{name}|{tuple(parameter.shape)}|{parameter.dtype}".encode())
        digest.update(_sampled_bytes(parameter) if parameter.device.type != "meta" else b"meta")
    return digest.hexdigest()
