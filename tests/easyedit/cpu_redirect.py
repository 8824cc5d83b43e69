"""Lets EasyEdit's wheel, which names a GPU in every other line, run on the CPU. For tests only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from transformers import BatchEncoding

_FACTORIES = ("empty", "zeros", "ones", "tensor", "eye")


def _on_cpu(device: Any) -> Any:
    if isinstance(device, int) and not isinstance(device, bool):
        return "cpu"
    return "cpu" if isinstance(device, str) and device.startswith("cuda") else device


def _redirected(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        return function(*args, **kwargs)

    return call


def _moved(method: Callable[..., Any]) -> Callable[..., Any]:
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        return method(self, *(_on_cpu(argument) for argument in args), **kwargs)

    return to


@contextmanager
def accelerators_are_cpu(needed: bool) -> Iterator[None]:
    """Sends to the CPU what asks for a GPU by name or number.

    Args:
        needed: Do nothing if false.

    Yields:
        Nothing.
    """
    if not needed:
        yield
        return
    with torch.device("meta"):
        torch.empty(0)  # torch lists its factories once, on first use, and must not list the replacements
    patches = [patch.object(torch, name, _redirected(getattr(torch, name))) for name in _FACTORIES]
    patches += [patch.object(cls, "to", _moved(cls.to)) for cls in (torch.Tensor, torch.nn.Module, BatchEncoding)]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()
