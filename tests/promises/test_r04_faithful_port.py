"""R4: with NAS off, values, keys and weight changes are those of EasyEdit's own MEMIT and AlphaEdit; its numbers are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_plugin.hparams import NASAlphaEditHparams, NASMEMITHparams
from nas_plugin.session import EditSession
from tests.promises import oracle


def cosine(ours: torch.Tensor, theirs: Any) -> float:
    expected = torch.tensor(theirs, dtype=torch.float64)
    assert ours.shape == expected.shape
    return float(torch.cosine_similarity(ours.double().flatten(), expected.flatten(), dim=0))


def session_of(method: str, folder: Path, **numbers: Any) -> EditSession:
    values = {**oracle.NUMBERS, "use_nas": False, **numbers}
    hparams: Any = (
        NASMEMITHparams(**values)
        if method == "MEMIT"
        else NASAlphaEditHparams(**{"nullspace_threshold": oracle.THRESHOLD, "L2": oracle.RIDGE, **values})
    )
    return EditSession(
        oracle.oracle_model(),
        oracle.oracle_tokenizer(),
        hparams,
        contexts=oracle.CONTEXTS,
        moments=oracle.oracle_moments(),
        progress=False,
        keep=folder,
    )


def compared(session: EditSession, expected: dict[str, Any]) -> dict[str, float]:
    """Cosines to the stored values: of each fact's z, and of keys and weight change by layer; how far sizes agree."""
    solved = session.solve(oracle.REQUESTS)
    found = {}
    for place, theirs in enumerate(expected["z"]):
        found[f"z of fact {place}"] = cosine(solved.h0[place] + solved.delta[place], theirs)
        # Without what the model had there anyway.
        found[f"correction of fact {place}"] = cosine(
            solved.delta[place], (torch.tensor(theirs) - solved.h0[place]).tolist()
        )
    before = dict(session.weights.current())
    session.edit(oracle.REQUESTS)
    assert session.keeper is not None
    factors = session.keeper.log.of_steps([1])[1]
    for layer in oracle.LAYERS:
        change = session.weights.current()[layer] - before[layer]
        found[f"keys of layer {layer}"] = cosine(factors[layer].keys.T, expected["keys"][str(layer)])
        found[f"change of layer {layer}"] = cosine(change, expected["change"][str(layer)])
        size = torch.tensor(expected["change"][str(layer)]).norm()
        found[f"size of layer {layer}"] = 1 - abs(float(change.norm() / size) - 1)
    return found


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return dict(json.loads(oracle.ORACLE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("method", oracle.METHODS)
def test_values_keys_and_changes_are_the_official_ones(method: str, stored: dict[str, Any], tmp_path: Path) -> None:
    found = compared(session_of(method, tmp_path), stored[method])
    assert {name: value for name, value in found.items() if value < 0.9999} == {}


@pytest.mark.parametrize(
    ("numbers", "seen"),
    [
        ({"v_num_grad_steps": 5}, "correction of fact 0"),
        ({"kl_factor": 0.5}, "change of layer 0"),
        ({"mom2_update_weight": 30.0}, "size of layer 0"),
    ],
)
def test_other_hyperparameters_would_show(
    numbers: dict[str, float], seen: str, stored: dict[str, Any], tmp_path: Path
) -> None:
    assert compared(session_of("MEMIT", tmp_path, **numbers), stored["MEMIT"])[seen] < 0.9999
