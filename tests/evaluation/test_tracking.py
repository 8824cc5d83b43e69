"""Experiment trackers: what they are told is what the run folder says, and without them nothing is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate import tracking
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from nas_plugin.cli import app
from nas_plugin.errors import PackageMissingError, RunError
from nas_plugin.evaluation.logs import read_run
from nas_plugin.evaluation.runner import Measures
from nas_plugin.evaluation.runner import compare as comparing
from nas_plugin.evaluation.runner.entrants import entrant
from nas_plugin.evaluation.runner.tracking import TRACKERS, Tracking, check_trackers
from tests.evaluation.runner_support import Here, count_down, lines_of, run_small, small_plan, stream_of

EDITS = 4


class Noting(tracking.GeneralTracker):
    """A tracker that keeps what it is told."""

    name, requires_logging_directory, main_process_only = "noting", False, False

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.told: list[tuple[int | None, dict[str, Any]]] = []
        self.finished = 0
        super().__init__()

    @property
    def tracker(self) -> list[Any]:
        return self.told

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def plan(**settings: Any) -> Any:
    return small_plan(EDITS, every=2, measures=Measures(drift=3), **settings)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Noting]:
    folder, noting = tmp_path_factory.mktemp("tracked") / "run", Noting()
    held_out = stream_of(8).cases[EDITS:]
    run_small(folder, plan=plan(), trackers=["tensorboard", noting], held_out=held_out)
    return folder, noting


@pytest.fixture(scope="module")
def events(tracked: tuple[Path, Noting]) -> EventAccumulator:
    read = EventAccumulator(str(tracked[0] / "tensorboard" / "NAS-MEMIT"))
    read.Reload()
    return read


@pytest.mark.parametrize("name", ["loss", "value_norm", "written_norm", "updates", "seconds"])
def test_event_files_hold_every_step(tracked: tuple[Path, Noting], events: EventAccumulator, name: str) -> None:
    lines = lines_of(tracked[0] / "edits.jsonl")
    assert [(event.step, event.value) for event in events.Scalars(f"step/{name}")] == [
        (line["edit"], pytest.approx(line[name], rel=1e-6)) for line in lines
    ]


def test_event_files_hold_every_checkpoint(tracked: tuple[Path, Noting], events: EventAccumulator) -> None:
    lines = lines_of(tracked[0] / "checkpoints.jsonl")
    assert [line["edits"] for line in lines] == [0, 2, 4]
    scores = [(event.step, event.value) for event in events.Scalars("final/efficacy/probability")]
    assert scores == [
        (line["edits"], pytest.approx(line["final"]["efficacy/probability"]["mean"])) for line in lines[1:]
    ]
    drift = {event.step: event.value for event in events.Scalars("drift/layer_0")}
    assert drift == {line["edits"]: pytest.approx(line["drift"]["0"]["full_distance"]) for line in lines}
    growth = {event.step: event.value for event in events.Scalars("norm_ratio/total")}
    assert set(growth) == {0, 1, 2, 3, 4} and growth[0] == 1.0
    assert growth[4] == pytest.approx(lines[-1]["norm"]["total"], rel=1e-6)
    assert events.Scalars("norm_ratio/layer_0")[-1].value == pytest.approx(lines[-1]["norm"]["layers"]["0"], rel=1e-6)


def test_what_is_run_is_told_in_plain_values(tracked: tuple[Path, Noting]) -> None:
    folder, noting = tracked
    run = read_run(folder)
    assert noting.config["label"] == "NAS-MEMIT" and noting.config["anchor"] == run.anchor
    assert noting.config["hparams/v_num_grad_steps"] == 5 and noting.config["hparams/layers"] == "[0]"
    assert all(isinstance(value, bool | int | float | str) for value in noting.config.values())
    assert noting.finished == 1


def test_every_tracker_is_told_the_same(tracked: tuple[Path, Noting], events: EventAccumulator) -> None:
    told = [values["step/loss"] for _, values in tracked[1].told if "step/loss" in values]
    assert told == pytest.approx([event.value for event in events.Scalars("step/loss")], rel=1e-6)


def test_steps_of_several_edits_are_means_and_a_sum() -> None:
    noting = Noting()
    lines = [
        {
            "edit": n,
            "seconds": 2.0,
            "skipped": n == 2,
            "loss": loss,
            "updates": 3,
            "value_norm": None,
            "written_norm": None,
        }
        for n, loss in ((1, 0.5), (2, float("nan")), (3, None))
    ]
    Tracking([noting]).step(lines, {"total": 1.5, "layers": {"4": float("inf"), "5": 2.0}})
    ((step, told),) = noting.told
    assert step == 3 and "step/loss" not in told and "norm_ratio/layer_4" not in told
    assert told == {
        "step/seconds": 6.0, "step/skipped": 1.0, "step/updates": 3.0, "norm_ratio/total": 1.5, "norm_ratio/layer_5": 2.0,
    }  # fmt: skip


def test_a_run_that_is_gone_on_with_tells_what_is_new(tmp_path: Path) -> None:
    first, second = Noting(), Noting()
    run_small(tmp_path, plan=plan(), stop=count_down(3), trackers=[first])
    run_small(tmp_path, plan=plan(), resume=True, trackers=[second])
    assert [step for step, values in first.told if "step/loss" in values] == [1, 2, 3]
    # Edits after the last checkpoint are done again.
    assert [step for step, values in second.told if "step/loss" in values] == [3, 4]
    assert first.finished == second.finished == 1


def test_trackers_are_closed_when_a_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noting = Noting()
    monkeypatch.setattr("nas_plugin.evaluation.runner.bench.Bench.measure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_small(tmp_path, plan=plan(), trackers=[noting])
    assert noting.finished == 1


def test_names_are_checked_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="no tracker 'tensorbord'; there are tensorboard, wandb, trackio"):
        run_small(tmp_path / "run", trackers=["tensorbord"])
    monkeypatch.setattr(tracking, "_available_trackers", [])
    for name, how in TRACKERS.items():
        with pytest.raises(PackageMissingError) as caught:
            check_trackers([name])
        assert f"tracker {name!r}" in str(caught.value) and how in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Stand in for the package `request.param`, as accelerate uses it."""
    module: Any = ModuleType(request.param)
    module.calls, module.told = [], []
    module.config = SimpleNamespace(update=lambda values, **_: module.calls.append(values))

    def init(**settings: Any) -> Any:
        module.calls.append(settings)
        return SimpleNamespace(
            log=lambda values, step=None, **_: module.told.append((step, values)),
            finish=lambda: module.calls.append("finish"),
        )

    module.init, module.finish = init, lambda: module.calls.append("finish")
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType(request.param)])
    return module


@pytest.mark.parametrize("fake", ["wandb", "trackio"], indirect=True)
def test_wandb_and_trackio_are_told_too(fake: Any, tmp_path: Path) -> None:
    run_small(tmp_path / "run", plan=plan(), trackers=[fake.__name__])
    assert fake.calls[0]["project"] == "nas-edit" and fake.calls[0]["name"] == "NAS-MEMIT"
    assert fake.calls[1]["hparams/v_num_grad_steps"] == 5 and fake.calls[-1] == "finish"
    assert [step for step, values in fake.told if "step/loss" in values] == [1, 2, 3, 4]
    assert [step for step, values in fake.told if "final/efficacy/probability" in values] == [2, 4]


def test_a_comparison_tracks_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "ProcessPoolExecutor", Here)
    settings = {"mom2_n_samples": 40, "nas_n_pilots": 3, "v_num_grad_steps": 3}
    who = [entrant(name, "nas-demo", None, settings) for name in ("MEMIT", "NAS-MEMIT")]
    comparing.compare(who, stream_of(2), tmp_path, small_plan(2, every=2), trackers=("tensorboard",))
    for name in ("MEMIT", "NAS-MEMIT"):
        assert list((tmp_path / name / "tensorboard" / name).glob("events.*"))


def test_the_command_tracks_what_it_is_told_to(tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ["--set", "mom2_n_samples=40", "--set", "nas_n_pilots=3", "--set", "v_num_grad_steps=3", "--edits", "2"]
    given = ["run", "NAS-MEMIT/nas-demo", *small, "--out", str(out), "--track", "tensorboard"]
    assert CliRunner().invoke(app, given).exit_code == 0
    assert list((out / "tensorboard" / "NAS-MEMIT").glob("events.*"))
    result = CliRunner().invoke(app, [*given, "--track", "mlflow", "--resume"])
    assert result.exit_code == 1 and "there is no tracker 'mlflow'" in result.output


def test_nothing_is_imported_without_trackers() -> None:
    code = (
        "import sys; from nas_plugin.evaluation.runner.tracking import Tracking; from pathlib import Path;"
        "Tracking.start((), Path('.'), {'label': 'x'});"
        "sys.exit(any(name in sys.modules for name in ('tensorboard', 'wandb', 'trackio')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
