"""What the edits of a session have made: weights, editors, history; and how they are put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nas_plugin.history import TAKEN_BACK, History
from nas_plugin.keep.digests import weights_digest
from nas_plugin.model.editable import EditableModel
from nas_plugin.weights import EditedWeights
from nas_plugin.write import LayerEditor


class Standing:
    """Where a stream of edits on one model stands; all of it follows when weights are put back.

    Attributes:
        em: The model.
        weights: Its edited matrices.
        editors: Layer -> editor, once a session is prepared.
        history: What became of each edit.
        steps: Steps that stand.
    """

    def __init__(self, em: EditableModel) -> None:
        """Begin with an unedited model.

        Args:
            em: The model.
        """
        self.em = em
        self.weights = EditedWeights(em)
        self.editors: dict[int, LayerEditor] = {}
        self.history = History()
        self.steps = 0
        self._snapshots: Mapping[int, dict[str, Any]] | None = None
        self._last_ids: tuple[str, ...] = ()

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters this session changes."""
        return tuple(self.em.parameter_names.values())

    def state_of_weights(self) -> str:
        """Say what somebody did to the edited weights since the last write; see `EditedWeights.state`."""
        return self.weights.state()

    def weights_before(self) -> dict[str, Tensor]:
        """Return the edited parameters as before the last step, on the CPU, by name."""
        return self.weights.stored_before()

    def norm_ratio(self) -> dict[int, float]:
        """Return |W| / |W0| by layer."""
        return self.weights.norm_ratios()

    def weights_digest(self, served: Mapping[int, Tensor] | None = None) -> str:
        """Hash the edited parameters of the model, every element.

        Args:
            served: Layer -> matrix; by default what the model holds.

        Returns:
            The digest.
        """
        return weights_digest(self.weights.stored_parameters(served))

    def restart(self, base: Mapping[int, Tensor] | None) -> None:
        """Forget all edits and begin afresh; the ledger is not told.

        Args:
            base: Layer -> matrix to begin from; None puts the unedited ones back.
        """
        self.weights.restart(base)
        self.editors = {layer: editor.afresh(self.weights.master[layer]) for layer, editor in self.editors.items()}
        self.steps = 0
        self.history.clear()
        self.forget_rollback()

    def forget_rollback(self) -> None:
        """Make the present the earliest point to go back to."""
        self._snapshots, self._last_ids = None, ()

    def done(self, snapshots: Mapping[int, dict[str, Any]], ids: Sequence[str]) -> None:
        """Count a step that was written.

        Args:
            snapshots: State of the editors before it.
            ids: Its edits.
        """
        self._snapshots, self._last_ids = snapshots, tuple(ids)
        self.steps += 1

    def restore(self, snapshots: Mapping[int, dict[str, Any]]) -> None:
        """Put the editors back.

        Args:
            snapshots: Layer -> what `LayerEditor.snapshot` returned.
        """
        for layer, snapshot in snapshots.items():
            self.editors[layer].restore(snapshot)

    def take_back(self) -> None:
        """Put weights and state back as before the last step, if there is one to go back to; the ledger is not told."""
        if self._snapshots is None:
            return
        self.restore(self._snapshots)
        self._snapshots = None
        self.weights.roll_back()
        self.steps -= 1
        self.history.take_back(self._last_ids, TAKEN_BACK)
