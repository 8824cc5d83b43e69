"""Plans, run folders and what is logged in them."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from nas_plugin.demo import load_demo
from nas_plugin.errors import NonFiniteError, RequestError, RunError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.logs import read_run
from nas_plugin.evaluation.measures import measure, summarise_cases
from nas_plugin.evaluation.runner import Measures, SessionWriter, plan_run
from nas_plugin.evaluation.runner.folder import plain
from nas_plugin.evaluation.runner.stopping import stop_requests
from nas_plugin.evaluation.runner.writers import entry
from nas_plugin.evaluation.stability import collapse_point, part_trajectory
from nas_plugin.report import EditReport
from nas_plugin.request import EditRequest
from nas_plugin.session import EditSession
from nas_plugin.write import LayerEditor
from tests.evaluation.runner_support import (
    alike,
    lines_of,
    log_of,
    run_small,
    same_weights,
    small_hparams,
    small_plan,
    stream_of,
)


def test_ten_checkpoints_by_default() -> None:
    assert plan_run(300).grid == tuple(range(30, 301, 30))
    assert plan_run(305).grid == (31, 62, 93, 124, 155, 186, 217, 248, 279, 305)
    assert plan_run(7).grid == (1, 2, 3, 4, 5, 6, 7)
    assert plan_run(2000, per_step=300).grid == (300, 600, 900, 1200, 1500, 1800, 2000)


def test_grids_end_with_the_stream() -> None:
    assert plan_run(100, every=40).grid == (40, 80, 100)
    assert plan_run(100, grid=[50, 10, 10]).grid == (10, 50, 100)
    assert plan_run(100, per_step=100, grid=[100]).grid == (100,)
    assert plan_run(50, every=100).grid == (50,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"edits": 0}, "edits: 0; give 1"),
        ({"per_step": 0}, "edits per step: 0"),
        ({"every": 0}, "every 0 edits"),
        ({"every": 10, "grid": [10]}, "give one of them"),
        ({"grid": [101]}, "after 101 edits; the stream has 100"),
        ({"grid": [0]}, "after 0 edits"),
        ({"per_step": 20, "grid": [30]}, "after 30 edits falls into a step of 20"),
        ({"per_step": 20, "every": 30}, "after 30 edits falls into a step of 20"),
        ({"cohort": -1}, "cohort: -1"),
        ({"measures": Measures(tasks=("local_rte",), tasks_at=(0, 33))}, "tasks are wanted after 33 edits"),
    ],
)
def test_plans_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(RunError, match=message):
        plan_run(**{"edits": 100, **settings})


def test_tasks_are_measured_first_and_last_unless_said() -> None:
    assert plan_run(100).tasks_at == frozenset()
    assert plan_run(100, measures=Measures(tasks=("a",))).tasks_at == {0, 100}
    assert plan_run(100, measures=Measures(tasks=("a",), tasks_at=(50,))).tasks_at == {50}


def test_what_json_has_no_word_for_is_null() -> None:
    assert plain({"a": [math.nan, 1.5, (math.inf,)], 3: {"b": -math.inf}}) == {
        "a": [None, 1.5, [None]],
        "3": {"b": None},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = tmp_path_factory.mktemp("text") / "held-out.txt"
    text.write_text("Today the road is long.\nI think that the day is warm.\n")
    path = tmp_path_factory.mktemp("run")
    held_out = stream_of(20).cases[12:]
    plan = small_plan(measures=Measures(text=str(text), drift=5))
    done, _ = run_small(path, plan=plan, held_out=held_out, command="nas-edit run", label="mine")
    assert done
    return path


def test_run_json_says_how_it_was_run(folder: Path) -> None:
    run = json.loads((folder / "run.json").read_text())
    stream = stream_of()
    assert run["label"] == "mine" and run["method"] == "MEMIT" and run["use_nas"] is True and run["status"] == "done"
    assert run["stream"]["sha256"] == stream.sha256 and run["stream"]["cases"] == 12 and run["stream"]["left_out"] == []
    assert run["grid"] == [4, 8, 12] and run["cohort"] == 3 and run["edits_per_step"] == 1
    assert run["anchor"] > 0 and run["hparams"]["v_num_grad_steps"] == 5 and run["command"] == "nas-edit run"
    assert {"python", "torch", "nas_plugin"} <= run["versions"].keys()
    assert run["protocols"]["efficacy/generated"].startswith("% where the text that the model writes greedily")
    assert "locality/neighborhood/unchanged_tokens" in run["protocols"] and "fluency" not in run["protocols"]


def test_every_edit_is_a_line(folder: Path) -> None:
    lines = lines_of(folder / "edits.jsonl")
    assert [line["edit"] for line in lines] == list(range(1, 13)) == [line["step"] for line in lines]
    anchor = json.loads((folder / "run.json").read_text())["anchor"]
    for line, case in zip(lines, stream_of().cases, strict=True):
        assert line["case_id"] == case.id and line["target"] == case.requests[0].target
        assert line["written_norm"] == pytest.approx(anchor, rel=1e-5) and line["value_norm"] > 0
        assert line["skipped"] is False and line["failed"] is None and line["seconds"] > 0
        assert line["immediate"]["efficacy/probability"] in (0.0, 100.0)


def test_checkpoints_measure_all_cases_so_far(folder: Path) -> None:
    unedited, first, _, last = lines_of(folder / "checkpoints.jsonl")
    assert unedited["edits"] == 0 and unedited["norm"] == {"layers": {"0": 1.0}, "total": 1.0}
    assert unedited["final"] == {} and unedited["cohort"]["locality/unchanged_tokens"]["mean"] == 100
    assert unedited["drift"]["0"]["full_distance"] == pytest.approx(0, abs=1e-9)
    assert first["final"]["efficacy/exact"]["count"] == 4 and first["cohort"]["efficacy/exact"]["count"] == 3
    assert last["final"]["efficacy/exact"]["count"] == 12 and last["norm"]["total"] > 1
    assert last["drift"]["0"]["full_distance"] > 0 and len(last["drift"]["0"]["cloud"]) == 5
    assert unedited["perplexity"] != last["perplexity"] > 1
    assert last["capability"] is None
    cases = lines_of(folder / "cases" / "after_12.jsonl")
    assert [case["case_id"] for case in cases] == [case.id for case in stream_of().cases]
    assert summarise_cases(cases) == last["final"] and summarise_cases(cases[:3]) == last["cohort"]


def test_final_metrics_are_those_of_the_model_at_the_end(tmp_path: Path) -> None:
    _, model = run_small(tmp_path)
    cases, tok = list(stream_of().cases), load_demo()[1]
    base = json.loads((tmp_path / "base.json").read_text())
    measured = measure(model, tok, cases, base=base, protocols=Measures().protocols)
    assert [
        {k: v for k, v in line.items() if k != "case_id"} for line in lines_of(tmp_path / "cases" / "after_12.jsonl")
    ] == measured


def test_immediate_metrics_are_those_right_after_the_step(tmp_path: Path) -> None:
    run_small(tmp_path, "AlphaEdit", plan=small_plan(per_step=4))
    model, tok = load_demo()
    writer = SessionWriter(model, tok, small_hparams("AlphaEdit", True), progress=False)
    writer.prepare(tmp_path / "other", resume=False)
    cases, base = list(stream_of().cases), json.loads((tmp_path / "base.json").read_text())
    lines = lines_of(tmp_path / "edits.jsonl")
    for start in range(0, 12, 4):
        writer.write(cases[start : start + 4])
        expected = measure(model, tok, cases[start : start + 4], base=base, protocols=Measures().protocols)
        assert [line["immediate"] for line in lines[start : start + 4]] == expected
    assert [line["step"] for line in lines] == [1] * 4 + [2] * 4 + [3] * 4


def test_logs_can_be_read_back(folder: Path) -> None:
    log = read_run(folder)
    assert log.label == "mine" and len(log.edits) == 12 and [c.edits for c in log.checkpoints] == [0, 4, 8, 12]
    scores = part_trajectory(log.checkpoints, "score")
    assert scores.edits.tolist() == [4, 8, 12] and collapse_point(scores) is None


def test_long_texts_only_if_asked(tmp_path: Path) -> None:
    plan = plan_run(2, cohort=1, measures=Measures(drift=0, generate=True, own_prompts=True))
    run_small(tmp_path, plan=plan, stream=alike(2))
    assert lines_of(tmp_path / "checkpoints.jsonl")[-1]["final"]["fluency"]["count"] == 2
    assert lines_of(tmp_path / "edits.jsonl")[0]["immediate"]["fluency"] > 0


def test_held_out_text_must_exist(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere\.txt: there is no such file"):
        run_small(tmp_path, plan=small_plan(measures=Measures(drift=0, text="nowhere.txt")))


def test_a_stream_shorter_than_the_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has 12 cases and 13 edits were planned"):
        run_small(tmp_path, plan=small_plan(13), stream=stream_of(12))
    assert not (tmp_path / "run.json").exists()


def too_long(case: Case) -> Case:
    request = case.requests[0]
    return replace(case, requests=(EditRequest("Today " * 60 + request.prompt, request.subject, request.target),))


def test_cases_that_do_not_fit_the_model_are_named_or_left_out(tmp_path: Path) -> None:
    stream = stream_of()
    cases = (*stream.cases[:5], too_long(stream.cases[5]), *stream.cases[6:])
    stream = replace(stream, cases=cases)
    with pytest.raises(RequestError, match=r"1 of 12 cases .* case 5: .*the model attends to 64.*--skip-bad"):
        run_small(tmp_path / "strict", stream=stream)
    assert not (tmp_path / "strict" / "edits.jsonl").exists()
    done, _ = run_small(tmp_path / "lenient", stream=stream, skip_bad=True)
    run = json.loads((tmp_path / "lenient" / "run.json").read_text())
    assert done and run["stream"]["cases"] == 11 and run["grid"] == [4, 8, 11]
    assert [out["case_id"] for out in run["stream"]["left_out"]] == ["5"]
    assert "5" not in [line["case_id"] for line in lines_of(tmp_path / "lenient" / "edits.jsonl")]


def test_a_step_that_is_not_finite_is_logged_and_the_stream_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = LayerEditor.propose, []

    def propose(self: LayerEditor, *matrices: object) -> object:
        calls.append(matrices)
        if len(calls) == 3:
            raise NonFiniteError("the update of layer 0 is not finite; nothing was written.")
        return real(self, *matrices)

    monkeypatch.setattr(LayerEditor, "propose", propose)
    done, _ = run_small(tmp_path, plan=plan_run(4, cohort=1, measures=Measures(drift=0)))
    lines = lines_of(tmp_path / "edits.jsonl")
    assert done and [line["skipped"] for line in lines] == [False, False, True, False]
    assert lines[2]["failed"].startswith("the update of layer 0") and lines[2]["value_norm"] is None
    assert lines[2]["immediate"] is not None
    assert len(read_run(tmp_path).edits) == 4


def test_another_error_ends_the_run_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EditSession, "edit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_small(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["status"] == "stopped" and run["failure"].startswith("ZeroDivisionError")


def test_cases_of_several_facts_are_one_edit() -> None:
    requests = tuple(EditRequest("{} lives in", name, "Rome") for name in ("Ann", "Bob"))
    case = Case("q", "mquake", requests)
    reports = [EditReport(requests[0], 0.1, 3, 4.0, 2.0, False), EditReport(requests[1], 0.3, 5, 8.0, 2.0, True)]
    line = entry(case, reports, 0.5)
    assert line["loss"] == pytest.approx(0.2) and line["updates"] == 8 and line["value_norm"] == 6.0
    assert line["skipped"] is False and line["subject"] == "Ann" and line["seconds"] == 0.5
    assert [part["subject"] for part in line["requests"]] == ["Ann", "Bob"] and line["requests"][1]["skipped"] is True
    assert "requests" not in entry(Case("q", "mquake", requests[:1]), reports[:1], 0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_after_the_present_step(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    done_edits = []

    def advance(units: int) -> None:
        done_edits.append(units)
        if sum(done_edits) == 5:
            os.kill(os.getpid(), number)

    done, model = run_small(tmp_path, stop=None, advance=advance)
    assert not done and read_run(tmp_path).status == "stopped" and len(lines_of(tmp_path / "edits.jsonl")) == 5
    assert signal.getsignal(number) is before
    done, model = run_small(tmp_path, resume=True)
    assert done and log_of(tmp_path)["checkpoints.jsonl"][-1]["edits"] == 12
    assert not same_weights(model, load_demo()[0])


def test_a_second_signal_is_not_taken() -> None:
    # Whoever runs the tests may ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), stop_requests() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert asked()
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
