"""`nas-edit doctor`: what is there, what is missing, what to do; nothing is written and nothing raised."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nas_plugin.ahead import anchor_ahead, statistics_ahead
from nas_plugin.doctor import Finding, State, environment, examine, files
from nas_plugin.easyedit import host as hosts
from nas_plugin.easyedit.registry import is_registered
from nas_plugin.session import EditSession
from tests.cli.calling import call
from tests.conftest import build_model, build_tokenizer
from tests.support import TEXT, tiny_hparams


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def of(found: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "tiny"
    build_model("llama").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (tmp_path / "text.json").write_text(json.dumps(TEXT), encoding="utf-8")
    return folder


def write(tmp_path: Path, model: Path | str, **values: Any) -> str:
    settings = {
        "model_name": str(model),
        "stats_dir": str(tmp_path / "stats"),
        "mom2_dataset": str(tmp_path / "text.json"),
    }
    hparams = tiny_hparams("MEMIT", **{**settings, **values})
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(hparams.to_dict()), encoding="utf-8")
    return str(path)


def look(tmp_path: Path, model: Path | str, **values: Any) -> dict[str, Finding]:
    return of(files.files(write(tmp_path, model, **values), None, {}))


def session(tmp_path: Path, model: Path | str, **values: Any) -> EditSession:
    from nas_plugin.evaluation.runner.load import load_hparams, load_model

    hparams = load_hparams(write(tmp_path, model, **values), {})
    return EditSession(*load_model(hparams), hparams, progress=False)


def test_this_environment_works() -> None:
    found = of(environment.environment())
    names = (
        "python",
        "nas-plugin",
        "torch",
        "transformers",
        "accelerate",
        "peft",
        "datasets",
        "EasyEdit",
        "device",
        "disk",
    )
    assert set(names) <= set(found)
    assert not [finding for finding in found.values() if finding.state is State.PROBLEM]
    assert torch.__version__ in found["torch"].says


def test_a_package_that_is_missing_or_of_the_wrong_age(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.3.1+cpu", "transformers": "6.0.0", "accelerate": None, "safetensors": "0.4.0rc1"}

    def version(name: str) -> str:
        if (found := versions.get(name)) is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(environment, "version", version)
    monkeypatch.setattr(environment, "easyedit", lambda: environment.ok("EasyEdit", ""))
    found = of(environment.environment())
    assert found["torch"].advice == "pip install 'torch>=2.4'" and "2.3.1+cpu" in found["torch"].says
    assert found["transformers"].advice == "pip install 'transformers>=4.57,<6'"
    assert found["accelerate"].says == "not installed" and found["accelerate"].state is State.PROBLEM
    assert found["safetensors"].state is State.OK
    assert found["peft"].state is State.OK and "pip install 'nas-plugin[peft]'" in (found["peft"].advice or "")


def test_easyedit_is_told_by_kind_place_and_methods() -> None:
    before = is_registered()
    found = environment.easyedit()
    assert "10 methods registered: NAS-MEMIT, " in found.says and "easyeditor" in found.says
    assert ("released wheel" in found.says) == hosts.load_host().is_wheel
    assert is_registered() == before


def test_a_wrong_easyedit_home_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(hosts.HOME, str(tmp_path))
    monkeypatch.setattr(hosts, "imported", lambda: None)
    monkeypatch.delitem(__import__("sys").modules, "easyeditor", raising=False)
    found = environment.easyedit()
    assert (
        found.state is State.PROBLEM and str(tmp_path) in found.says and "unset EASYEDIT_HOME" in (found.advice or "")
    )


def test_easyedit_that_is_missing_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise hosts.HostMissingError("EasyEdit (the package 'easyeditor') is not installed.")

    monkeypatch.delenv(hosts.HOME, raising=False)
    monkeypatch.setattr(hosts, "load_host", missing)
    monkeypatch.setattr(environment, "find_spec", lambda _: None)
    found = environment.easyedit()
    assert found.state is State.WARNING and "work without" in (found.advice or "")


def test_little_disk_is_a_warning(tmp_path: Path) -> None:
    assert environment.disk(tmp_path / "not" / "yet", 1).state is State.OK
    assert environment.disk(tmp_path, 1 << 60).state is State.WARNING


def test_everything_of_a_model_that_is_there(tmp_path: Path, model: Path) -> None:
    found = look(tmp_path, model)
    assert "LlamaConfig" in found["model"].says and str(model) in found["model"].says
    assert "model.layers.1.mlp.down_proj.weight (32 x 48)" in found["modules"].says
    assert "pad token '<eos>'" in found["tokenizer"].says and found["memory"].state is State.OK
    assert "will be made" in found["stats_dir"].says
    assert found["statistics"].state is State.WARNING and "nas-edit stats" in (found["statistics"].advice or "")
    assert found["anchor"].state is State.WARNING and not (tmp_path / "stats").exists()


def test_statistics_and_anchor_that_match(tmp_path: Path, model: Path) -> None:
    kept, tau = statistics_ahead(session(tmp_path, model)), anchor_ahead(session(tmp_path, model))
    found = look(tmp_path, model)
    assert found["statistics"].says == str(kept.path)
    assert found["anchor"].says == f"{tau.anchor.value:.4f} in {tau.path}"
    assert found["stats_dir"].says.endswith("(writable)")


def test_statistics_of_a_model_too_large_to_load_are_found_by_name(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = statistics_ahead(session(tmp_path, model))
    anchor_ahead(session(tmp_path, model))
    monkeypatch.setattr(files, "_SMALL", 0)
    found = look(tmp_path, model)
    assert found["statistics"].says.startswith(str(kept.path)) and "checked when it is used" in found["statistics"].says
    assert found["anchor"].state is State.OK and "checked when it is used" in found["anchor"].says


def test_statistics_and_anchor_of_other_weights_do_not_count(tmp_path: Path, model: Path) -> None:
    statistics_ahead(session(tmp_path, model))
    anchor_ahead(session(tmp_path, model))
    build_model("llama", seed=1).save_pretrained(model)
    found = look(tmp_path, model)
    assert found["statistics"].state is found["anchor"].state is State.WARNING


def test_an_anchor_file_of_other_hyperparameters_is_a_problem(tmp_path: Path, model: Path) -> None:
    file = str(tmp_path / "anchor.json")
    anchor_ahead(session(tmp_path, model, nas_anchor_file=file))
    assert look(tmp_path, model, nas_anchor_file=file)["anchor"].state is State.OK
    found = look(tmp_path, model, nas_anchor_file=file, v_lr=0.2)["anchor"]
    assert found.state is State.PROBLEM and "measured with hyperparameters" in found.says


def test_a_damaged_file_of_statistics_is_a_problem(tmp_path: Path, model: Path) -> None:
    kept = statistics_ahead(session(tmp_path, model))
    assert kept.path is not None
    kept.path.write_bytes(b"no tensors")
    found = look(tmp_path, model)["statistics"]
    assert found.state is State.PROBLEM and str(kept.path) in found.says and "Delete it" in (found.advice or "")


@pytest.mark.parametrize(
    ("values", "name", "says"),
    [
        ({"layers": [1, 7]}, "modules", "layer 7 does not exist"),
        ({"rewrite_module_tmp": "model.layers.{}.mlp.down"}, "modules", "Nearest: "),
        ({"mom2_dataset": "nowhere.txt"}, "mom2_dataset", "there is no file nowhere.txt"),
        ({"stats_dir": "text.json/stats"}, "stats_dir", "cannot be written into"),
    ],
)
def test_what_does_not_fit_is_a_problem(
    tmp_path: Path, model: Path, values: dict[str, Any], name: str, says: str
) -> None:
    found = look(tmp_path, model, **values)[name]
    assert found.state is State.PROBLEM and says in found.says and found.advice


def test_a_folder_that_is_somebody_elses_is_a_problem(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by its mode: root may write anywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = look(tmp_path, model)["stats_dir"]
    assert found.state is State.PROBLEM and str(tmp_path) in found.says


def test_a_model_that_is_not_there(tmp_path: Path, model: Path) -> None:
    nowhere = look(tmp_path, tmp_path / "nowhere")
    assert nowhere["model"].state is State.PROBLEM and "modules" not in nowhere
    (tmp_path / "empty").mkdir()
    assert look(tmp_path, tmp_path / "empty")["model"].state is State.PROBLEM
    hub = look(tmp_path, "nobody/no-such-model")["model"]
    assert hub.state is State.WARNING and "not on this machine" in hub.says
    (model / "model.safetensors").unlink()
    assert "weights not" in look(tmp_path, model)["model"].says


def test_a_tokenizer_without_a_pad_token(tmp_path: Path, model: Path) -> None:
    tok = build_tokenizer()
    tok.pad_token = None
    tok.save_pretrained(model)
    found = look(tmp_path, model)["tokenizer"]
    assert found.state is State.OK and "'<eos>' is used" in found.says and "tok.pad_token" in (found.advice or "")


def test_memory_that_is_not_there_is_a_warning(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "memory_of", lambda _: 1000)
    found = look(tmp_path, model)["memory"]
    assert found.state is State.WARNING and "bfloat16" in (found.advice or "")


def test_a_file_with_an_error_is_a_problem(tmp_path: Path) -> None:
    found = of(examine(str(tmp_path / "none.yaml")))
    assert found["file"].state is State.PROBLEM and "Nearest shipped names" in found["file"].says


def test_the_command_says_it_in_lines_and_ends_with_its_verdict(tmp_path: Path) -> None:
    said = call("doctor", "NAS-MEMIT/nas-demo")
    assert "ok      model: the embedded model" in said and "ok      modules: transformer.h.0.mlp.c_proj.weight" in said
    wrong = call("doctor", "NAS-MEMIT/nas-demo", "--set", "layers=[9]", code=1)
    assert "problem modules: layer 9 does not exist" in wrong and "Traceback" not in wrong
    told = json.loads(call("doctor", "NAS-MEMIT/nas-demo", "--json"))
    assert told["ok"] and {"name", "state", "says", "advice"} == set(told["findings"][0])
    assert not json.loads(call("doctor", "nowhere.yaml", "--json", code=1))["ok"]
    assert list(tmp_path.iterdir()) == []
