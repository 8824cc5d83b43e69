"""Stopping, killing and going on: a resumed run ends where one that was left alone does, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas_plugin.demo import load_demo
from nas_plugin.errors import ResumeError, RunError, RunFolderError
from nas_plugin.evaluation.logs import read_run
from nas_plugin.evaluation.runner import Measures, SessionWriter, run_stream
from nas_plugin.evaluation.runner.folder import RunFolder
from nas_plugin.evaluation.runner.state import load_state, save_state
from nas_plugin.session import EditSession
from nas_plugin.share.kept import holds_its_end
from nas_plugin.write.gain import Gain
from tests.conftest import build_requests
from tests.evaluation.runner_support import (
    EDITS,
    count_down,
    lines_of,
    log_of,
    run_small,
    same_weights,
    small_hparams,
    small_plan,
    stream_of,
)
from tests.support import METHOD_NAMES, all_equal, edited_matrices, tiny_session

ROOT = Path(__file__).resolve().parents[2]
# Edits of 6 at once on a tiny model: the gain folds right after the state was saved, LyapLock's queue moves, PRUNE prunes.
STEPS, SAVED, SIZE = 16, 12, 6
PREFIXES = [
    f"{opening} {middle}"
    for opening in ("Because", "Therefore", "I said that", "The city and")
    for middle in ("people", "you", "I", "a place")
]


@pytest.mark.parametrize("use_nas", [False, True], ids=["plain", "nas"])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_resumed_as_if_never_stopped(method: str, use_nas: bool, tmp_path: Path) -> None:
    whole, split = tmp_path / "whole", tmp_path / "split"
    done, expected = run_small(whole, method, use_nas)
    assert done
    # Stopped two edits after the checkpoint at 8: those two are done again.
    stopped, _ = run_small(split, method, use_nas, stop=count_down(10))
    assert not stopped and read_run(split).status == "stopped" and len(lines_of(split / "edits.jsonl")) == 10
    done, resumed = run_small(split, method, use_nas, resume=True)
    assert done and read_run(split).status == "done"
    assert same_weights(expected, resumed)
    assert log_of(split) == log_of(whole)


def test_a_run_whose_session_is_kept(tmp_path: Path) -> None:
    values = {"keep_dir": str(tmp_path / "kept")}
    run_small(tmp_path / "run", values=values, stop=count_down(6))
    assert not holds_its_end(tmp_path / "kept"), "stopped two edits after a checkpoint"
    before = (tmp_path / "kept" / "ledger.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"\(keep_dir\) may be further"):
        run_small(tmp_path / "run", values=values, resume=True)
    assert (tmp_path / "kept" / "ledger.jsonl").read_bytes() == before
    values = {"keep_dir": str(tmp_path / "other")}
    run_small(tmp_path / "whole", values=values)
    assert holds_its_end(tmp_path / "other")


def long_session(method: str, family: str) -> EditSession:
    # Large values and a small memory of the text make every part of a method's state come into play.
    values = {"PRUNE": {"clamp_norm_factor": 40.0, "v_lr": 5.0}, "LyapLock": {"lyap_alpha": 0.1}}
    return tiny_session(family, method, use_nas=False, layers=[0, 1], **values.get(method, {}))


def same_gain(left: Gain, right: Gain) -> None:
    assert left.snapshot() == right.snapshot()
    assert (left._scale, left._next_probe) == (right._scale, right._next_probe)
    for ours, theirs in zip(
        (left.base, left.pending, *left._keys), (right.base, right.pending, *right._keys), strict=True
    ):
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()


# GPT-2 stores its matrices transposed, so that the order of elements in memory matters too.
@pytest.mark.parametrize(("method", "family"), [*((method, "gpt2") for method in METHOD_NAMES), ("ENCORE", "llama")])
def test_a_loaded_session_goes_on_like_the_saved_one(method: str, family: str, tmp_path: Path) -> None:
    # Facts of their own, so that none replaces another and all keys stay.
    requests = [
        {**request, "prompt": f"{PREFIXES[number // 6]} {request['prompt']}"}
        for number, request in enumerate(build_requests(SIZE * STEPS))
    ]
    steps = [requests[start : start + SIZE] for start in range(0, len(requests), SIZE)]
    saved, loaded = long_session(method, family), long_session(method, family)
    for step in steps[:SAVED]:
        saved.edit(step)
    save_state(saved, tmp_path / "state.json")
    load_state(loaded, tmp_path / "state.json")
    assert loaded.steps == saved.steps == SAVED
    assert all_equal(edited_matrices(saved), edited_matrices(loaded))
    for step in steps[SAVED:]:
        left, right = saved.edit(step), loaded.edit(step)
        assert replace(left, seconds=0.0) == replace(right, seconds=0.0)
    assert all_equal(edited_matrices(saved), edited_matrices(loaded))
    for layer, one in saved.editors.items():
        same_gain(one.gain, loaded.editors[layer].gain)
    editor = saved.editors[0]
    if method in {"AlphaEdit", "ENCORE"}:
        assert len(editor.gain._keys) == STEPS and editor.gain.pending.shape[1] < STEPS * SIZE
    if method == "PRUNE":
        assert saved.weights._served[0] is not saved.weights.master[0]
    if method == "LyapLock":
        assert editor.queue > 1


@pytest.mark.parametrize("method", ["MEMIT", "ENCORE"])
def test_resumed_with_statistics_and_priors_from_disk(method: str, tmp_path: Path) -> None:
    whole, split = tmp_path / "whole", tmp_path / "split"
    # Each finds an empty folder: what the first part makes, the second part reads.
    settings = {folder: {"values": {"stats_dir": str(folder) + "-stats"}} for folder in (whole, split)}
    _, expected = run_small(whole, method, **settings[whole])
    run_small(split, method, stop=count_down(6), **settings[split])
    _, resumed = run_small(split, method, resume=True, **settings[split])
    assert same_weights(expected, resumed)
    assert log_of(split) == log_of(whole)


def test_a_half_precision_session_keeps_its_masters(tmp_path: Path) -> None:
    saved, loaded = (tiny_session("llama", "MEMIT", dtype=torch.bfloat16) for _ in range(2))
    saved.edit(build_requests(3))
    save_state(saved, tmp_path / "state.json")
    load_state(loaded, tmp_path / "state.json")
    assert loaded.weights.master[0].dtype == torch.float32
    assert torch.equal(loaded.weights.master[0], saved.weights.master[0])
    assert all_equal(edited_matrices(saved), edited_matrices(loaded))


@pytest.mark.parametrize("damage", ["cut", "tensor", "gone", "other"])
def test_a_damaged_state_is_refused(damage: str, tmp_path: Path) -> None:
    saved, manifest = tiny_session("llama", "AlphaEdit"), tmp_path / "state.json"
    saved.edit(build_requests(1))
    save_state(saved, manifest)
    tensors = manifest.with_suffix(".safetensors")
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif damage == "gone":
        manifest.unlink()
    elif damage == "tensor":
        content = json.loads(manifest.read_text())
        other = tiny_session("llama", "MEMIT")
        other.edit(build_requests(1))
        save_state(other, manifest)
        manifest.write_text(json.dumps(content))
    fresh = tiny_session("llama", "AlphaEdit", seed=1 if damage == "other" else 0)
    with pytest.raises(ResumeError, match="cannot read|does not exist|no tensor|of another session"):
        load_state(fresh, manifest)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.evaluation.runner_support import run_small
done = 0
def advance(units):
    global done
    done += units
    if done == 10:
        os.kill(os.getpid(), signal.SIGKILL)
run_small(Path(sys.argv[1]), "AlphaEdit", advance=advance)
"""


def test_killed_in_the_middle_of_a_line(tmp_path: Path) -> None:
    whole, split = tmp_path / "whole", tmp_path / "split"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(split)], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == -9, ended.stderr.decode()
    assert read_run(split).status == "running" and len(lines_of(split / "edits.jsonl")) == 10
    for name in ("edits.jsonl", "checkpoints.jsonl"):
        with (split / name).open("a") as file:
            file.write('{"edit": 11, "pro')
    _, expected = run_small(whole, "AlphaEdit")
    done, resumed = run_small(split, "AlphaEdit", resume=True)
    assert done and same_weights(expected, resumed) and log_of(split) == log_of(whole)


def test_killed_between_state_and_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, split = tmp_path / "whole", tmp_path / "split"
    _, expected = run_small(whole)
    real = RunFolder.add_checkpoint

    def fail(self: RunFolder, line: dict, results: list) -> None:
        if line["edits"] == 8:
            raise KeyboardInterrupt
        real(self, line, results)

    monkeypatch.setattr(RunFolder, "add_checkpoint", fail)
    with pytest.raises(KeyboardInterrupt):
        run_small(split)
    assert json.loads((split / "run.json").read_text())["failure"] == "KeyboardInterrupt: "
    assert [line["edits"] for line in lines_of(split / "checkpoints.jsonl")] == [0, 4]
    monkeypatch.undo()
    done, resumed = run_small(split, resume=True)
    assert done and same_weights(expected, resumed) and log_of(split) == log_of(whole)
    assert "failure" not in json.loads((split / "run.json").read_text())


def test_only_the_last_state_is_kept_and_a_finished_run_stays(tmp_path: Path) -> None:
    run_small(tmp_path)
    assert sorted(file.name for file in (tmp_path / "state").glob("after_*")) == [
        f"after_{EDITS}.json",
        f"after_{EDITS}.safetensors",
    ]
    before = log_of(tmp_path)
    done, model = run_small(tmp_path, resume=True)
    assert done and log_of(tmp_path) == before
    assert not same_weights(model, load_demo()[0])


def test_stopped_before_the_first_checkpoint_starts_again(tmp_path: Path) -> None:
    whole, split = tmp_path / "whole", tmp_path / "split"
    _, expected = run_small(whole)
    run_small(split, stop=count_down(2))
    done, resumed = run_small(split, resume=True)
    assert done and same_weights(expected, resumed) and log_of(split) == log_of(whole)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    run_small(folder, stop=count_down(6))
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"plan": small_plan(per_step=2)}, "edits per step: 1, now 2"),
        ({"plan": small_plan(every=6)}, r"grid of checkpoints: \[4, 8, 12\], now \[6, 12\]"),
        ({"plan": small_plan(cohort=5)}, "cohort: 3, now 5"),
        ({"plan": small_plan(measures=Measures(drift=0, generate=True))}, "measures"),
        ({"values": {"v_lr": 0.25}}, "hyperparameters .v_lr: 2.5, now 0.25"),
        ({"use_nas": False}, 'label: "NAS-MEMIT", now "MEMIT"'),
        ({"stream": replace(stream_of(), cases=stream_of().cases[::-1], sha256="0" * 64)}, "stream .sha256."),
    ],
)
def test_going_on_with_something_else_is_refused(change: dict, named: str, stopped: Path) -> None:
    before = log_of(stopped)
    with pytest.raises(ResumeError, match=named):
        run_small(stopped, resume=True, **change)
    assert log_of(stopped) == before


def test_going_on_with_another_model_is_refused(stopped: Path) -> None:
    model, tok = load_demo()
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(1.5)
    writer = SessionWriter(model, tok, small_hparams("MEMIT", True), progress=False)
    with pytest.raises(ResumeError, match="fingerprint"):
        run_stream(writer, stream_of(), stopped, small_plan(), resume=True)


def test_a_folder_with_a_run_is_not_written_over(stopped: Path) -> None:
    before = log_of(stopped)
    with pytest.raises(RunFolderError, match="--resume"):
        run_small(stopped)
    assert log_of(stopped) == before


def test_a_folder_that_lost_edits_is_refused(stopped: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(stopped, tmp_path / "copy")
    lines = (folder / "edits.jsonl").read_text().splitlines(keepends=True)
    (folder / "edits.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(ResumeError, match="3 edits are logged before the checkpoint after 4"):
        run_small(folder, resume=True)
