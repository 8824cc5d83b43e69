"""Keys and values of earlier tokens: computed once, read in every later pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nas_plugin.locate.sequences import TokenSequence, pad
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import forward_until

LayerStates = dict[int, tuple[Tensor, Tensor]]
"""Layer -> keys and values, each `(rows, heads, positions, d_head)`."""


class FrozenPrefix(DynamicCache):
    """Keys and values of the tokens before those of a pass; what the pass adds is handed on and, if asked, noted.

    Nothing is appended, so that a pass can be run again and again and no step's graph outlives it.
    """

    def __init__(self, layers: LayerStates, length: int, *, note: bool = False) -> None:
        """Hold the prefix.

        Args:
            layers: Keys and values; layers that are missing have no prefix.
            length: Tokens held, padding included.
            note: Remember in `added` what each layer adds.
        """
        super().__init__()
        self.prefix = layers
        self.length = length
        self.added: LayerStates = {}
        self._note = note

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return prefix and new tokens together."""
        if self._note:
            self.added[layer_idx] = key_states, value_states
        if layer_idx not in self.prefix:
            return key_states, value_states
        keys, values = self.prefix[layer_idx]
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens held."""
        return self.length


def attention_mask(before: Tensor, real: Tensor, dtype: torch.dtype) -> Tensor:
    """Build an additive mask: each token sees what is visible of the prefix, then itself and the real ones before it.

    Args:
        before: Visible tokens of the prefix, `(rows, prefix)`.
        real: Tokens of the pass that are not padding, `(rows, tokens)`.
        dtype: The model's.

    Returns:
        0 where a token is seen, the dtype's lowest number elsewhere, `(rows, 1, tokens, prefix + tokens)`.
    """
    tokens = real.shape[1]
    steps = torch.arange(tokens, device=real.device)
    # Padding sees itself: a row of the mask with nothing to see would be NaN.
    own = (steps[:, None] >= steps) & (real[:, None, :] | torch.eye(tokens, dtype=torch.bool, device=real.device))
    visible = torch.cat([before[:, None].expand(-1, tokens, -1), own], 2)
    mask = torch.zeros(visible.shape, dtype=dtype, device=real.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]


@dataclass(frozen=True)
class SharedPrefix:
    """The first tokens that all of a column's rows have in common (a generated context), run once for all of them.

    Attributes:
        layers: Keys and values up to the loss layer, one row per column.
        lengths: Tokens of each column's prefix; 0 where its rows have nothing in common.
    """

    layers: LayerStates
    lengths: tuple[int, ...]

    @property
    def width(self) -> int:
        """Tokens of the longest."""
        return max(self.lengths, default=0)

    @classmethod
    def none(cls, columns: int) -> SharedPrefix:
        """Return what rows share when nothing is shared."""
        return cls({}, (0,) * columns)

    def of_rows(self, columns: Tensor, layers: range) -> LayerStates:
        """Copy the prefix to rows.

        Args:
            columns: Column of each row, `(rows,)`.
            layers: Layers wanted.

        Returns:
            Keys and values, one row per row.
        """
        if not self.layers:
            return {}
        return {layer: (self.layers[layer][0][columns], self.layers[layer][1][columns]) for layer in layers}


def share_prefixes(
    em: EditableModel, sequences: Sequence[TokenSequence], columns: Sequence[int], pad_id: int, worth: int
) -> SharedPrefix:
    """Find and run the tokens that each column's rows begin with.

    The subject's last token is never shared: what depends on the edit begins there.

    Args:
        em: The model, frozen and in evaluation mode.
        sequences: Rows of all requests of a step.
        columns: Column of each row.
        pad_id: Any id in the vocabulary.
        worth: Tokens that must be saved for a pass of its own to pay.

    Returns:
        The shared prefixes, `max(columns) + 1` of them.
    """
    common: dict[int, tuple[int, ...]] = {}
    count: dict[int, int] = {}
    for row, column in zip(sequences, columns, strict=True):
        begin = row.ids[: row.lookup]
        known = common.get(column, begin)
        length = next((i for i, (a, b) in enumerate(zip(known, begin, strict=False)) if a != b), None)
        common[column] = known[: min(len(known), len(begin)) if length is None else length]
        count[column] = count.get(column, 0) + 1
    total = max(columns) + 1
    prefixes = [common.get(column, ()) for column in range(total)]
    if sum(len(ids) * (count.get(column, 1) - 1) for column, ids in enumerate(prefixes)) < worth:
        return SharedPrefix.none(total)
    rows = pad([TokenSequence(ids or (pad_id,), 0, 0) for ids in prefixes], pad_id, em.input_device)
    cache = FrozenPrefix({}, 0, note=True)
    positions = torch.arange(rows.input_ids.shape[1], device=em.input_device).expand_as(rows.input_ids)
    with torch.no_grad():
        mask = attention_mask(
            rows.attention_mask[:, :0].bool(), rows.attention_mask.bool(), em.weight(em.value_layer).dtype
        )
        forward_until(em.model, rows.input_ids, mask, em.loss_attention, cache=cache, position_ids=positions)
    return SharedPrefix(cache.added, tuple(map(len, prefixes)))
