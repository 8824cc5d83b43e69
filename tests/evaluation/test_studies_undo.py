"""The study of undo, on the embedded model."""

from __future__ import annotations

import pytest

from nas_plugin.errors import RunError
from nas_plugin.evaluation.studies.shared import Setting
from nas_plugin.evaluation.studies.undo import Undo
from nas_plugin.evaluation.studies.written import markdown

SMALL = Setting(settings={"mom2_n_samples": 40, "nas_n_pilots": 4, "v_num_grad_steps": 8})
PARTS = {"before", "new", "efficacy", "generalization", "specificity", "score", "metrics", "norm"}


def test_a_few_edits_come_and_go() -> None:
    study, told = Undo(edits=8, undone=3, seeds=2), []
    found = study.run(SMALL, "MEMIT", told.append)
    assert sum(told) == study.units == 2 * (8 + 5)
    assert len(found["streams"]) == 2 and found["metrics"]["score"] == "score/probability"
    for stream in found["streams"]:
        for state in ("edited", "undone", "never"):
            assert set(stream[state]) == PARTS
        # So few edits are all there, leave when they are undone, and let the others stay.
        assert stream["edited"]["new"] == 100 and stream["edited"]["before"] == 0
        assert stream["undone"]["new"] == 0 and stream["undone"]["before"] > 60
        assert stream["never"]["new"] == 0
        assert stream["undone"]["efficacy"] == stream["edited"]["efficacy"] == 100
        assert stream["undone"]["norm"] < stream["edited"]["norm"]
    # Other orders, other edits.
    assert found["streams"][0]["edited"]["norm"] != found["streams"][1]["edited"]["norm"]
    (table,) = study.tables({"MEMIT": found})
    assert [row.head for row in table.groups[0]] == ["NAS-MEMIT, edited", "NAS-MEMIT, undone", "NAS-MEMIT, never"]
    assert all(len(row.cells) == len(table.columns) - 1 for row in table.groups[0])
    assert "NAS-MEMIT, undone" in markdown(
        "t", [table], {"command": "c", "protocols": {}, "versions": {}, "seconds": 1.0}
    )


@pytest.mark.parametrize("undone", [0, 8, 9])
def test_some_have_to_go_and_some_to_stay(undone: int) -> None:
    with pytest.raises(RunError, match="some have to go"):
        Undo(edits=8, undone=undone).run(SMALL, "MEMIT")
