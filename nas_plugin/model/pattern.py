"""Trying a model out that hyperparameters described: does it do what the editors take for granted?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nas_plugin.errors import UnsupportedArchitectureError
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import as_found, forward_until, hidden_of, with_hidden

_TOKENS = 8
# Rounding of bfloat16 stays well below; a norm, a factor or a gate in the wrong place does not.
_TOLERANCE = 0.05


def try_out(em: EditableModel) -> None:
    """Run a few tokens and compare, for a family that is not in the architecture table.

    Args:
        em: The model; left as it was found.

    Raises:
        UnsupportedArchitectureError: The MLP returns something else than its down-projection writes; or what it returns is not
            added to the residual stream as it is; or final norm and head alone do not give the model's logits.
    """
    name = type(em.model).__name__
    ids = (torch.arange(_TOKENS, device=em.input_device)[None] + 1) % em.vocab_size
    with as_found(em.model), torch.no_grad():
        for layer in em.layers:
            _check_layer(em, ids, layer, name)
        last: list[Tensor] = []
        block = em.model.get_submodule(em.paths.block.format(em.n_layers - 1))
        hook = block.register_forward_hook(lambda _module, _args, output: last.append(hidden_of(output)))
        try:
            logits = em.model(input_ids=ids, use_cache=False).logits[0]
        finally:
            hook.remove()
        if _differ(em.logits(last[0][0]), logits.to(em.compute_dtype)):
            raise UnsupportedArchitectureError(
                f"{name}: final norm and head do not give the model's logits; something between {em.paths.final_norm!r} and "
                "the head, or behind it, scales or caps them. Name the right ln_f_module; if it is right, this model cannot "
                "be edited."
            )


def _check_layer(em: EditableModel, ids: Tensor, layer: int, name: str) -> None:
    block = em.model.get_submodule(em.paths.block.format(layer))
    mlp, rewrite = em.mlps[layer], em.rewrite[layer]
    seen: dict[str, Tensor] = {}

    def note(what: str) -> Any:
        return lambda output: seen.__setitem__(what, hidden_of(output).clone())

    def run(outputs: dict[nn.Module, Any]) -> Tensor:
        return forward_until(em.model, ids, torch.ones_like(ids), block, outputs=outputs)

    before = run({rewrite: note("written"), **({} if mlp is rewrite else {mlp: note("returned")})})
    if _differ(seen.get("returned", seen["written"]), seen["written"]):
        raise UnsupportedArchitectureError(
            f"{name}: what {em.paths.rewrite.format(layer)!r} writes is not what {em.paths.mlp.format(layer)!r} returns. Name "
            "the last linear map of the feed-forward part as rewrite_module_tmp; if it is, this model cannot be edited."
        )
    # As large as the hidden states, so that half precision shows it.
    moved = before.roll(1, -1)
    after = run({mlp: lambda output: with_hidden(output, hidden_of(output) + moved)})
    if _differ(after - before, moved):
        raise UnsupportedArchitectureError(
            f"{name}: what the MLP of block {layer} returns is not added to the residual stream as it is: a norm, a gate or a "
            "factor comes between. A value that is solved for one would be written as another; only families of the "
            "architecture table are edited through such a norm."
        )


def _differ(left: Tensor, right: Tensor) -> bool:
    return left.shape != right.shape or float((left - right).norm()) > _TOLERANCE * float(right.norm())
