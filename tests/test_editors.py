"""Priors are factorised once: kept on disk under what they were made of, and not made again when a model is restored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nas_plugin.editors import kept_prior, make_editors, prior_path
from nas_plugin.errors import StatisticsError
from nas_plugin.write import METHODS
from tests.conftest import build_requests
from tests.support import METHOD_NAMES, all_equal, edited_matrices, tiny_hparams, tiny_session


def counted(monkeypatch: pytest.MonkeyPatch, method: str) -> list[int]:
    made: list[int] = []
    honest = METHODS[method].prior.__func__

    def prior(cls, moment, hparams):
        made.append(1)
        return honest(cls, moment, hparams)

    monkeypatch.setattr(METHODS[method], "prior", classmethod(prior))
    return made


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_restoring_the_model_factorises_nothing_and_starts_afresh(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch, method)
    session = tiny_session(method=method, family="llama")
    session.edit(build_requests(2))
    first = edited_matrices(session)
    session.edit(build_requests(4)[2:])
    session.revert()
    session.edit(build_requests(2))
    assert all_equal(edited_matrices(session), first)
    assert len(made) == 2  # one for each of two layers


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_priors_are_kept_by_content(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hparams, w0 = tiny_hparams(method), torch.randn(3, 5)
    root = torch.randn(5, 40, dtype=torch.float64) * 0.01
    moment = root @ root.T
    made = counted(monkeypatch, method)
    keys, residual = torch.randn(5, 1), torch.randn(3, 1)
    deltas = [
        make_editors(hparams, {0: c}, {0: w0}, folder)[0].propose(w0, keys, residual).delta
        for folder, c in ((None, moment), (tmp_path, moment), (tmp_path, moment), (tmp_path, moment * 1.1))
    ]
    assert len(made) == 3 and len(list(tmp_path.iterdir())) == 2
    assert torch.equal(deltas[0], deltas[1]) and torch.equal(deltas[0], deltas[2])
    assert not torch.equal(deltas[0], deltas[3])


def test_methods_share_a_prior_only_if_it_is_the_same(tmp_path: Path) -> None:
    names = {name: METHODS[name].prior_name(tiny_hparams(name)) for name in METHOD_NAMES}
    assert names["MEMIT"] == names["PRUNE"] == names["RECT"] == names["LyapLock"]
    assert len(set(names.values())) == 3
    moment = torch.eye(2)
    assert prior_path(tmp_path, 0, "a", moment) != prior_path(tmp_path, 0, "a", 2 * moment)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prior.safetensors"
    path.write_bytes(content)
    with pytest.raises(StatisticsError, match="Delete it"):
        kept_prior(path, 2, lambda: torch.eye(2))
