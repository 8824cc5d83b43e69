"""The anchor: Eq. 15, its switches, its file, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas_plugin.anchor import Anchor, anchored
from nas_plugin.errors import AnchorError, EditedModelError
from nas_plugin.pilots import pilot_requests
from nas_plugin.request import as_requests
from nas_plugin.session import EditSession
from nas_plugin.solve.target import SolvedTargets
from tests.conftest import build_requests
from tests.support import FLAT, TEMPLATES, moments, tiny_hparams, tiny_session
from tests.twins.naive import naive_target


def solved(n: int = 6, d: int = 16, seed: int = 0) -> SolvedTargets:
    g = torch.Generator().manual_seed(seed)
    draws = [torch.randn(n, d, generator=g) * scale for scale in (3.0, 5.0, 2.0)]
    return SolvedTargets(
        *draws, torch.zeros(n), torch.zeros(n, dtype=torch.long), torch.zeros(n, 2), torch.ones(n, dtype=torch.bool)
    )


def test_every_value_gets_the_anchors_norm_and_keeps_its_direction() -> None:
    values, tau = solved(), 2.5
    result = anchored(values, Anchor(tau), None)
    written = result.z - (values.h0 - values.v0)
    assert torch.allclose(written, values.values * (tau / values.values.norm(dim=1, keepdim=True)), atol=1e-5)
    assert ((result.written_norm / tau - 1).abs() <= 1e-6).all()
    assert (torch.cosine_similarity(written, values.values) >= 1 - 1e-6).all()
    assert torch.equal(result.value_norm, values.values.norm(dim=1)) and not result.skipped.any()


def test_it_scales_up_as_well_as_down() -> None:
    values = solved()
    for tau in (0.1, 100.0):
        assert torch.allclose(anchored(values, Anchor(tau), None).written_norm, torch.full((6,), tau), rtol=1e-6)


def test_off_is_h0_plus_delta_bit_for_bit() -> None:
    values = solved()
    result = anchored(values, None, 2.0)
    assert torch.equal(result.z, values.h0 + values.delta) and not result.skipped.any()


def test_skip_factor_drops_the_edit() -> None:
    values = solved()
    norms = values.values.norm(dim=1)
    tau = float(norms.median())
    result = anchored(values, Anchor(tau), float(norms.max() / tau) * 0.999)
    assert result.skipped.sum() == 1 and bool(result.skipped[norms.argmax()])
    row = int(norms.argmax())
    assert torch.allclose(result.z[row], values.h0[row], atol=1e-5)


def test_zero_value_is_left_alone() -> None:
    values = solved()
    values.delta[0] = -values.v0[0]
    result = anchored(values, Anchor(2.0), None)
    assert float(result.written_norm[0]) == 0.0 and torch.isfinite(result.z).all()


def test_paper_anchor_is_the_raw_mean_of_the_attached_editors_own_solves() -> None:
    session = tiny_session("gpt2", "MEMIT", dtype=torch.float64, nas_n_pilots=140)
    pilots = as_requests(build_requests(5))
    session = EditSession(
        session.model,
        session.tok,
        session.hparams,
        contexts=TEMPLATES,
        moments=session.given.moments,
        pilots=pilots,
        progress=False,
    )
    session.prepare()
    norms = []
    for pilot in pilots:
        twin = naive_target(session.model, session.tok, pilot, FLAT, session.hparams)
        norms.append(float((twin.v0 + twin.delta).norm()))
    assert session.anchor.value == pytest.approx(sum(norms) / 5, rel=1e-8)
    assert session.anchor.mode == "paper" and session.anchor.pilots == 5


def test_official_mode_uses_memits_numbers_bare_prompts_and_a_trimmed_mean() -> None:
    paper = tiny_session("gpt2", "ENCORE", model_name="nas-demo", nas_n_pilots=40)
    official = tiny_session("gpt2", "ENCORE", model_name="nas-demo", nas_n_pilots=40, nas_mode="official")
    for session in (paper, official):
        session.prepare()
    anchor = official.anchor
    assert anchor.value == anchor.trimmed_mean < anchor.raw_mean
    assert anchor.contexts != paper.anchor.contexts
    with pytest.raises(AnchorError, match="official"):
        tiny_session("gpt2", "ENCORE", model_name="nobody/knows", nas_mode="official").prepare()


def test_measuring_writes_nothing_and_is_repeatable() -> None:
    session = tiny_session("llama", "AlphaEdit")
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    session.prepare()
    assert all(torch.equal(tensor, before[name]) for name, tensor in session.model.state_dict().items())
    again = tiny_session("llama", "AlphaEdit")
    again.prepare()
    assert again.anchor == session.anchor


def test_file_keeps_provenance_and_is_refused_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "anchor.json"
    session = tiny_session("gpt2", "MEMIT", nas_anchor_file=str(path))
    session.prepare()
    assert Anchor.load(path) == session.anchor and session.anchor.model == session.fingerprint
    assert tiny_session("gpt2", "MEMIT", nas_anchor_file=str(path)).foundation.anchor == session.anchor
    for other in ({"seed": 1}, {"layers": [0]}, {"v_lr": 0.2}):
        with pytest.raises(AnchorError, match="measure it again"):
            tiny_session("gpt2", "MEMIT", nas_anchor_file=str(path), **other).prepare()


def test_refused_on_an_edited_model(tmp_path: Path) -> None:
    session = tiny_session("gpt2", "MEMIT")
    session.edit(build_requests(1))
    stats = moments("gpt2", (0, 1), torch.float32, 0)
    told = EditSession(
        session.model,
        session.tok,
        tiny_hparams("MEMIT"),
        contexts=TEMPLATES,
        moments=stats,
        edited=True,
        progress=False,
    )
    before = [told.em.matrix(layer).clone() for layer in (0, 1)]
    with pytest.raises(EditedModelError, match="anchor"):
        told.edit(build_requests(1))
    assert all(torch.equal(told.em.matrix(layer), matrix) for layer, matrix in zip((0, 1), before, strict=True))
    given = EditSession(
        session.model,
        session.tok,
        tiny_hparams("MEMIT"),
        contexts=TEMPLATES,
        moments=stats,
        anchor=session.anchor,
        edited=True,
        progress=False,
    )
    assert given.edit(build_requests(1)).edits[0].written_norm == pytest.approx(session.anchor_value, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_anchors_are_refused(value: float) -> None:
    with pytest.raises(AnchorError, match="positive finite"):
        Anchor(value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "anchor.json"
    Anchor(1.0).save(path)
    content = json.loads(path.read_text())
    for damaged in (
        "",
        "[]",
        "{}",
        json.dumps(content | {"value": "1"}),
        json.dumps(content | {"extra": 1}),
        json.dumps({**content, "layer": None}),
    ):
        path.write_text(damaged)
        with pytest.raises(AnchorError):
            Anchor.load(path)
    with pytest.raises(AnchorError, match="cannot read"):
        Anchor.load(tmp_path / "nowhere.json")


def test_pilots(tmp_path: Path) -> None:
    builtin = pilot_requests("builtin")
    assert len(builtin) == 140 and len({(p.prompt, p.target) for p in builtin}) == 140
    path = tmp_path / "pilots.json"
    path.write_text(json.dumps([{"requested_rewrite": build_requests(1)[0]}, build_requests(2)[1]]))
    assert [p.target for p in pilot_requests(str(path))] == ["English", "Polish"]
    path.write_text(json.dumps([{"prompt": "x"}]))
    with pytest.raises(AnchorError, match="record 0"):
        pilot_requests(str(path))
    with pytest.raises(AnchorError, match="cannot read"):
        pilot_requests(str(tmp_path / "none.json"))
    assert replace(builtin[0], id=None).prompt == "The capital of France is"
