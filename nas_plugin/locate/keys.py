"""One partial forward per edited layer: the keys, and where the last edited block stands now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.sequences import Locator, PaddedBatch, TokenSequence, pad
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import forward_until, hidden_of, skipping
from nas_plugin.request import EditRequest

_ROWS_PER_PASS = 128


class KeyPass:
    """Collects keys at the subject's last token (MEMIT, Eq. 19 and its released `compute_ks`), for one step.

    Tokens after the subject cannot reach it and are left out. Writing a layer changes nothing below its block, so that each
    pass starts at the block that the pass before it has led to a write of.
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
        per_pass = max(1, _ROWS_PER_PASS // len(contexts.flat))
        rows = [[_up_to_subject(locator.sequence(r, template)) for template in contexts.flat] for r in requests]
        self._batches = [
            pad([row for group in rows[i : i + per_pass] for row in group], locator.pad_id, em.input_device)
            for i in range(0, len(rows), per_pass)
        ]
        self._entering: list[tuple[int, Any]] = [(0, None)] * len(self._batches)

    def run(self, layer: int) -> tuple[Tensor, Tensor]:
        """Read keys at one layer and hidden states at the last edited block, from the same pass.

        Args:
            layer: Edited layer; later calls must ask for later ones.

        Returns:
            Keys `(d_in, n)` and hidden states `(d_out, n)`, in the compute dtype. The hidden states are those of the
            bare prompt, as in every released implementation.
        """
        parts = [self._pass(number, batch, layer) for number, batch in enumerate(self._batches)]
        return torch.cat([keys for keys, _ in parts], 1), torch.cat([hidden for _, hidden in parts], 1)

    def _pass(self, number: int, batch: PaddedBatch, layer: int) -> tuple[Tensor, Tensor]:
        em, seen = self.em, dict[str, Any]()
        outputs = {}
        if layer > 0:
            outputs[em.blocks_below_loss[layer - 1]] = lambda output: seen.__setitem__("entering", output)
        first, entering = self._entering[number]
        with torch.no_grad(), skipping(em.blocks_below_loss[:first], entering):
            hidden = forward_until(
                em.model,
                batch.input_ids,
                batch.attention_mask,
                em.value_block,
                inputs={em.rewrite[layer]: lambda states: seen.__setitem__("keys", states)},
                outputs=outputs,
            )
        if layer > 0:
            self._entering[number] = (layer, seen["entering"])
        templates = len(self.contexts.flat)
        keys = _at(seen["keys"], batch.lookup).to(em.compute_dtype)
        keys = keys.reshape(len(keys) // templates, templates, -1)
        share = torch.tensor(self.contexts.weights, dtype=keys.dtype, device=keys.device)
        bare = _at(hidden, batch.lookup)[::templates].to(em.compute_dtype)
        return torch.einsum("nct,c->tn", keys, share), bare.T


def _up_to_subject(row: TokenSequence) -> TokenSequence:
    return TokenSequence(row.ids[: row.lookup + 1], row.lookup, row.lookup + 1)


def _at(states: Tensor, lookup: Tensor) -> Tensor:
    """Pick one position per row: `(rows, positions, d)` -> `(rows, d)`."""
    states = hidden_of(states)
    return states[torch.arange(states.shape[0], device=states.device), lookup.to(states.device)]
