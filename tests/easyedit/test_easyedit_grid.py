"""Six methods, without and with NAS, on six families, through `BaseEditor`: single, sequential and batched."""

from __future__ import annotations

import pytest
import torch
from easyedit_support import REQUESTS, columns, make_tokenizer, restoring, staying, weights

from nas_plugin.easyedit.preloaded import Preloaded
from tests.conftest import ARCHITECTURES, build_model

METHODS = ("MEMIT", "PRUNE", "RECT", "AlphaEdit", "ENCORE", "LyapLock")


@pytest.mark.contract
@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("use_nas", [True, False])
def test_single_sequential_and_batched(host_on_cpu, settings, method: str, family: str, use_nas: bool) -> None:
    # A random layer has no null space of its own: free the weaker half of its directions.
    numbers = {"nullspace_threshold": 0.5} if method == "AlphaEdit" else {}
    model = build_model(family)
    hparams = settings(
        method, Preloaded(model, make_tokenizer(), f"tiny-{family}"), use_nas=use_nas, v_lr=0.1, **numbers
    )
    editor = host_on_cpu.BaseEditor.from_hparams(hparams)
    base = weights(model)
    metrics, edited, _ = editor.edit(**columns(REQUESTS[:1]), **restoring(host_on_cpu), verbose=False)
    assert len(metrics) == 1 and all(torch.equal(base[name], value) for name, value in weights(edited).items())
    metrics, edited, _ = editor.edit(**columns(REQUESTS[:2]), **staying(host_on_cpu), verbose=False)
    after_two = weights(edited)
    assert len(metrics) == 2
    assert sum(not torch.equal(base[name], value) for name, value in after_two.items()) == 1
    editor.hparams.batch_size = 2
    metrics, edited, _ = editor.batch_edit(**columns(REQUESTS[2:4]), **staying(host_on_cpu), verbose=False)
    assert len(metrics) == 2
    assert any(not torch.equal(after_two[name], value) for name, value in weights(edited).items())
    assert all(bool(torch.isfinite(value).all()) for value in weights(edited).values())
