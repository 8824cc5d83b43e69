"""The fast form: only the layers above the edited block, only the tokens from each row's subject's last one on.

A correction enters at the subject's last token, so lower layers and earlier tokens give the same numbers in every step of an
optimisation. They are computed once; each step then runs what is left, rows of like length together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nas_plugin.locate.sequences import TokenSequence, pad
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import forward_until, hidden_of, skipping, with_hidden
from nas_plugin.solve.prefix import FrozenPrefix, LayerStates, SharedPrefix, attention_mask

# A pass over few tokens costs as much as one over this many: its matrix products wait for the weights ...
_TOKENS_TO_FILL_A_PASS = {"cpu": 16}
_TOKENS_TO_FILL_AN_ACCELERATOR = 256
# ... and its calls take the time of about so many multiplications.
_MULTIPLICATIONS_PER_PASS = 5e7


def pass_cost(em: EditableModel) -> int:
    """Return how many tokens, run through the layers above the edited block, cost as much as one more pass."""
    above = sum(p.numel() for block in em.blocks_above_value for p in block.parameters())
    fill = _TOKENS_TO_FILL_A_PASS.get(em.input_device.type, _TOKENS_TO_FILL_AN_ACCELERATOR)
    return fill + int(_MULTIPLICATIONS_PER_PASS / max(above, 1))


def groups_of_like_length(lengths: Sequence[int], cost: int) -> list[list[int]]:
    """Cut rows into groups so that padding and passes cost least.

    Args:
        lengths: Tokens of each row.
        cost: Tokens that a group costs on top of its padded ones.

    Returns:
        Row numbers, group by group.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    ends = [i for i in range(1, len(order) + 1) if i == len(order) or lengths[order[i - 1]] != lengths[order[i]]]
    best: dict[int, tuple[int, int]] = {0: (0, 0)}
    for end in ends:
        width = lengths[order[end - 1]]
        best[end] = min((best[start][0] + cost + (end - start) * width, start) for start in best if start < end)
    groups, end = [], len(order)
    while end:
        start = best[end][1]
        groups.append(sorted(order[start:end]))
        end = start
    return groups[::-1]


@dataclass(frozen=True)
class SuffixRows:
    """Rows as a clean pass left them; see `CleanRows`.

    Attributes:
        em: The model.
        hidden: Output of the last edited block at the subject, `(rows, d_model)`.
        value: Output of its MLP there, `(rows, d_model)`.
        keys: Input of the first edited layer's rewrite module there, `(rows, d_in)`.
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
        columns: Sequence[int],
        shared: SharedPrefix,
        pad_id: int,
    ) -> SuffixRows:
        """Run rows once: all their own tokens up to the edited block, those before the subject above it.

        Args:
            em: The model.
            sequences: Rows.
            columns: Column of each row in the shared prefix.
            shared: What is known of their first tokens.
            pad_id: Any id in the vocabulary.

        Returns:
            The record.
        """
        skip = [shared.lengths[column] for column in columns]
        own = [TokenSequence(row.ids[cut:], row.lookup - cut, 0) for row, cut in zip(sequences, skip, strict=True)]
        rows = pad(own, pad_id, em.input_device)
        device, dtype = em.input_device, em.weight(em.value_layer).dtype
        cut, column = torch.tensor(skip, device=device), torch.tensor(columns, device=device)
        every = torch.arange(len(own), device=device)
        at_subject = every, rows.lookup
        # Columns beyond a row's end are padding: any position the model has will do, the mask hides them.
        last = max(len(row.ids) for row in sequences) - 1
        positions = (cut[:, None] + torch.arange(rows.input_ids.shape[1], device=device)).clamp_max(last)
        real = rows.attention_mask.bool()
        known = torch.arange(shared.width, device=device) < cut[:, None]
        found: dict[str, Any] = {}
        with torch.no_grad():
            forward_until(
                em.model,
                rows.input_ids,
                attention_mask(known, real, dtype),
                em.value_block,
                inputs={em.rewrite[em.layers[0]]: lambda states: found.__setitem__("keys", states[at_subject])},
                outputs={
                    em.value_mlp: lambda output: found.__setitem__("value", hidden_of(output)[at_subject]),
                    em.value_block: lambda output: found.__setitem__("block", output),
                },
                cache=FrozenPrefix(shared.of_rows(column, range(em.value_layer + 1)), shared.width),
                position_ids=positions,
            )
            hidden = hidden_of(found["block"])
            upper = shared.of_rows(column, range(em.value_layer + 1, em.loss_layer + 1))
            length = max(row.lookup for row in own)
            if length and em.blocks_above_value:
                before = torch.arange(length, device=device) < rows.lookup[:, None]
                cache = FrozenPrefix(upper, shared.width, note=True)
                with skipping(em.blocks_up_to_value, with_hidden(found["block"], hidden[:, :length])):
                    forward_until(
                        em.model,
                        rows.input_ids[:, :length],
                        attention_mask(known, before, dtype),
                        em.loss_attention,
                        cache=cache,
                        position_ids=positions[:, :length],
                    )
                upper = _joined(upper, cache.added)
                known = torch.cat([known, before], 1)
        lengths = tuple(len(row.ids) - row.lookup for row in own)
        steps = torch.arange(max(lengths), device=device)
        place = (rows.lookup[:, None] + steps).clamp_max(rows.input_ids.shape[1] - 1)
        return cls(
            em,
            hidden[at_subject],
            found["value"],
            found["keys"],
            rows.input_ids.gather(1, place),
            positions.gather(1, place),
            rows.lookup[:, None] + steps < rows.attention_mask.sum(1)[:, None],
            hidden[every[:, None], place],
            found["block"],
            upper,
            known,
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
            FrozenPrefix({n: (k[rows], v[rows]) for n, (k, v) in self.layers.items()}, self.before.shape[1]),
            places,
        )


@dataclass(frozen=True)
class SuffixForward:
    """Runs the groups of some rows; see `CorrectedForward`.

    Attributes:
        passes: One per group.
        order: Where each place stands among those of the groups put end to end, `(places,)`.
    """

    passes: tuple[SuffixPass, ...]
    order: Tensor

    def states(self, shift: Tensor) -> Tensor:
        """Return hidden states at the places; see `CorrectedForward`."""
        if len(self.passes) == 1:
            return self.passes[0].states(shift)
        return torch.cat([part.states(shift[part.rows]) for part in self.passes])[self.order]


@dataclass
class SuffixPass:
    """Rows that run together.

    The first step goes through the model, which works out what its blocks are given beside the hidden states (masks, rotary
    tables, the prefix); as none of it depends on the correction, later steps call the blocks directly.

    Attributes:
        em: The model.
        rows: Their numbers among the rows bound, `(k,)`.
        ids: Token ids, `(k, tokens)`; column 0 is the subject's last token.
        positions: Their positions, `(k, tokens)`.
        mask: Additive attention mask `(k, 1, tokens, prefix + tokens)`.
        entering: Output of the edited block, `(k, tokens, d_model)`.
        template: The same in the form its successor expects.
        prefix: Keys and values of the tokens before.
        places: Rows and columns that are read.
    """

    em: EditableModel
    rows: Tensor
    ids: Tensor
    positions: Tensor
    mask: Tensor
    entering: Tensor
    template: Any
    prefix: FrozenPrefix
    places: tuple[Tensor, Tensor]
    _calls: list[Callable[[Any], Any]] = field(default_factory=list)

    def states(self, shift: Tensor) -> Tensor:
        """Return hidden states at the places, `(places, d_model)`, for a correction of each row `(k, d_model)`."""
        first = (self.entering[:, :1].to(shift.dtype) + shift[:, None]).to(self.entering.dtype)
        hidden = torch.cat([first, self.entering[:, 1:]], 1)
        if not self.em.blocks_above_value:
            return hidden[self.places]
        if self._calls:
            for call in self._calls:
                hidden = hidden_of(call(hidden))
            return hidden[self.places]
        return self._through_model(hidden)[self.places]

    def _through_model(self, hidden: Tensor) -> Tensor:
        em, handles = self.em, []
        for block in em.blocks_above_value:
            handles.append(block.register_forward_pre_hook(self._note, with_kwargs=True))
        try:
            with skipping(em.blocks_up_to_value, with_hidden(self.template, hidden)):
                return forward_until(
                    em.model, self.ids, self.mask, em.loss_block, cache=self.prefix, position_ids=self.positions
                )
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Without the hidden states themselves, which would keep the first step's graph alive.
        if args:
            self._calls.append(partial(_call, block, None, args[1:], dict(kwargs)))
        else:
            name, *others = kwargs
            self._calls.append(partial(_call, block, name, (), {other: kwargs[other] for other in others}))


def _call(block: Any, name: str | None, args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> Any:
    return block(hidden, *args, **kwargs) if name is None else block(**{name: hidden}, **kwargs)


def _joined(first: LayerStates, second: LayerStates) -> LayerStates:
    if not first:
        return second
    return {
        layer: (torch.cat([first[layer][0], keys], 2), torch.cat([first[layer][1], values], 2))
        for layer, (keys, values) in second.items()
    }
