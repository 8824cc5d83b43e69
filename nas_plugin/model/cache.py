"""Keys and values of earlier tokens: computed once, read in every later pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

LayerStates = dict[int, tuple[Tensor, Tensor]]
"""Layer -> keys and values, each `(rows, heads, positions, d_head)`."""


def rows_of(layers: LayerStates, rows: Tensor) -> LayerStates:
    """Pick rows out of every layer's keys and values, wherever these lie.

    Args:
        layers: Keys and values.
        rows: Row numbers `(k,)`; one may be taken several times.

    Returns:
        Those of the rows.
    """
    picked = {}
    for layer, (keys, values) in layers.items():
        index = rows.to(keys.device)
        picked[layer] = keys[index], values[index]
    return picked


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
