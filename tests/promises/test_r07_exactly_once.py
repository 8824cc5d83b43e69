"""R7: an edit is carried out once, however often the stream is given again."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas_plugin.errors import ResumeError
from tests.promises.keeping import kept, same_state, stream, without_times


def test_a_stream_given_again_does_nothing(tmp_path: Path) -> None:
    session = kept(tmp_path)
    for request in stream(10):
        session.edit(request)
    before, lines = session.weights_digest(), without_times(session)
    for request in stream(10):
        assert session.edit(request).edits[0].status == "known"
    assert session.weights_digest() == before and without_times(session) == lines
    for _ in range(3):
        session = kept(tmp_path)
        assert session.resume(stream(12)) == 10
        for request in stream(10):
            session.edit(request)
    ids = [line["id"] for line in without_times(session) if line["event"] == "edit"]
    assert len(ids) == len(set(ids)) == 10 and session.weights_digest() == before


def test_another_order_is_refused(tmp_path: Path) -> None:
    session = kept(tmp_path)
    session.edit(stream(4))
    with pytest.raises(ResumeError, match="edit 1 of the ledger"):
        kept(tmp_path).resume(stream(4)[::-1])


def test_editing_without_resuming_is_refused(tmp_path: Path) -> None:
    kept(tmp_path).edit(stream(1))
    fresh = kept(tmp_path)
    before = fresh.weights_digest()
    with pytest.raises(ResumeError, match="resume"):
        fresh.edit(stream(2)[1])
    assert fresh.weights_digest() == before


@pytest.mark.parametrize("method", ["MEMIT", "AlphaEdit", "LyapLock"])
def test_rollback_undo_and_revert_are_carried_out_again(method: str, tmp_path: Path) -> None:
    session = kept(tmp_path, method, snapshot_every=100)
    requests = stream(9)
    for request in requests[:5]:
        last = session.edit(request).edits[0].id
    session.rollback()
    session.undo("1")
    again = session.edit(requests[4]).edits[0]
    assert again.status == "written" and again.id == f"{last}-2"
    resumed = kept(tmp_path, method)
    resumed.resume()
    assert same_state(session, resumed)
    session.revert()
    session.edit(requests[5:])
    resumed = kept(tmp_path, method)
    resumed.resume()
    assert same_state(session, resumed)
