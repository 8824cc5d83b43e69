"""Editing through `BaseEditor`: single, sequential, batched; on whichever host this run has."""

from __future__ import annotations

import copy
import logging
import random
from typing import Any

import pytest
import torch
from easyedit_support import PEOPLE, REQUESTS, changed, columns, make_model, make_tokenizer, restoring, staying, weights

from nas_plugin.easyedit.adapter import adapter_of
from nas_plugin.easyedit.commit import commit_edits, session_of
from nas_plugin.easyedit.preloaded import Preloaded
from nas_plugin.easyedit.records import ModelRecord
from nas_plugin.errors import EditedModelError, HparamsError, RequestError
from nas_plugin.share.apply import apply_edits
from nas_plugin.share.export import export_edits

pytestmark = pytest.mark.contract


def test_a_single_edit_is_measured_and_taken_back(host_on_cpu, pair, settings, caplog) -> None:
    editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=pair))
    before = weights(pair.model)
    metrics, model, originals = editor.edit(**columns(REQUESTS[:2]), **restoring(host_on_cpu), verbose=False)
    assert model is editor.model is pair.model
    assert changed(before, model) == set()
    assert len(metrics) == 2 and "rewrite_acc" in metrics[1]["post"]
    assert all(value.device.type == "cpu" and torch.equal(value, before[name]) for name, value in originals.items())
    assert session_of(editor).state_of_weights() == "rolled back"
    editor.edit(**columns(REQUESTS[2:3]), **restoring(host_on_cpu), verbose=False)
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING and "commit_edits" in r.getMessage()]
    assert len(warnings) == 1


def test_sequential_edits_stay_and_equal_the_session(host_on_cpu, pair, settings, caplog) -> None:
    twin = copy.deepcopy(pair.model)
    hparams = settings(model_name=pair)
    editor = host_on_cpu.BaseEditor.from_hparams(hparams)
    before = weights(pair.model)
    editor.edit(**columns(REQUESTS), **staying(host_on_cpu), verbose=False)
    names = changed(before, editor.model)
    session = session_of(editor)
    assert names == set(session.parameter_names)
    assert session.steps == len(REQUESTS) and session.state_of_weights() == "unchanged"
    assert "commit_edits" not in caplog.text
    direct = type(session)(twin, pair.tok, hparams)
    for request in REQUESTS:
        direct.edit([request])
    assert changed(weights(twin), editor.model) == set()


def test_a_batch_is_one_step(host_on_cpu, pair, settings) -> None:
    twin = copy.deepcopy(pair.model)
    hparams = settings(model_name=pair, batch_size=len(REQUESTS))
    editor = host_on_cpu.BaseEditor.from_hparams(hparams)
    metrics, _, _ = editor.batch_edit(
        REQUESTS_OF["prompts"],
        REQUESTS_OF["target_new"],
        subject=REQUESTS_OF["subject"],
        **staying(host_on_cpu),
        verbose=False,
    )
    session = session_of(editor)
    assert len(metrics) == len(REQUESTS) and session.steps == 1
    direct = type(session)(twin, pair.tok, hparams)
    direct.edit(REQUESTS)
    assert changed(weights(twin), editor.model) == set()


REQUESTS_OF = columns(REQUESTS)


def test_edit_works_at_any_batch_size_and_keeps_it(host_on_cpu, pair, settings) -> None:
    hparams = settings(model_name=pair, batch_size=3)
    editor = host_on_cpu.BaseEditor.from_hparams(hparams)
    editor.edit(**columns(REQUESTS[:1]), **staying(host_on_cpu), verbose=False)
    assert editor.hparams.batch_size == 3 and hparams.batch_size == 3


def test_edit_restore_edit_equals_edit(host_on_cpu, pair, settings) -> None:
    twin = Preloaded(copy.deepcopy(pair.model), pair.tok)
    editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=pair))
    editor.edit(**columns(REQUESTS[:3]), **restoring(host_on_cpu), verbose=False)
    other = host_on_cpu.BaseEditor.from_hparams(settings(model_name=twin))
    for each in (editor, other):
        each.edit(**columns(REQUESTS[2:]), **staying(host_on_cpu), verbose=False)
    assert changed(weights(other.model), editor.model) == set()


def test_two_editors_interleaved_equal_two_alone(host_on_cpu, settings) -> None:
    def editor(kind: str, method: str) -> Any:
        model = Preloaded(make_model(kind), make_tokenizer(), name=f"tiny-{kind}")
        return host_on_cpu.BaseEditor.from_hparams(settings(method, model_name=model))

    def edit(each: Any, request: dict[str, str]) -> None:
        each.edit(**columns([request]), **staying(host_on_cpu), verbose=False)

    alone = [editor("gpt2", "AlphaEdit"), editor("llama", "LyapLock")]
    for each in alone:
        for request in REQUESTS[:3]:
            edit(each, request)
    together = [editor("gpt2", "AlphaEdit"), editor("llama", "LyapLock")]
    for request in REQUESTS[:3]:
        for each in together:
            edit(each, request)
    for one, two in zip(alone, together, strict=True):
        assert changed(weights(one.model), two.model) == set()


@pytest.mark.parametrize("method", ["MEMIT", "PRUNE", "RECT", "AlphaEdit", "ENCORE", "LyapLock"])
def test_each_method_edits_in_every_way(host_on_cpu, settings, method) -> None:
    model = Preloaded(make_model("gpt2"), make_tokenizer(), name="tiny-gpt2")
    editor = host_on_cpu.BaseEditor.from_hparams(settings(method, model_name=model, batch_size=2))
    before = weights(model.model)
    editor.edit(**columns(REQUESTS[:2]), **restoring(host_on_cpu), verbose=False)
    assert changed(before, editor.model) == set()
    editor.edit(**columns(REQUESTS[:2]), **staying(host_on_cpu), verbose=False)
    once = weights(editor.model)
    assert changed(before, editor.model) != set()
    editor.batch_edit(
        REQUESTS_OF["prompts"][2:], REQUESTS_OF["target_new"][2:], subject=REQUESTS_OF["subject"][2:], verbose=False,
        **staying(host_on_cpu),
    )  # fmt: skip
    assert changed(once, editor.model) != set()
    assert all(bool(torch.isfinite(value).all()) for value in weights(editor.model).values())


def test_padding_side_does_not_matter(host_on_cpu, pair, settings) -> None:
    edited = []
    for side in ("left", "right"):
        tok = make_tokenizer()
        tok.padding_side = side
        model = Preloaded(copy.deepcopy(pair.model), tok, name=pair.name)
        editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=model))
        editor.edit(**columns(REQUESTS[:2]), **staying(host_on_cpu), verbose=False)
        assert editor.tok is tok and tok.padding_side == side
        edited.append(editor.model)
    assert changed(weights(edited[0]), edited[1]) == set()


def test_what_is_the_callers_comes_back_as_it_was(host_on_cpu, pair, settings) -> None:
    model, tok = pair
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    model.train()
    hparams = settings(model_name=pair)
    editor = host_on_cpu.BaseEditor.from_hparams(hparams)
    requests = copy.deepcopy(REQUESTS[:2])
    flags = [p.requires_grad for p in model.parameters()]
    state = random.getstate(), torch.get_rng_state(), dict(tok.special_tokens_map), tok.padding_side, hparams.to_dict()
    adapter_of(editor.apply_algo).apply(model, tok, requests, editor.hparams, return_orig_weights=True)
    assert requests == REQUESTS[:2]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    after = random.getstate(), torch.get_rng_state(), dict(tok.special_tokens_map), tok.padding_side, hparams.to_dict()
    assert torch.equal(state[1], after[1])
    assert state[:1] + state[2:] == after[:1] + after[2:]


def test_a_half_precision_model(host_on_cpu, settings) -> None:
    model = Preloaded(make_model("llama").to(torch.bfloat16), make_tokenizer())
    editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=model))
    before = weights(model.model)
    editor.edit(**columns(REQUESTS[:1]), **restoring(host_on_cpu), verbose=False)
    assert changed(before, editor.model) == set()
    editor.edit(**columns(REQUESTS[:1]), **staying(host_on_cpu), verbose=False)
    assert changed(before, editor.model) != set()
    assert {p.dtype for p in editor.model.parameters()} == {torch.bfloat16}


def test_copy_edits_a_copy(host_on_cpu, pair, settings) -> None:
    editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=pair))
    before = weights(pair.model)
    apply = adapter_of(editor.apply_algo).apply
    edited, originals = apply(pair.model, pair.tok, REQUESTS[0], editor.hparams, copy=True)
    assert edited is not pair.model and changed(before, pair.model) == set() != changed(before, edited)
    assert originals == {}


def test_commit_edits_stay(host_on_cpu, pair, settings) -> None:
    editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=pair))
    before = weights(pair.model)
    editor.edit(**columns(REQUESTS[:1]), **restoring(host_on_cpu), verbose=False)
    report = commit_edits(editor, REQUESTS, batch_size=3)
    assert report.committed and len(report.steps) == 2
    assert [edit.request.subject for edit in report.edits] == list(PEOPLE[: len(REQUESTS)])
    assert changed(before, editor.model) != set()
    assert commit_edits(editor, REQUESTS[0]).committed


def test_the_session_of_an_editor(host_on_cpu, pair, settings, tmp_path) -> None:
    editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=pair, keep_dir=str(tmp_path / "kept")))
    before = weights(pair.model)
    commit_edits(editor, REQUESTS)
    session = session_of(editor)
    assert session is session_of(editor) and session.model is editor.model and session.steps == len(REQUESTS)
    session.undo(session.history.entries[0].id)
    done = export_edits(session, tmp_path / "shared", "edits")
    edited = weights(pair.model)
    session.close()
    session.revert()
    assert changed(before, editor.model) == set()
    assert apply_edits(editor.model, done.folder).about.edits == len(REQUESTS) - 1
    assert changed(edited, editor.model) == set()
    with pytest.raises(HparamsError, match=r"object is no method of nas_plugin"):
        session_of(object())


def test_commit_edits_checks_all_requests_first(host_on_cpu, pair, settings) -> None:
    editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=pair))
    before = weights(pair.model)
    with pytest.raises(RequestError):
        commit_edits(editor, [*REQUESTS, {"prompt": "no subject here", "subject": "Nobody", "target_new": "x"}])
    with pytest.raises(HparamsError, match="batch_size"):
        commit_edits(editor, REQUESTS, batch_size=0)
    with pytest.raises(HparamsError, match="nas_plugin"):
        commit_edits(object(), REQUESTS)
    assert changed(before, editor.model) == set()


def test_foreign_write_starts_afresh_with_a_warning(host_on_cpu, pair, settings, caplog) -> None:
    editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=pair))
    commit_edits(editor, REQUESTS[:2])
    session = session_of(editor)
    with torch.no_grad():
        pair.model.get_parameter(session.parameter_names[0]).mul_(1.5)
    assert session.state_of_weights() == "foreign"
    caplog.clear()
    commit_edits(editor, REQUESTS[2])
    assert any(record.levelno == logging.WARNING for record in caplog.records)


def test_another_method_needs_an_unedited_model(host_on_cpu, pair, settings) -> None:
    editor = host_on_cpu.BaseEditor.from_hparams(settings("AlphaEdit", model_name=pair))
    before = weights(pair.model)
    commit_edits(editor, REQUESTS[:1])
    other = host_on_cpu.BaseEditor.from_hparams(settings("MEMIT", model_name=pair))
    edited = weights(pair.model)
    with pytest.raises(EditedModelError, match="NAS-MEMIT"):
        commit_edits(other, REQUESTS[1])
    with pytest.raises(EditedModelError):
        copied = Preloaded(copy.deepcopy(pair.model), pair.tok)
        commit_edits(host_on_cpu.BaseEditor.from_hparams(settings("MEMIT", model_name=copied)), REQUESTS[1])
    assert changed(edited, pair.model) == set()
    with torch.no_grad():
        for name, parameter in pair.model.named_parameters():
            parameter.copy_(before[name])
    assert commit_edits(other, REQUESTS[1]).committed


def test_an_edited_model_can_be_freed(host_on_cpu, settings) -> None:
    import gc
    import weakref

    editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=Preloaded(make_model("gpt2"), make_tokenizer())))
    commit_edits(editor, REQUESTS[:1])
    ghost = weakref.ref(editor.model)
    del editor
    gc.collect()
    assert ghost() is None


def test_a_pickled_model_carries_no_session(host_on_cpu, pair, settings) -> None:
    import pickle

    editor = host_on_cpu.BaseEditor.from_hparams(settings(model_name=pair))
    commit_edits(editor, REQUESTS[:1])
    loaded = pickle.loads(pickle.dumps(editor.model))  # noqa: S301 - our own bytes
    assert ModelRecord.of(loaded).sessions == {}
