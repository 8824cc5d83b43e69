"""From cases to a set: means, population deviations, and scores from unrounded means."""

from __future__ import annotations

import pytest

from nas_plugin.evaluation.measures import summarise_cases
from nas_plugin.evaluation.measures.summary import harmonic_mean

PROBABILITY = ("efficacy/probability", "generalization/probability", "specificity/probability")


def test_mean_population_deviation_and_count() -> None:
    rows = [{"case_id": "a", "efficacy/exact": 100.0}, {"case_id": "b", "efficacy/exact": 0.0, "fluency": 600.5}]
    assert summarise_cases([*rows, {"case_id": "c", "efficacy/exact": 50.0}]) == {
        "efficacy/exact": {"mean": 50.0, "std": pytest.approx(40.8248290), "count": 3},
        "fluency": {"mean": 600.5, "std": 0.0, "count": 1},
    }


def test_score_is_of_the_unrounded_means() -> None:
    rows = [dict(zip(PROBABILITY, values, strict=True)) for values in ((100, 50, 40), (100, 50, 70), (0, 100, 60))]
    # Means 200/3, 200/3 and 170/3. Of means rounded to two decimals it would be 62.96278...
    score = summarise_cases(rows)["score/probability"]
    assert score == {"mean": pytest.approx(3 / (3 / 200 + 3 / 200 + 3 / 170), abs=1e-12), "std": 0.0, "count": 3}


def test_score_is_zero_if_a_part_is_and_absent_if_a_part_is() -> None:
    rows = [dict(zip(PROBABILITY, (100.0, 100.0, 0.0), strict=True))]
    assert summarise_cases(rows)["score/probability"]["mean"] == 0.0
    del rows[0]["specificity/probability"]
    assert "score/probability" not in summarise_cases(rows)


def test_score_of_token_accuracy_takes_what_there_is() -> None:
    row = {"efficacy/token_accuracy": 100.0}
    assert summarise_cases([row])["score/token_accuracy"]["mean"] == 100.0
    row["locality/unchanged_tokens"] = 50.0
    assert summarise_cases([row])["score/token_accuracy"]["mean"] == pytest.approx(2 / (1 / 100 + 1 / 50))
    row["generalization/token_accuracy"] = 25.0
    assert summarise_cases([row])["score/token_accuracy"]["mean"] == pytest.approx(3 / (1 / 100 + 1 / 50 + 1 / 25))
    del row["efficacy/token_accuracy"]
    assert "score/token_accuracy" not in summarise_cases([row])


def test_harmonic_mean() -> None:
    assert harmonic_mean([40.0, 60.0]) == pytest.approx(48.0)
    assert harmonic_mean([0.0, 60.0]) == 0.0
