"""The session: grid of methods and families, atomicity, rollback, isolation, and what the caller gets back untouched."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nas_plugin.errors import EditedModelError, NonFiniteError, SubjectNotFoundError
from nas_plugin.model import tensor_digest
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests, build_tokenizer
from tests.support import METHOD_NAMES, TEMPLATES, all_equal, edited_matrices, moments, tiny_hparams, tiny_session


@pytest.mark.parametrize("use_nas", [True, False])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_grid_single_sequential_batched(family: str, method: str, use_nas: bool) -> None:
    session = tiny_session(family, method, use_nas=use_nas)
    base = edited_matrices(session)
    requests = build_requests(6)
    single = session.edit(requests[0])
    assert len(single.edits) == 1 and single.step == 1
    session.rollback()
    assert all_equal(edited_matrices(session), base)
    for number, request in enumerate(requests[:3], start=1):
        assert session.edit(request).step == number
    batched = session.edit(requests[3:])
    assert len(batched.edits) == 3 and batched.norm_ratio > 0
    for matrix, before in zip(edited_matrices(session), base, strict=True):
        assert torch.isfinite(matrix).all() and not torch.equal(matrix, before)
    if use_nas:
        tau = session.anchor_value
        assert all(abs(edit.written_norm / tau - 1) <= 1e-5 for edit in batched.edits)
    else:
        assert session.anchor_value is None
        assert all(edit.written_norm == edit.value_norm for edit in batched.edits)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_only_declared_tensors_change(method: str) -> None:
    session = tiny_session("gpt2", method)
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    session.edit(build_requests(2))
    changed = {name for name, tensor in session.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(session.parameter_names)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_edit_restore_edit_equals_edit(method: str) -> None:
    """The host restores weights behind our back; history, queue and base must follow."""
    first, second = build_requests(2)
    session = tiny_session("gpt2", method)
    parameters = dict(session.model.named_parameters())
    session.edit(first)
    session.edit(second)
    wanted = edited_matrices(session)
    again = tiny_session("gpt2", method)
    parameters = dict(again.model.named_parameters())
    again.edit(first)
    again.edit(build_requests(4)[3])
    for name, tensor in again.weights_before().items():
        with torch.no_grad():
            parameters[name].copy_(tensor)
    assert again.state_of_weights() == "rolled back"
    again.edit(second)
    assert all_equal(edited_matrices(again), wanted)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_restoring_the_base_starts_afresh(method: str) -> None:
    requests = build_requests(3)
    wanted = tiny_session("gpt2", method)
    wanted.edit(requests[2])
    session = tiny_session("gpt2", method)
    state = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    session.edit(requests[0])
    session.edit(requests[1])
    session.model.load_state_dict(state)
    assert session.state_of_weights() == "reset"
    session.edit(requests[2])
    assert session.steps == 1
    assert all_equal(edited_matrices(session), edited_matrices(wanted))


def test_foreign_write_resets_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    session = tiny_session("gpt2", "AlphaEdit")
    session.edit(build_requests(1))
    with torch.no_grad():
        session.em.weight(0).mul_(1.01)
    assert session.state_of_weights() == "foreign"
    session.edit(build_requests(2)[1])
    assert "changed by something else" in caplog.text and session.steps == 1


def test_a_write_through_data_is_noticed() -> None:
    session = tiny_session("gpt2", "MEMIT")
    session.edit(build_requests(1))
    version = session.em.weight(0)._version
    session.em.weight(0).data.mul_(1.5)
    assert session.em.weight(0)._version == version
    assert session.state_of_weights() == "foreign"


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_reset_restores_the_base_bit_for_bit(method: str) -> None:
    session = tiny_session("llama", method)
    base = edited_matrices(session)
    for request in build_requests(3):
        session.edit(request)
    session.revert()
    assert all_equal(edited_matrices(session), base) and session.state_of_weights() == "unchanged"


@pytest.mark.parametrize(("left", "right"), [("AlphaEdit", "LyapLock"), ("PRUNE", "ENCORE"), ("MEMIT", "RECT")])
def test_interleaved_sessions_equal_separate_ones(left: str, right: str) -> None:
    requests = build_requests(4)
    apart = []
    for method, family in ((left, "gpt2"), (right, "llama")):
        session = tiny_session(family, method)
        for request in requests:
            session.edit(request)
        apart.append(edited_matrices(session))
    a, b = tiny_session("gpt2", left), tiny_session("llama", right)
    for request in requests:
        a.edit(request)
        b.edit(request)
    assert all_equal(edited_matrices(a), apart[0]) and all_equal(edited_matrices(b), apart[1])


ALONE = """
import json, sys
from tests.conftest import build_requests
from tests.support import edited_matrices, tiny_session
from nas_plugin.model import tensor_digest
session = tiny_session(sys.argv[1], sys.argv[2])
for request in build_requests(3):
    session.edit(request)
print(json.dumps([tensor_digest(matrix) for matrix in edited_matrices(session)]))
"""


def test_interleaved_sessions_equal_two_processes() -> None:
    kinds = (("gpt2", "AlphaEdit"), ("llama", "LyapLock"))
    root = Path(__file__).resolve().parents[1]
    alone = []
    for kind in kinds:
        done = subprocess.run(
            [sys.executable, "-c", ALONE, *kind], cwd=root, capture_output=True, text=True, check=True
        )
        alone.append(json.loads(done.stdout.splitlines()[-1]))
    sessions = [tiny_session(*kind) for kind in kinds]
    for request in build_requests(3):
        for session in sessions:
            session.edit(request)
    assert [[tensor_digest(matrix) for matrix in edited_matrices(session)] for session in sessions] == alone


def test_padding_side_does_not_matter() -> None:
    results = []
    for side in ("right", "left"):
        tok = build_tokenizer()
        tok.padding_side = side
        session = tiny_session("gpt2", "AlphaEdit", tok=tok)
        session.edit(build_requests(4))
        results.append(edited_matrices(session))
        assert tok.padding_side == side
    assert all_equal(*results)


def test_no_pad_token_is_needed_and_none_is_set() -> None:
    with_pad = tiny_session("gpt2", "MEMIT")
    tok = build_tokenizer()
    tok.pad_token = None
    without = tiny_session("gpt2", "MEMIT", tok=tok)
    for session in (with_pad, without):
        session.edit(build_requests(3))
    assert all_equal(edited_matrices(with_pad), edited_matrices(without)) and tok.pad_token is None


def test_caller_gets_everything_back_as_it_was() -> None:
    hparams = tiny_hparams("AlphaEdit", mom2_dataset="demo-text.txt")
    model, tok = build_model("gpt2"), build_tokenizer()
    model.train()
    model.transformer.h[0].eval()
    model.transformer.wte.weight.requires_grad_(False)
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    settings = tok.padding_side, tok.pad_token, tok.init_kwargs.copy(), len(tok)
    requests = build_requests(3)
    copies = [dict(request) for request in requests]
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    # Contexts are generated here: the only place where random numbers are drawn.
    session = EditSession(model, tok, hparams, moments=moments("gpt2", (0, 1), torch.float32, 0), progress=False)
    session.edit(requests)
    drawn = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    assert torch.equal(drawn[0], torch.rand(3)) and drawn[1:] == (random.random(), np.random.rand())
    assert flags == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
    assert settings == (tok.padding_side, tok.pad_token, tok.init_kwargs, len(tok))
    assert requests == copies
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_bad_request_in_a_batch_changes_nothing() -> None:
    session = tiny_session("gpt2", "AlphaEdit")
    session.edit(build_requests(1))
    before, steps = edited_matrices(session), session.steps
    bad = [*build_requests(3), {"prompt": "Nobody lives here", "subject": "Danielle", "target_new": "x"}]
    with pytest.raises(SubjectNotFoundError, match="Danielle"):
        session.edit(bad)
    assert all_equal(edited_matrices(session), before) and session.steps == steps


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_nan_in_a_solve_leaves_weights_and_state(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = build_requests(2)
    wanted = tiny_session("gpt2", method)
    for request in requests:
        wanted.edit(request)
    session = tiny_session("gpt2", method)
    session.edit(requests[0])
    before = edited_matrices(session)
    session.em.write(0, session.em.matrix(0))
    last = session.editors[1]
    honest = last.propose
    monkeypatch.setattr(last, "propose", lambda w, k, r: honest(w, k, r * float("nan")))
    with pytest.raises(NonFiniteError):
        session.edit(requests[1])
    assert all_equal(edited_matrices(session), before)
    monkeypatch.setattr(last, "propose", honest)
    session.edit(requests[1])
    assert all_equal(edited_matrices(session), edited_matrices(wanted))


@pytest.mark.parametrize("method", ["AlphaEdit", "LyapLock"])
def test_a_step_can_be_rolled_back_after_the_next_one_failed(method: str) -> None:
    requests = build_requests(4)
    wanted, session = tiny_session("gpt2", method), tiny_session("gpt2", method)
    for request in (requests[0], requests[2]):
        wanted.edit(request)
    session.edit(requests[0])
    session.edit(requests[1])
    with pytest.raises(SubjectNotFoundError):
        session.edit({"prompt": "Nobody lives here", "subject": "Lyon", "target_new": "x"})
    session.rollback()
    session.edit(requests[2])
    assert all_equal(edited_matrices(session), edited_matrices(wanted))


def test_fp16_overflow_is_refused_before_writing() -> None:
    session = tiny_session("gpt2", "MEMIT", dtype=torch.float16, use_nas=False)
    session.prepare()
    before = edited_matrices(session)
    huge = {layer: torch.full_like(matrix, 1e6) for layer, matrix in session.weights.master.items()}
    with pytest.raises(NonFiniteError, match="float16"):
        session.weights.check_finite(huge)
    assert all_equal(edited_matrices(session), before)


def test_half_precision_model_keeps_full_precision_masters() -> None:
    session = tiny_session("llama", "MEMIT", dtype=torch.bfloat16)
    for request in build_requests(3):
        session.edit(request)
    for layer in session.em.layers:
        master = session.weights.master[layer]
        assert master.dtype == torch.float32 and session.em.weight(layer).dtype == torch.bfloat16
        assert not torch.equal(master, master.bfloat16().float())
        assert torch.equal(session.em.matrix(layer), master.bfloat16())


def test_nothing_is_measured_on_an_edited_model() -> None:
    session = tiny_session("gpt2", "MEMIT")
    with torch.no_grad():
        session.em.weight(0).add_(1e-3)
    with pytest.raises(EditedModelError, match="unedited"):
        session.prepare()
    hparams = tiny_hparams("MEMIT")
    told = EditSession(build_model("gpt2"), build_tokenizer(), hparams, contexts=TEMPLATES, edited=True, progress=False)
    with pytest.raises(EditedModelError, match="moments, anchor"):
        told.prepare()


def test_square_conv1d_is_turned_by_type() -> None:
    """With d_in = d_out a shape test cannot tell Conv1D from Linear: the target must come out right all the same."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=32, n_layer=3, n_head=4, n_inner=32)).eval()
    hparams = tiny_hparams("MEMIT", layers=[1], mom2_update_weight=1e-6, use_nas=False)
    session = EditSession(
        model, build_tokenizer(), hparams, contexts=TEMPLATES, moments={1: torch.eye(32)}, progress=False
    )
    request = build_requests(1)
    wanted = session.solve(request)
    session.edit(request)
    reached = session.solve(request).h0
    target = wanted.h0 + wanted.delta
    assert float((reached - target).norm() / wanted.delta.norm()) < 0.2


def test_a_caller_without_gradients_may_edit() -> None:
    plain, inside = tiny_session("gpt2", "MEMIT"), tiny_session("gpt2", "MEMIT")
    plain.edit(build_requests(1))
    with torch.no_grad():
        inside.edit(build_requests(1))
    assert all_equal(edited_matrices(plain), edited_matrices(inside))
