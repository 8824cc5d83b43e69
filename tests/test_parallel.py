"""Two processes on the CPU (gloo) measure and edit as one does; the first one alone writes files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nas_plugin.cli import app
from nas_plugin.parallel import ALONE, Group
from tests.evaluation.capability_support import write_data
from tests.parallel_worker import come_to, session_in

ROOT = Path(__file__).resolve().parents[1]


def launch(arguments: list[str], folder: Path) -> None:
    """Start two processes as torchrun does, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)[-3000:]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Any, Path]:
    """What two processes came to, what one comes to, and where the two worked."""
    folder, alone = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    launch(["-m", "tests.parallel_worker", str(folder), "llama"], folder)
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return (
        ranks,
        json.loads(json.dumps(come_to(session_in(alone, "llama"), write_data(alone / "data", times=8)))),
        folder,
    )


def close(left: Any, right: Any) -> bool:
    return torch.allclose(torch.tensor(left), torch.tensor(right), rtol=1e-6, atol=1e-9)


def test_two_processes_come_to_what_one_does(outcome: Any) -> None:
    (first, _), one, _ = outcome
    assert first["size"] == 2 and one["size"] == 1
    for name in ("contexts", "tokens", "text", "base", "measured", "capability"):
        assert first[name] == one[name], name
    for name in ("anchor", "edited", "perplexity", "drift"):
        assert close(first[name], one[name]), name
    assert all(close(first["moments"][layer], one["moments"][layer]) for layer in one["moments"])
    assert [case.keys() for case in first["metrics"]] == [case.keys() for case in one["metrics"]]
    assert close([list(case.values()) for case in first["metrics"]], [list(case.values()) for case in one["metrics"]])


def test_every_process_has_the_same_bit_for_bit(outcome: Any) -> None:
    (first, second), _, _ = outcome
    different = {name for name in first if first[name] != second[name]}
    assert different == {"kept"}


def test_only_the_first_process_writes_and_all_read(outcome: Any) -> None:
    (first, second), _, folder = outcome
    assert first["kept"] and not second["kept"]
    ledger = (folder / "kept" / "ledger.jsonl").read_text().splitlines()
    assert sum('"event": "edit"' in line for line in ledger) == 5
    assert len(list((folder / "stats").rglob("*layers0-1.safetensors"))) == 1
    for found in (first, second):
        assert found["again"] == {"anchor": first["anchor"], "same": first["moments"]["0"]}


def test_processes_that_are_not_alike_are_refused_by_name(outcome: Any) -> None:
    ranks, _, _ = outcome
    for found in ranks:
        said = found["refusals"]
        assert "do not have the same requests" in said["requests"]
        assert "do not have the same weights" in said["weights"]
        assert said["resume"].startswith("resuming a kept session is for one process")
        assert said["undo"].startswith("undoing an edit is for one process")
        assert said["unchanged"]


def test_a_run_in_two_processes_is_the_run_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ["run", "NAS-MEMIT/nas-demo", "--edits", "4", "--every", "2", "--cohort", "2", "--drift", "4"]
    launch(["-m", "nas_plugin.cli", *run, "--out", "two"], tmp_path)
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, [*run, "--out", "one"]).exit_code == 0
    logs = [
        [json.loads(line) for line in (tmp_path / name / "checkpoints.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    ]
    for two, one in zip(*logs, strict=True):
        assert two["final"] == one["final"] and two["cohort"] == one["cohort"]
        assert two["norm"]["total"] == pytest.approx(one["norm"]["total"], rel=1e-6)
    edits = [(tmp_path / name / "edits.jsonl").read_text().splitlines() for name in ("two", "one")]
    assert len(edits[0]) == len(edits[1]) == 4
    assert (tmp_path / "two" / "report.html").exists()
    # The others wrote into folders of their own, which are gone.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_process_by_itself_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Group.launched() == ALONE and ALONE.main and ALONE.device is None
    tensor = torch.ones(2)
    assert ALONE.total(tensor) is tensor and ALONE.from_main(tensor) is tensor
    assert ALONE.mine([1, 2, 3]) == [1, 2, 3] and ALONE.gathered([1], 1) == [1] and ALONE.said_by_main(1) == 1
    assert ALONE.any(True) and not ALONE.all(False)
    ALONE.wait()
    ALONE.agree("weights", "x")
    ALONE.refuse("anything")
    assert not torch.distributed.is_initialized()
