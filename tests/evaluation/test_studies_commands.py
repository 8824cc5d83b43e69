"""The study commands: processes, files, tables."""

from __future__ import annotations

import inspect
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nas_plugin.errors import RunError
from nas_plugin.evaluation.measures import PROTOCOLS
from nas_plugin.evaluation.report.content import Row, Table
from nas_plugin.evaluation.studies import commands
from nas_plugin.evaluation.studies import conduct as conducting
from nas_plugin.evaluation.studies.anchor_bias import AnchorBias
from nas_plugin.evaluation.studies.commands import app
from nas_plugin.evaluation.studies.conduct import _size, conduct
from nas_plugin.evaluation.studies.order import Order
from nas_plugin.evaluation.studies.overhead import Overhead
from nas_plugin.evaluation.studies.plasticity import Plasticity
from nas_plugin.evaluation.studies.sample_size import SampleSize
from nas_plugin.evaluation.studies.shared import Setting, Study
from nas_plugin.evaluation.studies.written import markdown, on_terminal

TABLE = Table("Scores", ("editor", "score"), ((Row("MEMIT", ("1.0",)), Row("NAS-MEMIT", ("2.0",))),), "How to read it.")
HEAD = {
    "command": "nas-edit study order",
    "protocols": {"efficacy/exact": "Text."},
    "versions": {"torch": "2"},
    "seconds": 3.2,
}


def test_markdown_by_hand() -> None:
    assert markdown("Edit order", [TABLE], HEAD) == (
        "# Edit order\n\n`nas-edit study order`\n\n## Scores\n\n"
        "| editor | score |\n| --- | ---: |\n| MEMIT | 1.0 |\n| NAS-MEMIT | 2.0 |\n\n"
        "How to read it.\n\n- `efficacy/exact`: Text.\n\ntorch 2; 3 seconds.\n"
    )


def test_a_table_on_a_terminal() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(on_terminal(TABLE))
    text = console.export_text()
    assert "NAS-MEMIT" in text and "How to read it." in text and "2.0" in text


@pytest.mark.parametrize("study", [Plasticity(), AnchorBias(), Order(), SampleSize(), Overhead()])
def test_a_command_has_its_study_s_numbers_as_options(study: Study) -> None:
    parameters = inspect.signature(getattr(commands, study.name.replace("-", "_"))).parameters
    for name, value in vars(study).items():
        default = parameters[name].default
        assert (tuple(default) if isinstance(default, list) else default) == value


def test_times_are_taken_alone_at_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert _size(Overhead(), 6, 4, True) == _size(Overhead(), 6, None, False) == (1, 1)
    assert _size(Order(), 6, None, True) == (6, 1) and _size(Order(), 6, 2, True) == (2, 1)
    assert _size(Order(), 6, None, False) == (1, 8) and _size(Order(), 6, 4, False) == (4, 2)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], str]:
    out = tmp_path_factory.mktemp("study")
    arguments = ["plasticity", "--method", "MEMIT", "--edits", "2", "--out", str(out), "--set", "nas_n_pilots=3"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "100"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output, json.loads((out / "study.json").read_text()), (out / "study.md").read_text()


def test_a_command_writes_numbers_and_tables(written: tuple[str, dict[str, Any], str]) -> None:
    output, study, text = written
    assert "NAS-MEMIT" in output and "study.json" in output
    assert study["format"] == 1 and study["study"] == "plasticity" and study["settings"]["edits"] == 2
    assert study["hparams"]["MEMIT"]["model_name"] == "nas-demo" and study["versions"]["torch"]
    assert study["protocols"]["score/probability"] == PROTOCOLS["score/probability"]
    assert len(study["results"]["MEMIT"]["edits"]) == 2
    assert study["settings"]["settings"] == {"nas_n_pilots": 3} and study["hparams"]["MEMIT"]["nas_n_pilots"] == 3
    assert study["command"].startswith("nas-edit") and study["command"] in text and "| NAS-MEMIT | 2 |" in text


def test_what_was_finished_stays_when_a_later_editor_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def results(*_: Any) -> Any:
        yield "MEMIT", {"pool": 9, "solved": 1, "clock": "CPU time", "seconds": 1.0, "sizes": {}}
        raise RuntimeError("made up")

    monkeypatch.setattr(conducting, "_results", results)
    with pytest.raises(RuntimeError, match="made up"):
        conduct(SampleSize(size=(1,)), Setting(), ["MEMIT", "RECT"], tmp_path)
    study = json.loads((tmp_path / "study.json").read_text())
    assert list(study["results"]) == ["MEMIT"] and list(study["hparams"]) == ["MEMIT", "RECT"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [(["MEMIT", "ROME"], "no editor 'ROME'"), (["RECT", "RECT=my.yaml"], "every editor once")],
)
def test_editors_are_checked_before_anything_runs(methods: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=message):
        conduct(Plasticity(1), Setting(), methods, tmp_path)
    assert not list(tmp_path.iterdir())
