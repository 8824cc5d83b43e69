"""With NAS off, our MEMIT and AlphaEdit write what EasyEdit's own write: same contexts, statistics and steps."""

from __future__ import annotations

import copy
import importlib
import json
from typing import Any

import pytest
import torch
from easyedit_support import REQUESTS, TEXTS, make_model, make_tokenizer
from record_oracle import host_values

from nas_plugin.hparams import NASAlphaEditHparams, NASMEMITHparams
from nas_plugin.session import EditSession
from tests.promises import oracle

CONTEXTS = [["{}"], ["The rest of it. {}", "Because I say so. {}", "You know. {}"]]
LAYERS = (0, 1)
STEPS = (REQUESTS[:1], REQUESTS[1:3], REQUESTS[3:])
# Small, as the keys of a random model are: a change far below the weights would drown in their rounding.
RIDGE = 0.02
NUMBERS = {
    "layers": list(LAYERS),
    "fact_token": "subject_last",
    "v_num_grad_steps": 6,
    "v_lr": 0.1,
    "v_weight_decay": 0.5,
    "clamp_norm_factor": 0.75,
    "kl_factor": 0.0625,
    "mom2_update_weight": 3.0,
}
MODULES = {
    "gpt2": {
        "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
        "layer_module_tmp": "transformer.h.{}",
        "mlp_module_tmp": "transformer.h.{}.mlp",
        "attn_module_tmp": "transformer.h.{}.attn",
        "ln_f_module": "transformer.ln_f",
        "lm_head_module": "transformer.wte",
    },
    "llama": {
        "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
        "layer_module_tmp": "model.layers.{}",
        "mlp_module_tmp": "model.layers.{}.mlp",
        "attn_module_tmp": "model.layers.{}.self_attn",
        "ln_f_module": "model.norm",
        "lm_head_module": "lm_head",
    },
}


@pytest.fixture
def sources(host: Any) -> Any:
    """The host, if it is the current sources: the wheel has no AlphaEdit, and its MEMIT fails on transformers 5."""
    if host.is_wheel:
        pytest.skip("needs current EasyEdit: set EASYEDIT_HOME")
    return host


def host_hparams(method: str, kind: str, tmp_path: Any) -> Any:
    module, name = {
        "MEMIT": ("memit.memit_hparams", "MEMIT"),
        "AlphaEdit": ("alphaedit.AlphaEdit_hparams", "AlphaEdit"),
    }[method]
    cls = getattr(importlib.import_module(f"easyeditor.models.{module}"), f"{name}HyperParams")
    rest = {
        "alg_name": method,
        "model_name": {"gpt2": "tiny-gpt2-xl", "llama": "tiny-llama"}[kind],
        "device": "cpu",
        "stats_dir": str(tmp_path),
        "v_loss_layer": 2,
        "layer_selection": "all",
        "mom2_adjustment": True,
        "mom2_dataset": "none",
        "mom2_n_samples": 1,
        "mom2_dtype": "float32",
    }
    if method == "AlphaEdit":
        rest |= {"nullspace_threshold": 0.0, "L2": RIDGE, "P_loc": str(tmp_path)}
    return cls(**NUMBERS, **MODULES[kind], **rest)


def moments_of(model: Any, tok: Any, kind: str) -> dict[int, torch.Tensor]:
    """Second moments of the rewrite modules' inputs, by hand."""
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
    handles = [
        model.get_submodule(MODULES[kind]["rewrite_module_tmp"].format(layer)).register_forward_pre_hook(
            lambda _module, inputs, layer=layer: seen[layer].append(inputs[0].detach().reshape(-1, inputs[0].shape[-1]))
        )
        for layer in LAYERS
    ]
    with torch.no_grad():
        for text in TEXTS[-40:]:
            model(**tok(text, return_tensors="pt", truncation=True, max_length=100))
    for handle in handles:
        handle.remove()
    return {layer: (k := torch.cat(rows)).T @ k / len(k) for layer, rows in seen.items()}


def feed_host(main: Any, method: str, kind: str, moments: dict[int, torch.Tensor], threshold: float) -> dict[str, Any]:
    """Puts contexts and statistics where the host looks for its own; says what the call needs besides."""
    main.CONTEXT_TEMPLATES_CACHE = CONTEXTS
    if method == "MEMIT":
        for layer, moment in moments.items():
            main.COV_CACHE["tiny", MODULES[kind]["rewrite_module_tmp"].format(layer)] = moment.float()
        return {}
    projections = []
    for moment in moments.values():
        values, vectors = torch.linalg.eigh(moment.double())
        free = vectors[:, values < threshold]
        projections.append((free @ free.T).float())
    main.P, main.P_loaded = torch.stack(projections), True
    return {"reset_cache": True}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["MEMIT", "AlphaEdit"])
def test_weight_changes_equal_the_hosts(sources: Any, tmp_path: Any, monkeypatch: Any, method: str, kind: str) -> None:
    model, tok = make_model(kind), make_tokenizer()
    model.config._name_or_path = "tiny"
    tok.padding_side = "right"  # the host's target optimisation is wrong otherwise
    moments = moments_of(model, tok, kind)
    threshold = float(torch.linalg.eigvalsh(moments[0].double()).median())
    main = importlib.import_module(
        {"MEMIT": "easyeditor.models.memit.memit_main", "AlphaEdit": "easyeditor.models.alphaedit.AlphaEdit_main"}[
            method
        ]
    )
    for name in ("CONTEXT_TEMPLATES_CACHE", "COV_CACHE"):
        monkeypatch.setattr(main, name, copy.copy(getattr(main, name)))
    call = feed_host(main, method, kind, moments, threshold)
    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)

    if method == "MEMIT":
        hparams: Any = NASMEMITHparams(**NUMBERS, use_nas=False)
    else:
        hparams = NASAlphaEditHparams(**NUMBERS, use_nas=False, nullspace_threshold=threshold, L2=RIDGE)
    session = EditSession(ours, make_tokenizer(), hparams, contexts=CONTEXTS, moments=moments, progress=False)
    apply = sources.ALG_DICT[method]
    for step in STEPS:
        before = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
        with torch.enable_grad():
            apply(theirs, tok, step, host_hparams(method, kind, tmp_path), **call)
        call = {}
        session.edit(step)
        for name in session.parameter_names:
            host_change = theirs.get_parameter(name).detach() - before[name]
            our_change = ours.get_parameter(name).detach() - before[name]
            error = (our_change - host_change).norm() / host_change.norm()
            assert error < 1e-5


@pytest.mark.parametrize("method", oracle.METHODS)
def test_the_stored_oracle_is_what_the_host_gives(sources: Any, method: str) -> None:
    stored = json.loads(oracle.ORACLE.read_text(encoding="utf-8"))[method]
    found = host_values(method)
    pairs = [(found["z"], stored["z"])]
    pairs += [(found[name][layer], stored[name][layer]) for name in ("keys", "change") for layer in stored[name]]
    for theirs, kept in pairs:
        assert torch.allclose(torch.tensor(theirs), torch.tensor(kept), rtol=1e-3, atol=1e-5)
