"""What can be exported: an edited model, what its edits changed, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nas_plugin.keep.edits import edits_of
from nas_plugin.keep.header import LoadedEdits

if TYPE_CHECKING:
    from nas_plugin.session import EditSession


@dataclass(frozen=True)
class Change:
    """One edited matrix.

    Attributes:
        name: Parameter.
        before: W0 `(d_out, d_in)`, in the compute dtype.
        after: W `(d_out, d_in)` before it was rounded for the model, likewise.
        turned: The module stores the transpose (`Conv1D`).
        dtype: Number type of the parameter.
    """

    name: str
    before: Tensor
    after: Tensor
    turned: bool
    dtype: torch.dtype

    @property
    def module(self) -> str:
        """Module that owns the parameter."""
        return self.name.removesuffix(".weight")

    def stored(self, matrix: Tensor) -> Tensor:
        """Turn a matrix `(d_out, d_in)` into the parameter that holds it."""
        return (matrix.T if self.turned else matrix).to(self.dtype).contiguous()


@dataclass(frozen=True)
class Source:
    """An edited model, ready to be exported.

    Attributes:
        model: The model, holding the edits.
        tok: Its tokenizer; None where it is not at hand.
        changes: What the edits changed.
        about: What a file of edits says about them.
        base: Name of the unedited model.
        hparams: Hyperparameters that decide an edit's result; None where only their digest is known.
        ledger: Digest of all lines of the ledger; None if none was kept.
        scores: What was measured, by name.
    """

    model: Any
    tok: Any
    changes: tuple[Change, ...]
    about: LoadedEdits
    base: str
    hparams: Mapping[str, Any] | None = None
    ledger: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def of_session(session: EditSession) -> Source:
    """Take what a session has edited.

    Args:
        session: The session, between two steps.

    Returns:
        The source; it shares the session's matrices.

    Raises:
        EditsError: The edited weights are not what the session wrote last.
    """
    about, _ = edits_of(session)
    em, served = session.em, session.weights.served
    changes = tuple(
        Change(name, session.weights.base[layer], served[layer], em.turned(layer), em.weight(layer).dtype)
        for layer, name in em.parameter_names.items()
    )
    ledger = session.keeper.ledger.chain if session.keeper is not None else ""
    return Source(
        session.model, session.tok, changes, about, name_of(session.model), session.hparams.decisive(), ledger or None
    )


def name_of(model: Any) -> str:
    """Return what a model says it was loaded from; an empty text if it says nothing."""
    config = getattr(model, "config", None)
    return str(getattr(config, "_name_or_path", "") or "")
