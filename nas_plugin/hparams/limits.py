"""Which values make sense: ranges, choices and module templates, checked before any model is touched."""

from __future__ import annotations

from typing import Any

from nas_plugin.errors import HparamsError

# Lower bounds; the second entry says whether the bound itself is allowed.
_LOWER_BOUNDS: dict[str, tuple[float, bool]] = {
    "batch_size": (1, True),
    "max_length": (1, True),
    "v_num_grad_steps": (1, True),
    "v_lr": (0, False),
    "v_loss_layer": (0, True),
    "v_weight_decay": (0, True),
    "clamp_norm_factor": (0, False),
    "kl_factor": (0, True),
    "mom2_update_weight": (0, False),
    "mom2_n_samples": (1, True),
    "mom2_n_tokens": (1, True),
    "mom2_tokens_per_dim": (1, True),
    "nas_n_pilots": (1, True),
    "nas_seed": (0, True),
    "nas_skip_factor": (0, False),
    "context_seed": (0, True),
    "norm_alarm": (1, False),
    "snapshot_every": (1, True),
    "nullspace_threshold": (0, False),
    "L2": (0, False),
    "update_norm_lambda": (0, True),
    "lyap_alpha": (0, False),
    "prune_alpha": (1, False),
    "rect_keep": (0, False),
}
_UPPER_BOUNDS: dict[str, float] = {"rect_keep": 1, "prob_cutoff": 1}
_CHOICES: dict[str, tuple[str, ...]] = {
    "fact_token": ("subject_last",),
    "nas_mode": ("paper", "official"),
    "on_conflict": ("replace", "skip", "error"),
    "on_reject": ("stop", "continue"),
    "on_norm_alarm": ("warn", "stop"),
    "mom2_dtype": ("float32", "float64"),
    "torch_dtype": ("float16", "bfloat16", "float32", "float64"),
}
_TEMPLATES = ("rewrite_module_tmp", "layer_module_tmp", "mlp_module_tmp", "attn_module_tmp")
_MODULES = ("ln_f_module", "lm_head_module")


def check_values(hparams: Any) -> None:
    """Check ranges, choices, layers and module templates of a converted instance.

    Args:
        hparams: a hyperparameter dataclass whose fields have their declared types.

    Raises:
        HparamsError: a value is out of range; the message names the key, the value and what is allowed.
    """
    for key, (bound, inclusive) in _LOWER_BOUNDS.items():
        value = getattr(hparams, key, None)
        if value is not None and (value < bound or (value == bound and not inclusive)):
            raise HparamsError(f"{key}: must be {'at least' if inclusive else 'greater than'} {bound}, got {value}.")
    for key, bound in _UPPER_BOUNDS.items():
        value = getattr(hparams, key, None)
        if value is not None and value > bound:
            raise HparamsError(f"{key}: must be at most {bound}, got {value}.")
    for key, choices in _CHOICES.items():
        value = getattr(hparams, key, None)
        if value is not None and value not in choices:
            raise HparamsError(f"{key}: must be {' or '.join(map(repr, choices))}, got {value!r}.")
    if hparams.mom2_n_tokens is not None and hparams.mom2_tokens_per_dim is not None:
        raise HparamsError("mom2_n_tokens and mom2_tokens_per_dim both say how many tokens; set one of them to null.")
    _check_layers(hparams)
    _check_modules(hparams)
    if hparams.fp16 and hparams.torch_dtype not in (None, "float16"):
        raise HparamsError(f"fp16: true contradicts torch_dtype: {hparams.torch_dtype}; give only one of them.")


def _check_layers(hparams: Any) -> None:
    layers = hparams.layers
    if not layers or layers[0] < 0 or any(low >= high for low, high in zip(layers, layers[1:], strict=False)):
        raise HparamsError(f"layers: must be distinct block numbers from 0 up, in ascending order, got {list(layers)}.")
    if hparams.v_loss_layer is not None and hparams.v_loss_layer < layers[-1]:
        raise HparamsError(
            f"v_loss_layer: the loss would be read at block {hparams.v_loss_layer}, below the last edited layer "
            f"{layers[-1]}, where no edit reaches it; use a later block, or null for the last one."
        )


def _check_modules(hparams: Any) -> None:
    for key in _TEMPLATES:
        template = getattr(hparams, key)
        if template is not None and (template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1):
            raise HparamsError(f"{key}: needs exactly one {{}} for the block number, got {template!r}.")
    for key in _MODULES:
        name = getattr(hparams, key)
        if name is not None and ("{" in name or "}" in name):
            raise HparamsError(f"{key}: names one module and takes no braces, got {name!r}.")
