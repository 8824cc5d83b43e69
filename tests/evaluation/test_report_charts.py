"""Numbers behind the charts, how numbers are written, and the colours."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from nas_plugin.evaluation.report.axes import Range, power_of_ten
from nas_plugin.evaluation.report.charts import bin_edges, ellipse_of
from nas_plugin.evaluation.report.content import number, short
from nas_plugin.evaluation.report.palette import HUES, MARKERS, ROLES, placeholder, with_variables

# Machado, Oliveira and Fernandes 2009: linear RGB as seen without one kind of cone.
DICHROMATS = {
    "all cones": np.eye(3),
    "no L cones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no M cones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "no S cones": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(left: str, right: str) -> float:
    """WCAG 2's contrast ratio."""
    low, high = sorted(float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colour)) for colour in (left, right))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, white point D65."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(matrix @ rgb / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_stand_out(dark: bool) -> None:
    surface, raised = ROLES["surface"][dark], ROLES["raised"][dark]
    for role in ("ink", "muted"):
        assert min(contrast(ROLES[role][dark], surface), contrast(ROLES[role][dark], raised)) >= 4.5
    for role, colours in ROLES.items():
        if role.startswith("hue-"):
            assert contrast(colours[dark], surface) >= 3, role


@pytest.mark.parametrize("eye", DICHROMATS)
@pytest.mark.parametrize("dark", [False, True])
def test_hues_are_told_apart_with_any_colour_vision(dark: bool, eye: str) -> None:
    hues = [colours[dark] for role, colours in ROLES.items() if role.startswith("hue-")]
    seen = [lab(np.clip(DICHROMATS[eye] @ linear(hue), 0.01, 1)) for hue in hues]
    # 2 is a difference that can just be seen.
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) >= 12


def test_placeholders_become_variables() -> None:
    style = f"fill: {placeholder('ink')}; stroke: {placeholder('hue-6')}; stroke-width: 0.8"
    assert with_variables(style) == "fill: var(--ink); stroke: var(--hue-6); stroke-width: 0.8"
    assert len({placeholder(role) for role in ROLES}) == len(ROLES) and len(MARKERS) == HUES


def test_an_axis_is_logarithmic_from_a_factor_of_ten() -> None:
    assert Range.around([1.0, 9.9], low=1.0) == Range(1.0, pytest.approx(9.9 + 0.06 * 8.9))
    assert Range.around([1.0, 10.0]) == Range(pytest.approx(1 / 1.1), pytest.approx(12.0), True)
    assert Range.around([-5.0, 1000.0]).logarithmic is False
    assert Range.around([2.0, math.nan, math.inf]) == Range(pytest.approx(1.9), pytest.approx(2.1))
    assert Range.around([]).high > Range.around([]).low
    assert Range(1, 20, True).remark("norm") == "norm (log)"


def test_ticks_of_logarithmic_axes() -> None:
    assert [power_of_ten(x) for x in (1, 0.05, 50000, 1e5, 2e-4, 5e12)] == [
        "1",
        "0.05",
        "50000",
        "10⁵",
        "2·10⁻⁴",
        "5·10¹²",
    ]


def test_bins_cover_all_values() -> None:
    edges, logarithmic = bin_edges([np.array([1.0, 2.0]), np.array([5.0])])
    assert not logarithmic and edges[0] == 1 and edges[-1] == 5 and np.allclose(np.diff(edges), 4 / 24)
    edges, logarithmic = bin_edges([np.array([1.0]), np.array([100.0])])
    assert logarithmic and np.allclose(edges[1:] / edges[:-1], 100 ** (1 / 24))
    edges, _ = bin_edges([np.array([3.0, 3.0])])
    assert edges[0] < 3 < edges[-1]


def test_ellipse_of_a_cross() -> None:
    # Points at +-2 on the first axis and +-1 on the second: variances 8/3 and 2/3 (over n - 1).
    centre, outline = ellipse_of(np.array([[5.0, 1.0], [1.0, 1.0], [3.0, 2.0], [3.0, 0.0]]))
    assert centre.tolist() == [3.0, 1.0]
    scale = math.sqrt(-2 * math.log(0.05))
    assert outline[:, 0].max() - 3 == pytest.approx(scale * math.sqrt(8 / 3))
    assert outline[:, 1].max() - 1 == pytest.approx(scale * math.sqrt(2 / 3))


def test_ellipse_holds_95_percent_of_a_normal_cloud() -> None:
    mixing = np.array([[2.0, 0.0], [1.5, 0.5]])
    cloud = np.random.default_rng(0).normal(size=(20000, 2)) @ mixing.T
    centre, outline = ellipse_of(cloud)
    inverse = np.linalg.inv(np.cov(cloud.T))
    radius = np.einsum("ni,ij,nj->n", outline - centre, inverse, outline - centre)
    inside = np.einsum("ni,ij,nj->n", cloud - centre, inverse, cloud - centre) <= radius.mean()
    assert np.ptp(radius) < 1e-6 and inside.mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(1.25, 1, "1.2"), (-0.04, 1, "0.0"), (-0.06, 1, "−0.1"), (None, 1, "–"), (math.nan, 1, "not finite"), (3.0, 0, "3")],
)  # fmt: skip
def test_numbers(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234"), (0.01234, "0.0123"), (-2.5, "−2.50"),
     (1.5e-5, "1.50e−05"), (2e7, "2.00e+07"), (math.inf, "not finite"), (None, "–")],
)  # fmt: skip
def test_short_numbers(value: float | None, text: str) -> None:
    assert short(value) == text
