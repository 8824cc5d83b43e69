"""Stability from the logs: every number checked against one worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_plugin.evaluation import stability
from nas_plugin.evaluation.logs import LoggedCheckpoint, LoggedEdit, Statistic, read_run
from nas_plugin.evaluation.stability import TOTAL, Trajectory
from tests.evaluation.fake_runs import write_run


def along(**values: float) -> Trajectory:
    """`along(n10=3.0)` is the value 3 after 10 edits."""
    return Trajectory(np.array([int(name[1:]) for name in values]), np.array(list(values.values())))


def checkpoint(edits: int, **changes: Any) -> LoggedCheckpoint:
    return replace(LoggedCheckpoint(edits, {}, None, {}, {}, None, {}, {}), **changes)


def scored(edits: int, score: float, name: str = "score/probability") -> LoggedCheckpoint:
    return checkpoint(edits, final={name: Statistic(score, 0.0, edits)})


def edit(number: int, norm: float | None, **changes: Any) -> LoggedEdit:
    return replace(LoggedEdit(number, "c", norm, norm, False, 0.5, {}), **changes)


@pytest.mark.parametrize(
    ("values", "threshold", "expected"),
    [
        ({"n10": 90.0, "n20": 60.0, "n30": 80.0}, 60, 20),
        ({"n10": 90.0, "n20": 60.1}, 60, None),
        ({"n10": 90.0, "n20": 60.1}, 75, 20),
        ({"n10": 90.0, "n20": math.nan}, 60, 20),
        ({}, 60, None),
    ],
)
def test_collapse_is_the_first_checkpoint_at_or_below_the_threshold(values, threshold, expected) -> None:
    assert stability.collapse_point(along(**values), threshold) == expected


def test_the_unedited_model_cannot_have_collapsed() -> None:
    scores = stability.part_trajectory([scored(0, 3.0), scored(20, 95.0), scored(40, 50.0)], "score")
    assert scores.edits.tolist() == [20, 40]
    assert stability.collapse_point(scores) == 40


def test_probability_stands_before_token_accuracy() -> None:
    both = {"score/token_accuracy": Statistic(1.0, 0.0, 1), "score/probability": Statistic(2.0, 0.0, 1)}
    assert stability.headline(both, "score") == ("score/probability", both["score/probability"])
    assert stability.part_trajectory([scored(5, 70.0, "score/token_accuracy")], "score").values.tolist() == [70.0]
    assert stability.headline({"fluency": Statistic(500.0, 0.0, 1)}, "score") is None


def test_specificity_by_tokens_is_unchanged_locality() -> None:
    kept = {"locality/unchanged_tokens": Statistic(88.0, 0.0, 1)}
    assert stability.headline(kept, "specificity") == ("locality/unchanged_tokens", kept["locality/unchanged_tokens"])


def test_fit_through_three_points() -> None:
    # log R: 0, 1, 1 at n = 0, 1, 2: slope 1/2, intercept 1/6, residuals -1/6, 1/3, -1/6, so R^2 = 1 - (1/6) / (2/3).
    fit = stability.log_linear_fit(along(n0=1.0, n1=math.e, n2=math.e))
    assert fit is not None
    assert (fit.slope, fit.intercept, fit.r_squared) == pytest.approx((1 / 2, 1 / 6, 3 / 4))
    assert fit.points == 3


def test_exponential_growth_is_a_line() -> None:
    edits = np.arange(0, 1000, 50)
    fit = stability.log_linear_fit(Trajectory(edits, np.exp(0.2 + 0.01 * edits)))
    assert fit is not None
    assert (fit.slope, fit.intercept, fit.r_squared) == pytest.approx((0.01, 0.2, 1.0))


def test_fit_needs_three_finite_points_and_variance() -> None:
    assert stability.log_linear_fit(along(n0=1.0, n1=2.0, n2=math.inf, n3=0.0)) is None
    flat = stability.log_linear_fit(along(n0=1.0, n1=1.0, n2=1.0))
    assert flat is not None and flat.slope == 0 and flat.r_squared is None


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([1, 5, 9, 10], [4, 3, 2, 1], -1.0),
        # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
        ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / math.sqrt(22.5)),
        # Ranks 2, 2, 2, 4 and 1, 2.5, 2.5, 4: (1.5 * 1.5 + 0.5 * 1.5) / sqrt(3 * 4.5).
        ([7, 7, 7, 8], [1, 2, 2, 3], 3 / math.sqrt(13.5)),
        ([1, 2, math.inf], [3, 2, 1], -1.0),
        ([1, 2, math.nan, 3], [1, 2, 0, 3], 1.0),
        ([1, 2], [1, 2], None),
        ([1, 1, 1], [1, 2, 3], None),
    ],
)
def test_spearman(left, right, expected) -> None:
    rho = stability.spearman(left, right)
    assert rho == (None if expected is None else pytest.approx(expected))


def test_norms_and_scores_are_paired_by_edits() -> None:
    growth = along(n0=1.0, n10=2.0, n20=3.0, n30=4.0)
    assert stability.norm_score_correlation(growth, along(n10=90.0, n20=80.0, n30=70.0)) == pytest.approx(-1.0)
    assert stability.norm_score_correlation(growth, along(n10=90.0, n40=1.0)) is None


def test_growth_of_the_whole_and_of_layers() -> None:
    checkpoints = [
        checkpoint(0, norm=1.0, layer_norms={"4": 1.0, "5": 1.0}),
        checkpoint(10, norm=1.5, layer_norms={"4": 1.2, "5": 1.8}),
        checkpoint(20),
    ]
    growth = stability.norm_growth(checkpoints)
    assert list(growth) == [TOTAL, "4", "5"]
    assert growth[TOTAL].edits.tolist() == [0, 10] and growth[TOTAL].values.tolist() == [1.0, 1.5]
    assert growth["5"].values.tolist() == [1.0, 1.8]
    assert len(stability.norm_growth([])[TOTAL].edits) == 0


def test_retention_starts_when_the_cohort_is_complete(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, edits=100, every=30))
    assert run.cohort == 40 and [c.edits for c in run.checkpoints] == [0, 30, 60, 90]
    kept = stability.retention(run)
    assert kept.complete == 60
    first, last = (run.checkpoints[i].cohort["score/probability"].mean for i in (2, 3))
    assert kept.kept(kept.score) == (first, last)
    first, last = (run.checkpoints[i].cohort["efficacy/probability"].mean for i in (2, 3))
    assert kept.kept(kept.efficacy) == (first, last)


def test_retention_of_a_run_that_stopped_before_the_cohort_was_complete(tmp_path: Path) -> None:
    kept = stability.retention(read_run(write_run(tmp_path, edits=100, every=30, stopped_after=35)))
    assert kept.complete is None and kept.kept(kept.score) is None
    assert kept.score.edits.tolist() == [30]


def test_value_norms() -> None:
    norms = stability.value_norms([
        edit(1, 1.0), edit(2, 2.0), edit(3, 4.0, skipped=True), edit(4, 3.0), edit(5, math.inf), edit(6, None),
    ])  # fmt: skip
    assert norms is not None
    assert (norms.count, norms.non_finite, norms.skipped) == (4, 1, 1)
    assert (norms.mean, norms.median, norms.minimum, norms.maximum) == (2.5, 2.5, 1.0, 4.0)
    assert norms.std == pytest.approx(math.sqrt(1.25))
    # Edits 1 to 4 have ranks 1, 2, 4, 3: 4 / 5.
    assert norms.trend == pytest.approx(0.8)


def test_no_value_norms_without_solved_values() -> None:
    assert stability.value_norms([edit(1, None), edit(2, None)]) is None
    assert stability.value_norms([]) is None


def test_seconds_and_immediate_results() -> None:
    edits = [
        edit(1, None, seconds=1.0, immediate={"efficacy/generated": 100.0}),
        edit(2, None, seconds=2.0, immediate={"efficacy/generated": 0.0}),
        edit(3, None, seconds=6.0),
    ]
    assert stability.seconds_per_edit(edits) == 3.0
    assert stability.seconds_per_edit([]) is None
    assert stability.immediate(edits) == {"efficacy/generated": Statistic(50.0, 50.0, 2)}
