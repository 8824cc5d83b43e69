"""R29: the same seeds twice on a CPU give the same bits, whatever the caller's own random numbers have been through."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from nas_plugin.anchor import Anchor
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests, build_tokenizer
from tests.support import METHOD_NAMES, all_equal, edited_matrices, tiny_hparams


def run(method: str, family: str, noise: int, **overrides: int) -> tuple[list[torch.Tensor], Anchor]:
    """Everything from the start: contexts are generated, statistics given, the anchor measured."""
    torch.manual_seed(noise), random.seed(noise), np.random.seed(noise)
    torch.rand(noise + 1)
    g = torch.Generator().manual_seed(3)
    root = torch.randn(48, 96, generator=g, dtype=torch.float64)
    moment = root @ root.T / 96
    session = EditSession(
        build_model(family),
        build_tokenizer(),
        tiny_hparams(method, nullspace_threshold=0.9, **overrides)
        if method == "AlphaEdit"
        else tiny_hparams(method, **overrides),
        moments={0: moment, 1: moment},
        progress=False,
    )
    requests = build_requests(8)
    for request in requests[:4]:
        session.edit(request)
    session.edit(requests[4:])
    return edited_matrices(session), session.foundation.anchor


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_same_seeds_give_the_same_bits(method: str) -> None:
    (first, anchor), (second, again) = run(method, "llama", noise=1), run(method, "llama", noise=99)
    assert all_equal(first, second) and anchor == again


@pytest.mark.parametrize("seed", ["context_seed", "nas_seed"])
def test_other_seeds_give_other_bits(seed: str) -> None:
    """The test above has teeth only if the seeds decide something."""
    assert not all_equal(run("MEMIT", "gpt2", 1)[0], run("MEMIT", "gpt2", 1, **{seed: 7})[0])
