"""One partial forward per edited layer: the keys, and where the last edited block stands now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.sequences import Locator, PaddedBatch, TokenSequence, pad
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import forward_until, skipping
from nas_plugin.request import EditRequest

_ROWS_PER_PASS = 128


class KeyPass:
    """Collects keys at the subject's last token (MEMIT, Eq. 19 and its released `compute_ks`), for one step.

    Tokens after the subject cannot reach it and are left out. Rows in a context stop at the edited layer; only the bare prompts
    go on to the last one. And since writing a layer changes nothing below its block, each pass starts at the block that was
    written after the pass before it.
    """

    def __init__(
        self, em: EditableModel, locator: Locator, contexts: ContextTemplates, requests: Sequence[EditRequest]
    ) -> None:
        """Build the sequences of a step.

        Args:
            em: The model, frozen and in evaluation mode.
            locator: Builds the sequences.
            contexts: Templates to average over.
            requests: The step's requests.
        """
        self.em = em
        self.contexts = contexts
        flat = contexts.flat
        rows = [[locator.sequence(r, template).up_to_subject() for template in flat] for r in requests]
        per_pass = max(1, _ROWS_PER_PASS // len(flat))
        chunks = [rows[i : i + per_pass] for i in range(0, len(rows), per_pass)]
        self._in_contexts = [self._rows([row for group in chunk for row in group], locator) for chunk in chunks]
        self._bare = [self._rows([group[0] for group in chunk], locator) for chunk in chunks]

    def run(self, layer: int) -> tuple[Tensor, Tensor]:
        """Read keys at one layer and hidden states at the last edited block.

        Args:
            layer: Edited layer; later calls must ask for later ones.

        Returns:
            Keys `(d_in, n)` and hidden states `(d_out, n)`, in the compute dtype. The hidden states are those of the
            bare prompt, as in every released implementation.
        """
        em, dtype = self.em, self.em.compute_dtype
        keys, hidden = [], []
        share = torch.tensor(self.contexts.weights, dtype=dtype)
        for rows, bare in zip(self._in_contexts, self._bare, strict=True):
            seen = rows.at_subject(layer, em.rewrite[layer], wants_input=True).to(dtype)
            keys.append(torch.einsum("nct,c->tn", seen.unflatten(0, (-1, len(share))), share.to(seen.device)))
            hidden.append(bare.at_subject(layer, em.value_block, wants_input=False).to(dtype).T)
        return torch.cat(keys, 1), torch.cat(hidden, 1)

    def _rows(self, sequences: list[TokenSequence], locator: Locator) -> _Rows:
        return _Rows(self.em, pad(sequences, locator.pad_id, self.em.input_device))


@dataclass
class _Rows:
    """A batch that is run again and again, each time from a later block on."""

    em: EditableModel
    batch: PaddedBatch
    first: int = 0
    entering: Any = None

    def at_subject(self, layer: int, last: nn.Module, wants_input: bool) -> Tensor:
        """Run up to a module; return its input or output at the subject's last token, `(rows, d)`.

        What enters the block of `layer` is kept: no later write changes it.

        Args:
            layer: Edited layer of this pass.
            last: Module to stop after.
            wants_input: Return what enters `last` instead of what leaves it.

        Returns:
            States `(rows, d)`.
        """
        em, seen = self.em, dict[str, Any]()
        outputs = {}
        if layer > 0:
            outputs[em.blocks_below_loss[layer - 1]] = lambda output: seen.__setitem__("entering", output)
        with torch.no_grad(), skipping(em.blocks_below_loss[: self.first], self.entering):
            states = forward_until(
                em.model,
                self.batch.input_ids,
                self.batch.attention_mask,
                last,
                inputs={last: lambda given: seen.__setitem__("input", given)},
                outputs=outputs,
            )
        if layer > 0:
            self.first, self.entering = layer, seen["entering"]
        states = seen["input"] if wants_input else states
        return states[torch.arange(len(states), device=states.device), self.batch.lookup.to(states.device)]
