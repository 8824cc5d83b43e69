"""Where the parts of each model family sit: one row of data per family; and which builds are refused, with the reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from nas_plugin.errors import UnknownArchitectureError, UnsupportedArchitectureError


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
        mlp_norm: Norm that the MLP's output passes before it is added to the residual stream; None where there is none.
        known: It is a row of the table; a build that was named by hyperparameters is tried out before the first edit.
    """

    block: str
    mlp: str
    attention: str
    rewrite: str
    final_norm: str
    prefix_cache: bool = False
    mlp_norm: str | None = None
    known: bool = True


def _gpt(attention: str, rewrite: str) -> Architecture:
    layer = "transformer.h.{}"
    return Architecture(
        block=layer,
        mlp=f"{layer}.mlp",
        attention=f"{layer}.{attention}",
        rewrite=f"{layer}.mlp.{rewrite}",
        final_norm="transformer.ln_f",
        prefix_cache=True,
    )


def _llama(root: str = "model", *, mlp_norm: bool = False) -> Architecture:
    layer = f"{root}.layers.{{}}"
    return Architecture(
        block=layer,
        mlp=f"{layer}.mlp",
        attention=f"{layer}.self_attn",
        rewrite=f"{layer}.mlp.down_proj",
        final_norm=f"{root}.norm",
        prefix_cache=True,
        mlp_norm=f"{layer}.post_feedforward_layernorm" if mlp_norm else None,
    )


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": _gpt("attn", "c_proj"),
    "gptj": _gpt("attn", "fc_out"),
    "falcon": _gpt("self_attention", "dense_4h_to_h"),
    "llama": _llama(),
    "mistral": _llama(),
    "qwen2": _llama(),
    "qwen3": _llama(),
    "phi3": _llama(),
    "olmo2": _llama(mlp_norm=True),
    "gemma2": _llama(mlp_norm=True),
    "gemma3_text": _llama(mlp_norm=True),
    "gemma3": _llama("model.language_model", mlp_norm=True),
    "gpt_neox": Architecture(
        block="gpt_neox.layers.{}",
        mlp="gpt_neox.layers.{}.mlp",
        attention="gpt_neox.layers.{}.attention",
        rewrite="gpt_neox.layers.{}.mlp.dense_4h_to_h",
        final_norm="gpt_neox.final_layer_norm",
        prefix_cache=True,
    ),
    # No module holds the feed-forward layers: the value is what the second of them returns.
    "opt": Architecture(
        block="model.decoder.layers.{}",
        mlp="model.decoder.layers.{}.fc2",
        attention="model.decoder.layers.{}.self_attn",
        rewrite="model.decoder.layers.{}.fc2",
        final_norm="model.decoder.final_layer_norm",
        prefix_cache=True,
    ),
}
"""`config.model_type` -> module paths. Hyperparameters that name a module take precedence over the row."""

# Under one of these names every configuration of a mixture of experts says how many there are.
_EXPERTS = (
    "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts", "ffn_config.moe_num_experts",
)  # fmt: skip


def refuse_unsupported(config: Any) -> None:
    """Refuse a build in which no one down-projection writes what the editors solve for.

    Args:
        config: `model.config`.

    Raises:
        UnsupportedArchitectureError: It is a mixture of experts, or OPT with its norms after the sum (OPT-350m).
    """
    text = text_config(config)
    family = str(config.model_type)
    experts = max((_number(text, name) for name in _EXPERTS), default=0)
    if experts > 1:
        raise UnsupportedArchitectureError(
            f"model_type {family!r} is a mixture of {experts} experts: a router sends each token through other "
            "down-projections, so no one matrix carries a fact. Use a dense model of the family."
        )
    if family != "opt":
        return
    if not getattr(text, "do_layer_norm_before", True) or getattr(text, "_remove_final_layer_norm", False):
        raise UnsupportedArchitectureError(
            "this OPT model norms after the residual sum (do_layer_norm_before: false, as OPT-350m has it) or has no final "
            "norm: what an edit adds is normed together with all that was there before. Other sizes of OPT can be edited."
        )
    if getattr(text, "word_embed_proj_dim", text.hidden_size) != text.hidden_size:
        raise UnsupportedArchitectureError(
            f"this OPT model projects its {text.hidden_size} hidden numbers to {text.word_embed_proj_dim} before the head, as "
            "OPT-350m does; other sizes of OPT can be edited."
        )


def text_config(config: Any) -> Any:
    """Return the part of a configuration that describes the decoder: all of it, unless other modalities are described too."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def architecture_of(config: Any, hparams: Any) -> Architecture:
    """Return the module paths for a model: the table's row, overridden by what the hyperparameters name.

    Args:
        config: `model.config`.
        hparams: Hyperparameters with `layer_module_tmp`, `mlp_module_tmp`, `attn_module_tmp`, `rewrite_module_tmp`
            and `ln_f_module`, each a path or None.

    Returns:
        The module paths to use.

    Raises:
        UnknownArchitectureError: The family is not in the table and the hyperparameters leave a path open.
        UnsupportedArchitectureError: The family is known and cannot be edited.
    """
    refuse_unsupported(config)
    model_type = str(config.model_type)
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
                f"hyperparameters leave open: {', '.join(missing)}.{hint} `nas-edit hparams new MODEL` finds the modules and "
                "writes them down; or set rewrite_module_tmp, layer_module_tmp, mlp_module_tmp, attn_module_tmp and ln_f_module "
                "in the hyperparameters yourself."
            )
        paths = {key: str(path) for key, path in named.items()}
        return Architecture(
            paths["block"], paths["mlp"], paths["attention"], paths["rewrite"], paths["final_norm"], known=False
        )
    if getattr(config, "alibi", False):
        # Biases by position are made from the padding mask, which an explicit one replaces.
        row = replace(row, prefix_cache=False)
    return replace(row, **{key: path for key, path in named.items() if path is not None})


def _number(config: Any, name: str) -> int:
    for part in name.split("."):
        config = getattr(config, part, None)
    return config if isinstance(config, int) else 0
