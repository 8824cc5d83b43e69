"""Ctrl-C waits where half a change would be left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off an interrupt that comes inside the block until its end; outside the main thread, where none comes, do nothing.

    Yields:
        Nothing.
    """
    handler = signal.getsignal(signal.SIGINT)
    # One that was not installed from Python cannot be put back.
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came and callable(handler):
        handler(signal.SIGINT, came[-1])
    elif came and handler == signal.SIG_DFL:
        signal.raise_signal(signal.SIGINT)
