"""Exports from folders: a kept session's and a run's; and the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nas_plugin import EditSession, NASMEMITHparams, apply_edits, export_edits, kept_edits
from nas_plugin.demo import load_demo
from nas_plugin.demo.world import World
from nas_plugin.errors import ExportError, HparamsError, LedgerError, RunFolderError
from nas_plugin.files import read_tensors, write_tensors
from nas_plugin.keep.digests import weights_digest
from nas_plugin.keep.reopen import reopen
from nas_plugin.share.kept import holds_its_end, model_of
from tests.cli.calling import SMALL, call
from tests.conftest import build_model
from tests.promises.hostile import FUZZ, damaged, survives
from tests.promises.keeping import kept, stream
from tests.promises.watching import digests
from tests.share.sharing import apart

COMMANDS = ("export", "apply")
SETTINGS = {"mom2_n_samples": 40, "nas_n_pilots": 3, "v_num_grad_steps": 5}


def kept_session(folder: Path, method: str = "MEMIT", edits: int = 7, **more: Any) -> EditSession:
    session = kept(folder, method, **more)
    for request in stream(edits):
        session.edit(request)
    return session


@pytest.mark.parametrize("method", ["MEMIT", "PRUNE", "AlphaEdit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_kept_folder_is_exported_as_its_session_is(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    session = kept_session(tmp_path / "kept", method, dtype=dtype)
    model = build_model("gpt2", dtype)
    source = kept_edits(tmp_path / "kept", model, session.tok)
    assert digests(model) == digests(session.model)
    for form in ("full", "edits", "lora"):
        export_edits(session, tmp_path / "ours" / form, form)
        export_edits(source, tmp_path / "theirs" / form, form)
    for name in ("full/model.safetensors", "edits/edits.safetensors", "lora/adapter_model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_the_number_type_is_found(tmp_path: Path) -> None:
    session = kept_session(tmp_path / "kept", dtype=torch.bfloat16)
    model = build_model("gpt2")
    kept_edits(tmp_path / "kept", model)
    assert model.dtype == torch.bfloat16
    ours, theirs = (dict(one.named_parameters()) for one in (model, session.model))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_the_ledger_ends_with(tmp_path: Path) -> None:
    session = kept_session(tmp_path / "kept", edits=8)
    model = build_model("gpt2")
    before = digests(model)
    with pytest.raises(ExportError, match=r"no snapshot of the weights .* \(line 9\).*reopen"):
        kept_edits(tmp_path / "kept", model)
    assert digests(model) == before
    session.rollback()
    assert kept_edits(tmp_path / "kept", model).about.edits == 7 and digests(model) == digests(session.model)
    session.revert()
    model = build_model("gpt2")
    assert kept_edits(tmp_path / "kept", model).about.edits == 0 and digests(model) == before


def test_models_and_folders_that_do_not_fit(tmp_path: Path) -> None:
    kept_session(tmp_path / "kept")
    for model in (build_model("gpt2", seed=1), build_model("llama")):
        with pytest.raises(ExportError, match="in no number type: another model, or edited already"):
            kept_edits(tmp_path / "kept", model)
    with pytest.raises(LedgerError, match="there is no ledger"):
        kept_edits(tmp_path, build_model("gpt2"))
    (tmp_path / "kept" / "hparams.yaml").unlink()
    with pytest.raises(ExportError, match="does not say which model was edited"):
        model_of(tmp_path / "kept")
    assert holds_its_end(tmp_path / "kept")
    shutil.rmtree(tmp_path / "kept" / "snapshots")
    assert not holds_its_end(tmp_path / "kept")
    with pytest.raises(ExportError, match="no snapshot"):
        kept_edits(tmp_path / "kept", build_model("gpt2"))


def test_a_damaged_snapshot_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    session = kept_session(tmp_path / "kept")
    (newest,) = (tmp_path / "kept" / "snapshots").iterdir()
    state = newest / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(bytes(data))
    with pytest.raises(ExportError, match="no snapshot"):
        kept_edits(tmp_path / "kept", build_model("gpt2"))
    assert "is passed over" in caplog.text
    assert session.keeper is not None
    session.keeper.snapshot(session)
    kept_edits(tmp_path / "kept", build_model("gpt2"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ran") / "run"
    call("run", "NAS-MEMIT/nas-demo", "--edits", 4, "--every", 2, "--drift", 0, "--out", out, *SMALL)
    return out


@pytest.fixture
def run(ran: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ran, tmp_path / "run"))


def test_a_run_is_exported_with_its_scores(run: Path, tmp_path: Path) -> None:
    model, tok = load_demo()
    source = kept_edits(run, model, tok)
    assert model.dtype == torch.float64 and source.about.edits == 4 and source.about.method == "MEMIT"
    assert source.scores["efficacy/probability"] >= 50 and source.hparams is not None
    tensors = read_tensors(run / "state" / "after_4.safetensors")[1]
    served = tensors["0.master"].T.contiguous()
    assert source.about.weights == weights_digest({"transformer.h.0.mlp.c_proj.weight": served})
    export_edits(source, tmp_path / "edits", "edits")
    again, _ = load_demo(torch.float64)
    assert apply_edits(again, tmp_path / "edits").exact and apart(again, model) == 0
    card = (tmp_path / "edits" / "README.md").read_text(encoding="utf-8")
    assert "| efficacy/probability | `" in card and "| v_num_grad_steps | `5` |" in card


def spoil_state(run: Path, **tensors: torch.Tensor | None) -> None:
    path = run / "state" / "after_4.safetensors"
    held = read_tensors(path)[1] | {name.replace("_", "."): value for name, value in tensors.items()}
    write_tensors(path, {name: value for name, value in held.items() if value is not None}, {})


def test_runs_that_hold_no_such_weights(run: Path) -> None:
    good = read_tensors(run / "state" / "after_4.safetensors")[1]["0.master"]
    for spoiled, says in (
        (good * 1.001, r"\|W\| / \|W0\| is .* and the last checkpoint says"),
        (good * float("nan"), "or not finite"),
        (good.float(), "torch.float32"),
        (good[:, :-1].contiguous(), r"\(64, 255\)"),
        (None, "it holds 0 matrices"),
    ):
        spoil_state(run, **{"0_master": spoiled})
        model, _ = load_demo(torch.float64)
        before = digests(model)
        with pytest.raises(RunFolderError, match=says):
            kept_edits(run, model)
        assert digests(model) == before
    shutil.rmtree(run / "state")
    with pytest.raises(ExportError, match="holds no edited weights"):
        kept_edits(run, load_demo()[0])


def test_a_run_of_an_editor_without_state(run: Path) -> None:
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, "method": "ROME"}))
    with pytest.raises(HparamsError, match="'ROME' is no editor of this package"):
        kept_edits(run, load_demo()[0])


@settings(FUZZ, max_examples=60)
@given(data=st.data())
def test_damaged_state_manifests(ran: Path, tmp_path: Path, data: st.DataObject) -> None:
    run = tmp_path / "fuzzed"
    if not run.exists():
        shutil.copytree(ran, run)
    manifest = run / "state" / "after_4.json"
    content = data.draw(damaged(json.loads((ran / "state" / "after_4.json").read_text())))
    manifest.write_text(json.dumps(content))
    model, _ = load_demo(torch.float64)
    before = digests(model)
    if survives(lambda: kept_edits(run, model)) is None:
        assert digests(model) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: nas-edit {command} " in call(command, "--help") and command in call("--help")


@pytest.fixture(scope="module")
def demo_kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kept session on the embedded model: a snapshot after three edits, and one more edit."""
    folder = tmp_path_factory.mktemp("demo") / "my-edits"
    model, tok = load_demo(torch.float64)
    hparams = NASMEMITHparams.from_hparams("nas-demo", **SETTINGS, snapshot_every=3)
    session = EditSession(model, tok, hparams, keep=folder, progress=False)
    for edit in World().edits(4):
        session.edit(edit.to_request())
    return folder


def test_export_and_apply(demo_kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = shutil.copytree(demo_kept, tmp_path / "kept")
    assert not holds_its_end(folder)
    for form in ("full", "edits", "lora"):
        said = call("export", folder, "--to", form, "--out", out / form)
        assert str(out / form) in said
    assert "kept energy 100.000000 %" in said and "rank 4" in said
    applied = call("apply", out / "edits", "--model", "demo", "--out", out / "applied")
    assert "4 edits with NAS-MEMIT" in applied and "1 edited parameters, bit for bit" in applied
    ours, theirs = (load_file(out / name / "model.safetensors") for name in ("full", "applied"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    call("export", folder, "--model", "demo", "--to", "lora", "--rank", 2, "--out", out / "cut")
    said = call("apply", out / "cut", "--model", "demo", "--out", out / "merged")
    assert "those of a cut adapter (" in said and "% of the change" in said
    assert "a LoRA adapter merged into it" in (out / "merged" / "README.md").read_text(encoding="utf-8")


def test_nothing_is_carried_out_again_after_a_snapshot(
    demo_kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(demo_kept, tmp_path / "kept")
    session = reopen(folder, progress=False)
    session.snapshot()
    assert holds_its_end(folder) and model_of(folder) == "nas-demo"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("an edit was carried out again")

    monkeypatch.setattr("nas_plugin.keep.reopen.reopen", never)
    call("export", folder, "--to", "full", "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| v_num_grad_steps | `5` |" in card and session.keeper is not None and session.keeper.ledger.chain in card
    model, _ = load_demo(torch.float64)
    weight = load_file(tmp_path / "out" / "model.safetensors")["transformer.h.0.mlp.c_proj.weight"]
    assert torch.equal(weight, session.em.weight(0)) and not torch.equal(
        weight, model.transformer.h[0].mlp.c_proj.weight
    )
    # Hyperparameters of something else are not put on the card.
    text = (folder / "hparams.yaml").read_text(encoding="utf-8")
    (folder / "hparams.yaml").write_text(text.replace("v_num_grad_steps: 5", "v_num_grad_steps: 6"), encoding="utf-8")
    assert kept_edits(folder, model).hparams is None


def test_a_run_says_its_model_itself(run: Path, tmp_path: Path) -> None:
    assert "a LoRA adapter: transformer.h.0" in call("export", run, "--to", "lora", "--out", tmp_path / "lora")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("export", "{kept}", "--model", "demo", "--out", "{kept}"), "is there already"),
        (("export", "{kept}", "--model", "{out}", "--out", "{out}"), "cannot be loaded"),
        (("apply", "{kept}", "--model", "{out}", "--out", "{out}"), "give the folder of one export"),
        (("export", "nowhere", "--model", "demo", "--out", "{out}"), "there is no ledger at nowhere"),
        (("export", "{kept}", "--model", "demo", "--out", "{out}", "--rank", "3"), "for to='lora'"),
        (("apply", "nowhere", "--model", "demo", "--out", "{out}"), "cannot read edits from nowhere"),
        (("apply", "{kept}", "--model", "demo", "--out", "{out}"), "give the folder of one export"),
    ],
)
def test_named_errors_end_a_command(
    arguments: tuple[str, ...], says: str, demo_kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [part.format(kept=demo_kept, out=tmp_path / "out") for part in arguments]
    said = call(*given, code=1)
    assert says in said and "Traceback" not in said and list(tmp_path.iterdir()) == []


def test_another_model_is_not_applied_to(demo_kept: Path, tmp_path: Path) -> None:
    session = kept_session(tmp_path / "kept")
    export_edits(session, tmp_path / "edits", "edits")
    said = call("apply", tmp_path / "edits", "--model", "demo", "--out", tmp_path / "out", code=1)
    assert "[docs/errors.md#editserror]" in said and not (tmp_path / "out").exists()
