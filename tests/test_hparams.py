"""Hyperparameters: the shipped files, loading, conversion, and the errors a user meets."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nas_plugin.errors import HparamsError
from nas_plugin.hparams import (
    NASAlphaEditHparams,
    NASENCOREHparams,
    NASHparams,
    NASLyapLockHparams,
    NASMEMITHparams,
    NASPRUNEHparams,
    NASRECTHparams,
    shipped_folder,
    shipped_names,
)

CLASSES = (
    NASMEMITHparams,
    NASPRUNEHparams,
    NASRECTHparams,
    NASAlphaEditHparams,
    NASENCOREHparams,
    NASLyapLockHparams,
)
MODELS = (
    "gpt2-xl", "gpt-j-6B", "llama3-8b", "qwen2.5-7b", "nas-demo", "stories260K",
    "llama2-7b", "llama3.1-8b", "llama3.2-1b", "llama3.2-3b", "mistral-7b-v0.3", "qwen2.5-1.5b", "qwen3-8b", "gemma-2-9b",
    "gemma-3-1b", "olmo-2-7b", "phi-3-mini", "phi-4", "gpt-neox-20b", "opt-6.7b", "falcon-7b",
)  # fmt: skip
NOT_DECISIVE = {
    "model_name", "stats_dir", "device", "model_parallel", "batch_size", "max_length", "fp16", "torch_dtype",
    "nas_anchor_file", "P_loc", "mom2_n_tokens", "mom2_tokens_per_dim", "layer_selection", "mom2_adjustment",
    "on_conflict", "on_reject", "norm_alarm", "on_norm_alarm", "keep_dir", "snapshot_every",
}  # fmt: skip

# Every key of EasyEdit's MEMIT and AlphaEdit files, written as those files write it.
EASYEDIT_YAML = """
alg_name: "MEMIT"
model_name: "./hugging_cache/gpt2-xl"
stats_dir: "./data/stats"
P_loc: "./null_space_project.pt"
device: 0
layers: [13, 14, 15, 16, 17]
clamp_norm_factor: 4
layer_selection: "all"
fact_token: "subject_last"
v_num_grad_steps: 20
v_lr: 5e-1
v_loss_layer: 47
v_weight_decay: 1e-3
kl_factor: 0.0625
mom2_adjustment: true
mom2_update_weight: 20000
rewrite_module_tmp: "transformer.h.{}.mlp.c_proj"
layer_module_tmp: "transformer.h.{}"
mlp_module_tmp: "transformer.h.{}.mlp"
attn_module_tmp: "transformer.h.{}.attn"
ln_f_module: "transformer.ln_f"
lm_head_module: "transformer.wte"
mom2_dataset: "wikipedia"
mom2_n_samples: 100000
mom2_dtype: "float32"
model_parallel: false
nullspace_threshold: 2e-2
L2: 1
"""


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def swapped(cls: type[NASHparams], *changes: tuple[str, str]) -> str:
    """EasyEdit's file with the method changed, and further lines replaced by regular expression."""
    text = EASYEDIT_YAML.replace('"MEMIT"', f'"NAS-{cls.method}"')
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, pattern
    return text


# --- shipped files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_class_defaults_are_the_shipped_demo_file(cls: type[NASHparams]) -> None:
    assert cls() == cls.from_hparams("nas-demo")


@pytest.mark.parametrize("cls", CLASSES)
def test_a_class_carries_its_defaults_itself(cls: type[NASHparams]) -> None:
    # EasyEdit reads attributes off whatever it is given, also off the class.
    instance = cls()
    assert {f.name: getattr(cls, f.name) for f in fields(cls)} == {
        f.name: getattr(instance, f.name) for f in fields(cls)
    }


def test_shipped_names_are_methods_times_models() -> None:
    assert set(shipped_names()) == {f"NAS-{cls.method}/{model}" for cls in CLASSES for model in MODELS}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("cls", CLASSES)
def test_shipped_file_leaves_no_decision_to_the_demo_defaults(cls: type[NASHparams], model: str) -> None:
    raw = yaml.safe_load((shipped_folder() / f"NAS-{cls.method}" / f"{model}.yaml").read_text(encoding="utf-8"))
    optional = {f.name for f in fields(cls) if f.name.endswith(("_tmp", "_module"))} if model == "nas-demo" else set()
    assert {f.name for f in fields(cls)} - set(raw) <= NOT_DECISIVE | optional
    # EasyEdit's loader turns numeric strings into floats; nothing in these files may depend on that.
    assert not [key for key, value in raw.items() if isinstance(value, str) and value.replace(".", "").isdigit()]
    hparams = cls.from_hparams(f"NAS-{cls.method}/{model}")
    assert hparams.alg_name == f"NAS-{cls.method}" and hparams.use_nas
    assert (hparams.nas_pilots == "demo") == (model == "nas-demo") == (hparams.mom2_dataset == "demo")


@pytest.mark.parametrize(
    ("cls", "model", "expected"),
    [
        (NASMEMITHparams, "gpt2-xl", {"layers": (13, 14, 15, 16, 17), "v_lr": 0.5, "mom2_update_weight": 20000}),
        (NASPRUNEHparams, "gpt-j-6B", {"layers": (3, 4, 5, 6, 7, 8), "v_loss_layer": 27, "mom2_update_weight": 15000}),
        (NASRECTHparams, "llama3-8b", {"layers": (4, 5, 6, 7, 8), "v_lr": 0.1, "v_loss_layer": 31, "rect_keep": 0.4}),
        (NASAlphaEditHparams, "llama3-8b", {"L2": 10, "nullspace_threshold": 0.02, "v_lr": 0.1}),
        (NASAlphaEditHparams, "qwen2.5-7b", {"layers": (7, 8, 9, 10, 11), "clamp_norm_factor": 0.75, "L2": 10}),
        (NASENCOREHparams, "gpt2-xl", {"update_norm_lambda": 10, "prob_cutoff": -4, "mom2_update_weight": 20000}),
        (NASENCOREHparams, "llama2-7b", {"update_norm_lambda": 10, "prob_cutoff": -3, "v_lr": 0.5}),
        (NASMEMITHparams, "llama3.2-3b", {"layers": (4, 5, 6, 7, 8), "clamp_norm_factor": 4, "v_weight_decay": 1e-3}),
        (NASLyapLockHparams, "gemma-2-9b", {"mom2_update_weight": 1000, "clamp_norm_factor": 4, "v_loss_layer": 41}),
        (NASENCOREHparams, "llama3-8b", {"update_norm_lambda": 20, "prob_cutoff": -2, "v_lr": 0.5}),
        (NASLyapLockHparams, "llama3-8b", {"mom2_update_weight": 1000, "mom2_dtype": "float64", "lyap_alpha": 60}),
    ],
)
def test_published_values(cls: type[NASHparams], model: str, expected: dict[str, Any]) -> None:
    hparams = cls.from_hparams(model)
    assert {key: getattr(hparams, key) for key in expected} == expected


def test_name_path_and_suffix_find_the_same_file() -> None:
    path = shipped_folder() / "NAS-AlphaEdit" / "qwen2.5-7b"
    loaded = [
        NASAlphaEditHparams.from_hparams(name)
        for name in ("qwen2.5-7b", "NAS-AlphaEdit/qwen2.5-7b", "NAS-AlphaEdit/qwen2.5-7b.yaml", path, f"{path}.yaml")
    ]
    assert all(hparams == loaded[0] for hparams in loaded)


def test_a_local_file_wins_over_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "NAS-MEMIT").mkdir()
    write(tmp_path, swapped(NASMEMITHparams), "NAS-MEMIT/gpt2-xl.yaml")
    assert NASMEMITHparams.from_hparams("NAS-MEMIT/gpt2-xl").clamp_norm_factor == 4


def test_missing_file_names_the_nearest() -> None:
    with pytest.raises(HparamsError, match=r"lama3-8b\.yaml.*Nearest shipped names: NAS-AlphaEdit/llama3-8b"):
        NASAlphaEditHparams.from_hparams("./hparams/NAS-AlphaEdit/lama3-8b")


# --- EasyEdit's files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_easyedit_file_with_only_the_method_changed(
    cls: type[NASHparams], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(yaml.safe_load(EASYEDIT_YAML)) == 28
    with caplog.at_level(logging.DEBUG, "nas_plugin"):
        hparams = cls.from_hparams(write(tmp_path, swapped(cls)))
    assert hparams.v_lr == 0.5 and hparams.v_weight_decay == 1e-3 and hparams.device == 0
    # Not the demo's pilots: this is a real model.
    assert hparams.nas_pilots == "builtin"
    assert ("does not use L2" in caplog.text) == (cls is not NASAlphaEditHparams)


def test_memit_file_turned_into_alphaedit_gets_published_values_not_the_demo_ones(tmp_path: Path) -> None:
    text = swapped(NASAlphaEditHparams, (r"L2: 1\n", ""), (r"nullspace_threshold: .*\n", ""))
    hparams = NASAlphaEditHparams.from_hparams(write(tmp_path, text))
    assert (hparams.L2, hparams.nullspace_threshold) == (10, 0.02)


@pytest.mark.skipif("EASYEDIT_HOME" not in os.environ, reason="EASYEDIT_HOME names no checkout of EasyEdit")
@pytest.mark.parametrize(("cls", "method"), [(NASMEMITHparams, "MEMIT"), (NASAlphaEditHparams, "AlphaEdit")])
def test_every_file_of_easyedit_loads_once_its_method_is_changed(
    cls: type[NASHparams], method: str, tmp_path: Path
) -> None:
    files = sorted(Path(os.environ["EASYEDIT_HOME"], "hparams", method).glob("*.yaml"))
    assert files
    for file in files:
        text, count = re.subn(r"(?m)^alg_name:.*$", f"alg_name: NAS-{method}", file.read_text(encoding="utf-8"))
        assert count == 1
        hparams = cls.from_hparams(write(tmp_path, text, file.name))
        assert list(hparams.layers) == yaml.safe_load(text)["layers"]


# --- conversion ------------------------------------------------------------------------------------------------------


def test_numeric_strings_become_numbers_only_where_a_number_is_declared(tmp_path: Path) -> None:
    text = swapped(NASMEMITHparams, ("device: 0", 'device: "0"'), ("model_name: .*", 'model_name: "7"'))
    text += 'nas_seed: "3"\nmom2_n_tokens: 1e6\n'
    hparams = NASMEMITHparams.from_hparams(write(tmp_path, text))
    assert hparams.device == "0" and hparams.model_name == "7"
    assert hparams.nas_seed == 3 and hparams.mom2_n_tokens == 1_000_000
    assert type(hparams.nas_seed) is int and type(hparams.mom2_update_weight) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"v_lr": "fast"}, r"v_lr: expected a number, got 'fast' \(str\)"),
        ({"v_lr": True}, r"v_lr: expected a number, got True \(bool\)"),
        ({"v_lr": float("nan")}, "v_lr: expected a number"),
        ({"v_num_grad_steps": True}, r"v_num_grad_steps: expected a whole number, got True \(bool\)"),
        ({"v_num_grad_steps": 2.5}, "v_num_grad_steps: expected a whole number, got 2.5"),
        ({"use_nas": 1}, r"use_nas: expected true or false, got 1 \(int\)"),
        ({"use_nas": "false"}, "use_nas: expected true or false"),
        ({"layers": "0"}, "layers: expected a list of layer numbers"),
        ({"layers": 4}, "layers: expected a list of layer numbers"),
        ({"layers": [0, 1.5]}, "layers: expected a list of layer numbers"),
        ({"device": True}, "device: expected"),
        ({"model_name": 7}, "model_name: expected"),
        ({"model_name": " "}, "model_name: expected"),
        ({"stats_dir": 3}, "stats_dir: expected a string or null"),
        ({"layers": []}, "layers: must be"),
        ({"layers": [2, 1]}, "ascending"),
        ({"layers": [1, 1]}, "distinct"),
        ({"layers": [-1]}, "from 0 up"),
        ({"layers": [3], "v_loss_layer": 2}, "v_loss_layer: .*below the last edited layer 3"),
        ({"v_lr": 0}, "v_lr: must be greater than 0, got 0"),
        ({"v_num_grad_steps": 0}, "v_num_grad_steps: must be at least 1"),
        ({"kl_factor": -0.1}, "kl_factor: must be at least 0"),
        ({"mom2_n_tokens": 0}, "mom2_n_tokens: must be at least 1"),
        ({"nas_skip_factor": 0}, "nas_skip_factor: must be greater than 0"),
        ({"fact_token": "last"}, "fact_token: must be 'subject_last', got 'last'"),
        ({"nas_mode": "papper"}, "nas_mode: must be 'paper' or 'official'"),
        ({"mom2_dtype": "int8"}, "mom2_dtype: must be"),
        ({"torch_dtype": "half"}, "torch_dtype: must be"),
        ({"fp16": True, "torch_dtype": "bfloat16"}, "fp16: true contradicts"),
        ({"rewrite_module_tmp": "model.layers.mlp"}, "rewrite_module_tmp: needs exactly one"),
        ({"lm_head_module": "model.{}.head"}, "lm_head_module: names one module"),
        ({"alg_name": "NAS-RECT"}, "alg_name: 'NAS-RECT' belongs to NASRECTHparams.*'NAS-MEMIT'"),
    ],
)
def test_bad_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HparamsError, match=message):
        NASMEMITHparams(**values)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (NASRECTHparams, {"rect_keep": 0}),
        (NASRECTHparams, {"rect_keep": 1.01}),
        (NASPRUNEHparams, {"prune_alpha": 1}),
        (NASAlphaEditHparams, {"L2": 0}),
        (NASAlphaEditHparams, {"nullspace_threshold": 0}),
        (NASENCOREHparams, {"update_norm_lambda": -1}),
        (NASENCOREHparams, {"prob_cutoff": 2}),
        (NASLyapLockHparams, {"lyap_alpha": 0}),
    ],
)
def test_each_method_checks_its_own_fields(cls: type[NASHparams], values: dict[str, Any]) -> None:
    with pytest.raises(HparamsError, match=next(iter(values))):
        cls(**values)


def test_a_torch_device_is_kept_as_its_name() -> None:
    assert NASMEMITHparams(device=torch.device("cpu", 0)).device == "cpu:0"
    assert NASMEMITHparams(device=torch.device("cpu")).to_dict()["device"] == "cpu"


def test_values_assigned_later_are_checked_on_demand() -> None:
    hparams = NASMEMITHparams()
    hparams.v_lr = -1
    with pytest.raises(HparamsError, match="v_lr"):
        hparams.validate()


# --- errors in files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        ("v_lr:", "v_rl:", "unknown key 'v_rl'; did you mean 'v_lr'"),
        ("L2: 1", "nas_plots: demo", "unknown key 'nas_plots'; did you mean 'nas_pilots'"),
        ("L2: 1", "rect_keep: 0.4", "unknown key 'rect_keep': it is a setting of NAS-RECT"),
        ("v_lr: .*", "v_lr: quick", "v_lr: expected a number, got 'quick'"),
        ("v_lr: .*\n", "", "missing v_lr"),
        ("layers: .*\n", "", "missing layers"),
        ("alg_name: .*", "", "missing alg_name"),
        ("alg_name: .*", "alg_name: MEMIT", "'MEMIT' is EasyEdit's own editor; change it to 'NAS-MEMIT'"),
        ("alg_name: .*", "alg_name: AlphaEdit", "change it to 'NAS-AlphaEdit' and load it with NASAlphaEditHparams"),
        ("alg_name: .*", "alg_name: NAS-ENCORE", "'NAS-ENCORE' belongs to NASENCOREHparams"),
        ("alg_name: .*", "alg_name: PRUNE", "'PRUNE' belongs to NASPRUNEHparams"),
        ("alg_name: .*", "alg_name: ROME", "'ROME' is no editor here"),
        ("(?s).*", "layers: [1", "not a readable YAML file"),
        ("(?s).+", "", "expected `key: value` lines, got nothing"),
        ("(?s).+", "- 1", "expected `key: value` lines, got list"),
    ],
)
def test_bad_file_is_named_with_the_key(pattern: str, replacement: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, re.sub(pattern, replacement, swapped(NASMEMITHparams), count=1))
    with pytest.raises(HparamsError, match=f"{re.escape(str(path))}: .*{message}") as caught:
        NASMEMITHparams.from_hparams(path)
    assert str(caught.value).count(str(path)) == 1 or "YAML" in message


def test_override_replaces_and_is_checked() -> None:
    assert NASMEMITHparams.from_hparams("gpt2-xl", v_lr="2e-1", use_nas=False).v_lr == 0.2
    with pytest.raises(HparamsError, match="unknown key 'v_rl'; did you mean 'v_lr'"):
        NASMEMITHparams.from_hparams("gpt2-xl", v_rl=0.2)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [NASPRUNEHparams, NASRECTHparams, NASENCOREHparams, NASLyapLockHparams])
def test_plain_name_switches_nas_off(cls: type[NASHparams]) -> None:
    plain = cls(alg_name=cls.method)
    assert plain.alg_name == cls.method and plain.use_nas is False
    assert plain.digest() == cls(use_nas=False).digest() != cls().digest()


@pytest.mark.parametrize("cls", [NASMEMITHparams, NASAlphaEditHparams])
def test_names_of_the_hosts_own_editors_stay_the_hosts(cls: type[NASHparams]) -> None:
    with pytest.raises(HparamsError, match=f"change it to 'NAS-{cls.method}'"):
        cls(alg_name=cls.method)


# --- out -------------------------------------------------------------------------------------------------------------


class Loaded(tuple):
    """A loaded model as EasyEdit users hand it over; copying it fails."""

    name = "my-model"

    def __deepcopy__(self, memo: object) -> None:
        raise AssertionError("a model was copied")


@pytest.mark.parametrize("cls", CLASSES)
def test_to_dict_round_trips_through_json_and_yaml(cls: type[NASHparams]) -> None:
    hparams = cls.from_hparams("gpt2-xl", device="cpu")
    assert cls(**json.loads(json.dumps(hparams.to_dict()))) == hparams
    assert cls(**yaml.safe_load(yaml.safe_dump(hparams.to_dict()))) == hparams


def test_a_loaded_model_is_kept_and_never_copied() -> None:
    model = Loaded((1, 2))
    hparams = NASMEMITHparams.from_hparams("gpt2-xl", model_name=model)
    assert hparams.model_name is model
    assert hparams.to_dict()["model_name"] == "my-model"
    assert hparams.digest() == NASMEMITHparams.from_hparams("gpt2-xl").digest()


@pytest.mark.parametrize(
    "same",
    [
        {"device": "cpu"},
        {"stats_dir": "elsewhere"},
        {"batch_size": 7},
        {"model_name": "another-folder"},
        {"nas_anchor_file": "a.json"},
        {"mom2_dataset": "b/text.jsonl"},
    ],
)
def test_digest_ignores_where_things_are(same: dict[str, Any]) -> None:
    base = NASMEMITHparams.from_hparams("gpt2-xl", mom2_dataset="a/text.jsonl")
    assert NASMEMITHparams.from_hparams("gpt2-xl", **{"mom2_dataset": "a/text.jsonl", **same}).digest() == base.digest()


@pytest.mark.parametrize(
    "other",
    [{"layers": [13]}, {"v_lr": 0.4}, {"nas_seed": 1}, {"context_seed": 1}, {"use_nas": False}, {"mom2_dataset": "c4"}],
)
def test_digest_notices_what_decides(other: dict[str, Any]) -> None:
    assert NASMEMITHparams.from_hparams("gpt2-xl", **other).digest() != NASMEMITHparams.from_hparams("gpt2-xl").digest()


def test_digest_tells_methods_apart() -> None:
    assert len({cls().digest() for cls in CLASSES}) == len(CLASSES)
