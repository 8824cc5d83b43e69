"""R31: weights that outgrow `norm_alarm` are said once, or stop the session before they are written."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nas_plugin.errors import NormAlarmError
from tests.promises.keeping import kept, stream, without_times

LARGE = {"v_lr": 5.0, "clamp_norm_factor": 400.0, "use_nas": False, "norm_alarm": 1.05}


def test_the_alarm_is_raised_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    session = kept(tmp_path, **LARGE)
    with caplog.at_level(logging.WARNING):
        for request in stream(12):
            session.edit(request)
    lines = without_times(session)[1:]
    alarms = [line["step"] for line in lines if line["alarm"]]
    assert len(alarms) == 1 == sum("norm_alarm" in record.message for record in caplog.records)
    assert lines[alarms[0] - 1]["norm_after"] > lines[alarms[0] - 1]["norm_before"]


def test_stopping_writes_nothing_above_it(tmp_path: Path) -> None:
    session = kept(tmp_path, **LARGE, on_norm_alarm="stop")
    with pytest.raises(NormAlarmError, match="undo edits, or raise norm_alarm"):
        for request in stream(12):
            before = session.weights_digest()
            session.edit(request)
    assert session.weights_digest() == before and max(session.norm_ratio().values()) <= 1.05
    assert len(without_times(session)) - 1 == session.steps
