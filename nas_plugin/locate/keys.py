"""One forward pass per edited layer: the keys, and where the last edited block stands now."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.sequences import Locator, pad
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import as_found, forward_until
from nas_plugin.request import EditRequest

_ROWS_PER_PASS = 128


class KeyPass:
    """Collects keys at the subject's last token (MEMIT, Eq. 19 and its released `compute_ks`)."""

    def __init__(self, em: EditableModel, locator: Locator, contexts: ContextTemplates) -> None:
        """Bind the pass to a model and its contexts.

        Args:
            em: The model.
            locator: Builds the sequences.
            contexts: Templates to average over.
        """
        self.em = em
        self.locator = locator
        self.contexts = contexts

    def run(self, requests: Sequence[EditRequest], layer: int) -> tuple[Tensor, Tensor]:
        """Read keys at one layer and hidden states at the last edited block, from the same pass.

        Args:
            requests: The step's requests.
            layer: Edited layer.

        Returns:
            Keys `(d_in, n)` and hidden states `(d_out, n)`, in the compute dtype. The hidden states are those of the
            bare prompt, as in every released implementation.
        """
        per_pass = max(1, _ROWS_PER_PASS // len(self.contexts.flat))
        parts = [self._chunk(requests[i : i + per_pass], layer) for i in range(0, len(requests), per_pass)]
        return torch.cat([keys for keys, _ in parts], 1), torch.cat([hidden for _, hidden in parts], 1)

    def _chunk(self, requests: Sequence[EditRequest], layer: int) -> tuple[Tensor, Tensor]:
        templates = self.contexts.flat
        rows = [self.locator.sequence(request, template) for request in requests for template in templates]
        batch = pad(rows, self.locator.pad_id, self.em.input_device)
        captured: list[Tensor] = []
        with torch.no_grad(), as_found(self.em.model):
            hidden = forward_until(
                self.em.model,
                batch.input_ids,
                batch.attention_mask,
                self.em.value_block,
                inputs={self.em.rewrite[layer]: captured.append},
            )
        dtype = self.em.compute_dtype
        keys = _at(captured[0], batch.lookup).to(dtype).reshape(len(requests), len(templates), -1)
        share = torch.tensor(self.contexts.weights, dtype=dtype, device=keys.device)
        bare = _at(hidden, batch.lookup).to(dtype).reshape(len(requests), len(templates), -1)[:, 0]
        return torch.einsum("nct,c->tn", keys, share), bare.T


def _at(states: Tensor, lookup: Tensor) -> Tensor:
    """Pick one position per row: `(rows, positions, d)` -> `(rows, d)`."""
    rows = torch.arange(states.shape[0], device=states.device)
    return states[rows, lookup.to(states.device)]
