"""The fast form: only the layers above the edited block, only the tokens from each row's subject's last one on.

A correction enters at the subject's last token, so lower layers and earlier tokens give the same numbers in every step of an
optimisation. They are computed once; each step then runs what is left, rows of like length together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_plugin.locate.resumed import ResumedRows, SharedPrefix
from nas_plugin.locate.sequences import PaddedBatch, TokenSequence, pad
from nas_plugin.model.cache import FrozenPrefix, LayerStates, attention_mask, rows_of
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import forward_until, hidden_of, skipping, with_hidden
from nas_plugin.solve.passes import SuffixForward, SuffixPass, groups_of_like_length, pass_cost


@dataclass(frozen=True)
class SuffixRows:
    """Rows as a clean pass left them; see `CleanRows`.

    Attributes:
        em: The model.
        hidden: Output of the last edited block at the subject, `(rows, d_model)`.
        value: Output of its MLP there, `(rows, d_model)`.
        keys: Input of the first edited layer's rewrite module there, `(rows, d_in)`.
        resumed: The rows up to the subject, standing at the first edited layer.
        ids: Token ids from the subject's last token on, `(rows, tokens)`.
        positions: Their positions, `(rows, tokens)`.
        real: Which of them are not padding, `(rows, tokens)`.
        entering: Output of the last edited block at them, `(rows, tokens, d_model)`.
        template: That output in the form its successor expects.
        layers: Keys and values of the tokens before, in the layers above.
        before: Which of those are real, `(rows, prefix)`.
        lengths: Tokens of each row, kept on the host: groups are formed without asking the device.
    """

    em: EditableModel
    hidden: Tensor
    value: Tensor
    keys: Tensor
    resumed: ResumedRows
    ids: Tensor
    positions: Tensor
    real: Tensor
    entering: Tensor
    template: Any
    layers: LayerStates
    before: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def seen(
        cls,
        em: EditableModel,
        sequences: Sequence[TokenSequence],
        columns: Sequence[int | None],
        shared: SharedPrefix,
        pad_id: int,
    ) -> SuffixRows:
        """Run rows once: all their own tokens up to the edited block, those before the subject above it.

        Args:
            em: The model.
            sequences: Rows.
            columns: Column of each row in the shared prefix; None for rows that have nothing in common.
            shared: What is known of their first tokens.
            pad_id: Any id in the vocabulary.

        Returns:
            The record.
        """
        own = _OwnTokens.after(em, sequences, columns, shared, pad_id)
        found = own.up_to_value()
        # Where corrections are: of a model on several devices, the one that takes token ids.
        hidden = hidden_of(found["block"]).to(em.input_device)
        layers, before = own.above_value(found["block"])
        rows, lengths = own.rows, own.from_subject
        steps = torch.arange(max(lengths), device=hidden.device)
        place = (rows.lookup[:, None] + steps).clamp_max(rows.input_ids.shape[1] - 1)
        return cls(
            em,
            hidden[own.at_subject],
            found["value"],
            found["keys"],
            own.resumed.standing_at(em.layers[0], found.get("entering")),
            rows.input_ids.gather(1, place),
            own.positions.gather(1, place),
            rows.lookup[:, None] + steps < rows.attention_mask.sum(1)[:, None],
            hidden[own.at_subject[0][:, None], place],
            found["block"],
            layers,
            before,
            lengths,
        )

    def corrected(self, rows: Tensor, places: tuple[Tensor, Tensor]) -> SuffixForward:
        """Bind rows and places, rows of like length in one pass; see `CleanRows`.

        Args:
            rows: Row numbers, `(k,)`.
            places: Numbers within them, and positions in the whole sequences.

        Returns:
            The model above the edited block.
        """
        numbers = rows.tolist()
        row, position = places
        passes, order = [], []
        owner = torch.zeros(len(numbers), dtype=torch.long, device=rows.device)
        groups = groups_of_like_length([self.lengths[i] for i in numbers], pass_cost(self.em))
        for number, group in enumerate(groups):
            owner[group] = number
        for number, group in enumerate(groups):
            index = torch.tensor(group, device=rows.device)
            within = torch.zeros_like(owner)
            within[index] = torch.arange(len(group), device=rows.device)
            mine = (owner[row] == number).nonzero()[:, 0]
            order.append(mine)
            offset = position[mine] - self.positions[rows[row[mine]], 0]
            width = max(self.lengths[numbers[i]] for i in group)
            passes.append(self._group(rows[index], index, width, (within[row[mine]], offset)))
        return SuffixForward(tuple(passes), torch.cat(order).argsort())

    def _group(self, rows: Tensor, index: Tensor, width: int, places: tuple[Tensor, Tensor]) -> SuffixPass:
        real, entering = self.real[rows, :width], self.entering[rows, :width]
        return SuffixPass(
            self.em,
            index,
            self.ids[rows, :width],
            self.positions[rows, :width],
            attention_mask(self.before[rows], real, entering.dtype),
            entering,
            self.template,
            FrozenPrefix(rows_of(self.layers, rows), self.before.shape[1]),
            places,
        )


@dataclass(frozen=True)
class _OwnTokens:
    """Rows without the tokens they share, and what they see of those."""

    em: EditableModel
    rows: PaddedBatch
    positions: Tensor
    column: Tensor
    known: Tensor
    shared: SharedPrefix
    from_subject: tuple[int, ...]
    before_subject: int

    @classmethod
    def after(
        cls,
        em: EditableModel,
        sequences: Sequence[TokenSequence],
        columns: Sequence[int | None],
        shared: SharedPrefix,
        pad_id: int,
    ) -> _OwnTokens:
        skip = [0 if column is None else shared.lengths[column] for column in columns]
        own = [TokenSequence(row.ids[cut:], row.lookup - cut, 0) for row, cut in zip(sequences, skip, strict=True)]
        rows, device = pad(own, pad_id, em.input_device), em.input_device
        cut = torch.tensor(skip, device=device)
        # Columns beyond a row's end are padding: any position the model has will do, the mask hides them.
        last = max(len(row.ids) for row in sequences) - 1
        return cls(
            em,
            rows,
            (cut[:, None] + torch.arange(rows.input_ids.shape[1], device=device)).clamp_max(last),
            torch.tensor([0 if column is None else column for column in columns], device=device),
            torch.arange(shared.width, device=device) < cut[:, None],
            shared,
            tuple(len(row.ids) - row.lookup for row in own),
            max(row.lookup for row in own),
        )

    @property
    def at_subject(self) -> tuple[Tensor, Tensor]:
        lookup = self.rows.lookup
        return torch.arange(len(lookup), device=lookup.device), lookup

    @property
    def resumed(self) -> ResumedRows:
        width, lookup = self.before_subject + 1, self.rows.lookup
        real = torch.arange(width, device=lookup.device) <= lookup[:, None]
        mask = attention_mask(self.known, real, self.em.dtype)
        more = {"position_ids": self.positions[:, :width]}
        return ResumedRows(self.em, self.rows.input_ids[:, :width], mask, lookup, more)

    def up_to_value(self) -> dict[str, Any]:
        em, found = self.em, dict[str, Any]()

        def own(states: Tensor) -> Tensor:
            """Pick each row's subject, and bring it to where the rows are."""
            rows, places = (index.to(states.device) for index in self.at_subject)
            return states[rows, places].to(em.input_device)

        with torch.no_grad():
            forward_until(
                em.model,
                self.rows.input_ids,
                attention_mask(self.known, self.rows.attention_mask.bool(), em.dtype),
                em.value_block,
                inputs={em.rewrite[em.layers[0]]: lambda states: found.__setitem__("keys", own(states))},
                outputs={
                    em.value_mlp: lambda output: found.__setitem__("value", own(hidden_of(output))),
                    em.value_block: lambda output: found.__setitem__("block", output),
                    **{b: lambda output: found.__setitem__("entering", output) for b in em.block_before_first},
                },
                cache=FrozenPrefix(self.shared.of_rows(self.column, range(em.value_layer + 1)), self.shared.width),
                position_ids=self.positions,
            )
        return found

    def above_value(self, block: Any) -> tuple[LayerStates, Tensor]:
        """Return keys and values of the tokens before the subject, and which of them are real."""
        em, length = self.em, self.before_subject
        layers = self.shared.of_rows(self.column, range(em.value_layer + 1, em.loss_layer + 1))
        if not length or not em.blocks_above_value:
            return layers, self.known
        before = torch.arange(length, device=self.known.device) < self.rows.lookup[:, None]
        cache = FrozenPrefix(layers, self.shared.width, note=True)
        entering = with_hidden(block, hidden_of(block)[:, :length])
        with torch.no_grad(), skipping(em.blocks_up_to_value, entering):
            forward_until(
                em.model,
                self.rows.input_ids[:, :length],
                attention_mask(self.known, before, em.dtype),
                em.attention(em.loss_layer),
                cache=cache,
                position_ids=self.positions[:, :length],
            )
        return _joined(layers, cache.added), torch.cat([self.known, before], 1)


def _joined(first: LayerStates, second: LayerStates) -> LayerStates:
    if not first:
        return second
    return {
        layer: (torch.cat([first[layer][0], keys], 2), torch.cat([first[layer][1], values], 2))
        for layer, (keys, values) in second.items()
    }
