"""Keeping lm-eval to itself: what it does to the process is undone, and what it says is dropped.

Imports neither lm-eval nor what it depends on before they are needed.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_TALKERS = ("datasets", "transformers", "evaluate")
LOG = logging.getLogger(__name__)


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object another attribute of its own while the block runs.

    Args:
        owner: A module, class or instance.
        name: The attribute.
        value: Its value inside the block.

    Yields:
        Nothing.
    """
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before:
            setattr(owner, name, before[name])
        else:
            delattr(owner, name)


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Restore environment variables and the random streams of Python and NumPy, which imports alone change.

    Yields:
        Nothing.
    """
    import numpy

    environment, stream, array_stream = dict(os.environ), random.getstate(), numpy.random.get_state()
    try:
        yield
    finally:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        random.setstate(stream)
        numpy.random.set_state(array_stream)


@contextmanager
def offline() -> Iterator[None]:
    """Keep Hugging Face's libraries off the network.

    They read HF_HUB_OFFLINE and HF_DATASETS_OFFLINE once, when they are imported; setting the variables here would come too
    late, or outlast the block.

    Yields:
        Nothing.
    """
    from datasets import config
    from huggingface_hub import constants

    with changed(config, "HF_HUB_OFFLINE", True), changed(constants, "HF_HUB_OFFLINE", True):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Drop progress bars and messages below errors, except that prompts were cut, which is said once in our own words.

    Yields:
        Nothing.
    """
    from tqdm.std import tqdm

    show = tqdm.__init__

    def stay_silent(self: Any, *args: Any, **kwargs: Any) -> None:
        show(self, *args, **{**kwargs, "disable": True})

    listener = _Listener()
    harness = logging.getLogger("lm_eval")
    with ExitStack() as stack:
        stack.enter_context(changed(tqdm, "__init__", stay_silent))
        for name, level in {"lm_eval": logging.WARNING, **dict.fromkeys(_TALKERS, logging.ERROR)}.items():
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
        stack.enter_context(changed(harness, "propagate", False))
        harness.addHandler(listener)
        stack.callback(harness.removeHandler, listener)
        yield
    if listener.cuts:
        LOG.warning("Some prompts were longer than the model attends to; lm-eval cut their beginning off.")


class _Listener(logging.Handler):
    """Hears what lm-eval says: notes that a prompt was cut, passes errors on, drops the rest."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.cuts = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message."""
        self.cuts = self.cuts or "truncat" in record.getMessage().lower()
        if record.levelno >= logging.ERROR:
            LOG.handle(record)
