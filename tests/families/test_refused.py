"""What cannot be edited is refused by name, with the reason, before anything is measured; unknown families are tried out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GemmaConfig,
    GraniteConfig,
    OPTConfig,
    Qwen2MoeConfig,
    Starcoder2Config,
)

from nas_plugin.errors import UnknownArchitectureError, UnsupportedArchitectureError
from nas_plugin.model import EditableModel
from nas_plugin.model.architectures import ARCHITECTURES, architecture_of
from nas_plugin.model.pattern import try_out
from nas_plugin.session import EditSession
from tests.conftest import CONFIGS, build_model, build_tokenizer
from tests.families.support import NORMED
from tests.support import tiny_hparams

MIXTURES = (
    "mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v2", "deepseek_v3", "olmoe", "phimoe", "granitemoe", "dbrx",
    "jamba", "llama4", "glm4_moe", "ernie4_5_moe",
)  # fmt: skip
_LLAMA = ARCHITECTURES["llama"]
PATHS = {
    "rewrite_module_tmp": _LLAMA.rewrite, "layer_module_tmp": _LLAMA.block, "mlp_module_tmp": _LLAMA.mlp,
    "attn_module_tmp": _LLAMA.attention, "ln_f_module": _LLAMA.final_norm,
}  # fmt: skip
SMALL = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_of_experts_is_refused_whatever_is_named(family: str) -> None:
    config = AutoConfig.for_model(family)
    for named in ({}, PATHS):
        with pytest.raises(UnsupportedArchitectureError, match=rf"{family}.*mixture of \d+ experts.*no one matrix"):
            architecture_of(config, tiny_hparams("MEMIT", **named))


def test_a_mixture_is_refused_before_its_model_is_called() -> None:
    config = Qwen2MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    with pytest.raises(UnsupportedArchitectureError, match="mixture of 4 experts"):
        EditSession(AutoModelForCausalLM.from_config(config), build_tokenizer(), tiny_hparams("MEMIT"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"do_layer_norm_before": False}, "OPT-350m"),
        ({"_remove_final_layer_norm": True}, "no final norm"),
        ({"word_embed_proj_dim": 16}, "projects its 32 hidden numbers to 16"),
    ],
)
def test_opt_of_another_build_is_refused(changes: dict[str, Any], says: str) -> None:
    config = CONFIGS["opt"]()
    for key, value in changes.items():
        setattr(config, key, value)
    assert isinstance(config, OPTConfig)
    with pytest.raises(UnsupportedArchitectureError, match=says):
        architecture_of(config, tiny_hparams("MEMIT"))


def test_an_unknown_family_is_told_how_to_go_on() -> None:
    with pytest.raises(UnknownArchitectureError, match="nas-edit hparams new MODEL"):
        architecture_of(AutoConfig.for_model("starcoder2"), tiny_hparams("MEMIT"))


def described(config: Any, seed: int = 0, **paths: str) -> EditableModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
    return EditableModel(model, tiny_hparams("MEMIT", **(PATHS | paths)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_build_that_fits_passes(dtype: torch.dtype) -> None:
    for em in (
        described(GemmaConfig(**SMALL, head_dim=8)),
        described(Starcoder2Config(**SMALL), rewrite_module_tmp="model.layers.{}.mlp.c_proj"),
    ):
        em.model.to(dtype)
        try_out(em)
        assert not em.paths.known and em.paths.prefix_cache is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"residual_multiplier": 0.5}, "MLP of block 0 returns is not added"),
        ({"logits_scaling": 2.0}, "final norm and head"),
    ],
)
def test_a_factor_in_the_wrong_place_is_found(changes: dict[str, float], says: str, dtype: torch.dtype) -> None:
    em = described(GraniteConfig(**SMALL, **changes))
    em.model.to(dtype)
    with pytest.raises(UnsupportedArchitectureError, match=says):
        try_out(em)


def test_the_wrong_linear_map_is_found() -> None:
    em = described(GemmaConfig(**SMALL, head_dim=8), rewrite_module_tmp="model.layers.{}.mlp.up_proj")
    with pytest.raises(UnsupportedArchitectureError, match="is not what"):
        try_out(em)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_table_fits_what_a_trial_finds(family: str) -> None:
    em = EditableModel(build_model(family), tiny_hparams("MEMIT"))
    if family in NORMED:
        with pytest.raises(UnsupportedArchitectureError, match="is not added"):
            try_out(em)
    else:
        try_out(em)


def test_a_session_tries_out_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[EditableModel] = []
    monkeypatch.setattr("nas_plugin.session.try_out", tried.append)
    for family in ("llama", "llamma"):
        model = build_model("llama")
        model.config.model_type = family
        session = EditSession(
            model, build_tokenizer(), tiny_hparams("MEMIT", use_nas=False, **PATHS), contexts=[["{}"]], progress=False,
            moments={0: torch.eye(48), 1: torch.eye(48)},
        )  # fmt: skip
        session.prepare(), session.prepare()
    assert tried == [session.em]
