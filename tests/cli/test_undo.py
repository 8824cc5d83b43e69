"""`nas-edit undo`: a kept session from its folder alone, edits taken out, and the model that is left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from nas_plugin.demo import load_demo
from nas_plugin.errors import LedgerError, ResumeError
from nas_plugin.evaluation.runner.load import load_hparams
from nas_plugin.evaluation.streams import load_stream
from nas_plugin.keep import resume as resuming
from nas_plugin.keep.log import Wanted, read_log, rows
from nas_plugin.keep.reopen import HPARAMS_FILE, reopen
from nas_plugin.keep.verify import verify, verify_model
from nas_plugin.session import EditSession
from tests.cli.calling import call
from tests.conftest import build_model, build_tokenizer

SETTINGS = {"mom2_n_samples": 40, "nas_n_pilots": 3, "v_num_grad_steps": 5}


def demo_session(folder: Path, method: str = "MEMIT", dtype: torch.dtype | None = torch.float64) -> EditSession:
    hparams = load_hparams(f"NAS-{method}/nas-demo", SETTINGS)
    hparams.torch_dtype = None
    return EditSession(*load_demo(dtype), hparams, keep=folder, progress=False)


def requests() -> list[dict[str, str]]:
    return [
        {"prompt": r.prompt, "subject": r.subject, "target_new": r.target, "case_id": case.id}
        for case in load_stream("demo", limit=5).cases
        for r in case.requests
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undo") / "kept"
    session = demo_session(folder)
    for request in requests():
        session.edit(request)
    return folder


@pytest.fixture
def kept(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "kept")


def matrix(session: EditSession) -> torch.Tensor:
    return session.em.matrix(0).clone()


def test_the_model_that_is_left_is_the_one_of_the_library(kept: Path, tmp_path: Path) -> None:
    other = reopen(shutil.copytree(kept, tmp_path / "other"), progress=False)
    other.undo("1", "3")
    out = tmp_path / "model"
    said = call("undo", kept, "1", "3", "--model", "demo", "--out", out)
    assert "2 undone, 3 left" in said and f"Model: {out}" in said
    assert torch.equal(matrix(reopen(kept, progress=False)), matrix(other))
    log = read_log(kept)
    assert [row.now for row in rows(log, Wanted()) if row.now] == ["written", "undone", "written", "undone", "written"]
    assert len(verify(log)) == 4 and "1 edited parameter" in verify_model(log, out)
    assert (out / "tokenizer.json").exists()


def test_all_is_the_unedited_model(kept: Path, tmp_path: Path) -> None:
    assert "5 undone, 0 left, |W|/|W0| 1.0000" in call("undo", kept, "--all", "--out", tmp_path / "model")
    base, _ = load_demo(torch.float64)
    session = reopen(kept, progress=False)
    for name, parameter in session.model.named_parameters():
        assert torch.equal(parameter, base.get_parameter(name)), name
    assert "the 1 edited parameter" in verify_model(read_log(kept), tmp_path / "model")


def test_ids_of_the_ledger_are_taken_too(kept: Path) -> None:
    name = read_log(kept).ledger.lines[1]["id"]
    assert "1 undone, 4 left" in call("undo", kept, name)


def test_what_was_undone_is_in_a_snapshot(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("undo", kept, "0")

    def refuse(*_: object) -> None:
        raise AssertionError("carried out again")

    monkeypatch.setattr(resuming, "_carry_out_next", refuse)
    assert reopen(kept, progress=False).history.named("0").status == "undone"  # type: ignore[union-attr]


def test_a_session_goes_on_after_it(kept: Path) -> None:
    call("undo", kept, "0")
    session = reopen(kept, progress=False)
    assert session.edit({**requests()[0], "case_id": "again"}).edits[0].status == "written"
    assert reopen(kept, progress=False).weights_digest() == session.weights_digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_loaded_in_the_type_it_was_edited_in(dtype: torch.dtype, tmp_path: Path) -> None:
    session = demo_session(tmp_path / "kept", "AlphaEdit", dtype)
    session.edit(requests()[:2])
    again = reopen(tmp_path / "kept", progress=False)
    assert again.em.dtype == dtype and torch.equal(matrix(again), matrix(session))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give the ids of edits, as nas-edit log shows them, or --all"),
        (("0", "--all"), 2, "give the ids of edits, as nas-edit log shows them, or --all"),
        (("17",), 1, "no edit is called '17'"),
        (("0", "--set", "v_lr=9.0"), 1, "another hyperparameters"),
        (("0", "--model", "./no/such/model"), 1, "the model './no/such/model' cannot be loaded"),
    ],
)
def test_what_cannot_be_undone_changes_nothing(kept: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    said = call("undo", kept, *arguments, code=code)
    assert message in said and "Traceback" not in said
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before


def test_a_folder_that_holds_something_is_not_written_into(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", encoding="utf-8")
    assert "is there already and not empty" in call("undo", kept, "0", "--out", tmp_path / "full", code=1)


def test_another_model_is_refused(kept: Path, tmp_path: Path) -> None:
    build_model("llama").save_pretrained(tmp_path / "llama")
    build_tokenizer().save_pretrained(tmp_path / "llama")
    with pytest.raises(ResumeError, match="another model"):
        reopen(kept, model=str(tmp_path / "llama"), progress=False)


def test_a_folder_needs_a_ledger_and_hyperparameters(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        reopen(tmp_path / "nowhere")
    (kept / HPARAMS_FILE).write_text("alg_name: [", encoding="utf-8")
    with pytest.raises(ResumeError, match="cannot be used"):
        reopen(kept)
    (kept / HPARAMS_FILE).unlink()
    with pytest.raises(ResumeError, match="has no hparams.yaml"):
        reopen(kept)
