"""Running a model on one prompt at a time, unpadded, behind the interface of a batched one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Written:
    """What takes the place of a cache.

    Attributes:
        ids: All token ids so far, `(rows, positions)`.
        ends: Each row's last prompt position, padding not counted.
    """

    ids: Tensor
    ends: list[int]


@dataclass(frozen=True)
class _Output:
    """What measurements read of a model's output.

    Attributes:
        logits: `(rows, positions, vocabulary)` at the positions that were wanted.
        past_key_values: What to give the next call.
    """

    logits: Tensor
    past_key_values: _Written


class RowByRow(nn.Module):
    """A model with something put into it that padding or other rows would disturb.

    GRACE looks its codebook up at the last token of the prompt, WISE chooses between memories by all tokens that it sees. Here
    every row runs alone, without padding, and what wants to know where the prompt ends (an attribute `key_id`) is told.

    Measurements hook into the output head to say at which positions they want logits. The head here is empty: it is shown the
    positions themselves, and what the hooks let through is where logits are taken.
    """

    def __init__(self, edited: nn.Module, model: Any) -> None:
        """Wrap a model.

        Args:
            edited: What to call with `input_ids` and `attention_mask`.
            model: The Hugging Face model inside it.
        """
        super().__init__()
        self.edited = edited
        self.model = model
        self.head = nn.Identity()
        self.config = model.config
        self.generation_config = getattr(model, "generation_config", None)
        self._keyed: list[Any] = [module for module in self.modules() if hasattr(module, "key_id")]

    def get_input_embeddings(self) -> Any:
        """Return the model's input embedding."""
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Return the head that measurements hook into."""
        return self.head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past_key_values: _Written | None = None, **_: Any
    ) -> _Output:
        """Run every row alone.

        Args:
            input_ids: Token ids `(rows, positions)`, padded on either side; new ones only where there are earlier ones.
            attention_mask: 1 for tokens, 0 for padding, for all positions so far.
            past_key_values: What the call before returned.
            **_: Positions and cache settings, which have no meaning here.

        Returns:
            Logits at the wanted positions.
        """
        ids = input_ids if past_key_values is None else torch.cat([past_key_values.ids, input_ids], 1)
        rows, columns = (torch.arange(size, device=ids.device) for size in ids.shape)
        wanted = self.head(torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1))
        # Positions with padding not counted.
        places = attention_mask.cumsum(1) - 1
        found: dict[int, list[int]] = {}
        for row, column in wanted.flatten(0, 1).tolist():
            found.setdefault(row, []).append(int(places[row, column]))
        ends = past_key_values.ends if past_key_values is not None else [min(found[row]) for row in sorted(found)]
        logits = {
            row: self._row(ids[row, attention_mask[row].bool()], ends[row])[positions]
            for row, positions in found.items()
        }
        # Whoever wants positions names those of a row in order.
        taken = {row: iter(values) for row, values in logits.items()}
        flat = torch.stack([next(taken[row]) for row, _ in wanted.flatten(0, 1).tolist()])
        return _Output(flat.unflatten(0, wanted.shape[:2]), _Written(ids, ends))

    def _row(self, ids: Tensor, end: int) -> Tensor:
        for module in self._keyed:
            module.key_id = end
        output = self.edited(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None])
        logits: Tensor = output.logits[0]
        return logits
