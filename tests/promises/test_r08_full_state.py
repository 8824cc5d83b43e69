"""R8: a snapshot holds all that a stream depends on, and one that lacks a piece is not used."""

from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch

from nas_plugin.errors import RequestError, ResumeError
from nas_plugin.keep.snapshots import names
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_tokenizer
from tests.promises.keeping import kept, same_state, stream
from tests.support import METHOD_NAMES, TEMPLATES, moments, tiny_hparams


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_snapshot_is_enough(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = kept(tmp_path, method)
    session.edit(stream(7))
    drawn = random.random(), np.random.rand(), torch.rand(1)
    resumed = kept(tmp_path, method)
    monkeypatch.setattr("nas_plugin.keep.resume._carry_out_next", lambda *_: pytest.fail("nothing is to be done again"))
    resumed.resume()
    assert same_state(session, resumed)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1))
    for request in stream(12)[7:]:
        session.edit(request)
        resumed.keeper = None
        resumed.edit(request)
        assert session.weights_digest() == resumed.weights_digest()


def test_a_snapshot_that_lacks_a_piece_is_not_used(tmp_path: Path) -> None:
    session = kept(tmp_path, "LyapLock")
    session.edit(stream(7))
    path = tmp_path / "snapshots" / names(tmp_path / "snapshots")[0] / "manifest.json"
    content = json.loads(path.read_text())
    for key in ("history", "editors", "random", "batch_size", "factors", "lines", "last_step"):
        path.write_text(json.dumps({name: value for name, value in content.items() if name != key}))
        resumed = kept(tmp_path, "LyapLock")
        assert resumed.resume() == 7 and same_state(session, resumed), key


@pytest.mark.parametrize(
    ("change", "named"), [({"v_lr": 0.2}, "hyperparameters"), ({"use_nas": False}, "use nas|hyperparameters")]
)
def test_another_session_is_refused(change: dict, named: str, tmp_path: Path) -> None:
    kept(tmp_path).edit(stream(2))
    with pytest.raises(ResumeError, match=named):
        kept(tmp_path, **change).resume()


def test_another_model_is_refused(tmp_path: Path) -> None:
    kept(tmp_path).edit(stream(2))
    other = kept(tmp_path)
    other.prepare()
    other.fingerprint = "0" * 64
    with pytest.raises(ResumeError, match="another model"):
        other.resume()


def test_a_step_that_was_rolled_back_after_its_snapshot(tmp_path: Path) -> None:
    session = kept(tmp_path)
    for request in stream(7):
        session.edit(request)
    session.rollback()
    session.edit(stream(9)[8])
    resumed = kept(tmp_path)
    assert resumed.resume() == 8 and same_state(session, resumed)


def test_killed_between_a_snapshot_and_the_line_it_is_ahead_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = kept(tmp_path)
    session.edit(stream(1))
    with torch.no_grad():
        session.em.weight(0).mul_(1.01)
    with monkeypatch.context() as patch:
        assert session.keeper is not None
        patch.setattr(session.keeper.ledger, "put", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            session.edit(stream(2)[1])
    once = kept(tmp_path)
    once.resume()
    once.edit(stream(3)[2])
    again = kept(tmp_path)
    again.resume()
    assert same_state(once, again)


def test_contexts_and_anchor_are_taken_from_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def session() -> EditSession:
        hparams = tiny_hparams("MEMIT", layers=[0], v_num_grad_steps=3)
        return EditSession(
            build_model("gpt2"), build_tokenizer(), hparams, moments=moments("gpt2", (0,), torch.float32, 0), progress=False,
            keep=tmp_path,
        )  # fmt: skip

    first = session()
    for request in stream(3):
        first.edit(request)

    def never(*_: object, **__: object) -> None:
        pytest.fail("it was measured again")

    monkeypatch.setattr("nas_plugin.foundation.generate_contexts", never)
    monkeypatch.setattr("nas_plugin.anchoring.measure_anchor", never)
    second = session()
    assert second.resume() == 3
    assert second.foundation.contexts == first.foundation.contexts and second.anchor == first.anchor
    assert same_state(first, second)


def measuring(folder: Path, moments: SecondMoments | None = None, **settings: object) -> EditSession:
    """A kept session that takes its second moments over a text, unless it is given some."""
    hparams = tiny_hparams("MEMIT", layers=[0], v_num_grad_steps=3, use_nas=False, mom2_n_tokens=None, **settings)
    hparams.mom2_dataset = [request["prompt"].format(request["subject"]) for request in stream(36)]
    return EditSession(
        build_model("gpt2"),
        build_tokenizer(),
        hparams,
        contexts=TEMPLATES,
        moments=moments,
        progress=False,
        keep=folder,
    )


def test_moments_lie_in_the_folder_where_no_statistics_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def session() -> EditSession:
        return measuring(tmp_path / "kept")

    first = session()
    for request in stream(3):
        first.edit(request)
    measure = "nas_plugin.foundation.moments_for"
    with monkeypatch.context() as patch:
        patch.setattr(measure, lambda *_, **__: pytest.fail("they were measured again"))
        second = session()
        assert second.resume() == 3 and same_state(first, second)
    path = tmp_path / "kept" / "moments.safetensors"
    kept_moments = SecondMoments.load(path)
    changed = {layer: matrix * (1 + 1e-6) for layer, matrix in kept_moments.matrices.items()}
    replace(kept_moments, matrices=changed).save(path)
    with pytest.raises(ResumeError, match="another moments"):
        session().resume()
    path.unlink()
    assert session().resume() == 3, "a folder of an earlier version has none: the same bits on the same machine"


def test_statistics_on_disk_are_not_written_twice(tmp_path: Path) -> None:
    settings = {"stats_dir": str(tmp_path / "stats")}
    measuring(tmp_path / "kept", **settings).edit(stream(1))
    assert not (tmp_path / "kept" / "moments.safetensors").exists()
    assert measuring(tmp_path / "kept", **settings).resume() == 1


def test_given_moments_lie_in_the_folder_whatever_statistics_say(tmp_path: Path) -> None:
    settings = {"stats_dir": str(tmp_path / "stats")}
    theirs = moments("gpt2", (0,), torch.float32, 0)
    first = measuring(tmp_path / "kept", theirs, **settings)
    first.edit(stream(1))
    second = measuring(tmp_path / "kept", **settings)
    assert second.resume() == 1 and same_state(first, second)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_closed_session_has_nothing_to_do_again(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with kept(tmp_path, method) as session:
        for request in stream(5):
            session.edit(request)
    monkeypatch.setattr("nas_plugin.keep.resume._carry_out_next", lambda *_: pytest.fail("nothing is to be done again"))
    with kept(tmp_path, method) as resumed:
        assert resumed.resume() == 5 and same_state(session, resumed)
    assert len(names(tmp_path / "snapshots")) == 1, "nothing had changed"


def test_a_session_is_closed_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(RequestError), kept(tmp_path) as session:
        session.edit(stream(1))
        session.edit({"prompt": "", "subject": "", "target_new": ""})
    assert names(tmp_path / "snapshots") == ["lines-000000002"]


def test_closing_saves_nothing_of_another_session(tmp_path: Path) -> None:
    kept(tmp_path).edit(stream(2))
    with pytest.raises(ResumeError, match="call resume"), kept(tmp_path) as session:
        session.edit(stream(3)[2])
    with kept(tmp_path / "new") as session:
        session.prepare()
    with kept(None) as session:
        session.edit(stream(1))
    assert not (tmp_path / "snapshots").exists() and not (tmp_path / "new").exists()


@pytest.mark.parametrize("interrupted", ["history.add", "weights.commit", "done", "keeper.factors"])
def test_interrupted_between_a_line_and_what_it_says(
    interrupted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = kept(tmp_path / "whole")
    for request in stream(4):
        wanted.edit(request)
    with pytest.raises(KeyboardInterrupt), kept(tmp_path / "kept") as session:
        for request in stream(3):
            session.edit(request)
        owner, _, name = interrupted.rpartition(".")
        at = attrgetter(owner)(session) if owner else session
        monkeypatch.setattr(at, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        session.edit(stream(4)[3])
    assert "not where the ledger ends" in caplog.text and not (tmp_path / "kept" / "snapshots").exists()
    for act in (lambda: session.edit(stream(5)[4]), lambda: session.undo("0"), session.revert):
        with pytest.raises(ResumeError, match="an error came between"):
            act()
    resumed = kept(tmp_path / "kept")
    assert resumed.resume() == 4 and same_state(wanted, resumed)


def test_weights_that_somebody_changed_are_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with kept(tmp_path) as session:
        session.edit(stream(1))
        with torch.no_grad():
            session.em.weight(0).mul_(1.01)
    assert "not where the ledger ends" in caplog.text and not (tmp_path / "snapshots").exists()


@pytest.mark.parametrize(
    ("act", "keep"),
    [(act, keep) for act in ("edit", "rollback", "undo", "revert") for keep in (True, False) if keep or act != "undo"],
)
def test_control_c_waits_where_half_a_change_would_be_left(
    act: str, keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes while the weights are being changed, when the ledger has said so already."""
    wanted, session = (kept(tmp_path / name if keep else None) for name in ("wanted", "kept"))
    acts = {
        "edit": lambda one: one.edit(stream(4)[3]),
        "rollback": lambda one: one.rollback(),
        "undo": lambda one: one.undo("1"),
        "revert": lambda one: one.revert(),
    }
    for request in stream(3):
        wanted.edit(request)
        session.edit(request)
    acts[act](wanted)
    close = session.weights.close

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        close()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session.weights, "close", interrupted)
        acts[act](session)
    assert same_state(wanted, session)
    for one in (wanted, session):
        one.edit(stream(6)[5])
    assert same_state(wanted, session)
    if keep:
        resumed = kept(tmp_path / "kept")
        resumed.resume()
        assert same_state(wanted, resumed)
