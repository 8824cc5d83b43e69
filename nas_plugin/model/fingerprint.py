"""Cheap identity of weights: which model is this, and has it been written to."""

from __future__ import annotations

import hashlib

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from nas_plugin.model.adapters import unwrapped

_SAMPLES = 4096


def _sampled_bytes(tensor: Tensor, dtype: torch.dtype) -> bytes:
    flat = tensor.detach().reshape(-1)
    # A stride prime to most row lengths, so that the sample is not one column of the matrix.
    stride = max(1, flat.numel() // _SAMPLES) | 1
    return flat[::stride].to("cpu", dtype).to(torch.float32).contiguous().numpy().tobytes()


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


def weights_fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Identify a model by a strided sample of all its parameters.

    Hashing 16 GB per start would cost a minute; 4,096 elements of each tensor tell two checkpoints, or an edited model
    and its base, apart just as surely (an edit changes every element of the matrices it writes).

    Args:
        model: The model; one that carries a PEFT adapter is identified with it, one that is spread over devices or partly
            offloaded like the whole.
        dtype: As the model would be after `model.to(dtype)`; by default as it is.

    Returns:
        SHA-256 over names, shapes, dtypes and sampled values, as hex.
    """
    digest = hashlib.sha256()
    model = unwrapped(model)
    aliases = _offloaded_aliases(model)
    for name, parameter in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        if name in aliases:
            continue
        kind = parameter.dtype if dtype is None or not parameter.is_floating_point() else dtype
        digest.update(f"{name}|{tuple(parameter.shape)}|{kind}".encode())
        digest.update(_bytes_of(model, name, parameter, kind))
    return digest.hexdigest()


def _offloaded_aliases(model: nn.Module) -> frozenset[str]:
    """Name parameters that are another's: once offloaded they are parameters of their own."""
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    names = getattr(model, "_tied_weights_keys", None) or () if tied else ()
    offloaded = {name for name, parameter in model.named_parameters() if parameter.device.type == "meta"}
    return frozenset(names) & offloaded


def _bytes_of(model: nn.Module, name: str, parameter: Tensor, dtype: torch.dtype) -> bytes:
    """Sample a parameter, where it is offloaded the numbers that accelerate keeps of it."""
    if parameter.device.type != "meta":
        return _sampled_bytes(parameter, dtype)
    with align_module_device(model.get_submodule(name.rpartition(".")[0])):
        loaded = model.get_parameter(name)
        return _sampled_bytes(loaded, dtype) if loaded.device.type != "meta" else b"meta"
