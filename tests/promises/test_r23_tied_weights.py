"""R23: editing changes neither embedding nor head, and keeps them tied; an exported tied model reloads bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from nas_plugin import load_edits
from nas_plugin.session import EditSession
from tests.conftest import CONFIGS, build_model, build_requests, build_tokenizer
from tests.support import TEMPLATES, moments, tiny_hparams


@pytest.fixture
def tied(family: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The family, of which all models are tied from here on."""
    make = CONFIGS[family]

    def config() -> Any:
        made = make()
        made.tie_word_embeddings = True
        return made

    # Before they are: these statistics are kept, and of the models that other tests use.
    moments(family, (0, 1), torch.float32, 0)
    monkeypatch.setitem(CONFIGS, family, config)
    return family


def ends(model: Any) -> tuple[Tensor, Tensor]:
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


def is_tied(model: Any) -> bool:
    embedding, head = ends(model)
    return embedding.data_ptr() == head.data_ptr() and embedding.shape == head.shape


def differing(left: Any, right: Any) -> set[str]:
    """Names of tensors that differ by a bit, or that only one model has."""
    ours, theirs = left.state_dict(), right.state_dict()
    return (ours.keys() ^ theirs.keys()) | {
        name
        for name in ours.keys() & theirs.keys()
        if ours[name].dtype != theirs[name].dtype or not torch.equal(ours[name], theirs[name])
    }


def edited(family: str) -> EditSession:
    """A session after three edits of a tied model."""
    session = EditSession(
        build_model(family),
        build_tokenizer(),
        tiny_hparams("MEMIT"),
        contexts=TEMPLATES,
        moments=moments(family, (0, 1), torch.float32, 0).matrices,
        anchor=3.0,
        progress=False,
    )
    assert is_tied(session.model)
    for request in build_requests(3):
        assert session.edit(request).edits[0].status == "written"
    return session


def test_embedding_and_head_are_untouched_and_the_export_is_exact(tied: str, tmp_path: Path) -> None:
    base, session = build_model(tied), edited(tied)
    model = session.model
    assert is_tied(model) and all(map(torch.equal, ends(model), ends(base)))
    assert differing(model, base) == set(session.parameter_names)

    model.save_pretrained(tmp_path / "whole")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert is_tied(reloaded) and differing(model, reloaded) == set()

    session.save_edits(tmp_path / "edits.safetensors")
    about = load_edits(base, tmp_path / "edits.safetensors")
    assert set(about.parameters) == set(session.parameter_names)
    assert is_tied(base) and differing(model, base) == set()


def test_edits_alone_are_smaller_than_the_model(tied: str, tmp_path: Path) -> None:
    session = edited(tied)
    session.save_edits(tmp_path / "edits.safetensors")
    held = sum(parameter.nbytes for parameter in session.weights.stored_parameters().values())
    assert held < (tmp_path / "edits.safetensors").stat().st_size < held + 2_000


def test_what_would_break_the_promise_is_seen(tied: str, tmp_path: Path) -> None:
    good, bad = build_model(tied), build_model(tied)
    with torch.no_grad():
        ends(bad)[0][1, 2] += 2**-10
    assert len(differing(good, bad)) == 2, "embedding and head are one tensor under two names"
    untied = build_model(tied)
    head = untied.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    assert not is_tied(untied) and differing(good, untied) == set()
    good.save_pretrained(tmp_path)
    assert len(differing(AutoModelForCausalLM.from_pretrained(tmp_path), bad)) == 2
