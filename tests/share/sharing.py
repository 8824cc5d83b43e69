"""Edited models to be exported, and how near two models are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests
from tests.support import tiny_session

TOKENS = torch.arange(40).reshape(2, 20)
FAST = {"nas_n_pilots": 2, "v_num_grad_steps": 2}


def edited(
    family: str = "gpt2", method: str = "MEMIT", dtype: torch.dtype = torch.float32, edits: int = 3, **more: Any
) -> EditSession:
    session = tiny_session(family, method, dtype=dtype, **{**FAST, **more})
    as_loaded(session.model, family)
    for request in build_requests(edits):
        session.edit(request)
    return session


def as_loaded(model: Any, family: str) -> Any:
    """Give a model that was turned into another dtype the buffers that `from_pretrained` would have made: no file holds them."""
    full = dict(build_model(family).named_modules())
    for name, module in model.named_modules():
        for key in module._buffers:
            module._buffers[key] = full[name]._buffers[key]
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits.double()
    return found


def apart(left: Any, right: Any) -> float:
    """Largest difference of logits."""
    return float((logits(left) - logits(right)).abs().max())


def in_new_process(code: str, *arguments: object) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
