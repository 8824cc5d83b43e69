"""Measuring ahead of the first edit: what a session would measure, kept where it looks, and nothing twice."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_plugin import anchoring
from nas_plugin.ahead import anchor_ahead, statistics_ahead
from nas_plugin.anchor import Anchor
from nas_plugin.errors import AnchorError, EditedModelError, StatisticsError
from nas_plugin.locate import stored
from nas_plugin.session import EditSession
from tests.cli.calling import SMALL, call
from tests.conftest import build_model, build_requests, build_tokenizer
from tests.support import TEXT, tiny_hparams

METHODS = ("MEMIT", "AlphaEdit", "LyapLock")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    text = tmp_path / "text.json"
    text.write_text(json.dumps(TEXT), encoding="utf-8")
    return {"stats_dir": str(tmp_path / "stats"), "mom2_dataset": str(text)}


def session_of(method: str, settings: dict[str, Any], **more: Any) -> EditSession:
    given = {key: more.pop(key) for key in ("edited", "anchor", "moments") if key in more}
    hparams = tiny_hparams(method, **settings, **more)
    return EditSession(build_model("llama"), build_tokenizer(), hparams, progress=False, **given)


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("measured a second time")


@pytest.mark.parametrize("method", METHODS)
def test_a_session_measures_nothing_that_was_measured_ahead(
    method: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = session_of(method, settings | {"stats_dir": None})
    alone.edit(build_requests(2))
    statistics_ahead(session_of(method, settings))
    anchor_ahead(session_of(method, settings))
    monkeypatch.setattr(stored, "collect_moments", refuse)
    monkeypatch.setattr(anchoring, "measure_anchor", refuse)
    monkeypatch.setattr("nas_plugin.editors._made", refuse)
    session = session_of(method, settings)
    session.edit(build_requests(2))
    for layer in session.em.layers:
        torch.testing.assert_close(session.em.matrix(layer), alone.em.matrix(layer), rtol=0, atol=0)


def test_what_a_session_measured_is_there_already(settings: dict[str, Any]) -> None:
    prepared = session_of("AlphaEdit", settings).prepare()
    statistics, anchor = (
        statistics_ahead(session_of("AlphaEdit", settings)),
        anchor_ahead(session_of("AlphaEdit", settings)),
    )
    assert not statistics.measured and not anchor.measured and anchor.anchor == prepared.anchor
    assert statistics.moments.tokens == prepared.moments.tokens and statistics.spectra == {}


def test_statistics_are_told(settings: dict[str, Any]) -> None:
    kept = statistics_ahead(session_of("AlphaEdit", settings))
    assert kept.measured and kept.path is not None and kept.path.is_file()
    assert kept.moments.provenance["model"] == session_of("AlphaEdit", settings).fingerprint
    assert set(kept.priors) == {0, 1} and all(path.is_file() for path in kept.priors.values())
    before = {path: path.stat().st_mtime_ns for path in Path(settings["stats_dir"]).rglob("*")}
    again = statistics_ahead(session_of("AlphaEdit", settings), spectrum=True)
    assert not again.measured and again.spectra == kept.spectra
    assert {path: path.stat().st_mtime_ns for path in Path(settings["stats_dir"]).rglob("*")} == before


def test_the_spectrum_is_that_of_the_matrix(settings: dict[str, Any]) -> None:
    kept = statistics_ahead(session_of("MEMIT", settings))
    for layer, matrix in kept.moments.matrices.items():
        singular = torch.linalg.svdvals(matrix.double())
        found = kept.spectra[layer]
        assert found.largest == pytest.approx(float(singular[0]), rel=1e-6)
        assert found.smallest == pytest.approx(float(singular[-1]), abs=1e-6 * float(singular[0]))
        assert found.condition == pytest.approx(found.largest / found.smallest)


def test_statistics_need_a_folder(settings: dict[str, Any]) -> None:
    with pytest.raises(StatisticsError, match="stats_dir is null"):
        statistics_ahead(session_of("MEMIT", settings | {"stats_dir": None}))


def test_the_anchor_needs_no_second_moments(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "collect_moments", refuse)
    kept = anchor_ahead(session_of("MEMIT", settings))
    assert kept.measured and kept.path is not None and Anchor.load(kept.path) == kept.anchor
    again = anchor_ahead(session_of("MEMIT", settings))
    assert not again.measured and again.path == kept.path and asdict(again.anchor) == asdict(kept.anchor)


def test_an_anchor_that_is_kept_nowhere_is_measured_each_time(settings: dict[str, Any]) -> None:
    kept = anchor_ahead(session_of("MEMIT", settings | {"stats_dir": None}))
    assert kept.measured and kept.path is None and kept.anchor.pilots == 4


def test_without_norm_anchoring_there_is_no_anchor(settings: dict[str, Any]) -> None:
    with pytest.raises(AnchorError, match="use_nas is false"):
        anchor_ahead(session_of("MEMIT", settings, use_nas=False))


@pytest.mark.parametrize("ahead", [statistics_ahead, anchor_ahead])
def test_an_edited_model_is_refused(ahead: Any, settings: dict[str, Any]) -> None:
    session = session_of("MEMIT", settings)
    with torch.no_grad():
        session.em.weight(0).mul_(1.5)
    with pytest.raises(EditedModelError):
        ahead(session)
    with pytest.raises(EditedModelError, match="edited already"):
        ahead(session_of("MEMIT", settings, edited=True))
    assert not Path(settings["stats_dir"]).exists()


def test_an_anchor_of_other_weights_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"nas_anchor_file": str(tmp_path / "anchor.json")}
    anchor_ahead(session_of("MEMIT", settings))
    changed = session_of("MEMIT", settings).model
    with torch.no_grad():
        changed.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    edited = EditSession(changed, build_tokenizer(), tiny_hparams("MEMIT", **settings), progress=False)
    with pytest.raises(AnchorError, match="measured with weights"):
        anchor_ahead(edited)


def test_the_commands_tell_file_fingerprint_tokens_and_condition(tmp_path: Path) -> None:
    at = ("--set", f"stats_dir={tmp_path}", *SMALL)
    said = call("stats", "NAS-AlphaEdit/nas-demo", *at)
    assert "measured now" in said and "tokens, model " in said and "condition " in said and "prior-layer0" in said
    assert "there already; nothing was measured" in call("stats", "NAS-AlphaEdit/nas-demo", *at)
    told = json.loads(call("stats", "NAS-AlphaEdit/nas-demo", *at, "--json", "--spectrum"))
    assert not told["measured"] and Path(told["file"]).is_file() and told["tokens"] > 0
    assert told["spectrum"]["0"]["condition"] > 1 and Path(told["priors"]["0"]).is_file()


def test_the_anchor_command_measures_once_and_shows(tmp_path: Path) -> None:
    at = ("--set", f"stats_dir={tmp_path}", *SMALL)
    said = call("anchor", "NAS-MEMIT/nas-demo", *at)
    assert "measured now, mode paper" in said and "3 pilots: mean " in said and "standard deviation" in said
    told = json.loads(call("anchor", "NAS-MEMIT/nas-demo", *at, "--json"))
    assert not told["measured"] and f"{told['value']:.4f}" in said
    assert told["model"][:12] in said and "(read, mode paper)" in call("anchor", "NAS-MEMIT/nas-demo", *at)


def test_named_errors_end_the_commands(tmp_path: Path) -> None:
    assert "stats_dir is null" in call("stats", "NAS-MEMIT/nas-demo", code=1)
    assert "use_nas is false" in call("anchor", "NAS-MEMIT/nas-demo", "--set", "use_nas=false", code=1)
    wrong = tmp_path / "anchor.json"
    Anchor(3.0, "paper", 0, 4, 3.0, 3.0, 1.0, 0, "0" * 64, "1" * 64, "2" * 64).save(wrong)
    said = call("anchor", "NAS-MEMIT/nas-demo", "--set", f"nas_anchor_file={wrong}", *SMALL, code=1)
    assert "the anchor was measured with weights 000000000000" in said
