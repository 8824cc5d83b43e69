"""Hidden-state drift: the states of a naive loop, distances by hand, and a base that survives JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from nas_plugin.errors import MeasureError
from nas_plugin.evaluation.measures import DriftProbe
from nas_plugin.evaluation.measures.drift import _Plane
from nas_plugin.request import EditRequest
from tests.conftest import PROMPTS, SUBJECTS, build_model, build_tokenizer
from tests.support import tiny_hparams

REQUESTS = [EditRequest(prompt, subject, "Rome") for prompt in PROMPTS for subject in SUBJECTS]
HPARAMS = tiny_hparams("MEMIT")


def probe(model: Any, requests: list[EditRequest] = REQUESTS, **more: Any) -> DriftProbe:
    return DriftProbe(model, build_tokenizer(), HPARAMS, requests, **more)


def naive_states(model: Any, layer: int) -> torch.Tensor:
    """Each prompt whole and alone; what the module puts out at the last token that holds a character of the subject."""
    tok, rows = build_tokenizer(), []
    module = next(m for name, m in model.named_modules() if name.endswith(f".{layer}.mlp.down_proj"))
    handle = module.register_forward_hook(lambda _m, _a, output: rows.append(output[0]))
    places = []
    for request in REQUESTS:
        encoded = tok(request.prompt, return_offsets_mapping=True)
        places.append(max(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < request.end and b > a))
        with torch.no_grad():
            model(input_ids=torch.tensor([encoded["input_ids"]]))
    handle.remove()
    return torch.stack([row[place] for row, place in zip(rows, places, strict=True)]).double()


def test_distances_by_hand() -> None:
    # A cross: 4 wide along the first axis, 2 along the second, nothing along the third; its centre is (1, 2, 3).
    cross = torch.tensor([[4, 0, 0], [-4, 0, 0], [0, 2, 0], [0, -2, 0]], dtype=torch.float64)
    plane = _Plane.fitted(cross + torch.tensor([1, 2, 3]))
    assert torch.allclose(plane.axes, torch.eye(3, dtype=torch.float64)[:2])
    before = plane.drift(cross + torch.tensor([1, 2, 3]))
    assert before["cloud"] == [pytest.approx(point) for point in ([4, 0], [-4, 0], [0, 2], [0, -2])]
    assert before["pca_distance"] == before["full_distance"] == pytest.approx(0.0)
    # Mean of 16, 16, 4, 4.
    assert before["spread"] == pytest.approx(10**0.5)
    after = plane.drift(2 * cross + torch.tensor([1 + 3, 2 + 4, 3 + 12]))
    # Moved by (3, 4, 12): 5 in the plane, 13 in space.
    assert after["pca_distance"] == pytest.approx(5.0)
    assert after["full_distance"] == pytest.approx(13.0)
    assert after["spread"] == pytest.approx(2 * 10**0.5)
    assert after["cloud"][0] == pytest.approx([11, 4])


def test_axes_have_one_orientation() -> None:
    states = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for axis in _Plane.fitted(states).axes:
        assert axis[axis.abs().argmax()] > 0
    assert torch.allclose(_Plane.fitted(-states).axes, _Plane.fitted(states).axes)


def test_states_are_those_of_the_subjects_last_token() -> None:
    before, after = build_model("llama"), build_model("llama", seed=1)
    found = probe(before).measure(after)
    for layer in (0, 1):
        expected = _Plane.fitted(naive_states(before, layer)).drift(naive_states(after, layer))
        assert found[str(layer)].keys() == expected.keys()
        for key, value in expected.items():
            assert found[str(layer)][key] == (
                pytest.approx(value, rel=1e-3) if key != "cloud" else [pytest.approx(p, abs=1e-3) for p in value]
            )


def test_a_shift_of_a_module_is_measured_as_such(family: str) -> None:
    model = build_model(family)
    measured = probe(model)
    still = measured.measure(model)
    assert still["1"]["full_distance"] == pytest.approx(0.0, abs=1e-9)
    shift = torch.zeros(32)
    shift[3] = 7.0
    module = next(
        m for name, m in model.named_modules() if name.endswith((".1.mlp.down_proj", ".1.mlp.c_proj", ".1.mlp.fc_out"))
    )
    handle = module.register_forward_hook(lambda _m, _a, output: output + shift)
    moved = measured.measure(model)
    handle.remove()
    assert moved["0"] == still["0"]
    assert moved["1"]["full_distance"] == pytest.approx(7.0, rel=1e-4)
    assert moved["1"]["spread"] == pytest.approx(still["1"]["spread"], rel=1e-4)
    axes = torch.tensor(measured.base["layers"]["1"]["axes"])
    assert moved["1"]["pca_distance"] == pytest.approx(7.0 * float(axes[:, 3].norm()), rel=1e-3)


def test_base_survives_json() -> None:
    before, after = build_model("gpt2"), build_model("gpt2", seed=1)
    first = probe(before)
    stored = json.loads(json.dumps(first.base))
    resumed = probe(after, base=stored)
    assert resumed.measure(after) == first.measure(after)
    assert resumed.base == stored


def test_at_most_200_points_of_the_first_prompts() -> None:
    requests = [EditRequest("{} " + f"{i} is", f"Lyon {i}", "Rome") for i in range(210)]
    model = build_model("llama")
    clouds = probe(model, requests).measure(model)
    assert [len(drift["cloud"]) for drift in clouds.values()] == [200, 200]
    assert json.loads(json.dumps(clouds)) == clouds


def test_states_that_are_not_finite() -> None:
    model = build_model("llama")
    measured = probe(model)
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    drift = measured.measure(model)
    assert drift["1"] == {"pca_distance": None, "full_distance": None, "spread": None, "cloud": []}
    assert drift["0"]["full_distance"] == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(MeasureError, match="layer 1 are not finite before the first edit"):
        probe(model)


def test_misuse_is_named() -> None:
    model = build_model("llama")
    with pytest.raises(MeasureError, match="2 prompts make no cloud"):
        probe(model, REQUESTS[:2])
    with pytest.raises(MeasureError, match=r"fitted on 36 prompts at layers 0, 1; this probe has 35 at 0, 1"):
        probe(model, REQUESTS[1:], base=probe(model).base)
    with pytest.raises(MeasureError, match="base has format None, not 1"):
        probe(model, base={})
    other = DriftProbe(model, build_tokenizer(), tiny_hparams("MEMIT", layers=[1]), REQUESTS)
    with pytest.raises(MeasureError, match=r"at layers 1; this probe has 36 at 0, 1"):
        probe(model, base=other.base)
