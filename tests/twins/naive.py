"""The value optimisation and a whole step as the released code has them: one request at a time, full forwards, torch's Adam.

Written from the description of the algorithm, sharing nothing with the package but tokenised text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PATHS = {
    "gpt2": ("transformer.h.{}", "transformer.h.{}.mlp", "transformer.h.{}.mlp.c_proj"),
    "gptj": ("transformer.h.{}", "transformer.h.{}.mlp", "transformer.h.{}.mlp.fc_out"),
}
LLAMA_PATHS = ("model.layers.{}", "model.layers.{}.mlp", "model.layers.{}.mlp.down_proj")
PATHS |= {
    "falcon": ("transformer.h.{}", "transformer.h.{}.mlp", "transformer.h.{}.mlp.dense_4h_to_h"),
    "gpt_neox": ("gpt_neox.layers.{}", "gpt_neox.layers.{}.mlp", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    "opt": ("model.decoder.layers.{}", "model.decoder.layers.{}.fc2", "model.decoder.layers.{}.fc2"),
    "gemma3": tuple(path.replace("model.", "model.language_model.") for path in LLAMA_PATHS),
}
NORMED = ("olmo2", "gemma2", "gemma3_text", "gemma3")


def module(model, template: str, layer: int):
    return model.get_submodule(template.format(layer))


def paths(model) -> tuple[str, str, str]:
    return PATHS.get(model.config.model_type, LLAMA_PATHS)


def mlp_norm(model, layer: int):
    """The norm between an MLP and the residual stream; None where there is none."""
    if model.config.model_type not in NORMED:
        return None
    return module(model, paths(model)[0] + ".post_feedforward_layernorm", layer)


def rows_of(states: Tensor, rows: int) -> Tensor:
    """OPT runs all tokens as one row."""
    return states.reshape(rows, -1, states.shape[-1]) if states.dim() == 2 else states


@dataclass
class NaiveTarget:
    z: Tensor
    delta: Tensor
    h0: Tensor
    v0: Tensor
    updates: int


def texts(request, templates: list[str]) -> list[tuple[str, int]]:
    """Prompts in their contexts and the KL prompt, each with the character offset of the subject's end."""
    out = []
    for template in templates:
        shift = template.index("{}")
        out.append((template.replace("{}", request.prompt), shift + request.end))
    return [*out, (f"{request.subject} is a", len(request.subject))]


def tokenised(tok, text: str, end: int) -> tuple[list[int], int]:
    encoded = tok(text, return_offsets_mapping=True)
    inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end <= b]
    return encoded["input_ids"], inside[0]


def naive_target(model, tok, request, templates: list[str], hparams, threshold: float = 0.05) -> NaiveTarget:
    block, mlp, _ = (module(model, path, hparams.layers[-1]) for path in paths(model))
    target = tok(" " + request.target, add_special_tokens=False)["input_ids"]
    rows, lookups = [], []
    for number, (text, end) in enumerate(texts(request, templates)):
        ids, lookup = tokenised(tok, text, end)
        rows.append(ids + (target[:-1] if number < len(templates) else []))
        lookups.append(lookup)
    width = max(map(len, rows))
    input_ids = torch.tensor([row + [tok.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    dtype = next(model.parameters()).dtype
    normed = mlp_norm(model, hparams.layers[-1]) is not None
    delta = torch.zeros(model.config.get_text_config().hidden_size, dtype=dtype, requires_grad=True)
    state: dict[str, Tensor] = {}

    def add(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        state.setdefault("v0" if normed else "h0", hidden[0, lookups[0]].detach().clone())
        hidden = hidden.clone()
        for row, lookup in enumerate(lookups):
            hidden[row, lookup] = hidden[row, lookup] + delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def see_other(_module, _args, output):
        hidden = rows_of(output[0] if isinstance(output, tuple) else output, len(rows))
        state.setdefault("h0" if normed else "v0", hidden[0, lookups[0]].detach().clone())

    optimiser = torch.optim.Adam([delta], lr=hparams.v_lr)
    # MEMIT corrects the block's output; behind a norm that would be another vector than the one written, so ROME's form is taken.
    changed, seen = (mlp, block) if normed else (block, mlp)
    hooks = [changed.register_forward_hook(add), seen.register_forward_hook(see_other)]
    updates = 0
    try:
        for step in range(hparams.v_num_grad_steps):
            logits = model(input_ids=input_ids, attention_mask=mask).logits
            logp = torch.log_softmax(logits, dim=-1)
            nll = []
            for row in range(len(templates)):
                last = len(rows[row])
                window = logp[row, last - len(target) : last]
                nll.append(-window.gather(1, torch.tensor(target)[:, None]).mean())
            kl_row = logp[len(templates), lookups[-1]]
            state.setdefault("kl0", kl_row.detach().clone())
            kl = torch.nn.functional.kl_div(state["kl0"], kl_row, log_target=True, reduction="sum")
            origin = state["v0" if normed else "h0"].norm()
            loss = torch.stack(nll).mean() + hparams.kl_factor * kl + hparams.v_weight_decay * delta.norm() / origin**2
            if loss < threshold or step == hparams.v_num_grad_steps - 1:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            updates += 1
            limit = hparams.clamp_norm_factor * origin
            with torch.no_grad():
                delta.mul_((limit / delta.norm()).clamp_max(1.0))
    finally:
        for hook in hooks:
            hook.remove()
    model.zero_grad()
    return NaiveTarget(state["h0"] + delta.detach(), delta.detach(), state["h0"], state["v0"], updates)


def naive_keys(model, tok, request, templates: list[str], layer: int, z_layer: int) -> tuple[Tensor, Tensor]:
    """Key at a layer (half bare, half mean of the generated contexts) and the bare hidden state at block z, row by row."""
    rewrite, block = module(model, paths(model)[2], layer), module(model, paths(model)[0], z_layer)
    keys, hidden = [], []
    for text, end in texts(request, templates)[:-1]:
        ids, lookup = tokenised(tok, text, end)
        seen: dict[str, Tensor] = {}
        hooks = [
            rewrite.register_forward_hook(lambda _m, args, _o, seen=seen: seen.__setitem__("k", rows_of(args[0], 1))),
            block.register_forward_hook(
                lambda _m, _a, out, seen=seen: seen.__setitem__("h", out[0] if isinstance(out, tuple) else out)
            ),
        ]
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        keys.append(seen["k"][0, lookup])
        hidden.append(seen["h"][0, lookup])
    return (keys[0] + torch.stack(keys[1:]).mean(0)) / 2, hidden[0]


def orientation(model, layer: int) -> bool:
    """True if the weight is stored transposed (GPT-2)."""
    return model.config.model_type == "gpt2"


def naive_step(model, tok, requests, templates: list[str], hparams, editors: dict, tau: float | None) -> None:
    """One step of a dense editor per layer: solve, scale, spread, write."""
    targets = [naive_target(model, tok, request, templates, hparams) for request in requests]
    if model.config.model_type in NORMED:
        normed_step(model, tok, requests, templates, hparams, editors, tau, targets)
        return
    z = []
    for t in targets:
        if tau is None:
            z.append(t.h0 + t.delta)
        else:
            v = t.v0 + t.delta
            z.append(t.h0 - t.v0 + tau * v / v.norm())
    z = torch.stack(z, 1)
    for number, layer in enumerate(hparams.layers):
        pairs = [naive_keys(model, tok, request, templates, layer, hparams.layers[-1]) for request in requests]
        keys, hidden = torch.stack([k for k, _ in pairs], 1), torch.stack([h for _, h in pairs], 1)
        residual = (z - hidden) / (len(hparams.layers) - number)
        editors[layer].step(keys, residual)
        weight = module(model, paths(model)[2], layer).weight
        with torch.no_grad():
            weight.copy_(editors[layer].w.T if orientation(model, layer) else editors[layer].w)


def normed_step(model, tok, requests, templates: list[str], hparams, editors: dict, tau: float | None, targets) -> None:
    """The same where a norm stands behind the MLP: the residual stream's share is traced back through it, request by request."""
    last = hparams.layers[-1]
    wanted = [t.v0 + t.delta if tau is None else tau * (t.v0 + t.delta) / (t.v0 + t.delta).norm() for t in targets]
    norm = mlp_norm(model, last)
    stream = [t.h0 - norm(t.v0) + norm(v) for t, v in zip(targets, wanted, strict=True)]
    for number, layer in enumerate(hparams.layers):
        keys, residuals = [], []
        norm = mlp_norm(model, layer)
        for request, target, value in zip(requests, stream, wanted, strict=True):
            key, hidden = naive_keys(model, tok, request, templates, layer, last)
            now = naive_value(model, tok, request, layer)
            share = (target - hidden) / (len(hparams.layers) - number)
            gains = norm(torch.ones_like(now))
            direction = (norm(now) + share) / gains
            length = value.norm() if layer == last else now.norm()
            keys.append(key)
            residuals.append(direction / direction.norm() * length - now)
        editors[layer].step(torch.stack(keys, 1), torch.stack(residuals, 1).detach())
        with torch.no_grad():
            module(model, paths(model)[2], layer).weight.copy_(editors[layer].w)


def naive_value(model, tok, request, layer: int) -> Tensor:
    """Output of a layer's MLP at the subject's last token of the bare prompt."""
    ids, lookup = tokenised(tok, request.prompt, request.end)
    seen: dict[str, Tensor] = {}
    hook = module(model, paths(model)[1], layer).register_forward_hook(lambda _m, _a, out: seen.__setitem__("v", out))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    hook.remove()
    return seen["v"][0, lookup]
