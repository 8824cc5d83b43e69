"""One partial forward per edited layer: the keys, and where the last edited block stands now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.resumed import ResumedRows, SharedPrefix
from nas_plugin.model.cache import FrozenPrefix
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import hidden_of


@dataclass
class SeenRows:
    """Rows of some requests as the solver's clean pass left them: every context of each, up to the subject.

    Attributes:
        rows: Request by request, the bare prompt first.
        requests: Numbers of the requests within the step.
        columns: Column of each row in the shared prefix, `(rows,)`.
    """

    rows: ResumedRows
    requests: tuple[int, ...]
    columns: Tensor


class KeyPass:
    """Collects keys at the subject's last token (MEMIT, Eq. 19 and its released `compute_ks`), for one step.

    Attributes:
        values: Outputs of the layer's MLP on the bare prompts as of the last run, `(d_out, n)`, in the compute dtype; None
            unless a norm stands between MLPs and the residual stream.

    Tokens after the subject cannot reach it and are left out. Rows in a context stop at the edited layer; only the bare prompts
    go on to the last one. And since writing a layer changes nothing below its block, each pass starts at the block that was
    written after the pass before it; the first takes up where the solver's clean pass was.
    """

    def __init__(
        self, em: EditableModel, contexts: ContextTemplates, seen: Sequence[SeenRows], shared: SharedPrefix | None
    ) -> None:
        """Take up the rows of a step.

        Args:
            em: The model, frozen and in evaluation mode.
            contexts: Templates to average over.
            seen: The rows, in any order.
            shared: What they have in common; None if they were run without it.
        """
        self.em = em
        self._weights = contexts.weights
        self._seen, self._shared = seen, shared
        self._bare = [self._bare_of(s, len(contexts.flat)) for s in seen]
        numbers = [number for s in seen for number in s.requests]
        self.values: Tensor | None = None
        self._back = torch.tensor(numbers, device=em.input_device).argsort()

    def run(self, layer: int) -> tuple[Tensor, Tensor]:
        """Read keys at one layer and hidden states at the last edited block.

        Args:
            layer: Edited layer; later calls must ask for later ones.

        Returns:
            Keys `(d_in, n)` and hidden states `(d_out, n)`, in the compute dtype. The hidden states are those of the
            bare prompt, as in every released implementation.
        """
        em, dtype = self.em, self.em.compute_dtype
        share = torch.tensor(self._weights, dtype=dtype)
        keys, hidden = [], []
        values: list[Tensor] = []
        if self._shared is not None:
            self._shared.rewritten(layer)
        for seen, bare in zip(self._seen, self._bare, strict=True):
            first = seen.rows.first
            entered, _ = seen.rows.run(layer, em.rewrite[layer], self._prefix(seen, range(first, layer + 1)))
            of_rows = seen.rows.at_subject(entered).to(dtype).unflatten(0, (-1, len(share)))
            keys.append(torch.einsum("nct,c->nt", of_rows, share.to(of_rows.device)))
            _, left = bare.run(layer, em.value_block, also=self._showing(layer, bare, values))
            hidden.append(bare.at_subject(left).to(dtype))
        self.values = self._in_order(values) if values else None
        return self._in_order(keys), self._in_order(hidden)

    def _showing(self, layer: int, bare: ResumedRows, values: list[Tensor]) -> dict[Any, Any]:
        em = self.em
        if layer not in em.mlp_norms:
            return {}
        return {em.mlps[layer]: lambda output: values.append(bare.at_subject(hidden_of(output)).to(em.compute_dtype))}

    def _prefix(self, seen: SeenRows, layers: range) -> FrozenPrefix | None:
        if self._shared is None:
            return None
        return FrozenPrefix(self._shared.of_rows(seen.columns, layers), self._shared.width)

    def _bare_of(self, seen: SeenRows, per_request: int) -> ResumedRows:
        bare = seen.rows.take(torch.arange(0, len(seen.rows.ids), per_request, device=seen.rows.ids.device))
        if self._shared is not None:
            # The mask of the whole batch leaves room for what contexts share; bare prompts are whole.
            bare.mask = bare.mask[..., self._shared.width :]
        return bare

    def _in_order(self, parts: list[Tensor]) -> Tensor:
        states = torch.cat(parts)
        return states[self._back.to(states.device)].T
