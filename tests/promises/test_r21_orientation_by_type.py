"""R21: how a weight is stored is told from the module's type, never from its shape.

Where the MLP is as wide as the model, `Conv1D` and `nn.Linear` weights are both square. The same numbers held either way must be
edited to the same function.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from nas_plugin.session import EditSession
from tests.conftest import build_requests, build_tokenizer
from tests.support import METHOD_NAMES, TEMPLATES, tiny_hparams

WIDTH = 32


def square_gpt2() -> GPT2LMHeadModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=384, n_embd=WIDTH, n_inner=WIDTH, n_layer=3, n_head=4, n_positions=128)
        model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.15)
    return model.double()


def with_linear(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The same function, with every down-projection held by an nn.Linear."""
    twin = copy.deepcopy(model)
    for block in twin.transformer.h:
        held = block.mlp.c_proj
        linear = nn.Linear(WIDTH, WIDTH).double()
        with torch.no_grad():
            linear.weight.copy_(held.weight.T)
            linear.bias.copy_(held.bias)
        block.mlp.c_proj = linear
    return twin


def logits_after(model: GPT2LMHeadModel, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    root = torch.randn(WIDTH, 2 * WIDTH, generator=g, dtype=torch.float64)
    moment = root @ root.T / WIDTH
    more = {"nullspace_threshold": 1.0} if method == "AlphaEdit" else {}
    session = EditSession(
        model,
        build_tokenizer(),
        tiny_hparams(method, **more),
        contexts=TEMPLATES,
        moments={0: moment, 1: moment},
        progress=False,
    )
    ids = torch.arange(5, 45)[None]
    logits = []
    for requests in ([], build_requests(4)):
        for request in requests:
            session.edit(request)
        with torch.no_grad():
            logits.append(model(ids).logits)
    return logits[0], logits[1]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_square_weights_held_either_way_become_the_same_function(method: str) -> None:
    model = square_gpt2()
    conv_before, conv = logits_after(model, method)
    linear_before, linear = logits_after(with_linear(square_gpt2()), method)
    assert float((conv_before - linear_before).abs().max()) <= 1e-10
    changed = float((conv - conv_before).norm())
    assert changed > 1e-4 * float(conv_before.norm())
    assert float((conv - linear).norm()) <= 1e-6 * changed
