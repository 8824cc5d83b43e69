"""Running the model above the edited block again and again with another correction, and nothing else.

A correction enters at the subject's last token, so the layers up to the edited block and all earlier tokens give the same
numbers in every step of an optimisation. One clean pass records them; each step then runs only later layers and later tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from nas_plugin.locate.sequences import PaddedBatch
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import forward_until, hidden_of, skipping, with_hidden

_MASKED_ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class CleanPass:
    """What one pass over the uncorrected rows records.

    Attributes:
        final: Hidden states of the loss layer, `(rows, positions, d_model)`.
        block: Output of the edited block as it came, a tensor or a tuple.
        value: Output of that block's MLP, `(rows, positions, d_model)`.
        keys: Input of the first edited layer's rewrite module, `(rows, positions, d_in)`.
        cache: Keys and values of every layer, or None if the model was run without a cache.
    """

    final: Tensor
    block: Any
    value: Tensor
    keys: Tensor
    cache: DynamicCache | None


class CorrectedForward(Protocol):
    """The model as a function of the correction."""

    def states(self, shift: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Return hidden states of the loss layer at some places, with a correction added at every row's subject."""

    def take(self, rows: Tensor) -> CorrectedForward:
        """Return the same for some of the rows."""


def clean_pass(em: EditableModel, inputs: PaddedBatch) -> CleanPass:
    """Run the rows once without a correction.

    Args:
        em: The model.
        inputs: Rows.

    Returns:
        The record.
    """
    seen: dict[str, Any] = {}
    cache = DynamicCache() if _can_reuse_prefix(em, inputs) else None
    with torch.no_grad():
        final = forward_until(
            em.model,
            inputs.input_ids,
            inputs.attention_mask,
            em.loss_block,
            inputs={em.rewrite[em.layers[0]]: lambda states: seen.__setitem__("keys", states)},
            outputs={
                em.value_block: lambda output: seen.__setitem__("block", output),
                em.value_mlp: lambda output: seen.__setitem__("value", hidden_of(output)),
            },
            cache=cache,
        )
    return CleanPass(final, seen["block"], seen["value"], seen["keys"], cache)


def corrected_forward(em: EditableModel, inputs: PaddedBatch, clean: CleanPass) -> CorrectedForward:
    """Return the fast form where the model's family allows it, else the plain one; the numbers are the same.

    Args:
        em: The model.
        inputs: Rows.
        clean: Their clean pass.

    Returns:
        The model as a function of the correction.
    """
    if clean.cache is None:
        return FullForward(em, inputs)
    return SuffixForward.after(em, inputs, clean)


def _can_reuse_prefix(em: EditableModel, inputs: PaddedBatch) -> bool:
    """Known family, an attention that takes an explicit mask, and no sliding window within reach."""
    window = getattr(em.config, "sliding_window", None)
    return (
        em.paths.prefix_cache
        and getattr(em.config, "_attn_implementation", None) in _MASKED_ATTENTION
        and (window is None or inputs.input_ids.shape[1] < window)
        and not getattr(em.model, "hf_device_map", None)
    )


@dataclass(frozen=True)
class FullForward:
    """All layers and all tokens, for models whose cache cannot be relied on.

    Attributes:
        em: The model.
        inputs: Rows.
    """

    em: EditableModel
    inputs: PaddedBatch

    def states(self, shift: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Return hidden states of the loss layer; see `CorrectedForward`."""
        lookup = self.inputs.lookup
        every = torch.arange(len(lookup), device=lookup.device)

        def add(output: Any) -> Any:
            hidden = hidden_of(output)
            moved = (hidden[every, lookup].to(shift.dtype) + shift).to(hidden.dtype)
            return with_hidden(output, hidden.index_put((every, lookup), moved))

        em = self.em
        final = forward_until(
            em.model, self.inputs.input_ids, self.inputs.attention_mask, em.loss_block, outputs={em.value_block: add}
        )
        return final[rows, positions]

    def take(self, rows: Tensor) -> FullForward:
        """Return the same for some of the rows."""
        return FullForward(self.em, self.inputs.rows(rows))


class FrozenPrefix(DynamicCache):
    """Keys and values of the tokens before each row's subject's last one; read in every step, written in none."""

    def __init__(self, layers: dict[int, tuple[Tensor, Tensor]], length: int) -> None:
        """Hold the prefix.

        Args:
            layers: Layer -> keys and values `(rows, heads, length, d_head)`.
            length: Tokens held, padding included.
        """
        super().__init__()
        self.prefix = layers
        self.length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return prefix and new tokens together; keep nothing, so that no step's graph outlives it."""
        keys, values = self.prefix[layer_idx]
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens held."""
        return self.length

    def take(self, rows: Tensor) -> FrozenPrefix:
        """Return the prefix of some rows."""
        return FrozenPrefix({layer: (k[rows], v[rows]) for layer, (k, v) in self.prefix.items()}, self.length)


@dataclass(frozen=True)
class SuffixForward:
    """Only the layers above the edited block, only the tokens from each row's subject's last one on.

    Attributes:
        em: The model.
        ids: Token ids of the suffixes, `(rows, suffix)`; column 0 is the subject's last token.
        positions: Their positions, `(rows, suffix)`.
        mask: Additive attention mask `(rows, 1, suffix, prefix + suffix)`.
        hidden: Output of the edited block at the suffix, `(rows, suffix, d_model)`.
        template: Output of the edited block in the form its successor expects.
        prefix: Keys and values of the tokens before.
        lookup: Position of the subject's last token, `(rows,)`.
    """

    em: EditableModel
    ids: Tensor
    positions: Tensor
    mask: Tensor
    hidden: Tensor
    template: Any
    prefix: FrozenPrefix
    lookup: Tensor

    @classmethod
    def after(cls, em: EditableModel, inputs: PaddedBatch, clean: CleanPass) -> SuffixForward:
        """Cut the suffixes out of a clean pass.

        Args:
            em: The model.
            inputs: Rows.
            clean: Their clean pass, run with a cache.

        Returns:
            The model as a function of the correction.
        """
        lookup, mask = inputs.lookup, inputs.attention_mask.bool()
        device = lookup.device
        length, total = int(lookup.max()), mask.sum(1)
        suffix = int((total - lookup).max())
        steps = torch.arange(suffix, device=device)
        # Columns beyond a row's end are padding: any place will do, the mask hides them.
        columns = (lookup[:, None] + steps).clamp_max(mask.shape[1] - 1)
        rows = torch.arange(len(lookup), device=device)[:, None]
        real = lookup[:, None] + steps < total[:, None]
        hidden = hidden_of(clean.block)[rows, columns].to(clean.final.dtype)
        layers = {
            layer: tuple(states[:, :, :length] for states in _keys_and_values(clean.cache, layer))
            for layer in range(em.value_layer + 1, em.loss_layer + 1)
        }
        visible = torch.cat(
            [
                (torch.arange(length, device=device) < lookup[:, None])[:, None].expand(-1, suffix, -1),
                (steps[:, None] >= steps)[None]
                & (real[:, None, :] | torch.eye(suffix, dtype=torch.bool, device=device)),
            ],
            2,
        )
        additive = torch.zeros(visible.shape, dtype=hidden.dtype, device=device)
        additive = additive.masked_fill(~visible, torch.finfo(hidden.dtype).min)[:, None]
        prefix = FrozenPrefix(layers, length)  # type: ignore[arg-type]
        return cls(em, inputs.input_ids[rows, columns], columns, additive, hidden, clean.block, prefix, lookup)

    def states(self, shift: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Return hidden states of the loss layer; see `CorrectedForward`."""
        first = (self.hidden[:, :1].to(shift.dtype) + shift[:, None]).to(self.hidden.dtype)
        entering = with_hidden(self.template, torch.cat([first, self.hidden[:, 1:]], 1))
        em = self.em
        with skipping(em.blocks_below_loss[: em.value_layer + 1], entering):
            final = forward_until(
                em.model, self.ids, self.mask, em.loss_block, cache=self.prefix, position_ids=self.positions
            )
        return final[rows, positions - self.lookup[rows]]

    def take(self, rows: Tensor) -> SuffixForward:
        """Return the same for some of the rows."""
        parts = (self.ids[rows], self.positions[rows], self.mask[rows], self.hidden[rows])
        return SuffixForward(self.em, *parts, self.template, self.prefix.take(rows), self.lookup[rows])


def _keys_and_values(cache: Any, layer: int) -> tuple[Tensor, Tensor]:
    return cache.layers[layer].keys, cache.layers[layer].values
