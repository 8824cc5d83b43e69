"""Norm-Anchor Scaling: every solved value gets the norm it would have had in the unedited model. The whole of NAS.

Source: "Norm Anchors Make Model Edits Last" (Liu et al., arXiv 2602.02543), Eq. 14 (the anchor) and Eq. 15 (the rescale).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_plugin.errors import AnchorError, NonFiniteError
from nas_plugin.files import write_json
from nas_plugin.parallel import ALONE, Group
from nas_plugin.progress import progress_bar
from nas_plugin.reading import parse_json, short
from nas_plugin.request import EditRequest
from nas_plugin.solve.target import SolvedTargets, TargetSolver

logger = logging.getLogger(__name__)

_FORMAT = "nas-plugin-anchor-1"
_OFFICIAL = "official"
_TRIMMED_SHARE = 0.05
# An anchor file has a few hundred; of one that has more, no more is read.
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Anchor:
    """The reference norm with its provenance.

    Attributes:
        value: tau, the norm that solved values are given (same unit as the model's hidden states).
        mode: "paper" (attached editor's own solver, raw mean) or "official" (released code: bare prompts, MEMIT's
            settings, largest 5 % left out); "given" for a number without provenance.
        layer: Last edited layer, whose MLP output is rescaled.
        pilots: Number of pilot solves.
        raw_mean: Mean norm.
        trimmed_mean: Mean without the largest 5 %.
        spread: Standard deviation of the pilot norms.
        seed: Seed of the pilot sample.
        model: Fingerprint of the weights it was measured on.
        hparams: Digest of the hyperparameters.
        contexts: Digest of the context templates.
    """

    value: float
    mode: str = "given"
    layer: int = -1
    pilots: int = 0
    raw_mean: float = 0.0
    trimmed_mean: float = 0.0
    spread: float = 0.0
    seed: int = 0
    model: str = ""
    hparams: str = ""
    contexts: str = ""

    def __post_init__(self) -> None:
        """Refuse a value that cannot be a norm.

        Raises:
            AnchorError: It is not a positive finite number.
        """
        if not (isinstance(self.value, float) and 0.0 < self.value < float("inf")):
            raise AnchorError(
                f"the anchor is {self.value!r}; expected a positive finite norm. Measure it again on the unedited model."
            )

    def check(self, fingerprint: str, layer: int, hparams: str) -> None:
        """Refuse an anchor of another model, layer or method.

        Args:
            fingerprint: Fingerprint of the unedited weights of the model at hand.
            layer: Its last edited layer.
            hparams: Digest of the hyperparameters in use.

        Raises:
            AnchorError: Something differs.
        """
        if self.mode == "given":
            return
        for what, stored, expected in (
            ("weights", self.model[:12], fingerprint[:12]),
            ("layer", self.layer, layer),
            ("hyperparameters", self.hparams[:12], hparams[:12]),
        ):
            if stored != expected:
                raise AnchorError(
                    f"the anchor was measured with {what} {stored}, this run has {expected}; measure it again on this unedited "
                    "model (delete the anchor file, or set nas_anchor_file to null)."
                )

    def save(self, path: str | Path) -> None:
        """Write the anchor as JSON.

        Args:
            path: File to write.
        """
        write_json(Path(path), {"format": _FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> Anchor:
        """Read a file written by `save`.

        Args:
            path: File to read.

        Returns:
            The anchor; call `check` before use.

        Raises:
            AnchorError: The file is not such a file.
        """
        try:
            with Path(path).open("rb") as file:
                content = parse_json(file.read(_MOST_BYTES))
        except (OSError, ValueError) as error:
            raise AnchorError(f"cannot read an anchor from {path}: {error}.") from error
        if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
            raise AnchorError(f"{path} is not an anchor file of this package ({_FORMAT}).")
        return cls.from_values(content, str(path))

    @classmethod
    def from_values(cls, content: Any, where: str) -> Anchor:
        """Make an anchor of its fields, as a file may hold them.

        Args:
            content: The fields.
            where: The file, for messages.

        Returns:
            The anchor; call `check` before use.

        Raises:
            AnchorError: A field is missing, unknown or of the wrong type.
        """
        if not isinstance(content, dict):
            raise AnchorError(f"{where}: the anchor is {short(content)}; measure it again.")
        types = {field.name: type(field.default) if field.name != "value" else float for field in fields(cls)}
        wrong = [key for key in content if key not in types] or [
            key for key, kind in types.items() if type(content.get(key)) is not kind
        ]
        if wrong:
            raise AnchorError(
                f"{where}: field {short(wrong[0])} is missing, unknown or of the wrong type; measure the anchor again."
            )
        return cls(**content)


@dataclass(frozen=True)
class AnchoredTargets:
    """What is written: targets z* `(n, d_out)`, with the norms before and after.

    Attributes:
        z: Target hidden states at the last edited block.
        values: Values that give them, `(n, d_out)`.
        value_norm: |v*| as solved, `(n,)`.
        written_norm: |v| as written, `(n,)`.
        skipped: Requests that `nas_skip_factor` dropped, `(n,)`.
    """

    z: Tensor
    values: Tensor
    value_norm: Tensor
    written_norm: Tensor
    skipped: Tensor


def anchored(solved: SolvedTargets, anchor: Anchor | None, skip_factor: float | None) -> AnchoredTargets:
    """Give each solved value the anchor's norm, keeping its direction (Eq. 15); the one place where NAS happens.

    Args:
        solved: Result of the target solver.
        anchor: The anchor; None writes the values as solved (z* = h0 + delta).
        skip_factor: Drop an edit (v = v0) whose |v*| exceeds this many anchors, as the released code does with 2; None
            never drops.

    Returns:
        Targets to write.
    """
    values = solved.values
    norm = values.norm(dim=1)
    none = torch.zeros_like(norm, dtype=torch.bool)
    if anchor is None:
        z = solved.h0 + solved.delta if solved.norm is None else solved.reached(values)
        return AnchoredTargets(z, values, norm, norm, none)
    # A value of norm zero has no direction to keep: it is left alone.
    factor = torch.where(norm > 0, anchor.value / norm, torch.ones_like(norm))
    scaled = values * factor[:, None]
    skipped = none if skip_factor is None else norm > skip_factor * anchor.value
    scaled = torch.where(skipped[:, None], solved.v0, scaled)
    return AnchoredTargets(solved.reached(scaled), scaled, norm, scaled.norm(dim=1), skipped)


def measure_anchor(
    solver: TargetSolver,
    pilots: Sequence[EditRequest],
    *,
    mode: str,
    count: int,
    seed: int,
    provenance: Mapping[str, str],
    progress: bool = True,
    group: Group = ALONE,
) -> Anchor:
    """Solve pilot values on the unedited model and average their norms (Eq. 14). No weight is written.

    Args:
        solver: The attached editor's own (paper) or one with the released code's settings (official).
        pilots: Facts to sample from.
        mode: "paper" takes the raw mean, "official" leaves out the largest 5 %.
        count: Number of pilots; all of them if there are fewer.
        seed: Seed of the sample.
        provenance: `model`, `hparams` and `contexts` digests.
        progress: Show a progress bar.
        group: Processes that share the pilots.

    Returns:
        The anchor.

    Raises:
        AnchorError: There are no pilots.
        NonFiniteError: A pilot's norm is not finite.
    """
    if not pilots:
        raise AnchorError(
            "there are no pilot facts to measure the anchor with; set nas_pilots to 'builtin' or to a JSON file of records."
        )
    if len(pilots) < count:
        logger.warning("%d pilots were asked for, %d facts are there: using all of them", count, len(pilots))
    sample = random.Random(seed).sample(list(pilots), min(count, len(pilots)))
    # The released code stops a batch as one, so that what is solved together decides.
    shared = mode != _OFFICIAL
    mine = group.mine(sample) if shared else sample
    norms: list[float] = []
    with progress_bar("anchor", len(mine), progress and group.main) as bar:
        if mine:
            solved = solver.solve(mine, lambda units: bar.advance(bar.task_ids[0], units))
            norms = solved.values.norm(dim=1).to("cpu", torch.float64).tolist()
    ordered = torch.tensor(
        group.gathered(norms, len(sample)) if shared else group.said_by_main(norms), dtype=torch.float64
    )
    ordered = ordered.sort().values
    if not bool(torch.isfinite(ordered).all()):
        raise NonFiniteError("a pilot value is not finite; load the model in bfloat16 or float32.")
    raw = float(ordered.mean())
    trimmed = float(ordered[: len(ordered) - int(_TRIMMED_SHARE * len(ordered))].mean())
    spread = float(ordered.std(correction=0))
    value = trimmed if mode == _OFFICIAL else raw
    logger.info(
        "anchor %.4f at layer %d from %d pilots (raw mean %.4f, spread %.4f)",
        value,
        solver.em.value_layer,
        len(sample),
        raw,
        spread,
    )
    return Anchor(value, mode, solver.em.value_layer, len(sample), raw, trimmed, spread, seed, **provenance)
