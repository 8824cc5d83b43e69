"""R30: methods without a history need no more memory after hundreds of edits than after the first few."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_tokenizer
from tests.promises.keeping import stream
from tests.support import tiny_hparams


def live_bytes() -> int:
    """Bytes of all storages that a live tensor holds."""
    gc.collect()
    held = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


def fast_session(method: str) -> EditSession:
    numbers: dict[str, Any] = {"layers": [0], "v_num_grad_steps": 2, "use_nas": False}
    return EditSession(
        build_model("gpt2"),
        build_tokenizer(),
        tiny_hparams(method, **numbers),
        contexts=ContextTemplates.bare(),
        moments={0: torch.eye(48, dtype=torch.float64)},
        progress=False,
    )


def growth(method: str, edits: int) -> tuple[int, int, EditSession]:
    session, seen = fast_session(method), []
    for number, request in enumerate(stream(edits), start=1):
        session.edit(request)
        if number in (edits // 6, edits):
            seen.append(live_bytes())
    return seen[1] - seen[0], edits - edits // 6, session


@pytest.mark.parametrize("method", ["MEMIT", "PRUNE", "RECT"])
def test_live_tensors_do_not_grow_over_three_hundred_edits(method: str) -> None:
    grown, edits, session = growth(method, 300)
    assert session.steps == 300
    # One key of this model takes 384 bytes: keeping any per edit would show.
    assert grown < 8 * edits


def test_a_method_with_a_history_does_grow() -> None:
    """The measurement above has teeth only if it sees a history grow."""
    # As many as there are different facts: a later edit of the same one takes the place of its key.
    grown, edits, _ = growth("ENCORE", 36)
    assert grown >= 48 * 4 * edits
