"""What the model room refuses, by name and with the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nas_plugin.errors import UnknownArchitectureError, UnknownLayerError, UnsupportedWeightError
from nas_plugin.model import ARCHITECTURES, EditableModel, tensor_digest, weights_fingerprint
from tests.conftest import ARCHITECTURES as FAMILIES
from tests.conftest import CONFIGS, build_model
from tests.support import tiny_hparams


def test_the_table_covers_the_tested_families() -> None:
    assert set(ARCHITECTURES) == set(CONFIGS) and set(FAMILIES) < set(CONFIGS)


def test_matrix_and_write_are_inverse(family: str) -> None:
    em = EditableModel(build_model(family), tiny_hparams("MEMIT"))
    matrix = em.matrix(0).clone()
    assert matrix.shape == (32, 48)
    wanted = torch.randn_like(matrix)
    em.write(0, wanted)
    assert torch.equal(em.matrix(0), wanted)
    em.write(0, matrix)
    assert weights_fingerprint(em.model) == weights_fingerprint(build_model(family))


def test_logits_equal_the_models(family: str) -> None:
    model = build_model(family)
    em = EditableModel(model, tiny_hparams("MEMIT"))
    ids = torch.arange(12)[None]
    blocks: list[torch.Tensor] = []
    hook = em.loss_block.register_forward_hook(
        lambda _m, _a, out: blocks.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        logits = model(ids).logits[0]
        hook.remove()
        assert torch.allclose(em.logits(blocks[0][0]), logits, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        ({"layers": [0, 9]}, UnknownLayerError, "0 to 2"),
        ({"v_loss_layer": 7}, UnknownLayerError, "0 to 2"),
        ({"rewrite_module_tmp": "transformer.h.{}.mlp.c_prj"}, UnknownLayerError, "c_proj"),
        ({"rewrite_module_tmp": "transformer.h.{}.mlp.act"}, UnsupportedWeightError, "act.weight"),
    ],
)
def test_wrong_hyperparameters_are_named(overrides: dict, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        EditableModel(build_model("gpt2"), tiny_hparams("MEMIT", **overrides))


def test_unknown_family_says_what_to_set_and_works_once_set() -> None:
    model = build_model("llama")
    model.config.model_type = "llamma"
    with pytest.raises(UnknownArchitectureError, match=r"llama.*rewrite_module_tmp"):
        EditableModel(model, tiny_hparams("MEMIT"))
    row = ARCHITECTURES["llama"]
    paths = {
        "rewrite_module_tmp": row.rewrite, "layer_module_tmp": row.block, "mlp_module_tmp": row.mlp,
        "attn_module_tmp": row.attention, "ln_f_module": row.final_norm,
    }  # fmt: skip
    assert EditableModel(model, tiny_hparams("MEMIT", **paths)).value_layer == 1


def test_meta_quantised_and_shared_weights_are_refused_by_name() -> None:
    model = build_model("llama")
    model.model.layers[1].mlp.down_proj.to("meta")
    with pytest.raises(UnsupportedWeightError, match=r"layers\.1\.mlp\.down_proj\.weight is on the meta"):
        EditableModel(model, tiny_hparams("MEMIT"))
    model = build_model("llama")
    model.model.layers[0].mlp.down_proj.weight = nn.Parameter(
        torch.zeros(32, 48, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(UnsupportedWeightError, match="quantised"):
        EditableModel(model, tiny_hparams("MEMIT"))
    model = build_model("llama")
    model.model.layers[0].mlp.down_proj.weight = model.model.layers[1].mlp.down_proj.weight
    with pytest.raises(UnsupportedWeightError, match="shared"):
        EditableModel(model, tiny_hparams("MEMIT"))


def test_fingerprint_sees_one_edit_and_digest_one_element() -> None:
    model = build_model("gpt2")
    before = weights_fingerprint(model)
    em = EditableModel(model, tiny_hparams("MEMIT"))
    em.write(1, em.matrix(1) * 1.0001)
    assert weights_fingerprint(model) != before
    tensor = torch.zeros(10_001)
    changed = tensor.clone()
    changed[1] = 1e-30
    assert tensor_digest(tensor) != tensor_digest(changed) and tensor_digest(tensor) == tensor_digest(tensor.clone())
