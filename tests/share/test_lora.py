"""LoRA adapters: what PEFT loads is the change, whole while its rank allows and otherwise as much of it as is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from nas_plugin import apply_edits, export_edits
from nas_plugin.errors import EditsError
from nas_plugin.files import write_tensors
from nas_plugin.session import EditSession
from nas_plugin.share.lora import read_adapter
from tests.conftest import build_model
from tests.promises.watching import digests
from tests.share.sharing import apart, as_loaded, edited, files

# Conv1D (GPT-2) keeps the transpose; Linear (Llama) does not. What two orders of summation may differ by, in logits near 1.
CASES: dict[str, tuple[str, str, torch.dtype, float]] = {
    "conv": ("gpt2", "MEMIT", torch.float32, 1e-5),
    "linear": ("llama", "AlphaEdit", torch.float32, 1e-5),
    "mask": ("llama", "RECT", torch.float32, 1e-5),
    "double": ("gpt2", "LyapLock", torch.float64, 1e-9),
    "bf16": ("llama", "MEMIT", torch.bfloat16, 0.1),
    "fp16": ("gpt2", "PRUNE", torch.float16, 0.01),
}


def base_of(name: str) -> Any:
    family, _, dtype, _ = CASES[name]
    return as_loaded(build_model(family, dtype), family)


def with_adapter(session: EditSession, folder: Path) -> Any:
    family, dtype = session.model.config.model_type, session.em.dtype
    return PeftModel.from_pretrained(as_loaded(build_model(family, dtype), family), folder)


@pytest.mark.parametrize("name", CASES)
def test_the_whole_rank_is_the_change(name: str, tmp_path: Path) -> None:
    family, method, dtype, near = CASES[name]
    session = edited(family, method, dtype, edits=2)
    done = export_edits(session, tmp_path / "lora", "lora")
    assert done.share == pytest.approx(1, abs=1e-9) and not done.exact
    assert files(done.folder) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    edit = apart(session.model, base_of(name))
    kept_apart = with_adapter(session, done.folder)
    assert apart(kept_apart, session.model) < min(near, edit / 4)
    assert apart(kept_apart.merge_and_unload(), session.model) < min(near, edit / 4)
    merged = base_of(name)
    applied = apply_edits(merged, done.folder)
    assert applied.form == "lora" and applied.share == done.share and applied.about.base == session.fingerprint
    assert apart(merged, session.model) < min(near, edit / 4)
    names = [session.em.parameter_names[layer] for layer in session.em.layers]
    assert applied.exact == all(
        torch.equal(merged.get_parameter(name), session.model.get_parameter(name)) for name in names
    )
    if dtype in {torch.bfloat16, torch.float16}:
        assert applied.exact, "the same rounding of almost the same numbers"


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_a_cut_adapter_keeps_what_it_says(name: str, tmp_path: Path) -> None:
    family, method, dtype, _ = CASES[name]
    session = edited(family, method, dtype, edits=6)
    shares = []
    for rank in (1, 2, 4, 100):
        done = export_edits(session, tmp_path / str(rank), "lora", rank=rank)
        model = base_of(name)
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        apply_edits(model, done.folder)
        missed, energy = 0.0, 0.0
        for key in session.parameter_names:
            change = session.model.get_parameter(key).detach().double() - before[key].double()
            left = change - (model.get_parameter(key).detach().double() - before[key].double())
            missed, energy = missed + float(left.square().sum()), energy + float(change.square().sum())
            share = 1 - float(left.square().sum()) / float(change.square().sum())
            assert done.shares[key] == pytest.approx(share, abs=1e-5) and done.ranks[key] <= rank
        assert done.share == pytest.approx(1 - missed / energy, abs=1e-5)
        assert f"{done.share:.9f}" in (done.folder / "README.md").read_text(encoding="utf-8")
        assert read_adapter(done.folder / "adapter_model.safetensors").share == done.share
        shares.append(done.share)
    assert shares == sorted(shares) and shares[0] < 0.9 and shares[-1] == pytest.approx(1, abs=1e-9)
    assert "what is cut off is lost" in (tmp_path / "1" / "README.md").read_text(encoding="utf-8")
    assert "It has the whole rank" in (tmp_path / "100" / "README.md").read_text(encoding="utf-8")


def test_layers_of_different_rank(tmp_path: Path) -> None:
    """A layer that does not change has an adapter of zeros."""
    session = edited("llama", "MEMIT", edits=3)
    second = session.em.layers[1]
    matrices = {**session.weights.master, second: session.weights.base[second]}
    session.weights.put(matrices, matrices)
    done = export_edits(session, tmp_path / "lora", "lora")
    config = json.loads((done.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == config["lora_alpha"] == 3
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.1.mlp.down_proj": 1}
    tensors = load_file(done.folder / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (1, 48)
    assert not tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"].any()
    model = with_adapter(session, done.folder)
    scaling = {key: module.scaling["default"] for key, module in model.named_modules() if hasattr(module, "lora_A")}
    assert len(scaling) == 2 and set(scaling.values()) == {1.0}
    assert apart(model, session.model) < 1e-5


def test_no_change_at_all(tmp_path: Path) -> None:
    session = edited()
    session.revert()
    done = export_edits(session, tmp_path / "lora", "lora")
    assert done.share == 1.0
    assert apart(with_adapter(session, done.folder), build_model("gpt2")) == 0


@pytest.mark.parametrize(("family", "turned"), [("gpt2", True), ("gptj", False), ("llama", False)])
def test_the_config_goes_by_type(family: str, turned: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    session = edited(family, edits=1)
    done = export_edits(session, tmp_path / "lora", "lora", base="somebody/model")
    config = json.loads((done.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["fan_in_fan_out"] is turned and config["base_model_name_or_path"] == "somebody/model"
    assert config["target_modules"] == sorted(name.removesuffix(".weight") for name in session.parameter_names)
    with_adapter(session, done.folder)
    assert not [warning for warning in recwarn if "fan_in_fan_out" in str(warning.message)], (
        "PEFT has to correct nothing"
    )


def test_models_that_it_does_not_belong_to(tmp_path: Path) -> None:
    done = export_edits(edited(), tmp_path / "lora", "lora")
    edits_applied = build_model("gpt2")
    apply_edits(edits_applied, done.folder)
    narrow = build_model("gpt2")
    narrow.transformer.h[1].mlp.c_proj.weight = torch.nn.Parameter(narrow.transformer.h[1].mlp.c_proj.weight[:, :-1])
    for model, says in (
        (build_model("llama"), "has no parameter 'transformer.h.0.mlp.c_proj.weight'"),
        (build_model("gpt2", seed=1), "fingerprint"),
        (build_model("gpt2", torch.bfloat16), "another dtype"),
        (edits_applied, "edited already"),
        (narrow, r"\(48, 32\), in this model"),
    ):
        before = digests(model)
        with pytest.raises(EditsError, match=says):
            apply_edits(model, done.folder)
        assert digests(model) == before
    other = build_model("gpt2", seed=1)
    assert not apply_edits(other, done.folder, check=False).exact


def test_what_a_model_cannot_hold_is_refused(tmp_path: Path) -> None:
    done = export_edits(edited("gpt2", "MEMIT", torch.float16), tmp_path / "lora", "lora")
    path = done.folder / "adapter_model.safetensors"
    from nas_plugin.keep.edits import pieces_digest
    from nas_plugin.keep.header import KEY, text_of
    from nas_plugin.share.lora import FORMAT

    about, tensors = read_adapter(path).about, load_file(path)
    tensors = {name: tensor * 1e6 for name, tensor in tensors.items()}
    text = text_of(about, FORMAT, {"pieces": pieces_digest(tensors), "share": 1.0})
    write_tensors(path, tensors, {KEY: text})
    model = build_model("gpt2", torch.float16)
    before = digests(model)
    with pytest.raises(EditsError, match="would hold NaN or infinity in torch.float16"):
        apply_edits(model, path)
    assert digests(model) == before


def test_an_adapter_of_somebody_else(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    get_peft_model(build_model("gpt2"), LoraConfig(target_modules=["c_proj"], fan_in_fan_out=True)).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(EditsError, match="this package did not write it; load it with peft"):
        apply_edits(build_model("gpt2"), tmp_path / "other")
