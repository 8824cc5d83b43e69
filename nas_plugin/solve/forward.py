"""The model as a function of a correction at each row's subject's last token, and what stands there without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nas_plugin.locate.resumed import ResumedRows, SharedPrefix
from nas_plugin.locate.sequences import PaddedBatch, TokenSequence, pad
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.residual import MlpNorm
from nas_plugin.model.trace import forward_until, hidden_of, with_hidden
from nas_plugin.solve.suffix import SuffixRows

_MASKED_ATTENTION = ("eager", "sdpa")

Places = tuple[Tensor, Tensor]
"""Rows and positions."""


class CorrectedForward(Protocol):
    """Some rows of the model as a function of the correction."""

    def states(self, shift: Tensor) -> Tensor:
        """Return hidden states of the loss layer at the places bound, `(places, d_model)`.

        Args:
            shift: Added to the edited block's output at each row's subject's last token, `(rows, d_model)`.
        """


@dataclass(frozen=True)
class NormedForward:
    """A forward whose corrections are of values that a norm turns before they reach the block's output; see `CorrectedForward`.

    Attributes:
        forward: The forward.
        norm: The norm.
        values: MLP outputs without a correction, `(rows, d_model)`.
    """

    forward: CorrectedForward
    norm: MlpNorm
    values: Tensor

    def states(self, shift: Tensor) -> Tensor:
        """Return hidden states at the places bound for corrections of the values; see `CorrectedForward`."""
        return self.forward.states(self.norm.change(self.values, shift))


class CleanRows(Protocol):
    """What a pass without a correction saw at each row's subject's last token."""

    @property
    def hidden(self) -> Tensor:
        """Output of the last edited block, `(rows, d_model)`."""

    @property
    def value(self) -> Tensor:
        """Output of that block's MLP, `(rows, d_model)`."""

    @property
    def keys(self) -> Tensor:
        """Input of the first edited layer's rewrite module, `(rows, d_in)`."""

    @property
    def resumed(self) -> ResumedRows:
        """The rows up to the subject, standing at the first edited layer."""

    def corrected(self, rows: Tensor, places: Places) -> CorrectedForward:
        """Bind rows, and places numbered within them."""


def clean_rows(
    em: EditableModel,
    sequences: tuple[TokenSequence, ...],
    columns: tuple[int | None, ...],
    shared: SharedPrefix | None,
    pad_id: int,
) -> CleanRows:
    """Run rows once without a correction: the fast form where a shared prefix is given, else the plain one.

    Args:
        em: The model, frozen and in evaluation mode.
        sequences: Rows.
        columns: Column of each row in the shared prefix; None for rows that have nothing in common.
        shared: What the rows have in common (possibly nothing); None for the plain form. The numbers are the same.
        pad_id: Any id in the vocabulary.

    Returns:
        The record.
    """
    if shared is None:
        return FullRows.seen(em, pad(sequences, pad_id, em.input_device))
    return SuffixRows.seen(em, sequences, columns, shared, pad_id)


def can_reuse_prefix(em: EditableModel, longest: int) -> bool:
    """Say whether the fast form may be used.

    Args:
        em: The model.
        longest: Tokens of the longest row.

    Returns:
        True for a known family whose attention takes an explicit mask, with no sliding window in reach.
    """
    window = getattr(em.config, "sliding_window", None)
    return (
        em.paths.prefix_cache
        and getattr(em.config, "_attn_implementation", None) in _MASKED_ATTENTION
        and (window is None or longest < window)
    )


@dataclass(frozen=True)
class FullRows:
    """All layers and all tokens in every pass, for models whose cache cannot be relied on; see `CleanRows`."""

    em: EditableModel
    inputs: PaddedBatch
    hidden: Tensor
    value: Tensor
    keys: Tensor
    resumed: ResumedRows

    @classmethod
    def seen(cls, em: EditableModel, inputs: PaddedBatch) -> FullRows:
        """Run the rows once.

        Args:
            em: The model.
            inputs: Rows.

        Returns:
            The record.
        """
        found: dict[str, Any] = {}

        def at_subject(states: Tensor) -> Tensor:
            """Pick each row's subject, and bring it to where the rows are."""
            place = inputs.lookup.to(states.device)
            return states[torch.arange(len(place), device=place.device), place].to(inputs.lookup.device)

        with torch.no_grad():
            hidden = forward_until(
                em.model,
                inputs.input_ids,
                inputs.attention_mask,
                em.value_block,
                inputs={em.rewrite[em.layers[0]]: lambda states: found.__setitem__("keys", at_subject(states))},
                outputs={
                    em.value_mlp: lambda output: found.__setitem__("value", at_subject(hidden_of(output))),
                    **{b: lambda output: found.__setitem__("entering", output) for b in em.block_before_first},
                },
            )
        width = int(inputs.lookup.max()) + 1
        up_to_subject = torch.arange(width, device=inputs.lookup.device) <= inputs.lookup[:, None]
        resumed = ResumedRows(
            em, inputs.input_ids[:, :width], up_to_subject.to(inputs.attention_mask.dtype), inputs.lookup
        ).standing_at(em.layers[0], found.get("entering"))
        return cls(em, inputs, at_subject(hidden), found["value"], found["keys"], resumed)

    def corrected(self, rows: Tensor, places: Places) -> FullForward:
        """Bind rows and places; see `CleanRows`."""
        return FullForward(self.em, self.inputs.rows(rows), places)


@dataclass(frozen=True)
class FullForward:
    """Runs the whole model; see `CorrectedForward`."""

    em: EditableModel
    inputs: PaddedBatch
    places: Places

    def states(self, shift: Tensor) -> Tensor:
        """Return hidden states at the places; see `CorrectedForward`."""

        def add(output: Any) -> Any:
            hidden = hidden_of(output)
            lookup = self.inputs.lookup.to(hidden.device)
            every = torch.arange(len(lookup), device=hidden.device)
            moved = (hidden[every, lookup].to(shift.dtype) + shift.to(hidden.device)).to(hidden.dtype)
            return with_hidden(output, hidden.index_put((every, lookup), moved))

        em = self.em
        final = forward_until(
            em.model, self.inputs.input_ids, self.inputs.attention_mask, em.loss_block, outputs={em.value_block: add}
        )
        rows, positions = (place.to(final.device) for place in self.places)
        return final[rows, positions].to(shift.device)
