"""Every further family: six methods, plain and anchored; targets, keys and writing against naive code; the edit takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.request import as_requests
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests, build_tokenizer
from tests.families.support import FAMILIES
from tests.solve.test_target import difference
from tests.support import (
    FLAT,
    METHOD_NAMES,
    all_equal,
    edited_matrices,
    moments,
    tiny_hparams,
    tiny_session,
    without_float32_inside,
)
from tests.twins.dense import DENSE
from tests.twins.naive import naive_step, naive_target


@pytest.mark.parametrize("use_nas", [True, False])
@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_single_sequential_batched(family: str, method: str, use_nas: bool) -> None:
    session = tiny_session(family, method, use_nas=use_nas, v_num_grad_steps=2, nas_n_pilots=2)
    base = edited_matrices(session)
    requests = build_requests(4)
    assert len(session.edit(requests[0]).edits) == 1
    session.rollback()
    assert all_equal(edited_matrices(session), base)
    session.edit(requests[0])
    batched = session.edit(requests[1:])
    assert batched.step == 2 and len(batched.edits) == 3
    for matrix, before in zip(edited_matrices(session), base, strict=True):
        assert torch.isfinite(matrix).all() and not torch.equal(matrix, before)
    if use_nas:
        assert all(abs(edit.written_norm / session.anchor_value - 1) <= 1e-5 for edit in batched.edits)
    session.revert()
    assert all_equal(edited_matrices(session), base)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_equal_the_naive_twin(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny_session(family, "MEMIT", dtype=torch.float64, use_nas=False, v_num_grad_steps=12)
    without_float32_inside(session.model, monkeypatch)
    requests = as_requests(build_requests(3))
    solved = session.solve(requests)
    for row, request in enumerate(requests):
        twin = naive_target(session.model, session.tok, request, FLAT, session.hparams)
        for what in ("h0", "v0", "delta"):
            assert difference(getattr(solved, what)[row], getattr(twin, what)) <= 1e-9, what
        assert int(solved.updates[row]) == twin.updates


@pytest.mark.parametrize("layers", [[1], [0, 1]])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_steps_equal_the_dense_editor_on_naive_targets(
    family: str, layers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("target", "suffix"):
        monkeypatch.setattr(f"nas_plugin.solve.{module}.pass_cost", lambda _em: 1)
    numbers = {"dtype": torch.float64, "layers": layers, "v_num_grad_steps": 6}
    session, reference = (tiny_session(family, "AlphaEdit", **numbers) for _ in range(2))
    without_float32_inside(session.model, monkeypatch)
    base = {layer: session.em.matrix(layer).clone() for layer in layers}
    stats = moments(family, tuple(layers), torch.float64, 0).matrices
    twins = {layer: DENSE["AlphaEdit"](base[layer].clone(), stats[layer], session.hparams) for layer in layers}
    for step in (build_requests(1), build_requests(4)[1:]):
        session.edit(step)
        naive_step(
            reference.model, reference.tok, as_requests(step), FLAT, session.hparams, twins, session.anchor_value
        )
    for layer, twin in twins.items():
        changed = twin.w - base[layer]
        assert float(changed.norm()) > 1e-4 * float(base[layer].norm())
        assert difference(session.em.matrix(layer) - base[layer], changed) <= 1e-8


def alone(family: str, anchor: float | None, **numbers: object) -> EditSession:
    """A session on the bare prompt with next to no prior: what is asked for is written."""
    return EditSession(
        build_model(family, torch.float64),
        build_tokenizer(),
        tiny_hparams("MEMIT", layers=[1], mom2_update_weight=1e-9, use_nas=anchor is not None, **numbers),
        contexts=ContextTemplates((("{}",),)),
        moments={1: torch.eye(48, dtype=torch.float64)},
        anchor=anchor,
        progress=False,
    )


@pytest.mark.parametrize("anchor", [None, 2.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_edited_module_returns_the_written_value(family: str, anchor: float | None) -> None:
    session, request = alone(family, anchor), build_requests(1)
    wanted = session.solve(request).values
    session.edit(request)
    shown = session.solve(request).v0
    if anchor is not None:
        assert float(shown.norm()) == pytest.approx(anchor, rel=1e-5)
        wanted = wanted * anchor / wanted.norm()
    assert difference(shown, wanted) <= 1e-5


def log_probability(session: EditSession, request: dict[str, str]) -> float:
    tok = session.tok
    prompt = tok(request["prompt"].format(request["subject"]))["input_ids"]
    target = tok(" " + request["target_new"])["input_ids"]
    with torch.no_grad():
        logp = session.model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
    places: Tensor = logp[len(prompt) - 1 : -1]
    return float(places.gather(1, torch.tensor(target)[:, None]).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_becomes_more_probable(family: str) -> None:
    """The subject ends the prompt: through the attention of a random model next to nothing of an edit would be seen."""
    numbers = {
        "v_num_grad_steps": 25,
        "v_lr": 0.5,
        "clamp_norm_factor": 4.0,
        "mom2_update_weight": 0.01,
        "norm_alarm": None,
    }
    session = tiny_session(family, "MEMIT", use_nas=False, **numbers)
    for subject, target in (("Lyon", "Manila"), ("Marie Curie", "Polish")):
        request = {"prompt": "This is about {}", "subject": subject, "target_new": target}
        before = log_probability(session, request)
        session.edit(request)
        assert log_probability(session, request) > before + 0.02


@pytest.mark.parametrize("family", ["gemma2", "opt"])
def test_a_kept_session_is_resumed_and_forgets_one_edit(family: str, tmp_path: Path) -> None:
    requests = build_requests(3)
    session = tiny_session(family, "AlphaEdit", keep_dir=str(tmp_path), v_num_grad_steps=3)
    ids = [session.edit(request).edits[0].id for request in requests]
    wanted = edited_matrices(session)
    again = tiny_session(family, "AlphaEdit", keep_dir=str(tmp_path), v_num_grad_steps=3)
    assert again.resume() == 3 and all_equal(edited_matrices(again), wanted)
    again.undo(ids[2])
    without = tiny_session(family, "AlphaEdit", v_num_grad_steps=3)
    for request in requests[:2]:
        without.edit(request)
    for left, right in zip(edited_matrices(again), edited_matrices(without), strict=True):
        assert torch.allclose(left, right, atol=1e-5)
