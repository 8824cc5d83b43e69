"""The studies of sample size and of number types, in small."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from nas_plugin.cli import app
from nas_plugin.errors import RunError
from nas_plugin.evaluation.studies.precision import WITHOUT, Precision
from nas_plugin.evaluation.studies.shared import Setting
from nas_plugin.evaluation.studies.tokens import Tokens

FEW = Setting(settings={"nas_n_pilots": 3})


def test_more_tokens_change_the_update_less() -> None:
    study = Tokens((1, 16), seeds=1, edits=3)
    found = study.run(FEW, "MEMIT")
    small, large = (found["sizes"][size] for size in ("1", "16"))
    assert found["width"] == 256 and small["tokens"] == 256 and large["tokens"] == 4096
    assert small["update"]["mean"] > 2 * large["update"]["mean"] > 0
    (table,) = study.tables({"MEMIT": found})
    assert [row.head for row in table.groups[0]] == ["MEMIT, 1", "MEMIT, 16", "MEMIT, all (63)"]


def test_a_sample_of_everything_changes_nothing() -> None:
    """The measure above has teeth only if it is zero where nothing differs."""
    found = Tokens((16020 / 256,), seeds=1, edits=2).run(FEW, "MEMIT")
    (everything,) = found["sizes"].values()
    assert everything["update"]["mean"] < 1e-8 and everything["score"]["mean"] == found["score"]


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(RunError, match="mom2_dataset has 16020 tokens"):
        Tokens((100,), edits=1).run(FEW, "MEMIT")


def test_number_types_with_masters_and_without() -> None:
    study = Precision(2, ("float32", "bfloat16"))
    found = study.run(FEW, "MEMIT")
    assert set(found) == {"float32", "bfloat16", f"bfloat16 {WITHOUT}"}
    assert found["float32"]["rounding"] == 0
    assert 0 < found["bfloat16"]["rounding"] < 2**-8
    assert all(at["reloaded"] and at["failed"] == 0 for at in found.values())
    (table,) = study.tables({"MEMIT": found})
    assert table.groups[0][1].head == "MEMIT, bfloat16" and table.groups[0][2].cells[-4] == "–"


def test_the_commands(tmp_path: Path) -> None:
    for command in (["tokens", "--per-dim", "8", "--seeds", "1"], ["precision", "--dtype", "float16"]):
        out = tmp_path / command[0]
        done = CliRunner().invoke(
            app, ["study", *command, "--method", "MEMIT", "--edits", "1", "--set", "nas_n_pilots=3", "--out", str(out)]
        )
        assert done.exit_code == 0, done.output
        assert (out / "study.md").exists() and (out / "study.json").exists()
