"""Every further family: the fast form of the solver's forward is the plain one; windows, caps and biases by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, GPTNeoXConfig

from nas_plugin.model import EditableModel
from nas_plugin.request import as_requests
from nas_plugin.solve import suffix
from nas_plugin.solve.forward import can_reuse_prefix
from nas_plugin.solve.rows import TargetRows
from tests.conftest import CONFIGS, build_model, build_requests
from tests.families.support import FAMILIES, NORMED
from tests.solve.test_forward import both_forms
from tests.solve.test_target import difference
from tests.support import FLAT, tiny_hparams, tiny_session, without_float32_inside
from tests.twins.naive import naive_target


@pytest.mark.parametrize("layers", [[0], [1]])
@pytest.mark.parametrize("family", FAMILIES)
def test_forms_agree_with_gradients(family: str, layers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    em, texts, shared, fast, plain = both_forms(family, monkeypatch, layers)
    monkeypatch.setattr(suffix, "pass_cost", lambda _em: 0)
    assert shared.width > 0 and can_reuse_prefix(em, 63)
    rows = TargetRows.of(texts, torch.device("cpu"))
    every = torch.arange(len(rows.row_request))
    for what in ("hidden", "value", "keys"):
        assert difference(getattr(fast, what), getattr(plain, what)) <= 1e-10, what
    bound = [form.corrected(every, rows.places) for form in (fast, plain)]
    # Later calls of the fast form do not go through the model's own forward any more.
    for scale in (1.0, 0.5):
        results = []
        for form in bound:
            shift = torch.linspace(-scale, scale, len(every) * 32, dtype=torch.float64).reshape(-1, 32).requires_grad_()
            states = form.states(shift)
            (gradient,) = torch.autograd.grad((states**2).sum(), shift)
            results.append((states.detach(), gradient))
        for one, other in zip(*results, strict=True):
            assert difference(one, other) <= 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models(family: str) -> None:
    model = build_model(family)
    em = EditableModel(model, tiny_hparams("MEMIT"))
    seen: list[Any] = []
    hook = em.loss_block.register_forward_hook(
        lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        logits = model(torch.arange(12)[None]).logits[0]
        hook.remove()
        assert torch.allclose(em.logits(seen[0][0]), logits, atol=1e-5)
    assert (em.value_norm is not None) == (family in NORMED)


def test_a_cap_on_logits_counts() -> None:
    """The test above would not see a forgotten cap if it did nothing to a tiny model."""
    em = EditableModel(build_model("gemma2"), tiny_hparams("MEMIT"))
    hidden = torch.randn(3, 32) * 10
    with torch.no_grad():
        capped = em.logits(hidden)
        em.model.config.final_logit_softcapping = None
        assert float((em.logits(hidden) - capped).abs().max()) > 0.3 and float(capped.abs().max()) < 1.0


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gemma3", "phi3"])
def test_rows_longer_than_a_sliding_window_take_the_plain_form(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = CONFIGS[family]

    def narrow() -> Any:
        config = made()
        config.get_text_config().sliding_window = 6
        return config

    monkeypatch.setitem(CONFIGS, family, narrow)
    model = build_model(family, torch.float64)
    without_float32_inside(model, monkeypatch)
    session = tiny_session("llama", "MEMIT", dtype=torch.float64)
    session = type(session)(
        model, session.tok, tiny_hparams("MEMIT", use_nas=False), contexts=session.foundation.contexts, progress=False,
        moments={0: torch.eye(48), 1: torch.eye(48)},
    )  # fmt: skip
    assert not can_reuse_prefix(session.em, 6) and can_reuse_prefix(session.em, 5)
    request = as_requests(build_requests(2))[1]
    solved = session.solve([request])
    twin = naive_target(model, session.tok, request, FLAT, session.hparams)
    assert difference(solved.delta[0], twin.delta) <= 1e-9
    monkeypatch.setitem(CONFIGS, family, made)
    wide = build_model(family, torch.float64)
    assert difference(naive_target(wide, session.tok, request, FLAT, session.hparams).delta, twin.delta) > 1e-6


VARIANTS = {
    "falcon, new decoder": lambda: FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon, new decoder, one norm": lambda: FalconConfig(
        **FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1
    ),
    "falcon, sequential": lambda: FalconConfig(**FALCON, parallel_attn=False, multi_query=False, bias=True),
    "falcon, alibi": lambda: FalconConfig(**FALCON, alibi=True, parallel_attn=False, multi_query=False, bias=True),
    "gpt-neox, sequential": lambda: GPTNeoXConfig(
        vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=128, use_parallel_residual=False, bos_token_id=0, eos_token_id=0,
    ),
}  # fmt: skip
FALCON = {
    "vocab_size": 384, "hidden_size": 32, "ffn_hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_a_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = VARIANTS[name]().model_type
    monkeypatch.setitem(CONFIGS, family, VARIANTS[name])
    model = build_model(family, torch.float64)
    without_float32_inside(model, monkeypatch)
    base = tiny_session("llama", "MEMIT", dtype=torch.float64)
    session = type(base)(
        model, base.tok, tiny_hparams("MEMIT", use_nas=False), contexts=base.foundation.contexts, progress=False,
        moments={0: torch.eye(48), 1: torch.eye(48)},
    )  # fmt: skip
    assert isinstance(AutoModelForCausalLM.from_config(VARIANTS[name]()), type(model))
    assert can_reuse_prefix(session.em, 40) == ("alibi" not in name)
    request = as_requests(build_requests(2))[1]
    solved = session.solve([request])
    twin = naive_target(model, session.tok, request, FLAT, session.hparams)
    assert difference(solved.delta[0], twin.delta) <= 1e-9 and difference(solved.v0[0], twin.v0) <= 1e-9
    assert session.edit(build_requests(3)).norm_ratio > 0
