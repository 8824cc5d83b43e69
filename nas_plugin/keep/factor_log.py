"""The factor log: keys and values of each step, of which `undo` and the histories of the carrying methods are made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_plugin.errors import SnapshotError
from nas_plugin.history import History
from nas_plugin.keep import snapshots
from nas_plugin.writing import Factors

StepFactors = dict[int, Factors]
"""Layer -> what a step wrote there."""


class FactorLog:
    """Factors of all steps: in files those of snapshots, in memory those since.

    Attributes:
        folder: Folder of the files.
        parts: File -> its digest and the steps in it, as manifests of snapshots have it.
    """

    def __init__(self, folder: Path) -> None:
        """Begin without any.

        Args:
            folder: Where the files are written.
        """
        self.folder = folder
        self.parts: dict[str, dict[str, Any]] = {}
        self._recent: dict[int, StepFactors] = {}

    def note(self, step: int, factors: StepFactors) -> None:
        """Note what a step wrote."""
        self._recent[step] = factors

    def write(self) -> None:
        """Write to a file what is in memory."""
        if not self._recent:
            return
        steps = sorted(self._recent)
        name = f"steps-{steps[0]:08d}-{steps[-1]:08d}.safetensors"
        tensors = {
            f"{step}.{layer}.{kind}": getattr(factors, kind)
            for step, layers in self._recent.items()
            for layer, factors in layers.items()
            for kind in ("keys", "values")
        }
        digest = snapshots.write_factors(self.folder / name, tensors)
        self.parts[name] = {"sha256": digest, "steps": steps}
        self._recent = {}

    def of_steps(self, steps: Sequence[int]) -> dict[int, StepFactors]:
        """Read the factors of steps.

        Args:
            steps: Their numbers.

        Returns:
            Step -> layer -> factors.

        Raises:
            SnapshotError: A part of the log is damaged or gone.
        """
        wanted, found = set(steps), dict(self._recent)
        for name, part in self.parts.items():
            if not wanted.intersection(part["steps"]):
                continue
            tensors = snapshots.read_factors(self.folder / Path(name).name, part["sha256"])
            try:
                for step in wanted.intersection(part["steps"]):
                    prefix = f"{step}."
                    layers = sorted({int(key.split(".")[1]) for key in tensors if key.startswith(prefix)})
                    found[step] = {
                        layer: Factors(tensors[f"{step}.{layer}.keys"], tensors[f"{step}.{layer}.values"])
                        for layer in layers
                    }
            except (LookupError, ValueError) as error:
                raise SnapshotError(f"{self.folder / name} holds something else than factors; restore it.") from error
        missing = wanted - found.keys()
        if missing:
            raise SnapshotError(
                f"{self.folder.parent}: the factors of step {min(missing)} are gone; restore the folder."
            )
        return {step: found[step] for step in sorted(wanted)}

    def keys(self, history: History) -> dict[int, Tensor]:
        """Collect the keys of edits.

        Args:
            history: The edits; those that count are taken, in order.

        Returns:
            Layer -> `(d_in, t)`.
        """
        counting = history.counting()
        columns: dict[int, list[Tensor]] = {}
        for step, layers in self.of_steps(sorted({entry.step for entry in counting})).items():
            stay = [entry.column for entry in counting if entry.step == step]
            for layer, factors in layers.items():
                columns.setdefault(layer, []).append(factors.keys[:, stay])
        return {layer: torch.cat(parts, 1) for layer, parts in columns.items()}
