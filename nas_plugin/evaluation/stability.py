"""What the logs of a run say about its stability: growth of the weights, collapse, retention, solved values.

Everything here needs the log files alone, so that a run that was stopped can be judged as far as it came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas_plugin.evaluation.logs import LoggedCheckpoint, LoggedEdit, RunLog, Statistic
from nas_plugin.evaluation.measures import summarise_cases

COLLAPSED = 60.0
"""Score at or below which a model counts as collapsed (the paper's CP@60)."""
TOTAL = "total"
"""Key of the growth over all edited layers, beside the layers' own."""
_HEADLINES = {
    "score": ("score/probability", "score/token_accuracy"),
    "efficacy": ("efficacy/probability", "efficacy/token_accuracy"),
    "generalization": ("generalization/probability", "generalization/token_accuracy"),
    "specificity": ("specificity/probability", "locality/unchanged_tokens"),
}
_FEWEST_POINTS = 3


@dataclass(frozen=True)
class Trajectory:
    """Values along a stream.

    Attributes:
        edits: Numbers of edits, [points].
        values: Values there, [points].
    """

    edits: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class LogLinearFit:
    """Least-squares line through log R_n against n (paper Fig. 3), natural logarithm.

    Attributes:
        slope: Growth of log R_n per edit.
        intercept: Of the line, at n = 0.
        r_squared: Share of the variance of log R_n that the line explains; None if it has none.
        points: Checkpoints it goes through.
    """

    slope: float
    intercept: float
    r_squared: float | None
    points: int


@dataclass(frozen=True)
class ValueNorms:
    """Norms |v*| of the values as solved, before any rescaling.

    Attributes:
        count: Finite norms, those of skipped edits included.
        non_finite: Norms that were NaN or infinite; not in the numbers below.
        skipped: Edits of which nothing was written.
        mean: Arithmetic mean.
        std: Population standard deviation.
        median: Median.
        minimum: Smallest.
        maximum: Largest.
        trend: Spearman's rho between edit number and norm; None if there is none.
    """

    count: int
    non_finite: int
    skipped: int
    mean: float
    std: float
    median: float
    minimum: float
    maximum: float
    trend: float | None


@dataclass(frozen=True)
class Retention:
    """What became of the first edits of the stream.

    Attributes:
        score: Score of the cohort at every checkpoint.
        efficacy: Its efficacy.
        complete: First checkpoint at which all of the cohort had been written, None if none came.
    """

    score: Trajectory
    efficacy: Trajectory
    complete: int | None

    def kept(self, part: Trajectory) -> tuple[float, float] | None:
        """Compare the end with the time when the cohort was complete.

        Args:
            part: `score` or `efficacy`.

        Returns:
            Value then and at the last checkpoint, None if it was not measured at both.
        """
        if self.complete is None or self.complete not in part.edits:
            return None
        return float(part.values[part.edits == self.complete][0]), float(part.values[-1])


def headline(statistics: Mapping[str, Statistic], part: str) -> tuple[str, Statistic] | None:
    """Find the metric that stands for a part of the score: by probability (CounterFact's) where measured, else by tokens.

    Args:
        statistics: Metrics of a checkpoint.
        part: "score", "efficacy", "generalization" or "specificity".

    Returns:
        The metric's full name and its value, None if neither was measured.
    """
    return next(((name, statistics[name]) for name in _HEADLINES[part] if name in statistics), None)


def part_trajectory(checkpoints: Iterable[LoggedCheckpoint], part: str, *, cohort: bool = False) -> Trajectory:
    """Follow a part of the score along the stream.

    Args:
        checkpoints: Measurements.
        part: As for `headline`.
        cohort: Of the first cases only instead of all so far.

    Returns:
        Percentages at the checkpoints after the first edit that measured it.
    """
    found = [(c.edits, headline(c.cohort if cohort else c.final, part)) for c in checkpoints if c.edits > 0]
    return _trajectory([(edits, named[1].mean) for edits, named in found if named is not None])


def norm_growth(checkpoints: Sequence[LoggedCheckpoint]) -> dict[str, Trajectory]:
    """Follow R_n = |W_n| / |W_0| (Frobenius) along the stream.

    Args:
        checkpoints: Measurements.

    Returns:
        `TOTAL` first (square root of the ratio of sums of squares over all edited layers), then every layer.
    """
    layers = {layer: None for checkpoint in checkpoints for layer in checkpoint.layer_norms}
    growth = {TOTAL: _trajectory([(c.edits, c.norm) for c in checkpoints if c.norm is not None])}
    for layer in layers:
        growth[layer] = _trajectory([(c.edits, c.layer_norms[layer]) for c in checkpoints if layer in c.layer_norms])
    return growth


def collapse_point(scores: Trajectory, threshold: float = COLLAPSED) -> int | None:
    """Find where a model collapsed: the first checkpoint with a score at or below the threshold (paper Eq. 24, Fig. 16).

    Args:
        scores: Scores after the first edit. One that is NaN counts as collapsed.
        threshold: Percentage.

    Returns:
        Number of edits there; None if the score stayed above.
    """
    return next((int(n) for n, score in zip(scores.edits, scores.values, strict=True) if not score > threshold), None)


def log_linear_fit(growth: Trajectory) -> LogLinearFit | None:
    """Fit a line to log R_n against n.

    Args:
        growth: R_n; values that are not finite and positive are left out.

    Returns:
        The fit, None through fewer than three points.
    """
    usable = np.isfinite(growth.values) & (growth.values > 0)
    n, log_norm = growth.edits[usable].astype(float), np.log(growth.values[usable])
    if len(n) < _FEWEST_POINTS:
        return None
    slope, intercept = np.polyfit(n, log_norm, 1)
    scatter = float(((log_norm - log_norm.mean()) ** 2).sum())
    rest = float(((log_norm - slope * n - intercept) ** 2).sum())
    return LogLinearFit(float(slope), float(intercept), 1 - rest / scatter if scatter > 0 else None, len(n))


def spearman(left: ArrayLike, right: ArrayLike) -> float | None:
    """Correlate ranks, ties averaged.

    Args:
        left: Values, [n].
        right: Values that belong to them, [n]; pairs with NaN are left out.

    Returns:
        Spearman's rho; None for fewer than three pairs or if one side is constant.
    """
    x, y = np.asarray(left, float), np.asarray(right, float)
    known = ~(np.isnan(x) | np.isnan(y))
    if known.sum() < _FEWEST_POINTS:
        return None
    x, y = (ranks - ranks.mean() for ranks in (_ranks(x[known]), _ranks(y[known])))
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else None


def norm_score_correlation(growth: Trajectory, scores: Trajectory) -> float | None:
    """Correlate norm growth with score over the checkpoints that have both (paper Fig. 2).

    Args:
        growth: R_n.
        scores: Scores.

    Returns:
        Spearman's rho, None if it is not defined.
    """
    _, of_growth, of_scores = np.intersect1d(growth.edits, scores.edits, return_indices=True)
    return spearman(growth.values[of_growth], scores.values[of_scores])


def retention(run: RunLog) -> Retention:
    """Follow the first cases of the stream to its end.

    Args:
        run: A run.

    Returns:
        Their score and efficacy over time.
    """
    complete = next((c.edits for c in run.checkpoints if c.edits >= run.cohort), None)
    score, efficacy = (part_trajectory(run.checkpoints, part, cohort=True) for part in ("score", "efficacy"))
    return Retention(score, efficacy, complete)


def value_norms(edits: Sequence[LoggedEdit]) -> ValueNorms | None:
    """Describe the solved values of a run.

    Args:
        edits: Its edits.

    Returns:
        Statistics of |v*|, None if the editor solves no values.
    """
    logged = [(edit.edit, edit.value_norm) for edit in edits if edit.value_norm is not None]
    numbers, norms = np.array([n for n, _ in logged]), np.array([norm for _, norm in logged], float)
    finite = np.isfinite(norms)
    if not finite.any():
        return None
    norms = norms[finite]
    return ValueNorms(
        count=len(norms),
        non_finite=int((~finite).sum()),
        skipped=sum(edit.skipped for edit in edits),
        mean=float(norms.mean()),
        std=float(norms.std()),
        median=float(np.median(norms)),
        minimum=float(norms.min()),
        maximum=float(norms.max()),
        trend=spearman(numbers[finite], norms),
    )


def immediate(edits: Sequence[LoggedEdit]) -> dict[str, Statistic]:
    """Average what was measured of each edit right after its own step.

    Args:
        edits: Edits of a run.

    Returns:
        Metrics over the edits that were measured then.
    """
    means = summarise_cases(edit.immediate for edit in edits if edit.immediate)
    return {name: Statistic(float(s["mean"]), float(s["std"]), int(s["count"])) for name, s in means.items()}


def seconds_per_edit(edits: Sequence[LoggedEdit]) -> float | None:
    """Average the wall-clock time of an edit, evaluation excluded.

    Args:
        edits: Edits of a run.

    Returns:
        Seconds, None without edits.
    """
    return sum(edit.seconds for edit in edits) / len(edits) if edits else None


def _trajectory(points: Sequence[tuple[int, float]]) -> Trajectory:
    return Trajectory(np.array([n for n, _ in points], np.int64), np.array([value for _, value in points], float))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
