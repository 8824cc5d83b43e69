"""R26: `revert` restores the unedited weights bit for bit; `undo` takes single edits out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nas_plugin.errors import UndoError
from tests.promises.keeping import kept, stream
from tests.support import METHOD_NAMES


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_revert(method: str, tmp_path: Path) -> None:
    session = kept(tmp_path, method)
    before = session.weights_digest()
    for request in stream(6):
        session.edit(request)
    assert session.weights_digest() != before
    session.revert()
    assert session.weights_digest() == before and session.weights.is_base() and session.steps == 0
    once = session.edit(stream(1)).norm_ratio
    assert once == kept(None, method).edit(stream(1)).norm_ratio


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_undoing_the_last_edits_is_as_if_they_had_not_been(method: str, tmp_path: Path) -> None:
    shorter, longer = kept(None, method, use_nas=False), kept(tmp_path, method, use_nas=False)
    for number, request in enumerate(stream(9)):
        longer.edit(request)
        if number < 6:
            shorter.edit(request)
    longer.undo("6", "7", "8")
    for ours, theirs in zip(longer.weights.master.values(), shorter.weights.master.values(), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    assert longer.editors[0].gain.keys.shape == shorter.editors[0].gain.keys.shape


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_an_undone_edit_in_the_middle_leaves_nothing(method: str, tmp_path: Path) -> None:
    session = kept(tmp_path, method, snapshot_every=3)
    reports = [session.edit(request).edits[0] for request in stream(8)]
    session.undo(reports[2].id)
    entry = session.history.find(reports[2].id)
    assert entry is not None and entry.status == "undone"
    if session.editors[0].carries:
        assert session.editors[0].gain.keys.shape[1] == 7 and session.editors[0].gain.error() < 1e-8
    with pytest.raises(UndoError, match="undone"):
        session.undo(reports[2].id)
    assert session.edit(stream(3)[2]).edits[0].status == "written"


def test_what_cannot_be_undone_is_refused(tmp_path: Path) -> None:
    session = kept(tmp_path)
    session.edit(stream(2))
    before = session.weights_digest()
    with pytest.raises(UndoError, match="no edit is called 'x'"):
        session.undo("x")
    assert session.weights_digest() == before
    without = kept(None)
    without.edit(stream(1))
    with pytest.raises(UndoError, match="keep"):
        without.undo("0")


def test_undoing_a_replacement_brings_the_earlier_back(tmp_path: Path) -> None:
    session, alone = kept(tmp_path, "AlphaEdit", use_nas=False), kept(None, "AlphaEdit", use_nas=False)
    first = stream(1)[0]
    session.edit(first)
    alone.edit(first)
    session.edit({**first, "target_new": "Sega", "case_id": "later"})
    session.undo("later")
    assert torch.allclose(session.weights.master[0], alone.weights.master[0], rtol=1e-5, atol=1e-6)
