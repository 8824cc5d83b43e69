"""The demo's wide model: other keys, the same answers."""

from __future__ import annotations

import torch
from transformers import GPT2LMHeadModel

from nas_plugin.demo import load_demo
from nas_plugin.demo.wide import widen
from nas_plugin.demo.world import World


def test_a_widened_model_computes_what_it_computed_and_saves_like_any(tmp_path) -> None:
    model, tok = load_demo()
    texts = World().moment_texts()[:20]
    ids = tok(texts[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        widen(model, tok, texts, width=640, seed=3)
        assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-4)
        model.save_pretrained(tmp_path)
        again = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
        assert torch.allclose(again(input_ids=ids).logits, before, atol=1e-4)
    assert again.transformer.h[0].mlp.c_proj.weight.shape == (640, 64)


def test_the_new_units_are_on_for_some_and_off_for_others() -> None:
    model, tok = load_demo()
    texts = World().moment_texts()[:20]
    widen(model, tok, texts, width=640)
    seen: list[torch.Tensor] = []
    model.transformer.h[0].mlp.c_proj.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0][0, :, 256:])
    )
    with torch.no_grad():
        for text in texts:
            model(input_ids=tok(text, return_tensors="pt")["input_ids"])
    share = (torch.cat(seen) > 0).double().mean(0)
    assert 0.05 < float(share.mean()) < 0.4 and float((share > 0).double().mean()) > 0.9
