"""The commands over streams: what they write, what they say, and how they end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nas_plugin.cli import app
from nas_plugin.cli.options import RunOptions
from nas_plugin.errors import RunError
from nas_plugin.evaluation.logs import read_run
from nas_plugin.evaluation.runner import compare as comparing
from tests.evaluation.runner_support import Here, count_down, lines_of, run_small, small_plan

SMALL = ["--set", "mom2_n_samples=40", "--set", "nas_n_pilots=3", "--set", "v_num_grad_steps=5"]
COMMANDS = ("demo", "run", "compare", "report", "log", "knowedit", "wikibigedit")


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == code, result.output
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: nas-edit {command} " in call(command, "--help")


def test_all_commands_are_listed() -> None:
    text = call("--help")
    assert all(command in text for command in (*COMMANDS, "study", "version"))


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, nas_plugin.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    said = call("run", "NAS-MEMIT/nas-demo", "--edits", "6", "--every", "3", "--drift", "4", "--out", str(out), *SMALL)
    assert f"Report: {out / 'report.html'}" in said
    return out


def test_run_writes_a_folder_and_draws_it(run_folder: Path) -> None:
    log = read_run(run_folder)
    assert log.status == "done" and log.grid == (3, 6) and len(log.edits) == 6 and log.use_nas
    assert log.hparams["v_num_grad_steps"] == 5 and log.command.startswith("nas-edit")
    # Held-out cases are those that follow in the stream.
    assert log.checkpoints[-1].drift["0"].full_distance > 0
    assert (run_folder / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")


def test_run_goes_on_only_with_the_same(run_folder: Path) -> None:
    same = [
        "run",
        "NAS-MEMIT/nas-demo",
        "--edits",
        "6",
        "--every",
        "3",
        "--drift",
        "4",
        "--out",
        str(run_folder),
        *SMALL,
    ]
    said = call(*same, code=1).strip()
    assert said.startswith(
        f"{run_folder} holds a run already; go on with it (resume, --resume), or give another folder."
    )
    assert said.endswith("[docs/errors.md#runfoldererror]")
    before = lines_of(run_folder / "edits.jsonl")
    call(*same, "--resume")
    assert lines_of(run_folder / "edits.jsonl") == before
    assert "hyperparameters (v_lr: 2.5, now 1.5)" in call(*same, "--set", "v_lr=1.5", "--resume", code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "NAS-MEMIT/nas-dem"], "Nearest shipped names: NAS-MEMIT/nas-demo"),
        (["run", "NAS-MEMIT/nas-demo", "--set", "v_lrr=1"], "did you mean 'v_lr'"),
        (["run", "NAS-MEMIT/nas-demo", "--set", "v_lr"], "write KEY=VALUE"),
        (["run", "NAS-MEMIT/nas-demo", "--grid", "10;20"], "give whole numbers with commas"),
        (["run", "NAS-MEMIT/nas-demo", "--edits", "6", "--grid", "7"], "a checkpoint after 7 edits; the stream has 6"),
        (["run", "NAS-MEMIT/nas-demo", "--stream", "none.json"], "none.json cannot be read"),
        (["compare", "MEMITT"], "there is no method 'MEMITT'"),
        (["report", "nowhere"], "does not exist; give a folder"),
    ],
)
def test_named_errors_end_a_command_with_their_message_alone(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = call(*arguments, code=1)
    assert message in said and "Traceback" not in said and "Error" not in said


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunOptions, "stream", lambda *_: 1 / 0)
    result = CliRunner().invoke(app, ["compare", "MEMIT"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_values_of_settings_are_yaml() -> None:
    given = ["layers=[0, 1]", "v_lr=5e-1", "use_nas=false", "stats_dir=null", "mom2_dataset=a=b"]
    assert RunOptions(set=given).settings == {
        "layers": [0, 1],
        "v_lr": "5e-1",
        "use_nas": False,
        "stats_dir": None,
        "mom2_dataset": "a=b",
    }
    with pytest.raises(RunError, match="no value in YAML"):
        RunOptions(set=["layers=[0"]).settings  # noqa: B018


def test_report_takes_folders_of_runs(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    call("report", str(run_folder.parent), "--out", str(out))
    assert "NAS-MEMIT" in out.read_text(encoding="utf-8")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "ProcessPoolExecutor", Here)


def records(path: Path, records: list[dict]) -> str:
    path.write_text(json.dumps(records))
    return str(path)


def test_knowedit_prints_what_the_script_of_easyedit_does(tmp_path: Path, in_this_process: None) -> None:
    # The script of EasyEdit stops at the first of these, for want of a locality; ours leaves out what is malformed.
    facts = [
        {"subject": "Ann", "prompt": "The home of Ann is", "target_new": "long"},
        {"subject": "Bob", "prompt": "Today Ann has a house in", "target_new": "cold"},
        {
            "subject": "Today", "prompt": "I hope Today is the", "target_new": "warm", "ground_truth": ["long"],
            "portability": {"Reasoning": [{"prompt": "I know that the road is", "ground_truth": [["warm", "cold"]]}]},
            "locality": {"Forgetfulness": [{"prompt": "The river was", "ground_truth": "short"}]},
        },
    ]  # fmt: skip
    file, out = records(tmp_path / "facts.json", facts), tmp_path / "out"
    said = call("knowedit", file, "NAS-MEMIT", "MELO", "--skip-bad", "--out", str(out), "--model", "demo", *SMALL)
    summary = json.loads((out / "summary.json").read_text())
    ours, melo = summary["runs"]
    assert ours["edits"] == 2 and ours["immediate"]["Portability"] is not None and ours["final"]["Fluency"] > 0
    assert summary["metrics"]["Edit_Succ"] == "efficacy/token_accuracy"
    assert melo["unavailable"] and "unavailable" in said and "Edit_Succ" in said
    run = json.loads((out / "NAS-MEMIT" / "run.json").read_text())
    assert [left["record"] for left in run["stream"]["left_out"]] == [1]


def test_wikibigedit_in_steps_of_two(tmp_path: Path, in_this_process: None) -> None:
    facts = [
        {
            "subject": name, "update": f"The job of {name} is that of a", "ans": "long", "rephrase": f"{name} works as a",
            "personas": f"Today {name} earns money as a", "tag": "t", **more,
        }
        for name, more in (("Ann", {}), ("Bob", {"loc": "The river was", "loc_ans": "short"}), ("Cid", {"mhop": None}))
    ]  # fmt: skip
    file, out = records(tmp_path / "facts.json", facts), tmp_path / "out"
    said = call("wikibigedit", file, "AlphaEdit", "--per-step", "2", "--out", str(out), *SMALL)
    (figures,) = json.loads((out / "summary.json").read_text())["runs"]
    assert [line["step"] for line in lines_of(out / "AlphaEdit" / "edits.jsonl")] == [1, 1, 2]
    assert figures["final"]["GS"] is not None and figures["final"]["LS"] is not None
    assert figures["final"]["Multi-hop"] is None and "Personas" in said and "–" in said


def test_a_comparison_that_was_stopped_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(taking_part: list, *_: object, **__: object) -> Path:
        for who in taking_part[:1]:
            run_small(tmp_path / who.label, plan=small_plan(4), stop=count_down(2))
        return tmp_path / "report.html"

    monkeypatch.setattr(comparing, "compare", stopped)
    said = call("compare", "NAS-MEMIT", "MEMIT", "--edits", "4", "--out", str(tmp_path))
    assert "Stopped: NAS-MEMIT, MEMIT. To go on: the same command with --resume." in said
