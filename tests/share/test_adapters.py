"""A model that carries a PEFT adapter is edited where no adapter lies, and refused by name where one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model

from nas_plugin import apply_edits, export_edits, load_edits
from nas_plugin.errors import AdapterError, EditsError
from nas_plugin.model.adapters import adapted_modules, unwrapped
from nas_plugin.model.fingerprint import weights_fingerprint
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests, build_tokenizer
from tests.promises.watching import digests
from tests.share.sharing import FAST, apart
from tests.support import TEMPLATES, TEXT, moments, tiny_hparams

ATTENTION = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
REWRITE = {"gpt2": ["mlp.c_proj"], "llama": ["down_proj"]}
FAMILIES = ("gpt2", "llama")


def lora_on(family: str, targets: dict[str, list[str]], *, native: bool = False) -> Any:
    """A model with an adapter that does something, as a PeftModel or as `model.add_adapter` leaves it."""
    config = LoraConfig(target_modules=targets[family], r=2, fan_in_fan_out=family == "gpt2", init_lora_weights=False)
    model: Any = build_model(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if native:
            model.add_adapter(config)
        else:
            model = get_peft_model(model, config)
    return model.eval()


def session_on(model: Any, family: str, **more: Any) -> EditSession:
    hparams = tiny_hparams("MEMIT", **{**FAST, **more})
    # Without provenance: those of the model without an adapter would be refused.
    known = {layer: matrix + 0.5 * torch.eye(48) for layer, matrix in _moments(family).items()}
    return EditSession(model, build_tokenizer(), hparams, contexts=TEMPLATES, moments=known, anchor=3.0, progress=False)


def _moments(family: str) -> dict[int, torch.Tensor]:
    # Layers that a test edits besides get those of the first.
    found = moments(family, (0, 1), torch.float32, 0).matrices
    return {**found, 2: found[0]}


def edits(session: EditSession) -> EditSession:
    for request in build_requests(2):
        session.edit(request)
    return session


@pytest.mark.parametrize("native", [False, True], ids=["PeftModel", "add_adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_elsewhere_stays_and_the_model_is_edited(family: str, native: bool) -> None:
    model = lora_on(family, ATTENTION, native=native)
    before, trained = digests(model), [parameter.requires_grad for parameter in model.parameters()]
    assert apart(model, build_model(family)) > 1e-3
    session = edits(session_on(model, family))
    changed = {name for name, digest in digests(model).items() if before[name] != digest}
    assert {name.removeprefix("base_model.model.") for name in changed} == set(session.parameter_names)
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    session.revert()
    assert digests(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_takes_part_in_the_edit(family: str) -> None:
    """The same edit as on the model whose attention holds the adapter merged."""
    session = edits(session_on(lora_on(family, ATTENTION), family))
    merged = edits(session_on(lora_on(family, ATTENTION).merge_and_unload(), family))
    plain = edits(session_on(build_model(family), family))
    name = session.parameter_names[-1]
    ours, theirs, other = (one.em.model.get_parameter(name).detach() for one in (session, merged, plain))
    base = build_model(family).get_parameter(name).detach()
    # Two orders of summation, through a few steps of Adam.
    assert float((ours - theirs).norm()) < 0.05 * float((theirs - base).norm())
    assert float((ours - other).norm()) > 0.1 * float((theirs - base).norm())


def test_statistics_and_anchor_are_measured_with_the_adapter(tmp_path: Path) -> None:
    text = tmp_path / "text.json"
    text.write_text(json.dumps(TEXT), encoding="utf-8")
    found = {}
    for name, model in (("with", lora_on("gpt2", ATTENTION)), ("without", build_model("gpt2"))):
        hparams = tiny_hparams("MEMIT", **FAST, mom2_dataset=str(text))
        session = EditSession(model, build_tokenizer(), hparams, contexts=TEMPLATES, progress=False)
        found[name] = session.prepare()
        assert found[name].moments.provenance["model"] == session.fingerprint
        assert found[name].anchor is not None and found[name].anchor.model == session.fingerprint
    ours, theirs = (one.moments.matrices[1] for one in found.values())
    assert float((ours - theirs).norm()) > 1e-3 * float(theirs.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_fingerprints(family: str) -> None:
    model, again = lora_on(family, ATTENTION), lora_on(family, ATTENTION)
    assert unwrapped(model) is model.get_base_model() and unwrapped(build_model(family)).config.model_type == family
    assert session_on(model, family).fingerprint == weights_fingerprint(model) == weights_fingerprint(again)
    assert weights_fingerprint(model) == weights_fingerprint(model.get_base_model())
    assert weights_fingerprint(model) != weights_fingerprint(build_model(family))
    names = adapted_modules(model)
    assert names and all(name.rsplit(".", 1)[-1] in ATTENTION[family] for name in names)
    assert adapted_modules(build_model(family)) == []


@pytest.mark.parametrize("native", [False, True], ids=["PeftModel", "add_adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exports(family: str, native: bool, tmp_path: Path) -> None:
    session = edits(session_on(lora_on(family, ATTENTION, native=native), family))
    export_edits(session, tmp_path / "edits", "edits")
    again = lora_on(family, ATTENTION, native=native)
    apply_edits(again, tmp_path / "edits")
    assert apart(again, session.model) == 0
    plain = build_model(family)
    with pytest.raises(EditsError, match="fingerprint"):
        apply_edits(plain, tmp_path / "edits")
    load_edits(plain, tmp_path / "edits" / "edits.safetensors", check=False)
    name = session.parameter_names[0]
    assert torch.equal(plain.get_parameter(name), session.em.model.get_parameter(name))
    assert "the base carries an adapter on" in (tmp_path / "edits" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(AdapterError, match="merge it first"):
        export_edits(session, tmp_path / "full", "full")
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_adapter_beside_another(family: str, tmp_path: Path) -> None:
    session = edits(session_on(lora_on(family, ATTENTION), family))
    export_edits(session, tmp_path / "lora", "lora")
    model = lora_on(family, ATTENTION)
    merged = lora_on(family, ATTENTION)
    assert not apply_edits(merged, tmp_path / "lora").share < 1 - 1e-9
    assert apart(merged, session.model) < 1e-5
    model.load_adapter(tmp_path / "lora", "edits")
    model.base_model.set_adapter(["default", "edits"])
    assert apart(model, session.model) < 1e-5


@pytest.mark.parametrize("native", [False, True], ids=["PeftModel", "add_adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_on_the_edited_module_is_refused_by_name(family: str, native: bool) -> None:
    model = lora_on(family, REWRITE, native=native)
    before = digests(model)
    with pytest.raises(AdapterError, match=r"a PEFT adapter lies on the module that would be edited .*merge it first"):
        session_on(model, family)
    assert digests(model) == before
    if not native:
        merged = model.merge_and_unload()
        assert edits(session_on(merged, family)).history.entries


def test_only_edited_layers_have_to_be_free() -> None:
    config = LoraConfig(target_modules=r".*h\.2\.mlp\.c_proj", fan_in_fan_out=True)
    edits(session_on(get_peft_model(build_model("gpt2"), config), "gpt2"))
    with pytest.raises(AdapterError):
        session_on(get_peft_model(build_model("gpt2"), config), "gpt2", layers=[1, 2])


def test_other_kinds_of_adapters() -> None:
    scaled = IA3Config(
        target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with pytest.raises(AdapterError, match="merge it first"):
        session_on(get_peft_model(build_model("gpt2"), scaled), "gpt2")
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(AdapterError, match="is a prompt"):
        session_on(get_peft_model(build_model("gpt2"), prompt), "gpt2")
