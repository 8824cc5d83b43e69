"""Kept sessions on tiny models, and streams for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nas_plugin.session import EditSession
from tests.conftest import PROMPTS, SUBJECTS, TARGETS, build_model, build_tokenizer
from tests.support import TEMPLATES, moments, tiny_hparams

TIMES = {"time", "seconds"}


def stream(count: int) -> list[dict[str, str]]:
    """Requests that are all about other facts until 36, then about these again."""
    return [
        {
            "prompt": PROMPTS[i // 6 % 6],
            "subject": SUBJECTS[i % 6],
            "target_new": TARGETS[(i + i // 36) % 6],
            "case_id": str(i),
        }
        for i in range(count)
    ]


def kept(
    folder: Path | None, method: str = "MEMIT", dtype: torch.dtype = torch.float32, **overrides: Any
) -> EditSession:
    """A fresh session on a fresh model, kept in a folder."""
    settings = {"layers": [0], "v_num_grad_steps": 3, "snapshot_every": 7, **overrides}
    hparams = tiny_hparams(method, **settings)
    return EditSession(
        build_model("gpt2", dtype),
        build_tokenizer(),
        hparams,
        contexts=TEMPLATES,
        moments=moments("gpt2", hparams.layers, dtype, 0),
        anchor=None if not hparams.use_nas else 3.0,
        progress=False,
        keep=folder,
    )


def state_of(session: EditSession) -> dict[str, Any]:
    """All that decides how a session goes on."""
    found: dict[str, Any] = dict(session.weights.saved()) | {"digest": session.weights_digest()}
    for layer, editor in session.editors.items():
        tensors, numbers = editor.state()
        found |= {f"{layer}.{name}": tensor for name, tensor in tensors.items()} | {f"{layer}.numbers": numbers}
        found[f"{layer}.keys"] = editor.gain.keys
    return found | {"steps": session.steps, "order": session.history.order()}


def same_state(left: EditSession, right: EditSession) -> bool:
    ours, theirs = state_of(left), state_of(right)
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        for name, value in ours.items()
    )


def without_times(session: EditSession) -> list[dict[str, Any]]:
    assert session.keeper is not None
    return [{key: value for key, value in line.items() if key not in TIMES} for line in session.keeper.ledger.lines]


def in_child(work: Callable[[], None]) -> int:
    """Do something in a forked process; return the signal that ended it, 0 for a normal end."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001
            os._exit(70)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, "the child failed"
    return 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
