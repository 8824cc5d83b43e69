"""Files of hyperparameters: marks, the generated ones, and list, show, copy, validate and new, called and typed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, GPT2Config, SmolLM3Config
from typer.testing import CliRunner

from nas_plugin.cli import app
from nas_plugin.errors import HparamsError, ModelError, UnknownArchitectureError, UnsupportedArchitectureError
from nas_plugin.hparams import (
    MARKS,
    NASMEMITHparams,
    copy_hparams,
    list_hparams,
    new_hparams,
    shipped_folder,
    shipped_names,
    show_hparams,
    validate_hparams,
)
from nas_plugin.hparams.render import METHODS, early_layers
from nas_plugin.model.recognise import recognise
from nas_plugin.session import EditSession
from tests.conftest import CONFIGS, build_model, build_requests, build_tokenizer
from tests.support import TEMPLATES

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


def typed(*words: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["hparams", *map(str, words)])
    return done.exit_code, done.output


def generated() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("shipped_hparams", ROOT / "scripts" / "shipped_hparams.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.texts()


# --- shipped ---------------------------------------------------------------------------------------------------------


def test_generated_files_are_up_to_date() -> None:
    texts = generated()
    assert len(texts) == 15 * 6
    for name, text in texts.items():
        assert (shipped_folder() / name).read_text(encoding="utf-8") == text, "run python scripts/shipped_hparams.py"


def test_every_file_has_a_mark_and_a_source() -> None:
    files = list_hparams()
    assert [file.name for file in files] == list(shipped_names())
    for file in files:
        assert file.mark in MARKS and len(file.source) > 10 and "METHOD" not in file.source, file.name
        assert file.name.split("/")[0] == file.method and file.model


def test_marks_of_some() -> None:
    marks = {file.name: file.mark for file in list_hparams()}
    assert marks["NAS-MEMIT/gpt2-xl"] == marks["NAS-ENCORE/llama2-7b"] == "published"
    assert marks["NAS-ENCORE/gpt-j-6B"] == marks["NAS-RECT/llama2-7b"] == marks["NAS-MEMIT/nas-demo"] == "derived"
    assert marks["NAS-MEMIT/gemma-2-9b"] == marks["NAS-LyapLock/stories260K"] == "untested"


def test_all_shipped_files_are_valid_and_their_layers_exist() -> None:
    files, problems = validate_hparams(shipped_folder())
    assert len(files) == len(shipped_names()) and problems == ()
    for name in shipped_names():
        values = {setting.key: setting.value for setting in show_hparams(name)[1]}
        assert values["v_loss_layer"] is None or values["layers"][-1] < values["v_loss_layer"]


def test_layers_by_depth() -> None:
    assert early_layers(32) == [4, 5, 6, 7, 8]
    assert early_layers(48) == [6, 7, 8, 9, 10] and early_layers(28) == [3, 4, 5, 6, 7]
    assert early_layers(16) == [2, 3, 4] and early_layers(1) == [0]
    for blocks in range(1, 130):
        layers = early_layers(blocks)
        assert layers and layers[-1] < blocks and (layers[0] > 0 or blocks == 1)


# --- list, show, copy, validate --------------------------------------------------------------------------------------


def test_list_can_be_narrowed() -> None:
    assert (
        {file.method for file in list_hparams("RECT")} == {"NAS-RECT"} == {f.method for f in list_hparams("NAS-RECT")}
    )
    assert {file.mark for file in list_hparams(mark="published")} == {"published"}
    with pytest.raises(HparamsError, match="no method 'ROME'"):
        list_hparams("ROME")
    with pytest.raises(HparamsError, match="no mark"):
        list_hparams(mark="good")
    code, said = typed("list", "--method", "NAS-RECT", "--mark", "published")
    assert code == 0 and "NAS-RECT/gpt2-xl" in said and "MEMIT/" not in said and "untested" not in said
    code, said = typed("list", "--json")
    assert code == 0 and len(json.loads(said)) == len(shipped_names())


def test_show_says_where_each_value_is_from(tmp_path: Path) -> None:
    text = (shipped_folder() / "NAS-AlphaEdit" / "gpt2-xl.yaml").read_text(encoding="utf-8")
    mine = tmp_path / "mine.yaml"
    mine.write_text(re.sub(r"(?m)^(L2|nas_seed):.*\n", "", text), encoding="utf-8")
    file, settings = show_hparams(mine)
    by_key = {setting.key: setting for setting in settings}
    assert (by_key["L2"].origin, by_key["L2"].value) == ("method", 10.0)
    assert (by_key["nas_seed"].origin, by_key["nas_seed"].value) == ("default", 0)
    assert (by_key["layers"].origin, by_key["layers"].value) == ("file", [13, 14, 15, 16, 17])
    assert file.mark == "published" and file.name == str(mine)
    assert show_hparams("NAS-AlphaEdit/gpt2-xl")[0].name == "NAS-AlphaEdit/gpt2-xl"
    code, said = typed("show", mine)
    assert code == 0 and "openai-community/gpt2-xl" in said and re.search(r"L2 +10.0 +method", said)
    assert json.loads(typed("show", mine, "--json")[1])["v_lr"] == 0.5


def test_a_name_without_a_method_is_asked_for(tmp_path: Path) -> None:
    for call in (lambda: show_hparams("gpt2-xl"), lambda: copy_hparams("gpt2-xl", tmp_path)):
        with pytest.raises(HparamsError, match="NAS-MEMIT/gpt2-xl"):
            call()
    assert typed("show", "gpt-5")[0] == 1


def test_copy_to_a_file_and_a_folder_and_never_over_one(tmp_path: Path) -> None:
    source = shipped_folder() / "NAS-MEMIT" / "gpt2-xl.yaml"
    assert copy_hparams("NAS-MEMIT/gpt2-xl", tmp_path) == tmp_path / "gpt2-xl.yaml"
    assert (tmp_path / "gpt2-xl.yaml").read_bytes() == source.read_bytes()
    mine = tmp_path / "deep" / "mine.yaml"
    assert typed("copy", "NAS-RECT/gpt2-xl", mine)[0] == 0
    code, said = typed("copy", "NAS-MEMIT/gpt2-xl", mine)
    assert code == 1 and "exists" in said and "NAS-RECT" in mine.read_text(encoding="utf-8")
    assert typed("copy", "NAS-MEMIT/gpt2-xl", mine, "--overwrite")[0] == 0
    assert mine.read_bytes() == source.read_bytes()


def test_validate_names_all_problems_of_all_files(tmp_path: Path) -> None:
    text = (shipped_folder() / "NAS-MEMIT" / "gpt2-xl.yaml").read_text(encoding="utf-8")
    changes = {
        "good.yaml": [],
        "many.yaml": [("v_lr: 0.5", "v_lr: fast"), ("clamp_norm_factor: 0.75", "clamp_norm_factor: -1"), ("nas_seed", "nas_sed")],
        "together.yaml": [("v_loss_layer: 47", "v_loss_layer: 3")],
        "missing.yml": [("kl_factor: 0.0625\n", "")],
        "host.yaml": [("NAS-MEMIT", "ROME")],
        "broken.yaml": [("layers: [", "layers: [[")],
    }  # fmt: skip
    for name, pairs in changes.items():
        made = text
        for old, new in pairs:
            assert old in made
            made = made.replace(old, new)
        (tmp_path / name).write_text(made, encoding="utf-8")
    files, problems = validate_hparams(tmp_path)
    assert {file.name for file in files} == set(changes)
    found: dict[str, list[str]] = {name: [] for name in changes}
    for problem in problems:
        found[problem.path.name].append(problem.message)
    assert found["good.yaml"] == [] and len(found["many.yaml"]) == 3
    for part in ("v_lr: expected a number", "clamp_norm_factor: must be", "did you mean 'nas_seed'"):
        assert any(part in message for message in found["many.yaml"])
    assert len(found["together.yaml"]) == 1 and "v_loss_layer" in found["together.yaml"][0]
    assert "missing kl_factor" in found["missing.yml"][0] and "'ROME' is no editor here" in found["host.yaml"][0]
    assert "not a readable YAML file" in found["broken.yaml"][0]
    code, said = typed("validate", tmp_path)
    assert code == 1 and "6 checked, 5 with problems" in said and "many.yaml: v_lr" in said
    assert typed("validate", tmp_path / "good.yaml") == (0, "1 checked, 0 with problems\n")


def test_validate_needs_something_to_check(tmp_path: Path) -> None:
    with pytest.raises(HparamsError, match="no .yaml file"):
        validate_hparams(tmp_path)
    assert typed("validate", tmp_path / "absent.yaml")[0] == 1


# --- new -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_new_for_a_family_of_the_table_edits_it(family: str, tmp_path: Path) -> None:
    CONFIGS[family]().save_pretrained(tmp_path / "model")
    (path,) = new_hparams(str(tmp_path / "model" / "config.json"), tmp_path, methods=["MEMIT"], layers=[1])
    assert path == tmp_path / "NAS-MEMIT" / "model.yaml"
    hparams = NASMEMITHparams.from_hparams(path)
    assert hparams.model_name == str(tmp_path / "model") and hparams.v_loss_layer == 2 and hparams.layers == (1,)
    model = build_model(family)
    session = EditSession(model, build_tokenizer(), hparams)
    assert session.em.paths.known and session.em.rewrite[1] is model.get_submodule(hparams.rewrite_module_tmp.format(1))
    assert model.get_submodule(hparams.lm_head_module) is model.get_output_embeddings()
    assert (hparams.clamp_norm_factor == 4) == (session.em.value_norm is not None)


@pytest.mark.parametrize("config", [SmolLM3Config(**SMALL), GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=384)])
def test_new_makes_an_unknown_family_work(config: Any, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(config).eval()
    model.config.model_type = "never-heard-of"
    paths = {}
    for method in METHODS:
        config.save_pretrained(tmp_path / "model")
        (paths[method],) = new_hparams(str(tmp_path / "model"), tmp_path, methods=[f"NAS-{method}"])
        hparams = METHODS[method].from_hparams(paths[method], v_num_grad_steps=3, nas_n_pilots=2, stats_dir=None)
        width = model.get_submodule(hparams.rewrite_module_tmp.format(0)).weight.numel() // 32
        session = EditSession(
            model, build_tokenizer(), hparams, contexts=TEMPLATES, progress=False, moments={1: torch.eye(width) / 100}
        )
        assert not session.em.paths.known and session.edit(build_requests(2)).edits[1].status == "written"
        session.revert()


def test_modules_found_are_those_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table has, the search finds, too, where the pattern holds."""
    from nas_plugin.model.architectures import ARCHITECTURES

    for family in ("gpt2", "gptj", "gpt_neox", "falcon", "llama", "mistral", "qwen2", "qwen3", "phi3"):
        CONFIGS[family]().save_pretrained(tmp_path / family)
        known = recognise(str(tmp_path / family))
        row = ARCHITECTURES[family]
        monkeypatch.delitem(ARCHITECTURES, family)
        found = recognise(str(tmp_path / family))
        assert found.modules == known.modules and known.known and not found.known
        monkeypatch.setitem(ARCHITECTURES, family, row)


def test_new_refuses_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for kind, error, says in (
        ("mixtral", UnsupportedArchitectureError, "mixture of 8 experts"),
        ("olmo3", UnsupportedArchitectureError, "post_feedforward_layernorm"),
        ("mamba", UnknownArchitectureError, "0 lists of 32 blocks with attention"),
        ("xglm", UnknownArchitectureError, "no feed-forward module"),
        ("t5", ModelError, "no causal language model"),
    ):
        AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(error, match=says):
            new_hparams(str(tmp_path / kind), tmp_path / "out")
    for absent in (str(tmp_path / "nothing"), str(tmp_path / "config.json")):
        with pytest.raises(ModelError, match="config.json"):
            new_hparams(absent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_new_typed(tmp_path: Path) -> None:
    Gemma2Config(**SMALL, head_dim=8).save_pretrained(tmp_path / "My model")
    words = ("new", tmp_path / "My model", "--out", tmp_path / "out")
    code, said = typed(*words, "--layers", "0,1", "--method", "NAS-RECT", "--method", "MEMIT")
    assert code == 0 and said.count("wrote") == 2
    assert typed("validate", tmp_path / "out") == (0, "2 checked, 0 with problems\n")
    file, _ = show_hparams(tmp_path / "out" / "NAS-RECT" / "My-model.yaml")
    assert file.mark == "untested" and "ROME's" in file.source and "of the family gemma2" in file.source
    code, said = typed(*words, "--method", "NAS-RECT")
    assert code == 1 and "exists" in said
    assert typed(*words, "--method", "NAS-RECT", "--overwrite", "--name", "mine")[0] == 0
    for wrong in (("--layers", "7"), ("--layers", "x"), ("--method", "ROME")):
        assert typed(*words, "--name", "other", *wrong)[0] == 1
    assert not list((tmp_path / "out").rglob("other.yaml"))


@pytest.mark.parametrize("command", ["list", "show", "copy", "validate", "new"])
def test_help_has_an_example(command: str) -> None:
    code, said = typed(command, "--help")
    assert code == 0 and f"Example: nas-edit hparams {command}" in " ".join(said.split())
