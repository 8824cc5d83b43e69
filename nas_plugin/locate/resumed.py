"""Rows that are run again and again, each time from a later block on, because nothing below it has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas_plugin.locate.sequences import TokenSequence, pad
from nas_plugin.model.cache import FrozenPrefix, LayerStates, attention_mask, rows_of
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import forward_until, hidden_of, skipping, with_hidden


@dataclass
class ResumedRows:
    """Rows up to their subject's last token, where they stand, and what their model call is given.

    Attributes:
        em: The model.
        ids: Token ids, `(rows, tokens)`.
        mask: Attention mask in any form the model takes.
        lookup: Subject's last token, `(rows,)`.
        more: Further arguments of the model's forward.
        first: Block that runs first.
        entering: Output of the block before it, as its successor expects it; None at block 0.
    """

    em: EditableModel
    ids: Tensor
    mask: Tensor
    lookup: Tensor
    more: dict[str, Any] = field(default_factory=dict)
    first: int = 0
    entering: Any = None

    def take(self, rows: Tensor) -> ResumedRows:
        """Return some rows.

        Args:
            rows: Row numbers `(k,)`.

        Returns:
            The same at the same place.
        """
        more = {name: tensor[rows] for name, tensor in self.more.items()}
        entering = self.entering
        if entering is not None:
            hidden = hidden_of(entering)
            entering = with_hidden(entering, hidden[rows.to(hidden.device)])
        return replace(
            self, ids=self.ids[rows], mask=self.mask[rows], lookup=self.lookup[rows], more=more, entering=entering
        )

    def standing_at(self, layer: int, entering: Any) -> ResumedRows:
        """Return the rows at a later block.

        Args:
            layer: Block that runs first.
            entering: Output of the block before it for at least these tokens; None for block 0.

        Returns:
            The rows.
        """
        if entering is not None:
            entering = with_hidden(entering, hidden_of(entering)[:, : self.ids.shape[1]])
        return replace(self, first=layer, entering=entering)

    def run(
        self,
        layer: int,
        last: nn.Module,
        cache: FrozenPrefix | None = None,
        also: dict[nn.Module, Callable[[Any], Any]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run up to a module. What enters the block of `layer` is kept: no later write changes it.

        Args:
            layer: Layer that is edited next; not before `first`.
            last: Module to stop after.
            cache: Keys and values of earlier tokens.
            also: Further modules and what is shown their outputs.

        Returns:
            What entered `last` and what left it, each `(rows, tokens, d)`.
        """
        em, seen = self.em, dict[str, Any]()
        outputs = dict(also or {})
        if layer > self.first:
            outputs[em.blocks_below_loss[layer - 1]] = lambda output: seen.__setitem__("entering", output)
        with torch.no_grad(), skipping(em.blocks_below_loss[: self.first], self.entering):
            left = forward_until(
                em.model,
                self.ids,
                self.mask,
                last,
                inputs={last: lambda given: seen.__setitem__("input", given)},
                outputs=outputs,
                cache=cache,
                **self.more,
            )
        if layer > self.first:
            self.first, self.entering = layer, seen["entering"]
        return seen["input"], left

    def at_subject(self, states: Tensor) -> Tensor:
        """Pick each row's subject's last token out of states `(rows, tokens, d)`."""
        return states[torch.arange(len(states), device=states.device), self.lookup.to(states.device)]


@dataclass
class SharedPrefix:
    """The first tokens that all of a column's rows have in common (a generated context), run once for all of them.

    Attributes:
        lengths: Tokens of each column's prefix; 0 where its rows share nothing.
        layers: Keys and values up to the loss layer on the weights they were run with, one row per column.
        rows: The prefixes themselves, standing at the first edited layer; None if there are none.
    """

    lengths: tuple[int, ...]
    layers: LayerStates = field(default_factory=dict)
    rows: ResumedRows | None = None

    @property
    def width(self) -> int:
        """Tokens of the longest."""
        return max(self.lengths, default=0)

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
        return rows_of({layer: self.layers[layer] for layer in layers}, columns)

    def rewritten(self, layer: int) -> None:
        """Run the prefixes on to another edited layer on the weights as they now are; `layers` is then what is new.

        Args:
            layer: Edited layer.
        """
        if self.rows is not None:
            cache = FrozenPrefix({}, 0, note=True)
            self.rows.run(layer, self.rows.em.attention(layer), cache)
            self.layers = cache.added


def share_prefixes(
    em: EditableModel, sequences: Sequence[TokenSequence], columns: Sequence[int | None], pad_id: int, worth: int
) -> SharedPrefix:
    """Find and run the tokens that each column's rows begin with.

    The subject's last token is never shared: what depends on the edit begins there.

    Args:
        em: The model, frozen and in evaluation mode.
        sequences: Rows of all requests of a step.
        columns: Column of each row; None for rows that have nothing in common.
        pad_id: Any id in the vocabulary.
        worth: Tokens that must be saved for a pass of its own to pay.

    Returns:
        The shared prefixes, one for each column.
    """
    common: dict[int, tuple[int, ...]] = {}
    for row, column in zip(sequences, columns, strict=True):
        if column is None:
            continue
        begin = row.ids[: row.lookup]
        known = common.get(column, begin)
        length = next((i for i, (a, b) in enumerate(zip(known, begin, strict=False)) if a != b), len(begin))
        common[column] = known[:length]
    lengths = [len(common.get(column, ())) for column in range(max(common, default=-1) + 1)]
    saved = sum(lengths[column] for column in columns if column is not None) - sum(lengths)
    if saved < worth or not any(lengths):
        return SharedPrefix((0,) * len(lengths))
    padded = pad(
        [TokenSequence(common.get(column) or (pad_id,), 0, 0) for column in range(len(lengths))],
        pad_id,
        em.input_device,
    )
    real = padded.attention_mask.bool()
    positions = torch.arange(real.shape[1], device=real.device).expand_as(real)
    rows = ResumedRows(
        em,
        padded.input_ids,
        attention_mask(real[:, :0], real, em.dtype),
        padded.lookup,
        {"position_ids": positions},
    )
    cache = FrozenPrefix({}, 0, note=True)
    rows.run(em.layers[0], em.attention(em.loss_layer), cache)
    return SharedPrefix(tuple(lengths), cache.added, rows)
