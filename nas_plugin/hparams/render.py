"""Writing hyperparameter files: one layout for shipped files and for those that are made for a model of the user's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nas_plugin.hparams.methods import (
    NASAlphaEditHparams,
    NASENCOREHparams,
    NASLyapLockHparams,
    NASMEMITHparams,
    NASPRUNEHparams,
    NASRECTHparams,
)

METHODS: dict[str, type[Any]] = {
    hparams.method: hparams
    for hparams in (
        NASMEMITHparams,
        NASPRUNEHparams,
        NASRECTHparams,
        NASAlphaEditHparams,
        NASENCOREHparams,
        NASLyapLockHparams,
    )
}
"""Method -> class of its hyperparameters."""

# The edit as the AlphaEdit repository publishes it for Llama 3 8B.
EDIT: dict[str, Any] = {
    "v_num_grad_steps": 25,
    "v_lr": 0.1,
    "v_weight_decay": 0.5,
    "clamp_norm_factor": 0.75,
    "kl_factor": 0.0625,
    "mom2_update_weight": 15000,
}
"""Numbers of the edit where nothing better is known."""
EDIT_BEHIND_NORM: dict[str, Any] = {"v_lr": 0.5, "clamp_norm_factor": 4}
"""What differs where a norm stands behind the MLP: ROME's clamp and learning rate, which are those of a value."""
# As published with each method: PRUNE's base e, RECT's 40 %, AlphaEdit's own, ENCORE's for Llama 3 8B, LyapLock's for all models.
_OWN: dict[str, dict[str, Any]] = {
    "MEMIT": {},
    "PRUNE": {"prune_alpha": math.e, "prune_double_add": False},
    "RECT": {"rect_keep": 0.4},
    "AlphaEdit": {"nullspace_threshold": 0.02, "L2": 10},
    "ENCORE": {"update_norm_lambda": 20, "prob_cutoff": -2, "mpes_exact5": False},
    "LyapLock": {"mom2_update_weight": 1000, "lyap_alpha": 60, "mom2_dtype": "float64"},
}
_AT_MOST_LAYERS, _BLOCKS_OF_LLAMA = 5, 32


TOKENS_PER_DIM = 32
"""Tokens of text for each dimension of a key, in files made for new models: minutes of measuring (docs/scale.md)."""


@dataclass(frozen=True)
class Recipe:
    """What a file for a model says, whatever the method.

    Attributes:
        model_name: Folder or hub name.
        blocks: Number of decoder blocks.
        layers: Edited ones.
        modules: `rewrite_module_tmp`, `layer_module_tmp`, `mlp_module_tmp`, `attn_module_tmp`, `ln_f_module`, `lm_head_module`.
        edit: Numbers that replace those of `EDIT` and of the method.
        tokens_per_dim: `mom2_tokens_per_dim`; None leaves it at `mom2_n_samples` documents, as published files mean it.
    """

    model_name: str
    blocks: int
    layers: Sequence[int]
    modules: Mapping[str, str]
    edit: Mapping[str, Any] = field(default_factory=dict)
    tokens_per_dim: int | None = None


def early_layers(blocks: int) -> list[int]:
    """Choose blocks as published practice does: five from an eighth of the depth on, fewer in a model with fewer than 27 blocks.

    That is 4 to 8 of 32, as for Llama 2 and 3; published choices for other models begin between a ninth and a quarter.

    Args:
        blocks: Number of decoder blocks.

    Returns:
        Block numbers, ascending; never the first block unless it is the only one.
    """
    count = math.ceil(_AT_MOST_LAYERS * min(blocks, _BLOCKS_OF_LLAMA) / _BLOCKS_OF_LLAMA)
    first = max(blocks // 8, 1) if blocks > 1 else 0
    return list(range(first, min(first + count, blocks)))


def render(recipe: Recipe, method: str, mark: str, source: Sequence[str]) -> str:
    """Write a file.

    Args:
        recipe: What it says.
        method: The editor, without `NAS-`.
        mark: "published", "derived" or "untested".
        source: Lines that say where the numbers are from; the first follows the mark.

    Returns:
        The text of the file.
    """
    values = {**EDIT, "mom2_dtype": "float32", **_OWN[method], **recipe.edit}
    own = [key for key in _OWN[method] if key not in ("mom2_update_weight", "mom2_dtype")]
    layers = f"[{', '.join(map(str, recipe.layers))}]"
    lines = [f"# NAS-{method} on {recipe.model_name}.", f"# {mark.capitalize()}: {source[0]}"]
    lines += [f"# {line}" for line in source[1:]]
    lines += _pairs({"alg_name": f"NAS-{method}", "model_name": recipe.model_name, "stats_dir": "./data/stats"})
    lines += [*_pairs({"device": None, "model_parallel": False}), "", f"layers: {layers}"]
    lines += _pairs({"layer_selection": "all", "fact_token": "subject_last"})
    lines += _pairs({key: values[key] for key in ("v_num_grad_steps", "v_lr")})
    lines += _pairs({"v_loss_layer": recipe.blocks - 1})
    lines += _pairs({key: values[key] for key in ("v_weight_decay", "clamp_norm_factor", "kl_factor")})
    lines += _pairs({"mom2_adjustment": True, "mom2_update_weight": values["mom2_update_weight"]})
    lines += [*_pairs({key: values[key] for key in own}), ""]
    lines += _pairs({"mom2_dataset": "wikipedia", "mom2_n_samples": 100000, "mom2_dtype": values["mom2_dtype"]})
    lines += [] if recipe.tokens_per_dim is None else _pairs({"mom2_tokens_per_dim": recipe.tokens_per_dim})
    lines += ["", *_pairs(recipe.modules), ""]
    lines += _pairs({"use_nas": True, "nas_mode": "paper", "nas_n_pilots": 100, "nas_pilots": "builtin", "nas_seed": 0})
    lines += _pairs({"nas_skip_factor": None, "context_seed": 0})
    return "\n".join(lines) + "\n"


def _pairs(values: Mapping[str, Any]) -> list[str]:
    # What JSON writes is YAML, but for 1e-05, which YAML 1.1 reads as a text; no number here is as small.
    return [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
