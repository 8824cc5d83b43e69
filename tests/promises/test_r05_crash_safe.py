"""R5: killed anywhere, a stream that is resumed ends with the weights, bit for bit, of one that was not interrupted."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest

from nas_plugin.session import EditSession
from tests.promises.keeping import die, in_child, kept, same_state, stream, without_times
from tests.support import METHOD_NAMES

EDITS, KILLS = 50, 20
_CALLS = ("fsync", "replace")


def _go(folder: Path, method: str) -> EditSession:
    session = kept(folder, method)
    session.resume(None)
    for request in stream(EDITS):
        # Those that the ledger has are known, and nothing is done.
        session.edit(request)
    return session


def _count_calls(folder: Path, method: str) -> tuple[EditSession, int]:
    calls, patch = [0], pytest.MonkeyPatch()
    for name in _CALLS:
        real = getattr(os, name)

        def counted(*arguments, real=real):
            calls[0] += 1
            return real(*arguments)

        patch.setattr(os, name, counted)
    session = _go(folder, method)
    patch.undo()
    return session, calls[0]


def _killed_at(folder: Path, method: str, call: int, after: bool) -> None:
    """Die at a certain sync or rename: just before it, or just after it."""
    left = [call]
    for name in _CALLS:
        real = getattr(os, name)

        def deadly(*arguments, real=real):
            left[0] -= 1
            if left[0] == 0 and not after:
                die()
            result = real(*arguments)
            if left[0] == 0:
                die()
            return result

        setattr(os, name, deadly)
    _go(folder, method)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_killed_at_twenty_points(method: str, tmp_path: Path) -> None:
    whole, calls = _count_calls(tmp_path / "whole", method)
    rng = random.Random(f"R5 {method}")
    for number, call in enumerate(rng.sample(range(1, calls + 1), KILLS)):
        folder = tmp_path / str(number)
        ended = in_child(partial(_killed_at, folder, method, call, bool(number % 2)))
        assert ended == signal.SIGKILL
        resumed = _go(folder, method)
        assert same_state(whole, resumed), (method, call)
        assert without_times(resumed) == without_times(whole)
