"""Comparing: who takes part, what became of those that could not, one fresh model each, the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nas_plugin.errors import HparamsError, RunError, RunFolderError
from nas_plugin.evaluation.logs import read_run
from nas_plugin.evaluation.runner import Measures, SessionWriter, plan_run, run_stream
from nas_plugin.evaluation.runner import compare as comparing
from nas_plugin.evaluation.runner.compare import compare
from nas_plugin.evaluation.runner.entrants import Entrant, all_ours, entrant
from nas_plugin.evaluation.runner.load import load_hparams, load_model
from nas_plugin.evaluation.runner.summary import KNOWEDIT, figures
from tests.evaluation.runner_support import Here, alike, lines_of, run_small, small_plan, stream_of

SMALL = {"mom2_n_samples": 40, "nas_n_pilots": 3, "v_num_grad_steps": 5}


def ours(name: str) -> Entrant:
    return entrant(name, "nas-demo", "demo", SMALL)


def test_names_of_our_editors() -> None:
    assert len(all_ours()) == 12
    plain, nas = ours("AlphaEdit"), ours("NAS-AlphaEdit")
    assert plain.hparams.use_nas is False and nas.hparams.use_nas is True and not plain.is_host
    assert plain.hparams.method == nas.hparams.method == "AlphaEdit"
    assert plain.hparams.v_num_grad_steps == 5 and plain.hparams.model_name == "nas-demo"


def test_names_of_hosts() -> None:
    grace = entrant("GRACE", "nas-demo", "demo", SMALL)
    assert grace.is_host and grace.host_file.name == "GRACE.yaml" and grace.unavailable is None
    assert "a network that was trained" in entrant("MEND", "nas-demo", "demo", {}).unavailable
    with pytest.raises(RunError, match="FT=FILE"):
        entrant("FT", "gpt2-xl", "gpt2-xl", {})
    with pytest.raises(HparamsError, match=r"no-such\.yaml"):
        entrant("FT=no-such.yaml", "nas-demo", "demo", {})


@pytest.mark.parametrize(
    ("name", "message"),
    [("MEMITT", "there is no method 'MEMITT'"), ("NAS-FT", "there is no method 'NAS-FT'"), ("ROME=x.yaml", r"x\.yaml")],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    with pytest.raises((RunError, HparamsError), match=message):
        ours(name)


def test_a_file_of_another_method_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rect.yaml"
    file.write_text("alg_name: NAS-RECT\n")
    assert load_hparams(file, {}).method == "RECT"
    with pytest.raises(HparamsError, match="is for RECT, not for MEMIT"):
        ours(f"NAS-MEMIT={file}")
    file.write_text("alg_name: ROME\n")
    with pytest.raises(HparamsError, match="'ROME' is no editor of this package"):
        load_hparams(file, {})


def test_the_demo_model_is_loaded_fresh_each_time() -> None:
    hparams = ours("MEMIT").hparams
    (left, _), (right, _) = load_model(hparams), load_model(hparams)
    assert left is not right and next(left.parameters()) is not next(right.parameters())


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare")
    # One of ours, one that the installed EasyEdit lacks or cannot run on this machine or can, and one without hyperparameters.
    names = ["NAS-ENCORE", "UltraEdit", "MEND"]
    report = compare([ours(name) for name in names], stream_of(), out, small_plan(), command="nas-edit compare")
    assert report == out / "report.html"
    return out


def test_our_run_in_a_process_equals_one_here(compared: Path, tmp_path: Path) -> None:
    hparams = ours("NAS-ENCORE").hparams
    writer = SessionWriter(*load_model(hparams), hparams, progress=False)
    done = run_stream(writer, stream_of(), tmp_path, small_plan())
    here, there = (lines_of(folder / "checkpoints.jsonl") for folder in (tmp_path, compared / "NAS-ENCORE"))
    assert done and [line["final"] for line in here] == [line["final"] for line in there]
    assert [line["norm"] for line in here] == [line["norm"] for line in there]


def test_what_could_not_run_says_why(compared: Path) -> None:
    mend = json.loads((compared / "MEND" / "run.json").read_text())
    assert mend["status"] == "stopped" and "MEND=FILE" in mend["unavailable"] and mend["grid"] == [4, 8, 12]
    assert not (compared / "MEND" / "edits.jsonl").exists()
    ultra = read_run(compared / "UltraEdit")
    # It ran to its end, or there is a reason and nothing else.
    assert (ultra.status == "done" and len(ultra.edits) == 12) or (ultra.unavailable and not ultra.edits)


def test_the_report_shows_all_of_them(compared: Path) -> None:
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert "NAS-ENCORE" in page and "MEND is unavailable" in page


def test_going_on_with_a_comparison(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "ProcessPoolExecutor", Here)
    before = (compared / "NAS-ENCORE" / "edits.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match="NAS-ENCORE holds a run already"):
        compare([ours("NAS-ENCORE")], stream_of(), compared, small_plan())
    compare([ours("NAS-ENCORE"), ours("MEND")], stream_of(), compared, small_plan(), resume=True)
    assert (compared / "NAS-ENCORE" / "edits.jsonl").read_bytes() == before


def test_a_method_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="name every method once"):
        compare([ours("MEMIT"), ours("MEMIT")], stream_of(), tmp_path, small_plan())


def test_errors_of_hosts_are_reasons_and_ours_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [KeyError("loc_prompt"), ValueError("ours")]

    def fail(jobs: list, workers: object) -> list:
        for job in jobs:
            job.folder.mkdir()
        comparing._report_unavailable(jobs[0], "KeyError: 'loc_prompt'")
        return errors

    monkeypatch.setattr(comparing, "_run_all", fail)
    with pytest.raises(ValueError, match="ours"):
        compare([entrant("WISE", "nas-demo", "demo", {}), ours("MEMIT")], stream_of(), tmp_path, small_plan())
    assert read_run(tmp_path / "WISE").unavailable == "KeyError: 'loc_prompt'"
    assert (tmp_path / "report.html").exists()


def test_a_host_that_failed_on_the_way_keeps_its_logs(tmp_path: Path) -> None:
    run_small(tmp_path / "WISE", "MEMIT", label="WISE")
    job = comparing.Job(ours("MEMIT"), stream_of(), (), tmp_path / "WISE", small_plan(), False, False, "")
    comparing._report_unavailable(job, "RuntimeError: later")
    assert read_run(tmp_path / "WISE").unavailable is None and len(read_run(tmp_path / "WISE").edits) == 12


def test_figures_are_means_of_the_named_metrics(tmp_path: Path) -> None:
    plan = plan_run(3, cohort=1, measures=Measures(drift=0, generate=True, own_prompts=True))
    run_small(tmp_path, plan=plan, stream=alike(3))
    found = figures(tmp_path, KNOWEDIT)
    lines, last = lines_of(tmp_path / "edits.jsonl"), lines_of(tmp_path / "checkpoints.jsonl")[-1]["final"]
    immediate = [line["immediate"]["efficacy/token_accuracy"] for line in lines]
    assert found["immediate"]["Edit_Succ"] == pytest.approx(sum(immediate) / 3)
    assert found["final"]["Locality"] == last["locality/unchanged_tokens"]["mean"]
    assert found["final"]["Fluency"] == last["fluency"]["mean"] and found["edits"] == 3
    # The embedded world asks nothing that follows from an edit.
    assert found["final"]["Portability"] is None and found["unavailable"] is None
