"""R24: a weight that cannot be edited faithfully is refused before anything runs, naming the exact layer and the way out.

Quantised weights (whole numbers, or a parameter class of a quantisation library), weights on the meta device, weights shared with
another module, and modules that are no linear map. Nothing is dequantised behind the user's back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nas_plugin.errors import UnsupportedWeightError
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_tokenizer
from tests.promises.watching import counted_calls, digests
from tests.support import tiny_hparams

REWRITE = {"gpt2": "transformer.h.{}.mlp.c_proj", "gptj": "transformer.h.{}.mlp.fc_out"}


class Params4bit(nn.Parameter):
    """As a quantisation library packs its weights: floating point to look at, codes inside."""


class QuantLinear(nn.Module):
    """A layer of a quantisation library: no nn.Linear, and packed weights under other names."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wrapped(x)


def whole_numbers(_model: Any, _path: str, module: Any) -> None:
    module.weight = nn.Parameter((module.weight.detach() * 16).to(torch.int8), requires_grad=False)


def packed(_model: Any, _path: str, module: Any) -> None:
    module.weight = Params4bit(module.weight.detach().clone())


def offloaded(_model: Any, _path: str, module: Any) -> None:
    module.to("meta")


def tied(model: Any, path: str, module: Any) -> None:
    model.get_submodule(path.replace(".1.", ".2.")).weight = module.weight


def wrapped(model: Any, path: str, module: Any) -> None:
    model.set_submodule(path, QuantLinear(module))


KINDS: list[tuple[Callable[[Any, str, Any], None], str]] = [
    (whole_numbers, "quantised"),
    (packed, "quantised"),
    (offloaded, "meta"),
    (tied, "shared"),
    (wrapped, "QuantLinear"),
]


@pytest.mark.parametrize(("spoil", "says"), KINDS, ids=[kind[0].__name__ for kind in KINDS])
def test_refused_with_the_layers_name(family: str, spoil: Callable[..., None], says: str) -> None:
    model, tok = build_model(family), build_tokenizer()
    path = REWRITE.get(family, "model.layers.{}.mlp.down_proj").format(1)
    spoil(model, path, model.get_submodule(path))
    before = digests(model)
    with counted_calls(model) as calls, pytest.raises(UnsupportedWeightError) as caught:
        EditSession(model, tok, tiny_hparams("MEMIT", layers=[0, 1]), progress=False)
    said = caught.value.message
    assert said.startswith(f"{path}.weight") and says in said
    assert any(hint in said for hint in ("load", "unwrap", "would change both"))
    assert calls == [] and digests(model) == before


@pytest.mark.parametrize("spoil", [kind[0] for kind in KINDS if kind[0] is not tied])
def test_layers_that_are_not_edited_may_be_anything(spoil: Callable[..., None]) -> None:
    model = build_model("llama")
    path = "model.layers.1.mlp.down_proj"
    spoil(model, path, model.get_submodule(path))
    session = EditSession(model, build_tokenizer(), tiny_hparams("MEMIT", layers=[0]), progress=False)
    assert session.parameter_names == ("model.layers.0.mlp.down_proj.weight",)
