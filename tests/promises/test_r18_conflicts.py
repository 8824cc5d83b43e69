"""R18: the same fact twice is dealt with by policy, said once and noted."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nas_plugin.errors import ConflictError
from tests.promises.keeping import kept, same_state, stream, without_times
from tests.support import METHOD_NAMES

FIRST = stream(1)[0]
SAME, OTHER = {**FIRST, "case_id": "same"}, {**FIRST, "case_id": "other", "target_new": "Sega"}


@pytest.mark.parametrize("policy", ["replace", "skip"])
def test_a_duplicate_is_skipped_with_one_warning(policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    session = kept(tmp_path, on_conflict=policy)
    first = session.edit(FIRST).edits[0]
    before = session.weights_digest()
    with caplog.at_level(logging.WARNING):
        second = session.edit(SAME).edits[0]
    assert second.status == "skipped" and first.id in str(second.reason)
    assert sum("same fact" in record.message for record in caplog.records) == 1
    assert session.weights_digest() == before
    assert [line["status"] for line in without_times(session)[1:]] == ["written", "skipped"]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_of_contradicting_targets_the_last_stands(method: str, tmp_path: Path) -> None:
    session = kept(tmp_path, method)
    first = session.edit(FIRST).edits[0]
    second = session.edit(OTHER).edits[0]
    assert second.status == "written" and second.replaces == (first.id,)
    found = session.history.find(first.id)
    assert found is not None and found.status == "replaced"
    assert [line["status"] for line in without_times(session)[1:]] == ["written", "written"]
    if session.editors[0].carries:
        # The old key would hold the old value.
        assert session.editors[0].gain.keys.shape[1] == 1
    session.rollback()
    assert found.stands and session.editors[0].gain.keys.shape[1] == int(session.editors[0].carries)


def test_the_earlier_stands_if_asked(tmp_path: Path) -> None:
    session = kept(tmp_path, on_conflict="skip")
    session.edit(FIRST)
    before = session.weights_digest()
    assert session.edit(OTHER).edits[0].status == "skipped" and session.weights_digest() == before


@pytest.mark.parametrize("second", [SAME, OTHER])
def test_neither_is_allowed_if_asked(second: dict) -> None:
    session = kept(None, on_conflict="error")
    session.edit(FIRST)
    before = session.weights_digest()
    with pytest.raises(ConflictError, match="on_conflict"):
        session.edit(second)
    fresh = kept(None, on_conflict="error")
    with pytest.raises(ConflictError, match="in the same step"):
        fresh.edit([FIRST, second])
    assert session.weights_digest() == before and fresh.weights.is_base()


def test_within_one_step_the_later_is_written() -> None:
    done = kept(None).edit([FIRST, OTHER, {**OTHER, "case_id": "again"}])
    assert [edit.status for edit in done.edits] == ["skipped", "written", "skipped"]


def test_an_edit_that_nas_skips_takes_no_place(tmp_path: Path) -> None:
    norms, edits = {}, {}
    for target in ("Sega", "Dutch", "Madrid", FIRST["target_new"]):
        edits[target] = {**FIRST, "case_id": target, "target_new": target}
        norms[target] = kept(None, "AlphaEdit").edit(edits[target]).edits[0].value_norm
    small, large = min(norms, key=norms.__getitem__), max(norms, key=norms.__getitem__)
    # The anchor is 3; the factor lies between the two. The second norm is measured again, on the edited model.
    session = kept(tmp_path, "AlphaEdit", nas_skip_factor=1.01 * norms[small] / 3.0)
    first = session.edit(edits[small]).edits[0]
    second = session.edit(edits[large]).edits[0]
    assert (first.status, second.status, second.replaces) == ("written", "skipped", ())
    entry = session.history.find(first.id)
    assert entry is not None and entry.stands
    # Both keys are in the gain, and in the history that a resumed session makes it of.
    assert session.editors[0].gain.keys.shape[1] == len(session.history.counting()) == 2
    resumed = kept(tmp_path, "AlphaEdit", nas_skip_factor=1.01 * norms[small] / 3.0)
    resumed.resume()
    assert same_state(session, resumed)
