"""Where the parts of each model family sit: one row of data per family, no code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from nas_plugin.errors import UnknownArchitectureError


@dataclass(frozen=True)
class Architecture:
    """Module paths of one decoder family; `{}` stands for the layer number.

    Attributes:
        block: Decoder block.
        mlp: Feed-forward module of the block; its output is the value vector.
        attention: Attention module of the block.
        rewrite: Down-projection whose weight is edited; its input is the key vector.
        final_norm: Norm between the last block and the head.
        prefix_cache: The family's key-value cache is known to work with an explicit mask and positions.
    """

    block: str
    mlp: str
    attention: str
    rewrite: str
    final_norm: str
    prefix_cache: bool = False


_GPT = {"block": "transformer.h.{}", "mlp": "transformer.h.{}.mlp", "attention": "transformer.h.{}.attn"}
_LLAMA = Architecture(
    block="model.layers.{}",
    mlp="model.layers.{}.mlp",
    attention="model.layers.{}.self_attn",
    rewrite="model.layers.{}.mlp.down_proj",
    final_norm="model.norm",
    prefix_cache=True,
)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(
        **_GPT, rewrite="transformer.h.{}.mlp.c_proj", final_norm="transformer.ln_f", prefix_cache=True
    ),
    "gptj": Architecture(
        **_GPT, rewrite="transformer.h.{}.mlp.fc_out", final_norm="transformer.ln_f", prefix_cache=True
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""`config.model_type` -> module paths. Hyperparameters that name a module take precedence over the row."""


def architecture_of(model_type: str, hparams: Any) -> Architecture:
    """Return the module paths for a model: the table's row, overridden by what the hyperparameters name.

    Args:
        model_type: `model.config.model_type`.
        hparams: Hyperparameters with `layer_module_tmp`, `mlp_module_tmp`, `attn_module_tmp`, `rewrite_module_tmp`
            and `ln_f_module`, each a path or None.

    Returns:
        The module paths to use.

    Raises:
        UnknownArchitectureError: The family is not in the table and the hyperparameters leave a path open.
    """
    named = {
        "block": hparams.layer_module_tmp,
        "mlp": hparams.mlp_module_tmp,
        "attention": hparams.attn_module_tmp,
        "rewrite": hparams.rewrite_module_tmp,
        "final_norm": hparams.ln_f_module,
    }
    row = ARCHITECTURES.get(model_type)
    if row is None:
        missing = [key for key, path in named.items() if path is None]
        if missing:
            near = get_close_matches(model_type, ARCHITECTURES, n=1)
            hint = f" The nearest known family is {near[0]!r}." if near else ""
            raise UnknownArchitectureError(
                f"model_type {model_type!r} is not in the architecture table ({', '.join(sorted(ARCHITECTURES))}) and the "
                f"hyperparameters leave open: {', '.join(missing)}.{hint} Set rewrite_module_tmp, layer_module_tmp, "
                "mlp_module_tmp, attn_module_tmp and ln_f_module in the hyperparameters."
            )
        return Architecture(**{key: str(path) for key, path in named.items()}, prefix_cache=False)
    return replace(row, **{key: path for key, path in named.items() if path is not None})
