"""Finding the modules that editing needs in a model that is not loaded: on the meta device, from its configuration alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from nas_plugin.errors import ModelError, UnknownArchitectureError, UnsupportedArchitectureError
from nas_plugin.model.architectures import ARCHITECTURES, Architecture, refuse_unsupported, text_config

# After attention comes a norm of this name in many families; after the MLP it comes between a value and the residual stream.
_BEHIND_MLP = re.compile(r"post_(feedforward|mlp).*norm")
_FEED_FORWARD = ("mlp", "ffn", "feed_forward", "feedforward", "ff")


@dataclass(frozen=True)
class Recognised:
    """Where a model keeps what editing needs.

    Attributes:
        family: `config.model_type`.
        blocks: Number of decoder blocks.
        modules: Module templates by their key in hyperparameter files.
        mlp_norm: A norm stands behind the MLP.
        known: The family is in the architecture table; otherwise the modules were found in the module tree.
    """

    family: str
    blocks: int
    modules: dict[str, str]
    mlp_norm: bool
    known: bool


def modules_of(row: Architecture, head: str) -> dict[str, str]:
    """Return module templates by their key in hyperparameter files.

    Args:
        row: The paths.
        head: Path of the output head.

    Returns:
        Key -> path.
    """
    return {
        "rewrite_module_tmp": row.rewrite,
        "layer_module_tmp": row.block,
        "mlp_module_tmp": row.mlp,
        "attn_module_tmp": row.attention,
        "ln_f_module": row.final_norm,
        "lm_head_module": head,
    }


def recognise(name: str) -> Recognised:
    """Find out how a model is built. No weights are read, and no code that comes with a model is run.

    Args:
        name: Folder, hub name, or a `config.json`.

    Returns:
        What was found.

    Raises:
        ModelError: There is no configuration, or transformers has no causal language model for it.
        UnknownArchitectureError: The modules do not follow the pattern: a list of blocks, each with attention and a feed-forward
            part that ends in one linear map.
        UnsupportedArchitectureError: The family is known and cannot be edited.
    """
    if name.endswith(".json") and not Path(name).is_file():
        raise ModelError(
            f"{name}: no such file; give a folder with a config.json, the file itself, or a name on the hub."
        )
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"no configuration of {name!r} that transformers can read ({_first_line(error)}); give a folder with a config.json, "
            "the file itself, or a name on the hub."
        ) from error
    refuse_unsupported(config)
    model = _on_meta(config, name)
    blocks = int(text_config(config).num_hidden_layers)
    head = _name_of(model, model.get_output_embeddings())
    family = str(config.model_type)
    row = ARCHITECTURES.get(family)
    found = row if row is not None else _find(model, blocks, name)
    return Recognised(family, blocks, modules_of(found, head), found.mlp_norm is not None, row is not None)


def _on_meta(config: Any, name: str) -> Any:
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, TypeError, ImportError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"{name}: transformers builds no causal language model of model_type {config.model_type!r} ({_first_line(error)})."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str:
    for path, module in model.named_modules():
        if module is wanted:
            return path
    raise ModelError(f"{type(model).__name__} has no output head; it is no causal language model.")


def _find(model: nn.Module, blocks: int, name: str) -> Architecture:
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == blocks and _part(module[0], ("attn", "attention"))
    ]
    if len(lists) != 1:
        _refuse(name, f"{len(lists)} lists of {blocks} blocks with attention (expected one)")
    path, layers = lists[0]
    kinds = {tuple(key for key, _ in layer.named_modules()) for layer in layers}
    if len(kinds) > 1:
        _refuse(name, f"{len(kinds)} kinds of blocks in {path!r} (expected one)")
    block = layers[0]
    attention = _part(block, ("attn", "attention"))
    mlp = _part(block, _FEED_FORWARD)
    if mlp is None or attention is None:
        _refuse(
            name,
            f"no feed-forward module in {path + '.0'!r}, whose parts are {', '.join(key for key, _ in block.named_children())}",
        )
    rewrite = _down_projection(block.get_submodule(mlp), name, f"{path}.0.{mlp}")
    normed = [key for key, _ in block.named_children() if _BEHIND_MLP.search(key)]
    if normed:
        raise UnsupportedArchitectureError(
            f"{name}: {normed[0]!r} stands between the MLP of a block and the residual stream: what is solved for one would be "
            "written as another. Only families of the architecture table are edited through such a norm."
        )
    layer = f"{path}.{{}}"
    return Architecture(
        layer,
        f"{layer}.{mlp}",
        f"{layer}.{attention}",
        f"{layer}.{mlp}.{rewrite}",
        _final_norm(model, path, name),
        known=False,
    )


def _part(block: nn.Module, names: tuple[str, ...]) -> str | None:
    """Return the child that is called so and holds weights to multiply with: norms are called after what they stand before."""
    found = [
        key
        for key, child in block.named_children()
        if any(name in key.lower() for name in names)
        and any(isinstance(m, nn.Linear | Conv1D) for m in child.modules())
    ]
    return found[0] if len(found) == 1 else None


def _down_projection(mlp: nn.Module, name: str, path: str) -> str:
    # The feed-forward part goes from d_model up and down again: only the way down is wider than it is high.
    found = [
        key
        for key, module in mlp.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and _width(module)[0] > _width(module)[1]
    ]
    if len(found) != 1 or not found[0]:
        _refuse(name, f"{len(found)} linear maps down to the hidden size in {path!r} (expected one)")
    return found[0]


def _width(module: Any) -> tuple[int, int]:
    """Return d_in and d_out."""
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def _final_norm(model: nn.Module, path: str, name: str) -> str:
    parent, _, _ = path.rpartition(".")
    found = [
        key for key, child in model.get_submodule(parent).named_children() if "norm" in type(child).__name__.lower()
    ]
    # A norm of the embeddings comes before the blocks, and is called so.
    found = [key for key in found if "emb" not in key.lower()]
    if len(found) != 1:
        _refuse(name, f"{len(found)} norms beside {path!r} (expected one): {', '.join(found) or 'none'}")
    return f"{parent}.{found[0]}" if parent else found[0]


def _refuse(name: str, found: str) -> NoReturn:
    raise UnknownArchitectureError(
        f"{name}: the modules do not follow the pattern that is looked for: {found}. Name rewrite_module_tmp, layer_module_tmp, "
        "mlp_module_tmp, attn_module_tmp and ln_f_module in a file yourself (`nas-edit hparams copy` gives you one)."
    )
