"""Hidden-state drift: how far edits have moved what the edited modules say about facts that were never edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_plugin.errors import MeasureError
from nas_plugin.locate.sequences import Locator, TokenSequence, pad
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import as_found, forward_until, hidden_of
from nas_plugin.parallel import ALONE, Group
from nas_plugin.request import EditRequest

_ROWS_PER_PASS = 128
_POINTS = 200
_FORMAT = 1
# Points keep this many digits: a picture needs no more, and logs stay small.
_DIGITS = 6


@dataclass(frozen=True)
class _Plane:
    """The first two principal axes of a layer's states before the first edit.

    Attributes:
        mean: Centre of the cloud `(d,)`.
        axes: Orthonormal rows `(2, d)`.
    """

    mean: Tensor
    axes: Tensor

    @classmethod
    def fitted(cls, states: Tensor) -> _Plane:
        mean = states.mean(0)
        axes = torch.linalg.svd(states - mean, full_matrices=False)[2][:2]
        # An axis has no direction of its own: its largest component is made positive, so that pictures agree.
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        # The layout decides the order of sums: axes read back from JSON have this one.
        return cls(mean, (axes * largest.sign()).contiguous())

    def drift(self, states: Tensor) -> dict[str, Any]:
        if not bool(torch.isfinite(states).all()):
            return {"pca_distance": None, "full_distance": None, "spread": None, "cloud": []}
        cloud = (states - self.mean) @ self.axes.T
        centre = states.mean(0)
        return {
            "pca_distance": float(cloud.mean(0).norm()),
            "full_distance": float((centre - self.mean).norm()),
            "spread": float((states - centre).square().sum(1).mean().sqrt()),
            "cloud": [[_rounded(x), _rounded(y)] for x, y in cloud[:_POINTS].tolist()],
        }


class DriftProbe:
    """Compares an edited model's states with those before the first edit (the paper's Fig. 4).

    A state is what the rewrite module of an edited layer puts out at the subject's last token of a held-out prompt. Two
    principal axes are fitted on the states before the first edit, and all later states are seen along them.
    """

    def __init__(
        self,
        model: Any,
        tok: Any,
        hparams: Any,
        prompts: Sequence[EditRequest],
        *,
        base: Mapping[str, Any] | None = None,
        group: Group = ALONE,
    ) -> None:
        """Fit the axes on a model that no edit has touched, or take those of an earlier run.

        Args:
            model: The unedited model; any, if `base` is given. Left as it is found.
            tok: Its tokenizer; never changed.
            hparams: Hyperparameters of any method: name the edited layers and, where needed, module paths.
            prompts: Facts that no edit is about; their targets are not used. The paper takes 1,000.
            base: `base` of an earlier probe with the same prompts, possibly read from JSON.
            group: Processes that share the prompts, now and in `measure`; every one gets all states.

        Raises:
            MeasureError: Fewer than three prompts, states that are not finite, or `base` of something else.
            RequestError: A prompt is too long.
        """
        if len(prompts) < 3:
            raise MeasureError(f"{len(prompts)} prompts make no cloud with two principal axes; give three or more.")
        em = EditableModel(model, hparams)
        locator = Locator(tok, em.max_positions, em.vocab_size)
        self._hparams = hparams
        self._pad_id, self._group = locator.pad_id, group
        self._sequences = [locator.sequence(prompt).up_to_subject() for prompt in prompts]
        self._planes = self._fitted(em) if base is None else self._stored(em, base)

    @property
    def base(self) -> dict[str, Any]:
        """What to give another probe as `base`: values that JSON can hold."""
        layers = {
            str(layer): {"mean": plane.mean.tolist(), "axes": plane.axes.tolist()}
            for layer, plane in self._planes.items()
        }
        return {"format": _FORMAT, "prompts": len(self._sequences), "layers": layers}

    def measure(self, model: Any) -> dict[str, dict[str, Any]]:
        """Measure how far a model's states are from those before the first edit.

        Args:
            model: The model after edits; left as it is found.

        Returns:
            By layer, as text: "pca_distance", the distance of the mean state from the one before, along the two axes;
            "full_distance", the same in all dimensions; "spread", the root mean squared distance of states from their mean, in
            all dimensions; and "cloud", the first 200 states along the axes, seen from the mean before. None and an empty
            cloud where a state is not finite.
        """
        states = self._states(EditableModel(model, self._hparams))
        return {str(layer): plane.drift(states[layer]) for layer, plane in self._planes.items()}

    def _states(self, em: EditableModel) -> dict[int, Tensor]:
        """Return by layer what its rewrite module puts out at each subject's last token, `(prompts, d)` in float64."""
        count = len(self._sequences)
        mine = self._group.mine(sorted(range(count), key=lambda number: len(self._sequences[number].ids)))
        # What other processes fill in is zero here, so that a sum puts all together.
        whole = {layer: torch.zeros(count, em.matrix(layer).shape[0], dtype=torch.float64) for layer in em.layers}
        with torch.no_grad(), as_found(em.model):
            for start in range(0, len(mine), _ROWS_PER_PASS):
                numbers = list(mine[start : start + _ROWS_PER_PASS])
                for layer, states in _read(em, [self._sequences[n] for n in numbers], self._pad_id).items():
                    whole[layer][numbers] = states
        return {layer: self._group.total(states) for layer, states in whole.items()}

    def _fitted(self, em: EditableModel) -> dict[int, _Plane]:
        states = self._states(em)
        broken = [layer for layer, values in states.items() if not bool(torch.isfinite(values).all())]
        if broken:
            raise MeasureError(f"states of layer {broken[0]} are not finite before the first edit; check the model.")
        return {layer: _Plane.fitted(values) for layer, values in states.items()}

    def _stored(self, em: EditableModel, base: Mapping[str, Any]) -> dict[int, _Plane]:
        if base.get("format") != _FORMAT:
            raise MeasureError(f"base has format {base.get('format')!r}, not {_FORMAT}; give `base` of a DriftProbe.")
        layers = {str(layer) for layer in em.layers}
        if base["prompts"] != len(self._sequences) or set(base["layers"]) != layers:
            raise MeasureError(
                f"base was fitted on {base['prompts']} prompts at layers {', '.join(sorted(base['layers']))}; this probe has "
                f"{len(self._sequences)} at {', '.join(sorted(layers))}. Give the base of the same run."
            )
        planes = {
            layer: _Plane(
                *(torch.tensor(base["layers"][str(layer)][key], dtype=torch.float64) for key in ("mean", "axes"))
            )
            for layer in em.layers
        }
        for layer, plane in planes.items():
            width = em.matrix(layer).shape[0]
            if plane.mean.shape != (width,) or plane.axes.shape != (2, width):
                raise MeasureError(
                    f"base has {len(plane.mean)} dimensions at layer {layer}, this model {width}; give the base of the same run."
                )
        return planes


def _read(em: EditableModel, rows: Sequence[TokenSequence], pad_id: int) -> dict[int, Tensor]:
    """Run rows up to the last edited module, reading each at the subject's last token."""
    batch = pad(rows, pad_id, em.input_device)
    seen: dict[int, Tensor] = {}

    def reader(layer: int) -> Any:
        def read(output: Any) -> None:
            states = hidden_of(output)
            place = batch.lookup.to(states.device)
            # Float64 is not to be had on every device.
            seen[layer] = states[torch.arange(len(place), device=states.device), place].cpu().double()

        return read

    readers = {em.rewrite[layer]: reader(layer) for layer in em.layers}
    last = em.rewrite[em.value_layer]
    forward_until(em.model, batch.input_ids, batch.attention_mask, last, outputs=readers)
    return seen


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
