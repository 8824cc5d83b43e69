"""What a promise's test looks at: digests of everything a model holds, and whether it was called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def digests(model: torch.nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer, non-persistent buffers included, by name."""
    held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: _sha256(tensor) for name, tensor in held if tensor.device.type != "meta"}


def _sha256(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + data).hexdigest()


@contextmanager
def counted_calls(model: torch.nn.Module) -> Iterator[list[Any]]:
    """A list that grows by one at every call of the model."""
    calls: list[Any] = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()
