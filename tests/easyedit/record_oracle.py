"""Runs EasyEdit's own MEMIT and AlphaEdit on the oracle's model: `EASYEDIT_HOME=... python tests/easyedit/record_oracle.py`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nas_plugin.easyedit.host import load_host
from tests.promises import oracle

NAMES = {
    "MEMIT": ("memit", "memit_main", "memit_hparams"),
    "AlphaEdit": ("alphaedit", "AlphaEdit_main", "AlphaEdit_hparams"),
}
MODULES = {
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
    "layer_module_tmp": "transformer.h.{}",
    "mlp_module_tmp": "transformer.h.{}.mlp",
    "attn_module_tmp": "transformer.h.{}.attn",
    "ln_f_module": "transformer.ln_f",
    "lm_head_module": "transformer.wte",
}


def host_hparams(method: str, package: str, module: str) -> Any:
    cls = getattr(importlib.import_module(f"easyeditor.models.{package}.{module}"), f"{method}HyperParams")
    rest = {
        "alg_name": method, "model_name": "oracle-gpt2-xl", "device": "cpu", "stats_dir": "", "v_loss_layer": 2,
        "layer_selection": "all", "mom2_adjustment": True, "mom2_dataset": "none", "mom2_n_samples": 1,
        "mom2_dtype": "float32",
    }  # fmt: skip
    if method == "AlphaEdit":
        rest |= {"nullspace_threshold": oracle.THRESHOLD, "L2": oracle.RIDGE, "P_loc": "."}  # any path that exists
    return cls(**oracle.NUMBERS, **MODULES, **rest)


def feed(main: Any, method: str) -> dict[str, Any]:
    """Put contexts and statistics where the host looks for its own; say what the call needs besides."""
    main.CONTEXT_TEMPLATES_CACHE = oracle.CONTEXTS
    if method == "MEMIT":
        for layer, moment in oracle.oracle_moments().items():
            main.COV_CACHE["oracle", MODULES["rewrite_module_tmp"].format(layer)] = moment.float()
        return {}
    projections = []
    for moment in oracle.oracle_moments().values():
        values, vectors = torch.linalg.eigh(moment)
        free = vectors[:, values < oracle.THRESHOLD]
        projections.append((free @ free.T).float())
    main.P, main.P_loaded = torch.stack(projections), True
    return {"reset_cache": True}


def host_values(method: str) -> dict[str, Any]:
    """What the host's editor solves, reads and writes for the oracle's facts."""
    host = load_host()
    package, main_name, hparams_name = NAMES[method]
    main = importlib.import_module(f"easyeditor.models.{package}.{main_name}")
    model, tok = oracle.oracle_model(), oracle.oracle_tokenizer()
    tok.padding_side = "right"  # the host's target optimisation is wrong otherwise
    hparams, call = host_hparams(method, package, hparams_name), feed(main, method)
    z: list[Any] = []
    keys: dict[str, Any] = {}
    compute_z, compute_ks = main.compute_z, main.compute_ks

    def recorded_z(*given: Any, **named: Any) -> torch.Tensor:
        found = compute_z(*given, **named)
        z.append(found.tolist())
        return found

    def recorded_keys(_model: Any, _tok: Any, _requests: Any, _hparams: Any, layer: int, *rest: Any) -> torch.Tensor:
        found = compute_ks(_model, _tok, _requests, _hparams, layer, *rest)
        keys[str(layer)] = found.tolist()
        return found

    before = {layer: model.transformer.h[layer].mlp.c_proj.weight.detach().clone() for layer in oracle.LAYERS}
    main.compute_z, main.compute_ks = recorded_z, recorded_keys
    try:
        with torch.enable_grad():
            host.ALG_DICT[method](model, tok, oracle.REQUESTS, hparams, **call)
    finally:
        main.compute_z, main.compute_ks = compute_z, compute_ks
    change = {
        # GPT-2 keeps its matrices transposed.
        str(layer): (model.transformer.h[layer].mlp.c_proj.weight.detach() - before[layer]).T.tolist()
        for layer in oracle.LAYERS
    }
    return {"z": z, "keys": keys, "change": change}


def rounded(value: Any) -> Any:
    """Seven digits, so that the file stays small."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else float(f"{value:.7g}")


if __name__ == "__main__":
    found = {method: rounded(host_values(method)) for method in oracle.METHODS}
    oracle.ORACLE.write_text(json.dumps(found) + "\n", encoding="utf-8")
