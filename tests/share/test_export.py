"""Whole models and edits alone: in a new process the logits are those of the edited model, difference 0."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nas_plugin import apply_edits, export_edits, load_edits
from nas_plugin.errors import EditsError, ExportError
from nas_plugin.keep.edits import read_edits
from nas_plugin.keep.factored import Factored
from nas_plugin.share import folder as folders
from tests.conftest import build_model, build_requests
from tests.promises.watching import digests
from tests.share.sharing import TOKENS, apart, as_loaded, edited, files, in_new_process, logits
from tests.support import METHOD_NAMES, tiny_session

# Conv1D and tied (GPT-2), Linear (Llama); a mask of full rank (RECT), a squashed view (PRUNE); every dtype.
CASES: dict[str, tuple[str, str, torch.dtype, int]] = {
    "tied": ("gpt2", "MEMIT", torch.float32, 3),
    "bf16": ("llama", "AlphaEdit", torch.bfloat16, 3),
    "fp16": ("gpt2", "PRUNE", torch.float16, 3),
    "fp64": ("gpt2", "MEMIT", torch.float64, 3),
    "mask": ("llama", "RECT", torch.float32, 2),
    "half mask": ("gpt2", "RECT", torch.bfloat16, 2),
    "many": ("llama", "AlphaEdit", torch.float32, 30),
}
FACTORED = {"tied", "bf16", "fp16"}
READER = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from peft import PeftModel
from nas_plugin import apply_edits
root = Path(sys.argv[1])
torch.set_num_threads(2)  # the writer had one
for case in sorted(root.iterdir()):
    load = lambda name: AutoModelForCausalLM.from_pretrained(case / name, dtype="auto").eval()
    whole, base, carrying = load("full"), load("base"), PeftModel.from_pretrained(load("base"), case / "lora")
    apply_edits(base, case / "edits")
    torch.set_num_threads(1)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        found = {"full": whole(tokens).logits, "edits": base(tokens).logits, "lora": carrying(tokens).logits}
    save_file(found, case / "logits.safetensors")
    torch.set_num_threads(2)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root, sessions = tmp_path_factory.mktemp("exported"), {}
    for name, (family, method, dtype, edits) in CASES.items():
        build_model(family, dtype).save_pretrained(root / name / "base")
        session = sessions[name] = edited(family, method, dtype, edits)
        for form in ("full", "edits", "lora"):
            export_edits(session, root / name / form, form)
    in_new_process(READER, root)
    return {"root": root, "sessions": sessions}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["full", "edits"])
def test_logits_in_a_new_process_are_the_same(exported: dict[str, Any], name: str, form: str) -> None:
    session = exported["sessions"][name]
    found = load_file(exported["root"] / name / "logits.safetensors")[form].double()
    assert float((found - logits(session.model)).abs().max()) == 0
    base = as_loaded(build_model(CASES[name][0], CASES[name][2]), CASES[name][0])
    assert float((found - logits(base)).abs().max()) > 0


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_in_a_new_process_is_near(exported: dict[str, Any], name: str) -> None:
    session, dtype = exported["sessions"][name], CASES[name][2]
    found = load_file(exported["root"] / name / "logits.safetensors")["lora"].double()
    near = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.1}[dtype]
    assert float((found - logits(session.model)).abs().max()) < near


@pytest.mark.parametrize("name", CASES)
def test_the_smaller_form_is_chosen(exported: dict[str, Any], name: str) -> None:
    path = exported["root"] / name / "edits" / "edits.safetensors"
    about, held = read_edits(path)
    full = sum(one.shape.numel() * one.dtype.itemsize for one in held.values())
    factors = {key for key, one in held.items() if isinstance(one, Factored)}
    assert set(about.factored) == factors
    if name == "many":
        assert 0 < len(factors) < len(about.parameters), "one matrix of each form"
    else:
        assert factors == (set(about.parameters) if name in FACTORED else set())
    for one in held.values():
        assert not isinstance(one, Factored) or one.size < one.shape.numel() * one.dtype.itemsize
    # Header and names aside.
    assert path.stat().st_size < full + 2048
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    assert "factors of rank" in card if factors else "the whole matrix" in card


def test_a_tied_model_stays_tied(exported: dict[str, Any]) -> None:
    folder = exported["root"] / "tied" / "full"
    names = set(load_file(folder / "model.safetensors"))
    assert "transformer.wte.weight" in names and "lm_head.weight" not in names
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    session = exported["sessions"]["tied"]
    assert digests(model) == digests(session.model)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == session.tok.get_vocab()
    assert not {path for path in files(folder) if path.endswith((".bin", ".pt", ".pkl"))}


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method(method: str, tmp_path: Path) -> None:
    session = edited("gpt2", method, edits=2)
    done = export_edits(session, tmp_path / "edits", "edits")
    model = build_model("gpt2")
    applied = apply_edits(model, done.folder)
    assert digests(model) == digests(session.model) and applied.exact and applied.weights == session.weights_digest()
    assert applied.about.method == method and applied.about.edits == 2
    assert done.bytes == sum((done.folder / name).stat().st_size for name in files(done.folder))


def test_a_squashed_view_is_still_of_low_rank_and_a_mask_is_not(tmp_path: Path) -> None:
    for method, factors in (("PRUNE", True), ("RECT", False)):
        session = tiny_session("gpt2", method, use_nas=False, v_num_grad_steps=10, v_lr=2.0, clamp_norm_factor=50.0)
        session.edit(build_requests(2))
        if method == "PRUNE":
            assert session.weights.served[1] is not session.weights.master[1], "something was squashed"
        done = export_edits(session, tmp_path / method, "edits")
        assert bool(done.ranks) is factors
        model = build_model("gpt2")
        apply_edits(model, done.folder)
        assert apart(model, session.model) == 0


def test_after_a_rollback_and_a_revert(tmp_path: Path) -> None:
    session = edited()
    session.rollback()
    for number, name in ((2, "rolled"), (0, "reverted")):
        export_edits(session, tmp_path / name, "edits")
        export_edits(session, tmp_path / f"{name} full", "full")
        model = build_model("gpt2")
        assert apply_edits(model, tmp_path / name).about.edits == number
        assert digests(model) == digests(session.model)
        session.revert()
    assert digests(model) == digests(build_model("gpt2"))


def test_after_an_undo(tmp_path: Path) -> None:
    from tests.promises.keeping import kept, stream

    session = kept(tmp_path / "kept")
    for request in stream(4):
        session.edit(request)
    session.undo("1")
    export_edits(session, tmp_path / "edits", "edits")
    model = build_model("gpt2")
    applied = apply_edits(model, tmp_path / "edits")
    assert applied.about.edits == 3 and digests(model) == digests(session.model)
    assert session.keeper is not None
    assert session.keeper.ledger.chain in (tmp_path / "edits" / "README.md").read_text(encoding="utf-8")


def test_the_same_edits_give_the_same_bytes(tmp_path: Path) -> None:
    session = edited("llama", "MEMIT", torch.bfloat16)
    for name in "ab":
        export_edits(session, tmp_path / name, "edits")
    first, second = ((tmp_path / name / "edits.safetensors").read_bytes() for name in "ab")
    assert first == second


def test_weights_that_are_not_the_sessions_are_not_exported(tmp_path: Path) -> None:
    session = edited()
    with torch.no_grad():
        session.em.weight(0).mul_(2)
    for form in ("full", "edits", "lora"):
        with pytest.raises(EditsError, match="changed by something else"):
            export_edits(session, tmp_path / form, form)
    assert list(tmp_path.iterdir()) == []


def test_factors_onto_another_base_change_nothing(tmp_path: Path) -> None:
    session = edited()
    export_edits(session, tmp_path / "edits", "edits")
    other = build_model("gpt2", seed=1)
    before = digests(other)
    with pytest.raises(EditsError, match="fingerprint"):
        apply_edits(other, tmp_path / "edits")
    with pytest.raises(EditsError, match="do not give the weights that were saved"):
        apply_edits(other, tmp_path / "edits", check=False)
    assert digests(other) == before
    # A base of which something else differs: the edited matrices are the same.
    with torch.no_grad():
        base = build_model("gpt2")
        base.transformer.ln_f.weight.mul_(2)
    apply_edits(base, tmp_path / "edits", check=False)
    assert torch.equal(base.transformer.h[0].mlp.c_proj.weight, session.model.transformer.h[0].mlp.c_proj.weight)


def test_applied_twice_is_refused(tmp_path: Path) -> None:
    export_edits(edited(), tmp_path / "edits", "edits")
    model = build_model("gpt2")
    load_edits(model, tmp_path / "edits" / "edits.safetensors")
    with pytest.raises(EditsError, match="edited already"):
        apply_edits(model, tmp_path / "edits")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"to": "gguf"}, "there is no export to 'gguf'; choose one of full, edits, lora"),
        ({"to": "full", "rank": 3}, "a rank from 1 up is for to='lora'"),
        ({"to": "lora", "rank": 0}, "a rank of 0"),
    ],
)
def test_what_cannot_be_asked(arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=says):
        export_edits(edited(edits=1), tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = edited(edits=1)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("x")
    for name in ("file", "link", "taken"):
        with pytest.raises(ExportError, match="is there already"):
            export_edits(session, tmp_path / name, "edits")
    with pytest.raises(ExportError, match="cannot be made"):
        export_edits(session, tmp_path / "file" / "inner", "edits")
    (tmp_path / "empty").mkdir()
    export_edits(session, tmp_path / "empty", "edits")
    assert files(tmp_path / "empty") == {"edits.safetensors", "README.md"}

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "_sync", full_disk)
    before = files(tmp_path)
    with pytest.raises(ExportError, match="No space left"):
        export_edits(session, tmp_path / "full", "full")
    assert files(tmp_path) == before and not (tmp_path / "full").exists()


def test_who_may_read_an_export_is_for_the_umask_to_say(tmp_path: Path) -> None:
    session = edited(edits=1)
    old = os.umask(0o027)
    try:
        export_edits(session, tmp_path / "full", "full")
    finally:
        os.umask(old)
    modes = {name: stat.S_IMODE((tmp_path / "full" / name).stat().st_mode) for name in files(tmp_path / "full")}
    assert set(modes.values()) == {0o640}


def test_a_file_that_is_given_by_name(tmp_path: Path) -> None:
    session = edited(edits=1)
    export_edits(session, tmp_path / "edits", "edits")
    model = build_model("gpt2")
    apply_edits(model, tmp_path / "edits" / "edits.safetensors")
    assert apart(model, session.model) == 0
    session.save_edits(tmp_path / "any name")
    model = build_model("gpt2")
    apply_edits(model, tmp_path / "any name")
    assert apart(model, session.model) == 0
    save_file({"x": TOKENS}, tmp_path / "edits" / "adapter_model.safetensors")
    for folder in (tmp_path, tmp_path / "edits"):
        with pytest.raises(EditsError, match="give the folder of one export"):
            apply_edits(model, folder)
