"""The studies' own arithmetic on made-up numbers, and what they share on the embedded model."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from nas_plugin.errors import HparamsError, NonFiniteError, RunError
from nas_plugin.evaluation.streams import load_stream
from nas_plugin.evaluation.studies.anchor_bias import AnchorBias, between
from nas_plugin.evaluation.studies.order import Order, difficulties
from nas_plugin.evaluation.studies.overhead import Overhead, described
from nas_plugin.evaluation.studies.pilots import Pilots, drawn, pilot_pool
from nas_plugin.evaluation.studies.plasticity import Plasticity, compared, most_scaled_down
from nas_plugin.evaluation.studies.sample_size import SampleSize
from nas_plugin.evaluation.studies.shared import Setting, Trial, moments_of, parts
from nas_plugin.evaluation.studies.written import plus_minus
from nas_plugin.session import EditSession

PILOTS = 12
SMALL = Setting(settings={"mom2_n_samples": 40, "nas_n_pilots": PILOTS, "v_num_grad_steps": 8})


@pytest.fixture
def trial() -> Trial:
    return Trial(SMALL, "MEMIT", 6)


def matrix(trial: Trial) -> torch.Tensor:
    return trial.plain.em.matrix(0).clone()


def test_the_quarter_is_that_of_the_smallest_scale_factors() -> None:
    assert most_scaled_down([0.9, 0.4, 1.2, 0.6, 2.0, 0.5, 1.0, 3.0]) == [1, 5]
    # A quarter is rounded down, one edit stays, and the first of equal ones wins.
    assert most_scaled_down([2.0, 1.0, 3.0, 1.0, 5.0, 6.0, 7.0]) == [1]
    assert most_scaled_down([1.5, 1.0]) == [1]


def line(scale: float, plain: dict[str, float], nas: dict[str, float]) -> dict[str, object]:
    return {"case_id": "x", "scale": scale, "plain": plain, "nas": nas}


def cells(efficacy: float, generalization: float, specificity: float) -> dict[str, float]:
    named = {"efficacy": efficacy, "generalization": generalization, "specificity": specificity}
    return {f"{name}/probability": value for name, value in named.items()}


def test_comparison_by_hand() -> None:
    found = compared(
        [line(0.5, cells(100, 50, 100), cells(100, 100, 50)), line(1.5, cells(0, 50, 100), cells(100, 50, 100))]
    )
    assert found["scale"] == {"mean": 1.0, "std": pytest.approx(0.5**0.5), "count": 2}
    assert (found["smallest"], found["largest"]) == (0.5, 1.5)
    assert found["plain"]["efficacy"] == {"metric": "efficacy/probability", "mean": 50.0, "std": 50.0, "count": 2}
    assert found["plain"]["score"]["mean"] == pytest.approx(3 / (1 / 50 + 1 / 50 + 1 / 100))
    # 0 and 100: mean 50, standard deviation 100 / sqrt 2, of the mean of two 50.
    assert found["difference"]["efficacy"] == {"mean": 50.0, "standard_error": pytest.approx(50.0)}
    assert found["difference"]["specificity"]["mean"] == -25.0
    nas = 3 / (1 / 100 + 1 / 75 + 1 / 75)
    assert found["difference"]["score"] == {"mean": pytest.approx(nas - 60), "standard_error": None}


def test_parts_of_a_score_are_of_one_kind() -> None:
    """A ZsRE case with its true answer has efficacy by probability too, but no specificity, hence no such score."""
    tokens = {
        "efficacy/token_accuracy": 50.0,
        "generalization/token_accuracy": 25.0,
        "locality/unchanged_tokens": 100.0,
    }
    found = parts([{"efficacy/probability": 100.0, "generalization/probability": 100.0, **tokens}])
    assert {part: (of["metric"], of["mean"]) for part, of in found.items()} == {
        "efficacy": ("efficacy/token_accuracy", 50.0),
        "generalization": ("generalization/token_accuracy", 25.0),
        "specificity": ("locality/unchanged_tokens", 100.0),
        "score": ("score/token_accuracy", pytest.approx(3 / (1 / 50 + 1 / 25 + 1 / 100))),
    }
    assert [of["metric"] for of in parts([cells(1, 2, 3) | tokens]).values()] == [*cells(1, 2, 3), "score/probability"]
    assert list(parts([{"efficacy/token_accuracy": 50.0}])) == ["efficacy", "score"]


def test_one_edit_has_no_standard_error() -> None:
    found = compared([line(2.0, cells(100, 100, 100), cells(100, 50, 100))])
    assert found["difference"]["generalization"] == {"mean": -50.0, "standard_error": None}
    assert found["scale"]["std"] is None


def test_parts_of_the_pilots_by_rank() -> None:
    norms = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0, 7.0, 6.0, 10.0]
    assert between(norms, 0.0, 0.1) == [1]
    assert between(norms, 0.9, 1.0) == [9]
    assert [norms[place] for place in between(norms, 0.5, 0.8)] == [6.0, 7.0, 8.0]
    assert between(norms, 0.0, 1.0) == sorted(range(10), key=norms.__getitem__)
    # One value at least, inside the list.
    assert between([3.0, 1.0], 0.0, 0.1) == [1] and between([3.0, 1.0], 0.9, 1.0) == [0]


def test_times_by_hand() -> None:
    assert described([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0,
        "quartiles": [2.0, 4.0],
        "mean": 3.0,
        "std": pytest.approx(2.5**0.5),
        "count": 5,
    }


def test_samples_by_hand() -> None:
    assert moments_of([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "count": 2}
    assert plus_minus(moments_of([1.0, 3.0])) == "2.0 ± 1.4" and plus_minus(moments_of([4.0])) == "4.0"


def test_pilots_are_solved_once_and_their_anchor_is_the_session_s_own() -> None:
    trial = Trial(SMALL, "MEMIT")
    pool = pilot_pool(trial.hparams.nas_pilots)
    sample = drawn(pool, PILOTS, trial.hparams.nas_seed)
    pilots = Pilots(trial.plain, sample)
    assert len(pool) == 100 and len(pilots.norms) == PILOTS
    anchor = trial.nas.anchor
    assert anchor is not None and pilots.anchor_of(sample).raw_mean == anchor.raw_mean
    three = [pilots.norms[place] for place in (7, 0, 3)]
    assert pilots.anchor_of([sample[place] for place in (7, 0, 3)]).value == pytest.approx(fmean(three), rel=1e-6)


def test_an_edit_alone_leaves_the_model_and_later_edits_alone(trial: Trial) -> None:
    before = matrix(trial)
    first = trial.write_alone(trial.nas, trial.cases[0])
    assert torch.equal(matrix(trial), before) and trial.nas.steps == 0
    for case in trial.cases[1:3]:
        for session in (trial.plain, trial.nas):
            trial.write_alone(session, case)
    assert torch.equal(matrix(trial), before)
    again = trial.write_alone(trial.nas, trial.cases[0])
    # The same edit made again has an id of its own: the first one was taken back.
    assert [replace(edit, id=first[0].edits[0].id) for edit in again[0].edits] == list(first[0].edits)
    assert again[0].edits[0].id == f"{first[0].edits[0].id}-2" and again[1] == first[1]


def test_both_sides_solve_the_same_value_and_only_one_is_rescaled(trial: Trial) -> None:
    for case in trial.cases[:2]:
        plain, nas = (trial.write_alone(session, case)[0].edits[0] for session in (trial.plain, trial.nas))
        assert plain.value_norm == nas.value_norm == plain.written_norm
        assert nas.written_norm == pytest.approx(trial.nas.anchor_value)


def test_an_anchor_of_the_value_s_own_norm_changes_nothing(trial: Trial) -> None:
    case = trial.cases[0]
    (edit,) = trial.plain.edit(case.requests).edits
    plain, metrics = matrix(trial), trial.measure([case])
    trial.plain.rollback()
    own = trial.anchored_at(edit.value_norm)
    own.edit(case.requests)
    assert trial.measure([case]) == metrics
    # (h0 - v0) + v0 + delta instead of h0 + delta: rounding.
    torch.testing.assert_close(matrix(trial), plain, rtol=1e-4, atol=1e-5)


def test_going_through_a_stream_measures_all_so_far_and_ends_unedited(trial: Trial) -> None:
    before, done = matrix(trial), []
    course = trial.go_through(trial.nas, trial.cases, 4, done.append)
    assert torch.equal(matrix(trial), before) and done == [1] * 6
    assert [point["edits"] for point in course["checkpoints"]] == [4, 6]
    assert course["score"] == course["checkpoints"][-1]["score"] and course["failed"] == 0
    assert course["metrics"]["score"] == "score/probability"
    for case in trial.cases:
        trial.nas.edit(case.requests)
    efficacy = fmean(result["efficacy/probability"] for result in trial.measure(trial.cases))
    assert course["checkpoints"][-1]["efficacy"] == efficacy
    assert course["checkpoints"][-1]["norm"] == trial.nas.weights.total_ratio()


def test_steps_that_come_out_non_finite_are_counted(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = EditSession.edit

    def refusing(session: EditSession, requests: object) -> object:
        if requests == trial.cases[1].requests:
            raise NonFiniteError("made up")
        return edit(session, requests)

    monkeypatch.setattr(EditSession, "edit", refusing)
    assert trial.go_through(trial.plain, trial.cases, 6)["failed"] == 1


def test_difficulty_is_the_norm_solved_on_the_original_model(trial: Trial) -> None:
    found = difficulties(trial)
    for case in trial.cases[:3]:
        (edit,) = trial.write_alone(trial.plain, case)[0].edits
        assert found[case.id] == pytest.approx(edit.value_norm, rel=1e-4)


def test_orders_hold_the_same_cases() -> None:
    result = Order(edits=4, every=2, shuffles=1).run(SMALL, "MEMIT")
    assert list(result["plain"]) == list(result["nas"]) == ["given", "low to high", "high to low", "shuffle 1"]
    assert len(result["difficulty"]) == 4
    cases = load_stream("demo", limit=4).cases
    assert sorted(result["difficulty"]) == sorted(case.id for case in cases)


def test_with_one_case_all_orders_are_one_stream() -> None:
    result = Order(edits=1, every=1, shuffles=2).run(SMALL, "MEMIT")
    for side in ("plain", "nas"):
        given = result[side]["given"]
        assert all(course == given for course in result[side].values())


def test_plasticity_runs() -> None:
    done: list[int] = []
    result = Plasticity(edits=5).run(SMALL, "MEMIT", done.append)
    assert sum(done) == Plasticity(edits=5).units
    assert result["all"]["scale"]["count"] == 5 and result["quarter"]["scale"]["count"] == 1
    scales = [edit["scale"] for edit in result["edits"]]
    assert result["quarter"]["scale"]["mean"] == min(scales)
    for edit in result["edits"]:
        assert edit["scale"] == pytest.approx(result["anchor"] / edit["value_norm"])
    everything, quarter = Plasticity(edits=5).tables({"MEMIT": result})
    assert [row.head for row in everything.groups[0]] == ["MEMIT", "NAS-MEMIT", "difference"]
    assert quarter.groups[0][0].cells[0] == "1"


def test_anchors_of_biased_pilots_rise() -> None:
    result = AnchorBias(edits=2, every=1).run(SMALL, "MEMIT")
    anchors = [at["anchor"] for at in result["sources"].values()]
    assert anchors == sorted(anchors) and [at["pilots"] for at in result["sources"].values()] == [1, 3, 12, 3, 1]
    assert anchors[0] == pytest.approx(min(result["norms"])) and anchors[2] == pytest.approx(fmean(result["norms"]))
    (table,) = AnchorBias(edits=2, every=1).tables({"MEMIT": result})
    assert len(table.groups[0]) == 6 and all(len(row.cells) == len(table.columns) - 1 for row in table.groups[0])


def test_sizes_are_prefixes_of_one_sample() -> None:
    study = SampleSize(size=(1, 4), seeds=3)
    result = study.run(SMALL, "MEMIT")
    trial = Trial(SMALL, "MEMIT")
    pool = pilot_pool("demo")
    for seed in range(3):
        sample = drawn(pool, 4, seed)
        norms = trial.plain.solve(sample).values.norm(dim=1).tolist()
        assert result["sizes"]["1"]["raw"]["values"][seed] == pytest.approx(norms[0], rel=1e-4)
        assert result["sizes"]["4"]["raw"]["values"][seed] == pytest.approx(fmean(norms), rel=1e-4)
    assert result["sizes"]["1"]["spread"] == 0 and result["solved"] <= 12
    (table,) = study.tables({"MEMIT": result})
    assert [row.head for row in table.groups[0]] == ["MEMIT, 1", "MEMIT, 4"]


def test_more_pilots_than_there_are() -> None:
    with pytest.raises(RunError, match="101 pilots .* has 100"):
        SampleSize(size=(5, 101), seeds=1).run(SMALL, "MEMIT")


def test_overhead_runs() -> None:
    study = Overhead(edits=3)
    result = study.run(SMALL, "MEMIT")
    assert all(len(result["seconds"][side]) == 3 for side in ("plain", "nas")) and result["clock"] == "CPU time"
    paired = [b - a for a, b in zip(result["seconds"]["plain"], result["seconds"]["nas"], strict=True)]
    assert result["difference"]["mean"] == pytest.approx(fmean(paired))
    assert result["anchor"]["pilots"] == PILOTS and 0 < result["rescaling"] < result["plain"]["median"]
    (table,) = study.tables({"MEMIT": result})
    assert len(table.groups[0][0].cells) == len(table.columns) - 1


def test_a_setting_that_cannot_be_used() -> None:
    with pytest.raises(HparamsError, match="llama3-9b"):
        Setting(hparams="llama3-9b").hparams_for("MEMIT")
    with pytest.raises(RunError, match="no editor 'FT'"):
        Setting().hparams_for("FT", use_nas=False)
    with pytest.raises(RunError, match="460 usable"):
        Setting().cases(461)


def test_both_sides_have_the_same_hyperparameters() -> None:
    setting = Setting(model="folder", hparams="llama3-8b", settings={"v_lr": 0.25})
    for method in ("MEMIT", "AlphaEdit"):
        nas, plain = (setting.hparams_for(method, use_nas=use_nas) for use_nas in (True, False))
        assert (nas.method, nas.use_nas, nas.model_name, nas.v_lr) == (method, True, "folder", 0.25)
        assert plain.to_dict() == {**nas.to_dict(), "use_nas": False}
