"""The edited matrices: full-precision masters, what the model is served, and what somebody else did to them meanwhile."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nas_plugin.errors import NonFiniteError
from nas_plugin.model.editable import EditableModel

UNCHANGED, ROLLED_BACK, RESET, FOREIGN = "unchanged", "rolled back", "reset", "foreign"
_SAMPLES = 1024


class EditedWeights:
    """Masters W `(d_out, d_in)` of all edited layers in the compute dtype, bound to one model.

    A half-precision model would lose small updates if they were added to its own weights: an increment below 2^-8 of an entry
    vanishes in bfloat16. So updates are added to the masters and the model gets a rounded copy.

    Attributes:
        base: Matrices as they were when the session began.
        master: Matrices that editing goes on from.
    """

    def __init__(self, em: EditableModel) -> None:
        """Copy the matrices of the unedited model.

        Args:
            em: The model.
        """
        self.em = em
        self.base = self.current()
        self.master = dict(self.base)
        self._base_norms = {layer: float(matrix.norm()) for layer, matrix in self.base.items()}
        self._norms: dict[int, tuple[Tensor, float]] = {}
        self._served = dict(self.base)
        self._before: tuple[dict[int, Tensor], dict[int, Tensor]] | None = None
        self._mark()

    @property
    def served(self) -> Mapping[int, Tensor]:
        """What the model is served, layer -> W `(d_out, d_in)`, before it is rounded to the model's dtype."""
        return self._served

    def current(self) -> dict[int, Tensor]:
        """Return copies of what the model holds now, in the compute dtype."""
        return {
            layer: self.em.matrix(layer).to(self.em.compute_dtype, copy=True).contiguous() for layer in self.em.layers
        }

    def open(self) -> None:
        """Put the masters into the model, where a view of them was served."""
        for layer in self.em.layers:
            if self._served[layer] is not self.master[layer]:
                self.em.write(layer, self.master[layer])
        self._mark()

    def close(self) -> None:
        """Put back what was served before `open`, whatever was written since."""
        for layer in self.em.layers:
            self.em.write(layer, self._served[layer])
        self._mark()

    def check_finite(self, served: Mapping[int, Tensor]) -> None:
        """Refuse what the model cannot hold.

        Args:
            served: Layer -> matrix.

        Raises:
            NonFiniteError: A matrix is not finite, or not in the model's dtype.
        """
        for layer, matrix in served.items():
            cast = matrix.to(self.em.weight(layer).dtype)
            if not bool(torch.isfinite(cast).all()):
                raise NonFiniteError(
                    f"layer {layer} would hold NaN or infinity in {cast.dtype}; nothing was written. Load the model in a wider "
                    "dtype, or lower clamp_norm_factor."
                )

    def stored_parameters(self, served: Mapping[int, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the edited parameters as the model stores them, or as it would store other matrices, by name.

        Args:
            served: Layer -> matrix; by default what the model holds.

        Returns:
            The parameters.
        """
        if served is None:
            return {name: self.em.weight(layer).detach() for layer, name in self.em.parameter_names.items()}
        return {
            self.em.parameter_names[layer]: self.em.stored(layer, matrix).to(self.em.weight(layer).dtype)
            for layer, matrix in served.items()
        }

    def ratio_of(self, served: Mapping[int, Tensor]) -> float:
        """Return the largest |W| / |W0| among given matrices."""
        return max(self._norm(layer, matrix) / self._base_norms[layer] for layer, matrix in served.items())

    def commit(self, master: Mapping[int, Tensor], served: Mapping[int, Tensor]) -> None:
        """Write a finished step.

        Args:
            master: New masters.
            served: What the model is to hold; the same tensors unless the method serves a view. Finite.
        """
        # By rows in memory, so that a session that was read from files goes on bit for bit like the one that was saved.
        masters = {layer: matrix.contiguous() for layer, matrix in master.items()}
        served = {
            layer: masters[layer] if matrix is master[layer] else matrix.contiguous()
            for layer, matrix in served.items()
        }
        self._before = (self.master, self._served)
        self.master, self._served = masters, served
        self.close()

    def state(self) -> str:
        """Say what happened to the model's weights since the last write.

        Returns:
            "unchanged"; "rolled back" (as before the last step); "reset" (as before the first); or "foreign".
        """
        if self._marks() == self._marked and all(self._sampled_equal(layer) for layer in self.em.layers):
            return UNCHANGED
        before = self._before[1] if self._before is not None else self.base
        for name, matrices in ((UNCHANGED, self._served), (ROLLED_BACK, before), (RESET, self.base)):
            if self._holds(matrices):
                # "rolled back" needs a step to take back; without one the base is all there is to go back to.
                return RESET if name == ROLLED_BACK and self._before is None else name
        return FOREIGN

    def is_base(self) -> bool:
        """Tell whether the model holds exactly what it held when the session began."""
        return self._holds(self.base)

    def roll_back(self) -> None:
        """Make masters and matrices before the last step current again, in the model too."""
        if self._before is not None:
            (self.master, self._served), self._before = self._before, None
        self.close()

    def restart(self, base: Mapping[int, Tensor] | None = None) -> None:
        """Start again from given matrices, or from those of the unedited model.

        Args:
            base: Matrices to start from; they are written to the model too.
        """
        self.master = dict(base if base is not None else self.base)
        self._served, self._before = dict(self.master), None
        self.close()

    def saved(self) -> dict[str, Tensor]:
        """Return the masters, and what the model is served where that differs: "{layer}.master", "{layer}.served"."""
        tensors = {f"{layer}.master": matrix for layer, matrix in self.master.items()}
        return tensors | {
            f"{layer}.served": matrix for layer, matrix in self._served.items() if matrix is not self.master[layer]
        }

    def load_saved(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from saved masters, in the model too; there is no step to roll back then.

        Args:
            tensors: What `saved` returned.
        """
        self.master = {layer: tensors[f"{layer}.master"].to(base.device) for layer, base in self.base.items()}
        self._served = {
            layer: tensors[f"{layer}.served"].to(master.device) if f"{layer}.served" in tensors else master
            for layer, master in self.master.items()
        }
        self._before = None
        self.close()

    def put(self, master: Mapping[int, Tensor], served: Mapping[int, Tensor]) -> None:
        """Go on from other matrices, in the model too; there is no step to roll back then.

        Args:
            master: New masters.
            served: What the model is to hold. Finite.
        """
        self.commit(master, served)
        self._before = None

    def stored_before(self) -> dict[str, Tensor]:
        """Return the parameters as before the last step: name -> CPU tensor as the module stores it."""
        matrices = self._before[1] if self._before is not None else self._served
        return {
            self.em.parameter_names[layer]: self.em.stored(layer, matrix)
            .to("cpu", self.em.weight(layer).dtype, copy=True)
            .contiguous()
            for layer, matrix in matrices.items()
        }

    def norm_ratios(self) -> dict[int, float]:
        """Return |W| / |W0| (Frobenius) of what the model is served, by layer."""
        return {layer: self._norm(layer, self._served[layer]) / self._base_norms[layer] for layer in self.em.layers}

    def total_ratio(self) -> float:
        """Return sqrt(sum |W|^2 / sum |W0|^2) over the edited layers."""
        return self.total_of(self._served)

    def total_of(self, served: Mapping[int, Tensor]) -> float:
        """Return sqrt(sum |W|^2 / sum |W0|^2) of given matrices."""
        now = sum(self._norm(layer, matrix) ** 2 for layer, matrix in served.items())
        base = sum(norm**2 for norm in self._base_norms.values())
        return float((now / base) ** 0.5)

    def _norm(self, layer: int, matrix: Tensor) -> float:
        """Return |W|; matrices here are replaced, never changed, so that of the last one need not be taken again."""
        known = self._norms.get(layer)
        if known is None or known[0] is not matrix:
            known = self._norms[layer] = matrix, float(matrix.norm())
        return known[1]

    def _marks(self) -> dict[int, tuple[int, int]]:
        return {layer: (id(self.em.weight(layer)), self.em.weight(layer)._version) for layer in self.em.layers}

    def _mark(self) -> None:
        self._marked = self._marks()

    def _sampled_equal(self, layer: int) -> bool:
        """Compare a few entries: writes through `.data` do not count in `_version`."""
        now, served = self.em.matrix(layer), self._served[layer]
        rows = torch.arange(_SAMPLES, device=now.device)
        row, column = rows * 7919 % now.shape[0], rows * 104729 % now.shape[1]
        return bool(torch.equal(now[row, column], served.to(now.device)[row, column].to(now.dtype)))

    def _holds(self, matrices: Mapping[int, Tensor]) -> bool:
        for layer, matrix in matrices.items():
            now = self.em.matrix(layer)
            if now.shape != matrix.shape or not torch.equal(now, matrix.to(now.device, now.dtype)):
                return False
        return True
