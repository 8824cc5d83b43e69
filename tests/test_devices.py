"""Models spread over devices: the same numbers as on one, and no operation on tensors of two."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import dispatch_model

from nas_plugin.errors import UnsupportedWeightError
from nas_plugin.evaluation.cases import Ask, Case
from nas_plugin.evaluation.measures import DriftProbe, base_outputs, measure, perplexity
from nas_plugin.model.fingerprint import weights_fingerprint
from nas_plugin.request import as_requests
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests, build_tokenizer
from tests.devices import FIRST, SECOND, TwoDevices, put, where
from tests.support import (
    METHOD_NAMES,
    TEMPLATES,
    TEXT,
    all_equal,
    edited_matrices,
    tiny_hparams,
    without_float32_inside,
)

PARTS = {
    "gpt2": (["transformer.wte", "transformer.wpe"], "transformer.h.{}", ["transformer.ln_f", "lm_head"]),
    "llama": (["model.embed_tokens", "model.rotary_emb"], "model.layers.{}", ["model.norm", "lm_head"]),
}
PARTS["gemma2"] = PARTS["llama"]
FAMILIES = tuple(PARTS)
TIED = ("gpt2", "gemma2")


def device_map(family: str, split: int, first: Any, second: Any) -> dict[str, Any]:
    """Blocks below `split` on the first device; a head that shares the embedding's matrix is where that is."""
    before, block, after = PARTS[family]
    places = dict.fromkeys(before, first)
    places |= {block.format(number): first if number < split else second for number in range(3)}
    return places | dict.fromkeys(after, second) | ({"lm_head": first} if family in TIED else {})


def on_two(model: Any, family: str, split: int) -> Any:
    places = device_map(family, split, FIRST, SECOND)
    for path, device in places.items():
        put(model.get_submodule(path), device)
    model.hf_device_map = places
    return model


def on_one(model: Any) -> Any:
    """A model that takes the form of computation that spread ones take."""
    model.hf_device_map = {"": "cpu"}
    return model


def session_on(model: Any, method: str, folder: Path, **numbers: Any) -> EditSession:
    text = folder / "text.json"
    text.write_text(json.dumps(TEXT))
    settings = {"mom2_dataset": str(text), "nas_n_pilots": 3, **numbers}
    return EditSession(model, build_tokenizer(), tiny_hparams(method, **settings), contexts=TEMPLATES, progress=False)


def cases() -> list[Case]:
    return [
        Case(
            request.id or str(number),
            "counterfact",
            (request,),
            true_target="Lyon",
            rephrases=(request.prompt,),
            neighbours=(Ask("The mother tongue of Lyon is", ("Dutch",)),),
            generation_prompts=("The city of",),
            reference_texts=("The city is a place.",),
        )
        for number, request in enumerate(as_requests(build_requests(3)))
    ]


def all_of(session: EditSession) -> dict[str, Any]:
    """Statistics, anchor, edits and evaluation of a session."""
    asked, drift = cases(), as_requests(build_requests(4))
    probe = DriftProbe(session.model, session.tok, session.hparams, drift)
    before = base_outputs(session.model, session.tok, asked)
    foundation = session.prepare()
    session.edit(build_requests(2))
    session.edit(build_requests(4)[2:])
    kept = [matrix.tolist() for matrix in edited_matrices(session)]
    session.edit(build_requests(6)[4:])
    session.rollback()
    return {
        "moments": {layer: matrix.tolist() for layer, matrix in foundation.moments.matrices.items()},
        "anchor": session.anchor_value,
        "edited": kept,
        "rolled back": [matrix.tolist() for matrix in edited_matrices(session)],
        "metrics": measure(session.model, session.tok, asked, base=before),
        "drift": probe.measure(session.model),
        "perplexity": perplexity(session.model, session.tok, TEXT[:5], window=32),
        "digest": session.weights_digest(),
    }


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_devices_give_what_one_gives_bit_for_bit(family: str, split: int, tmp_path: Path) -> None:
    wanted = all_of(session_on(on_one(build_model(family)), "MEMIT", tmp_path))
    with TwoDevices():
        session = session_on(on_two(build_model(family), family, split), "MEMIT", tmp_path)
        got = all_of(session)
        assert session.weights.master[1].device == (FIRST if split == 2 else SECOND)
    assert got == wanted


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_on_two_devices(method: str, tmp_path: Path) -> None:
    numbers = {"prune_double_add": True} if method == "PRUNE" else {"lyap_alpha": 0.01} if method == "LyapLock" else {}
    done = []
    for place in (on_one, lambda model: on_two(model, "llama", 1)):
        with TwoDevices():
            session = session_on(place(build_model("llama")), method, tmp_path, **numbers)
            # The third is about the fact of the first, whose key is forgotten.
            for request in (*build_requests(2), {**build_requests(1)[0], "target_new": "Dutch"}):
                session.edit(request)
            done.append(edited_matrices(session))
    assert all_equal(*done)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spread_model_takes_a_slower_form_with_the_same_result(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_float32_inside(build_model(family), monkeypatch)
    sessions = [
        session_on(model, "MEMIT", tmp_path)
        for model in (build_model(family, torch.float64), on_one(build_model(family, torch.float64)))
    ]
    for session in sessions:
        session.edit(build_requests(3))
    for ours, theirs in zip(*map(edited_matrices, sessions), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-8)


def test_a_kept_session_on_two_devices_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = SimpleNamespace(get_rng_state=lambda _: torch.zeros(1), set_rng_state=lambda *_: None)
    monkeypatch.setattr(torch, "ipu", generator, raising=False)

    def kept(folder: Path) -> EditSession:
        session = session_on(on_two(build_model("llama"), "llama", 1), "AlphaEdit", tmp_path, snapshot_every=1)
        return EditSession(
            session.model, session.tok, session.hparams, contexts=TEMPLATES, anchor=2.0, keep=folder, progress=False
        )

    with TwoDevices():
        first = kept(tmp_path / "kept")
        first.edit(build_requests(2))
        again = kept(tmp_path / "kept")
        assert again.resume() == 2
        for session in (first, again):
            session.edit(build_requests(3)[2:])
        assert all_equal(edited_matrices(first), edited_matrices(again))
        assert where(again.editors[1].gain.base) == SECOND


def test_mixing_devices_is_noticed() -> None:
    """The tests above have teeth only if an operation on two devices is an error."""
    with TwoDevices(), pytest.raises(RuntimeError, match="mixes devices"):
        torch.ones(2, device=FIRST) + torch.ones(2, device=SECOND)
    with TwoDevices(), pytest.raises(RuntimeError, match="mixes devices"):
        torch.ones(2, 2, device=FIRST)[torch.arange(2, device=SECOND)]


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_are_not_edited_may_be_offloaded(family: str, tmp_path: Path) -> None:
    """Embeddings, the last block and the head on disk, as accelerate leaves them for a large model."""
    before, block, after = PARTS[family]
    places = dict.fromkeys([*before, block.format(2), *after], "disk") | {block.format(i): "cpu" for i in (0, 1)}
    offloaded = dispatch_model(build_model(family), places, main_device="cpu", offload_dir=tmp_path / "offload")
    assert offloaded.get_input_embeddings().weight.device.type == "meta"
    plain = on_one(build_model(family))
    assert weights_fingerprint(offloaded) == weights_fingerprint(plain)
    got, wanted = (all_of(session_on(model, "MEMIT", tmp_path)) for model in (offloaded, plain))
    assert got == wanted


def test_an_offloaded_layer_is_not_edited(tmp_path: Path) -> None:
    places = device_map("llama", 1, "cpu", "disk")
    model = dispatch_model(build_model("llama"), places, main_device="cpu", offload_dir=tmp_path / "offload")
    with pytest.raises(UnsupportedWeightError, match=r"model\.layers\.1\.mlp\.down_proj\.weight is on the meta device"):
        session_on(model, "MEMIT", tmp_path)
