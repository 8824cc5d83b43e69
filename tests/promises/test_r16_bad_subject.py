"""R16: one bad request among a hundred: ninety-nine are written, in order, and the bad one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas_plugin.errors import SubjectNotFoundError
from tests.promises.keeping import kept, stream


def _hundred() -> list[dict[str, str]]:
    requests = [{**request, "prompt": f"{'so ' * (number // 36)}{request['prompt']}"} for number, request in
                enumerate(stream(100))]  # fmt: skip
    requests[41] = {**requests[41], "prompt": "Nobody is here", "subject": "Elsewhere"}
    return requests


def test_ninety_nine_of_a_hundred(tmp_path: Path) -> None:
    session = kept(tmp_path, on_reject="continue", v_num_grad_steps=2)
    done = session.edit(_hundred())
    assert [number for number, edit in enumerate(done.edits) if edit.status != "written"] == [41]
    assert done.edits[41].status == "rejected"
    for part in ("41", "Elsewhere", "Nobody is here"):
        assert part in str(done.edits[41].reason)
    assert [edit.request.id for edit in done.edits if edit.request is not None] == [
        str(number) for number in range(100) if number != 41
    ]


def test_by_default_nothing_is_written() -> None:
    session = kept(None)
    before = session.weights_digest()
    with pytest.raises(SubjectNotFoundError, match="41.*Elsewhere"):
        session.edit(_hundred())
    assert session.weights_digest() == before
