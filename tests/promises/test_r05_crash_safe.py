"""R5: killed anywhere, a stream that is resumed ends with the weights, bit for bit, of one that was not interrupted."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
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


def _killed_after(folder: Path, method: str, seconds: float) -> None:
    """Die whatever is going on at that moment."""
    timer = threading.Timer(seconds, die)
    timer.daemon = True
    timer.start()
    _go(folder, method)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_killed_at_twenty_points(method: str, tmp_path: Path) -> None:
    started = time.perf_counter()
    whole, calls = _count_calls(tmp_path / "whole", method)
    seconds = time.perf_counter() - started
    rng = random.Random(f"R5 {method}")
    # Half of the points lie where most can go wrong, at syncs and renames; the others at any time.
    calls_to_die_at = rng.sample(range(1, calls + 1), KILLS // 2)
    works = [partial(_killed_at, method=method, call=call, after=bool(call % 2)) for call in calls_to_die_at]
    works += [partial(_killed_after, method=method, seconds=rng.uniform(0, 0.8 * seconds)) for _ in range(KILLS // 2)]
    for number, work in enumerate(works):
        folder = tmp_path / str(number)
        ended = in_child(partial(work, folder))
        while ended != signal.SIGKILL:
            # It was faster than the first one: a new folder, and half the time.
            folder, work = tmp_path / f"{folder.name}-", partial(work, seconds=work.keywords["seconds"] / 2)
            ended = in_child(partial(work, folder))
        resumed = _go(folder, method)
        assert same_state(whole, resumed), work.keywords
        assert without_times(resumed) == without_times(whole)
