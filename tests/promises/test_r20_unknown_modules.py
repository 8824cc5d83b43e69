"""R20: a layer or module that does not exist is refused with the nearest names and the range of layers.

That takes less than a second, before anything is computed, and touches no weight.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from nas_plugin.errors import UnknownLayerError
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_tokenizer
from tests.promises.watching import counted_calls, digests
from tests.support import tiny_hparams

# What is wrong, and the module of each naming scheme that the user must have meant.
TEMPLATES = {
    "gpt": {
        "rewrite_module_tmp": ("transformer.h.{}.mlp.c_porj", ".mlp."),
        "layer_module_tmp": ("transformer.hh.{}", "transformer.h.1"),
        "mlp_module_tmp": ("transformer.h.{}.mpl", "transformer.h.1.mlp"),
        "ln_f_module": ("transformer.ln_ff", "transformer.ln_f"),
    },
    "llama": {
        "rewrite_module_tmp": ("model.layers.{}.mlp.down_prj", "model.layers.0.mlp.down_proj"),
        "layer_module_tmp": ("model.layer.{}", "model.layers.1"),
        "mlp_module_tmp": ("model.layers.{}.mpl", "model.layers.1.mlp"),
        "ln_f_module": ("model.nrm", "model.norm"),
    },
}


def refused(family: str, **overrides: Any) -> str:
    model, tok, hparams = build_model(family), build_tokenizer(), tiny_hparams("MEMIT", **overrides)
    before, started = digests(model), time.process_time()
    with counted_calls(model) as calls, pytest.raises(UnknownLayerError) as caught:
        EditSession(model, tok, hparams, progress=False)
    assert time.process_time() - started < 1.0
    assert calls == [] and digests(model) == before
    return caught.value.message


@pytest.mark.parametrize("layers", [[3], [0, 1, 2, 3], [-1], [0, 400]])
def test_a_layer_out_of_range_names_the_range_and_the_nearest_module(family: str, layers: list[int]) -> None:
    try:
        hparams = tiny_hparams("MEMIT", layers=layers)
    except ValueError:
        # A negative layer exists in no model: the hyperparameters refuse it already.
        assert layers == [-1]
        return
    said = refused(family, layers=list(hparams.layers))
    assert f"layer {layers[-1]} " in said and "0 to 2" in said
    nearest = "transformer.h.2.mlp." if family.startswith("gpt") else "model.layers.2.mlp.down_proj"
    assert nearest in said


@pytest.mark.parametrize("field", ["rewrite_module_tmp", "layer_module_tmp", "mlp_module_tmp", "ln_f_module"])
def test_a_mistyped_template_names_three_nearest_modules_and_the_range(family: str, field: str) -> None:
    written, meant = TEMPLATES["gpt" if family.startswith("gpt") else "llama"][field]
    said = refused(family, **{field: written})
    nearest = said.split("Nearest: ")[1].split(". Layers")[0].split(", ")
    modules = dict(build_model(family).named_modules())
    assert len(nearest) == 3 and all(name in modules for name in nearest)
    assert any(meant in name for name in nearest), nearest
    assert "0 to 2" in said and written.split("{}", maxsplit=1)[0] in said


def test_a_loss_layer_out_of_range_is_named() -> None:
    assert "layer 3 " in (said := refused("llama", v_loss_layer=3)) and "v_loss_layer" in said


def test_a_good_template_is_taken() -> None:
    hparams = tiny_hparams("MEMIT", rewrite_module_tmp="model.layers.{}.mlp.down_proj", layers=[2])
    session = EditSession(build_model("llama"), build_tokenizer(), hparams, progress=False)
    assert session.parameter_names == ("model.layers.2.mlp.down_proj.weight",)
