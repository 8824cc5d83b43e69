"""Undo what importing EasyEdit does to the rest of the process.

The import seeds every random number generator, makes GPU kernel launches synchronous through an environment variable and
installs a handler on the root logger. None of it is what somebody who imports an editing library asked for.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_MOVED = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")


def _restore_environment(before: dict[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _restore_root_logger(level: int, handlers: list[logging.Handler]) -> None:
    root = logging.getLogger()
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)


def _accelerator_rng(torch: Any) -> Callable[[], None]:
    """Return what puts the random state of the accelerator back; never initialises a device to do so."""
    accelerator = getattr(torch, "accelerator", None)
    if accelerator is None or not accelerator.is_available():
        return lambda: None
    device: Any = getattr(torch, accelerator.current_accelerator().type, None)
    if not hasattr(device, "is_initialized"):
        return lambda: None
    if device.is_initialized() and hasattr(device, "get_rng_state_all"):
        states = device.get_rng_state_all()
        return lambda: device.set_rng_state_all(states)
    # Not initialised: seeds are queued. Queueing the process's own seed again undoes the host's.
    seed = torch.initial_seed()
    return lambda: device.manual_seed_all(seed)


@contextmanager
def moved_names() -> Iterator[None]:
    """Give `transformers.modeling_utils` the three helpers that older EasyEdit releases import from there.

    Yields:
        Nothing. The names added are removed again.
    """
    old = importlib.import_module("transformers.modeling_utils")
    new = importlib.import_module("transformers.pytorch_utils")
    added = [name for name in _MOVED if not hasattr(old, name)]
    for name in added:
        setattr(old, name, getattr(new, name, None))
    try:
        yield
    finally:
        for name in added:
            delattr(old, name)


@contextmanager
def untouched_process() -> Iterator[None]:
    """Keep environment, random states, root logger, warning filters and recursion limit as they are.

    Yields:
        Nothing; whatever the block did to them is undone when it ends, also by an error.
    """
    numpy = importlib.import_module("numpy")
    torch = importlib.import_module("torch")
    root = logging.getLogger()
    with ExitStack() as undo:
        undo.callback(_restore_environment, dict(os.environ))
        undo.callback(_restore_root_logger, root.level, list(root.handlers))
        undo.callback(sys.setrecursionlimit, sys.getrecursionlimit())
        undo.callback(random.setstate, random.getstate())
        undo.callback(numpy.random.set_state, numpy.random.get_state())
        undo.callback(torch.set_rng_state, torch.get_rng_state())
        undo.callback(_accelerator_rng(torch))
        undo.enter_context(warnings.catch_warnings())
        yield
