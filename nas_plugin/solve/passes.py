"""Rows from the subject's last token on, run again and again through the layers above the edited block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nas_plugin.model.cache import FrozenPrefix
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import forward_until, hidden_of, skipping, with_hidden

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
        if self._calls:
            for call in self._calls:
                hidden = hidden_of(call(hidden))
        elif self.em.blocks_above_value:
            hidden = self._through_model(hidden)
        rows, columns = (place.to(hidden.device) for place in self.places)
        return hidden[rows, columns].to(shift.device)

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
