"""Two pretended devices: every tensor lies on the CPU, carries a tag that says where it would be, and refuses to be mixed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Types that torch has names for and no machine here has.
FIRST, SECOND = torch.device("ipu", 0), torch.device("ipu", 1)
_CPU = torch.device("cpu")
_TAG = "pretended_device"
_MOVES = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.copy_}
# An index may lie on the CPU.
_INDEXED = {torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.index_put}


def where(tensor: torch.Tensor) -> torch.device:
    """The device that a tensor would be on."""
    return getattr(tensor, _TAG, _CPU)


class TwoDevices(TorchFunctionMode):
    """While it is active, tensors are where their tags say, and an operation on tensors of two devices is an error."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__self__", None) is torch.Tensor.device:
            return where(args[0])
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        asked = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.device)]
        target = self._target(func, given, asked)
        plain_args, plain_kwargs = tree_map_only(torch.device, lambda _: _CPU, (args, kwargs or {}))
        result = func(*plain_args, **plain_kwargs)
        if isinstance(result, Iterator):
            result = tuple(result)
        if func in _MOVES and result is given[0] and where(result) != target:
            # Nothing has moved, so torch sees nothing to do.
            result = result.clone()
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor):
                setattr(made, _TAG, target)
        return iter(result) if func is torch.Tensor.__iter__ else result

    def _target(self, func: Any, given: list[torch.Tensor], asked: list[torch.device]) -> torch.device:
        if func is torch.Tensor.cpu:
            return _CPU
        if asked:
            return asked[0]
        if func in _MOVES and given:
            # As another tensor is, or into the first one.
            return where(given[-1] if func is torch.Tensor.to else given[0])
        # A number without dimensions may be on the CPU.
        devices = {where(tensor) for tensor in given if tensor.dim()}
        if func in _INDEXED and given:
            devices = {where(given[0])} | (devices - {_CPU})
        if len(devices) > 1:
            shapes = [(tuple(tensor.shape), str(where(tensor))) for tensor in given]
            raise RuntimeError(f"{getattr(func, '__name__', func)} mixes devices: {shapes}")
        return next(iter(devices), where(given[0]) if given else _CPU)


def put(module: torch.nn.Module, device: torch.device) -> None:
    """Put a module's numbers on a pretended device, and let its inputs follow."""
    for tensor in (*module.parameters(), *module.buffers()):
        setattr(tensor, _TAG, device)
    module.register_forward_pre_hook(lambda _, args, kwargs: _moved(args, kwargs, device), with_kwargs=True)


def _moved(args: Any, kwargs: Any, device: torch.device) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, kwargs))
