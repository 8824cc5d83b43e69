"""R10: an anchor serves only the weights, layer and settings that it was measured with.

It is measured on unedited weights only, and says what it was measured with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nas_plugin.anchor import Anchor
from nas_plugin.errors import AnchorError, EditedModelError
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests, build_tokenizer
from tests.promises.watching import digests
from tests.support import METHOD_NAMES, TEMPLATES, moments, tiny_hparams, tiny_session

ELSEWHERE: dict[str, dict[str, Any]] = {
    "another model": {"seed": 1},
    "another layer": {"layers": [1, 2]},
    "another learning rate": {"v_lr": 0.2},
    "another clamp": {"clamp_norm_factor": 0.5},
    "more pilots": {"nas_n_pilots": 5},
    "another seed": {"nas_seed": 1},
}


def given(anchor: Anchor, method: str = "MEMIT", seed: int = 0, **overrides: Any) -> EditSession:
    hparams = tiny_hparams(method, **overrides)
    return EditSession(
        build_model("gpt2", seed=seed),
        build_tokenizer(),
        hparams,
        contexts=TEMPLATES,
        moments=moments("gpt2", hparams.layers, torch.float32, seed),
        anchor=anchor,
        progress=False,
    )


def refuses(session: EditSession) -> None:
    before = digests(session.model)
    with pytest.raises(AnchorError, match="measure it again"):
        session.edit(build_requests(1))
    assert digests(session.model) == before and session.steps == 0


@pytest.mark.parametrize("other", ELSEWHERE.values(), ids=[name.replace(" ", "-") for name in ELSEWHERE])
def test_refused_elsewhere_as_object_and_as_file(other: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "anchor.json"
    anchor = tiny_session("gpt2", "MEMIT", nas_anchor_file=str(path)).foundation.anchor
    assert Anchor.load(path) == anchor
    content = path.read_bytes()
    refuses(given(anchor, **other))
    refuses(tiny_session("gpt2", "MEMIT", nas_anchor_file=str(path), **other))
    assert path.read_bytes() == content
    for fits in (given(anchor), tiny_session("gpt2", "MEMIT", nas_anchor_file=str(path))):
        report = fits.edit(build_requests(1))
        assert report.edits[0].written_norm == pytest.approx(anchor.value, rel=1e-6)


def test_it_says_where_it_comes_from() -> None:
    session = tiny_session("gpt2", "MEMIT")
    anchor = session.foundation.anchor
    assert (anchor.layer, anchor.pilots, anchor.seed, anchor.mode) == (1, 4, 0, "paper")
    assert all(len(digest) == 64 for digest in (anchor.model, anchor.hparams, anchor.contexts))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_never_measured_on_a_model_edited_before(method: str) -> None:
    """Editing begins elsewhere, on the same weights, before this session has measured anything."""
    late = tiny_session("gpt2", method)
    early = EditSession(
        late.model,
        late.tok,
        tiny_hparams("MEMIT"),
        contexts=TEMPLATES,
        moments=moments("gpt2", (0, 1), torch.float32, 0),
        anchor=5.0,
        progress=False,
    )
    early.edit(build_requests(1))
    before = digests(late.model)
    with pytest.raises(EditedModelError, match="unedited"):
        late.edit(build_requests(2)[1])
    assert digests(late.model) == before and late.anchor is None
    early.rollback()
    assert late.foundation.anchor == tiny_session("gpt2", method).foundation.anchor


def test_an_anchor_is_not_used_on_edited_weights_under_a_new_session() -> None:
    session = tiny_session("gpt2", "MEMIT")
    session.edit(build_requests(1))
    with pytest.raises(AnchorError, match="measure it again"):
        again = EditSession(
            session.model,
            session.tok,
            tiny_hparams("MEMIT"),
            contexts=TEMPLATES,
            moments={layer: torch.eye(48) for layer in (0, 1)},
            anchor=session.foundation.anchor,
            progress=False,
        )
        again.edit(build_requests(2)[1])
