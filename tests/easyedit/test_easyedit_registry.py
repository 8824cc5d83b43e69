"""Registration leaves the host exactly as it was; construction works in every way a user writes it."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_support import make_model, make_tokenizer

from nas_plugin import hparams as hyperparameters
from nas_plugin.easyedit import prepare
from nas_plugin.easyedit.adapter import adapter_of
from nas_plugin.easyedit.host import Host
from nas_plugin.easyedit.preloaded import Preloaded
from nas_plugin.easyedit.registry import HPARAMS_NAMES, NAS_NAMES, PLAIN_NAMES, register, unregister
from nas_plugin.errors import HostDeviceError, HparamsError, PadTokenError


def surface(host: Host) -> tuple[Any, ...]:
    return (
        dict(host.ALG_DICT),
        dict(vars(host.BatchEditor)),
        dict(vars(host.BaseEditor)),
        {name: value for name, value in vars(host.module).items() if not name.startswith("__")},
    )


def test_unregister_restores_the_host_exactly(loaded_host) -> None:
    unregister()
    before = surface(loaded_host)
    order = list(loaded_host.ALG_DICT)
    register()
    assert surface(loaded_host) != before
    unregister()
    assert surface(loaded_host) == before
    assert list(loaded_host.ALG_DICT) == order
    unregister()
    assert surface(loaded_host) == before


def test_register_twice_is_register_once(host) -> None:
    once = surface(host)
    register()
    assert surface(host) == once


def test_names_batches_and_classes(host) -> None:
    for name in NAS_NAMES + PLAIN_NAMES:
        assert adapter_of(host.ALG_DICT[name]) is not None
        assert host.BatchEditor.is_batchable_method(name)
    assert host.BatchEditor.is_batchable_method("MEMIT")
    assert not host.BatchEditor.is_batchable_method("ROME")
    assert adapter_of(host.ALG_DICT["MEMIT"]) is None
    for name in HPARAMS_NAMES:
        assert getattr(host.module, name) is getattr(hyperparameters, name)


def test_a_method_of_the_host_is_kept(loaded_host, caplog) -> None:
    unregister()

    def theirs() -> None: ...

    loaded_host.ALG_DICT["PRUNE"] = theirs
    try:
        with caplog.at_level(logging.INFO, logger="nas_plugin"):
            register()
        assert loaded_host.ALG_DICT["PRUNE"] is theirs and "PRUNE" in caplog.text
        assert not loaded_host.BatchEditor.is_batchable_method("PRUNE")
        unregister()
        assert loaded_host.ALG_DICT["PRUNE"] is theirs
    finally:
        del loaded_host.ALG_DICT["PRUNE"]


def test_a_wrapper_on_top_of_ours_stays(loaded_host, caplog) -> None:
    unregister()
    original = loaded_host.BaseEditor.edit
    register()

    def theirs() -> None: ...

    loaded_host.BaseEditor.edit = theirs
    unregister()
    assert loaded_host.BaseEditor.edit is theirs and "BaseEditor.edit" in caplog.text
    loaded_host.BaseEditor.edit = original


@pytest.mark.contract
def test_class_instance_and_constructor(host_on_cpu, settings, monkeypatch) -> None:
    demo = make_model("gpt2"), make_tokenizer()
    monkeypatch.setattr("nas_plugin.demo.load_demo", lambda dtype=None: demo)
    cls = hyperparameters.NASAlphaEditHparams
    for given in (cls, cls(), cls(device="cpu" if not host_on_cpu.is_wheel else 0)):
        for make in (host_on_cpu.BaseEditor, host_on_cpu.BaseEditor.from_hparams):
            editor = make(given)
            assert editor.model is demo[0] and editor.alg_name == "NAS-AlphaEdit"
            assert str(editor.model_name) == "nas-demo"
            assert editor.hparams is not given
    assert cls().model_name == "nas-demo"


@pytest.mark.contract
def test_yaml_and_override(host_on_cpu, settings) -> None:
    model = Preloaded(make_model("llama"), make_tokenizer())
    values = settings("MEMIT").to_dict()
    text = "".join(f"{key}: {'null' if value is None else value}\n" for key, value in values.items())
    Path("mine.yaml").write_text(text, encoding="utf-8")
    hparams = hyperparameters.NASMEMITHparams.from_hparams("mine.yaml", model_name=model)
    editor = host_on_cpu.BaseEditor.from_hparams(hparams)
    assert editor.model is model.model and hparams.device is None


@pytest.mark.contract
def test_a_folder_is_loaded_by_its_configuration(host_on_cpu, settings, tmp_path) -> None:
    """The host would take this path for a T5, and its wheel would rebuild the tokenizer."""
    folder = tmp_path / "host5-llama"
    make_model("llama").save_pretrained(folder)
    tok = make_tokenizer()
    tok.save_pretrained(folder)
    editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=str(folder), torch_dtype="bfloat16"))
    assert type(editor.model).__name__ == "LlamaForCausalLM" and editor.model.dtype == torch.bfloat16
    assert editor.tok.encode("Anna Berg was born in") == tok.encode("Anna Berg was born in")
    assert "t5" not in editor.model_name.lower()


@pytest.mark.contract
def test_handlers_do_not_multiply(host_on_cpu, settings) -> None:
    logger = logging.getLogger(host_on_cpu.BaseEditor.__module__)
    hparams = settings(model_name=Preloaded(make_model("gpt2"), make_tokenizer()))
    host_on_cpu.BaseEditor.from_hparams(hparams)
    before = list(logger.handlers)
    host_on_cpu.BaseEditor.from_hparams(hparams)
    assert logger.handlers == before


def test_another_methods_hparams_take_the_hosts_own_path(host) -> None:
    class Theirs:
        model_name = make_model("gpt2"), make_tokenizer()
        alg_name = "NO SUCH METHOD"

    with pytest.raises(KeyError, match="NO SUCH METHOD"):
        host.BaseEditor.from_hparams(Theirs())


def test_hparams_of_another_class_are_refused(host) -> None:
    apply = host.ALG_DICT["NAS-MEMIT"]
    with pytest.raises(HparamsError, match="NASMEMITHparams"):
        apply(make_model("gpt2"), make_tokenizer(), [], object())


@pytest.mark.skipif(
    torch.empty(0).is_cuda or hasattr(torch, "accelerator") and torch.accelerator.is_available(), reason="has one"
)
def test_devices_without_an_accelerator(caplog) -> None:
    assert prepare.working_device(None) == prepare.working_device("cpu") == "cpu"
    assert caplog.text == ""
    for device in (0, "1", "mps"):
        caplog.clear()
        assert prepare.working_device(device) == "cpu" and "CPU" in caplog.text
    with pytest.raises(HparamsError, match="nonsense"):
        prepare.working_device("nonsense")
    with pytest.raises(HostDeviceError, match="EASYEDIT_HOME"):
        prepare.wheel_device(0)


def test_preloaded_is_pair_and_name() -> None:
    model, tok = make_model("gpt2"), make_tokenizer()
    both = Preloaded(model, tok, name="My/Tiny-GPT2")
    assert (*both,) == (model, tok) and both.model is model and both.tok is tok
    assert (
        both.lower() == "my/tiny-gpt2" and both.split("/") == ["My", "Tiny-GPT2"] and "GPT2" in both and model in both
    )
    assert str(both) == "My/Tiny-GPT2" and both == Preloaded(model, tok) and both != "My/Tiny-GPT2"
    assert copy.deepcopy(both) is both and copy.copy(both) is both and hash(both) == hash(Preloaded(model, tok))
    assert pickle.loads(pickle.dumps(both)) == "My/Tiny-GPT2"  # noqa: S301 - our own bytes
    with pytest.raises(AttributeError):
        both.no_such_method  # noqa: B018
    assert hyperparameters.NASMEMITHparams(model_name=both).to_dict()["model_name"] == "My/Tiny-GPT2"


def test_preloaded_needs_a_pad_token_and_changes_nothing() -> None:
    tok = make_tokenizer()
    tok.pad_token = None
    with pytest.raises(PadTokenError, match="eos_token"):
        Preloaded(make_model("gpt2"), tok)
    assert tok.pad_token is None
