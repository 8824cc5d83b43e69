"""R14: what comes out NaN or infinite is rejected, the weights stay as they were, and the stream goes on or stops as asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas_plugin.errors import NonFiniteError
from nas_plugin.solve.target import TargetSolver
from nas_plugin.write.editor import LayerEditor
from tests.promises.keeping import kept, same_state, stream, without_times


@pytest.fixture
def bad_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the value of the second request of a step come out NaN."""
    real = TargetSolver.solve

    def solve(self, requests, *arguments, **settings):
        solved = real(self, requests, *arguments, **settings)
        if len(requests) < 2:
            return solved
        delta, finite = solved.delta.clone(), solved.finite.clone()
        delta[1], finite[1] = float("nan"), False
        return replace(solved, delta=delta, finite=finite)

    monkeypatch.setattr(TargetSolver, "solve", solve)


@pytest.mark.parametrize("layers", [[0], [0, 1]])
@pytest.mark.usefixtures("bad_value")
def test_the_rest_of_the_step_is_written(layers: list[int], tmp_path: Path) -> None:
    session = kept(tmp_path, "AlphaEdit", layers=layers, on_reject="continue")
    done = session.edit(stream(3))
    assert [edit.status for edit in done.edits] == ["written", "rejected", "written"] and done.rejected == 1
    assert "NaN" in str(done.edits[1].reason)
    assert [line["status"] for line in without_times(session)[1:]] == ["written", "rejected", "written"]
    resumed = kept(tmp_path, "AlphaEdit", layers=layers, on_reject="continue")
    resumed.resume()
    assert same_state(session, resumed)


@pytest.mark.usefixtures("bad_value")
def test_stopping_leaves_the_weights(tmp_path: Path) -> None:
    session = kept(tmp_path, "AlphaEdit")
    session.edit(stream(1))
    before = session.weights_digest()
    with pytest.raises(NonFiniteError, match="NaN"):
        session.edit(stream(3)[1:])
    assert session.weights_digest() == before and len(without_times(session)) == 2


@pytest.mark.parametrize("method", ["MEMIT", "LyapLock"])
def test_a_bad_update_rejects_the_step(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = kept(tmp_path, method, on_reject="continue")
    session.edit(stream(1))
    before = session.weights_digest()
    real = LayerEditor.propose
    monkeypatch.setattr(LayerEditor, "propose", lambda self, w, k, r: real(self, w, k, r * float("inf")))
    assert session.edit(stream(2)[1]).edits[0].status == "rejected"
    assert session.weights_digest() == before
    monkeypatch.undo()
    assert session.edit(stream(3)[2]).edits[0].status == "written"
    assert torch.isfinite(session.em.matrix(0)).all()
