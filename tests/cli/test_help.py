"""Help, examples, completion, exit codes: what every command has."""

from __future__ import annotations

import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from nas_plugin.cli import app, completing
from nas_plugin.demo import stream as demo_streams
from nas_plugin.errors import NormAlarmError, RequestError
from nas_plugin.evaluation.runner import compare as comparing
from nas_plugin.evaluation.runner.entrants import HOSTS, OURS
from nas_plugin.evaluation.runner.tracking import TRACKERS
from nas_plugin.evaluation.studies import conduct as conducting
from nas_plugin.hparams import shipped_names
from tests.cli.calling import call
from tests.evaluation.runner_support import Here

NEEDS_A_NETWORK = ("hparams new",)
# Whoever reads a folder of another one comes after it; all others run alone.
ORDER = (
    "run", "log", "undo", "compare", "report", "plot", "export", "apply", "hparams copy", "hparams validate",
)  # fmt: skip


def commands(group: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name, groups among them."""
    group = typer.main.get_command(app) if group is None else group
    yield prefix.strip(), group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, f"{prefix} {name}")


COMMANDS = dict(commands())
LEAVES = {name: command for name, command in COMMANDS.items() if not hasattr(command, "commands")}


def examples(name: str) -> list[list[str]]:
    """The examples in a command's help as a terminal shows it, without `nas-edit`."""
    found = re.findall(r"Example: nas-edit ?(.*?)\s*$", call(*name.split(), "--help"), flags=re.MULTILINE)
    return [shlex.split(line) for line in found]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_of_its_own(name: str) -> None:
    found = examples(name)
    assert found, name
    for example in found:
        assert example[: len(name.split())] == name.split()


@pytest.mark.parametrize("name", LEAVES)
def test_examples_are_understood(name: str) -> None:
    for example in examples(name):
        rest = example[len(name.split()) :]
        LEAVES[name].make_context(name, list(rest))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for all examples, with processes that are this one."""

    def results(study: Any, setting: Any, named: Any, _size: Any, _advance: Any) -> Iterator[Any]:
        for label, method in named.items():
            yield label, study.run(setting, method, lambda _: None)

    def run_all(plans: Any, advance: Any) -> Any:
        return [demo_streams.run(plan, advance) for plan in plans]

    folder, threads = tmp_path_factory.mktemp("examples"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(comparing, "ProcessPoolExecutor", Here)
        patch.setattr(conducting, "_results", results)
        patch.setattr(demo_streams, "run_all", run_all)
        yield folder
    torch.set_num_threads(threads)


def test_examples_that_follow_each_other_run(here: Path) -> None:
    """In one test, because tests may be spread over processes."""
    for name in ORDER:
        for example in examples(name):
            call(*example)


@pytest.mark.parametrize("name", sorted(LEAVES.keys() - {*ORDER, *NEEDS_A_NETWORK}))
def test_examples_run(name: str, here: Path) -> None:
    for example in examples(name):
        call(*example)


def test_no_example_is_left_out() -> None:
    assert {*ORDER, *NEEDS_A_NETWORK} <= LEAVES.keys()


def complete(*words: str) -> list[str]:
    """What bash is offered for the last word."""
    code = "import sys; sys.argv[0] = 'nas-edit'; from nas_plugin.cli import app; app()"
    line = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    environment = {**os.environ, **line, "_NAS_EDIT_COMPLETE": "complete_bash"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "among"),
    [
        (("nas-edit", "t"), "tune"),
        (("nas-edit", "hparams", "v"), "validate"),
        (("nas-edit", "run", "NAS-MEMIT/nas-d"), "NAS-MEMIT/nas-demo"),
        (("nas-edit", "compare", "NAS-A"), "NAS-AlphaEdit"),
        (("nas-edit", "run", "x", "--track", "tens"), "tensorboard"),
    ],
)
def test_a_shell_completes(words: tuple[str, ...], among: str) -> None:
    assert complete(*words) == [among]


def test_a_completion_script_is_shown() -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "SHELL": "/bin/bash"}
    code = "import sys; sys.argv[0] = 'nas-edit'; from nas_plugin.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--show-completion", "bash"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "_NAS_EDIT_COMPLETE=complete_bash" in done.stdout


def test_completed_names_are_those_that_exist() -> None:
    assert completing.methods("") == [*OURS, *(f"NAS-{name}" for name in OURS), *HOSTS]
    assert completing.trackers("") == list(TRACKERS)
    assert set(shipped_names()) <= set(completing.hparams_files(""))
    assert "llama3-8b" in completing.hparams_names("") and completing.models("de") == ["demo"]


def test_files_are_completed_by_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "mine.json", "notes.txt", ".hidden.yaml", "folder/inner.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert completing.hparams_files("m") == ["mine.yaml"] and completing.streams("m") == ["mine.json"]
    assert completing.hparams_files("folder/") == ["folder/inner.yml"] and completing.models("f") == ["folder/"]
    assert completing.models(f"{tmp_path}/fo") == [f"{tmp_path}/folder/"]
    assert completing.hparams_files("nowhere/") == [] and completing.streams("") == ["demo", "folder/", "mine.json"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("version",), 0),
        (("run", "NAS-MEMIT/nothing"), 1),
        (("log", "nowhere"), 1),
        (("hparams", "show", "NAS-MEMIT/nothing"), 1),
        (("runn",), 2),
        (("run",), 2),
        (("run", "NAS-MEMIT/nas-demo", "--edits", "none"), 2),
        (("undo", "kept"), 2),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], code: int) -> None:
    assert "Traceback" not in call(*arguments, code=code)


@pytest.mark.parametrize(("error", "code"), [(NormAlarmError("too large."), 3), (RequestError("no subject."), 1)])
def test_a_guard_is_told_apart(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_it(*_: Any) -> None:
        raise error

    monkeypatch.setattr("nas_plugin.keep.log.read_log", raise_it)
    said = call("log", "anything", code=code)
    assert said.startswith(str(error)[:8]) and "Traceback" not in said


def test_exit_codes_are_in_the_help() -> None:
    said = " ".join(call("--help").split())
    assert "Exit codes: 0 done; 1 an error with a name" in said and "3 a guard refused an edit" in said


def test_plot_is_report() -> None:
    assert LEAVES["plot"].callback.__name__ == LEAVES["report"].callback.__name__
    assert CliRunner().invoke(app, ["plot", "nowhere"]).exit_code == 1


def test_the_page_names_a_python_call_for_every_command() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:4] for line in page.splitlines() if line.startswith("| `nas-edit ")]
    told = {name: call_ for names, _, call_ in rows for name in re.findall(r"`nas-edit ([a-z -]+)`", names)}
    assert told.keys() == LEAVES.keys()
    for name, call_ in told.items():
        found = re.findall(r"`(nas_plugin\.[\w.]+)`", call_)
        assert found, name
        for path in found:
            pkgutil.resolve_name(path)
