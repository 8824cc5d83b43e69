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
from nas_plugin.model.architectures import ARCHITECTURES
from nas_plugin.model.fingerprint import weights_fingerprint
from nas_plugin.request import as_requests
from nas_plugin.session import EditSession
from nas_plugin.solve.forward import FullRows
from tests.conftest import CONFIGS, build_model, build_requests, build_tokenizer
from tests.devices import FIRST, SECOND, TwoDevices, put, where
from tests.support import (
    METHOD_NAMES,
    TEMPLATES,
    TEXT,
    all_equal,
    edited_matrices,
    tiny_hparams,
)

FAMILIES = ("gpt2", "llama", "gemma2")


def device_map(model: Any, split: int, first: Any, second: Any) -> dict[str, Any]:
    """Blocks below `split` on the first device; a head that shares the embedding's matrix is where that is."""
    row = ARCHITECTURES[model.config.model_type]
    root = row.block.rpartition(".")[0]
    parent = root.rpartition(".")[0]
    places = {f"{parent}.{name}": first for name, _ in model.get_submodule(parent).named_children()}
    del places[root]
    places |= {row.block.format(number): first if number < split else second for number in range(3)}
    (head,) = (name for name, module in model.named_modules() if module is model.get_output_embeddings())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return places | {row.final_norm: second, head: first if tied else second}


def on_two(model: Any, split: int) -> Any:
    places = device_map(model, split, FIRST, SECOND)
    for path, device in places.items():
        put(model.get_submodule(path), device)
    model.hf_device_map = places
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


@pytest.mark.parametrize(
    ("family", "split"), [*((family, 1) for family in CONFIGS), *((family, 2) for family in FAMILIES)]
)
def test_two_devices_give_what_one_gives_bit_for_bit(
    family: str, split: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = all_of(session_on(build_model(family), "MEMIT", tmp_path))
    if ARCHITECTURES[build_model(family).config.model_type].prefix_cache:
        monkeypatch.setattr(FullRows, "seen", lambda *_: pytest.fail("the slow form is not needed"))
    with TwoDevices():
        session = session_on(on_two(build_model(family), split), "MEMIT", tmp_path)
        got = all_of(session)
        assert session.weights.master[1].device == (FIRST if split == 2 else SECOND)
    assert got == wanted


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_on_two_devices(method: str, tmp_path: Path) -> None:
    numbers = {"prune_double_add": True} if method == "PRUNE" else {"lyap_alpha": 0.01} if method == "LyapLock" else {}
    done = []
    for split in (3, 1):
        with TwoDevices():
            session = session_on(on_two(build_model("llama"), split), method, tmp_path, **numbers)
            # The third is about the fact of the first, whose key is forgotten.
            for request in (*build_requests(2), {**build_requests(1)[0], "target_new": "Dutch"}):
                session.edit(request)
            done.append(edited_matrices(session))
    assert all_equal(*done)


def test_the_plain_form_on_two_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what the fast one cannot do; there is nothing that the two have in common above the session."""
    monkeypatch.setattr("nas_plugin.solve.target.can_reuse_prefix", lambda *_: False)
    wanted = all_of(session_on(build_model("llama"), "MEMIT", tmp_path))
    with TwoDevices():
        assert all_of(session_on(on_two(build_model("llama"), 1), "MEMIT", tmp_path)) == wanted


def test_a_kept_session_on_two_devices_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = SimpleNamespace(get_rng_state=lambda _: torch.zeros(1), set_rng_state=lambda *_: None)
    monkeypatch.setattr(torch, "ipu", generator, raising=False)

    def kept(folder: Path) -> EditSession:
        session = session_on(on_two(build_model("llama"), 1), "AlphaEdit", tmp_path, snapshot_every=1)
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
    model = build_model(family)
    places = {name: "cpu" if name.endswith((".0", ".1")) else "disk" for name in device_map(model, 3, None, None)}
    offloaded = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path / "offload")
    assert offloaded.get_input_embeddings().weight.device.type == "meta"
    plain = build_model(family)
    assert weights_fingerprint(offloaded) == weights_fingerprint(plain)
    got, wanted = (all_of(session_on(model, "MEMIT", tmp_path)) for model in (offloaded, plain))
    assert got == wanted


def test_an_offloaded_layer_is_not_edited(tmp_path: Path) -> None:
    model = build_model("llama")
    model = dispatch_model(
        model, device_map(model, 1, "cpu", "disk"), main_device="cpu", offload_dir=tmp_path / "offload"
    )
    with pytest.raises(UnsupportedWeightError, match=r"model\.layers\.1\.mlp\.down_proj\.weight is on the meta device"):
        session_on(model, "MEMIT", tmp_path)
