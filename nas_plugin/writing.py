"""One step, from solved values to new matrices: the residual spread over the edited layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_plugin.anchor import AnchoredTargets
from nas_plugin.errors import NonFiniteError
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.keys import KeyPass
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import as_found
from nas_plugin.parallel import ALONE, Group
from nas_plugin.solve.target import SolvedTargets
from nas_plugin.write import LayerEditor
from nas_plugin.write.editor import Proposal


@dataclass(frozen=True)
class Factors:
    """What one step was, at one layer: enough to write it again on other weights.

    Attributes:
        keys: K `(d_in, n)`, in the compute dtype.
        values: What the keys were to give, V = W K + R, `(d_out, n)`, in the compute dtype.
    """

    keys: Tensor
    values: Tensor


def spread(
    em: EditableModel,
    contexts: ContextTemplates,
    editors: Mapping[int, LayerEditor],
    masters: Mapping[int, Tensor],
    solved: SolvedTargets,
    targets: AnchoredTargets,
    kept: Sequence[int],
    *,
    log: bool,
    group: Group = ALONE,
) -> tuple[dict[int, Tensor], dict[int, Factors]]:
    """Spread the residual over the layers, writing each before the next is measured (MEMIT, Algorithm 1).

    The model holds intermediate matrices afterwards; the editors have absorbed the step.

    Args:
        em: The model, holding the masters.
        contexts: Context templates.
        editors: Layer -> editor.
        masters: Layer -> W before the step.
        solved: Values of the requests that are written.
        targets: What is written for them.
        kept: Their numbers among all that were solved.
        log: Return what was written, too; it costs one product a layer.
        group: Processes that do the same, with keys and hidden states as its first one has them.

    Returns:
        Layer -> W after the step, and layer -> what was written, nothing without `log`.

    Raises:
        NonFiniteError: An update is not finite.
    """
    proposals: dict[int, Proposal] = {}
    applied: dict[int, Tensor] = {}
    written: dict[int, Factors] = {}
    with as_found(em.model):
        passes = KeyPass(em, contexts, solved.seen, solved.shared) if solved.seen else None
        for number, layer in enumerate(em.layers):
            # The solver's clean pass has seen the first layer, on the same weights.
            if passes is None or (number == 0 and not em.mlp_norms):
                k, hidden = solved.first_keys.T, solved.h0.T
            else:
                k, hidden = (group.from_main(states)[:, list(kept)] for states in passes.run(layer))
            residual = (targets.z.to(hidden.device).T - hidden) / (len(em.layers) - number)
            if em.mlp_norms:
                standing = (
                    solved.v0.T
                    if passes is None or passes.values is None
                    else group.from_main(passes.values)[:, list(kept)]
                )
                residual = _behind_norm(em, layer, standing, residual, targets)
            before = masters[layer]
            proposals[layer] = editors[layer].propose(before, k, residual)
            if log:
                written[layer] = Factors(k.to(before.device), before @ k.to(before.device) + residual.to(before.device))
            applied[layer] = proposals[layer].applied()
            if not bool(torch.isfinite(applied[layer]).all()):
                raise NonFiniteError(f"the update of layer {layer} is not finite; nothing was written.")
            em.write(layer, applied[layer])
    after = {layer: editors[layer].finish(proposals[layer], applied[layer]) for layer in em.layers}
    for layer, proposal in proposals.items():
        editors[layer].absorb(proposal, after[layer])
    return after, written


def _behind_norm(em: EditableModel, layer: int, standing: Tensor, residual: Tensor, targets: AnchoredTargets) -> Tensor:
    # The last layer's values are given the norms that were decided for them, those of earlier ones keep their own.
    if len(em.layers) == 1:
        return targets.values.to(standing.device).T - standing
    values = standing.T
    norms = targets.written_norm.to(values) if layer == em.value_layer else values.norm(dim=1)
    return em.mlp_norms[layer].behind(values, residual.to(values).T, norms).T
