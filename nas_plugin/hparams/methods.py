"""The six editors. With `use_nas: false`, or under a plain name where EasyEdit has no such editor, NAS is off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from nas_plugin.hparams.base import NASHparams


@dataclass
class NASMEMITHparams(NASHparams):
    """MEMIT with norm anchoring."""

    method: ClassVar[str] = "MEMIT"

    alg_name: str = "NAS-MEMIT"


@dataclass
class NASPRUNEHparams(NASHparams):
    """MEMIT whose accumulated change is seen with its largest singular values squashed."""

    method: ClassVar[str] = "PRUNE"

    alg_name: str = "NAS-PRUNE"
    prune_alpha: float = math.e
    """Base of the logarithm that squashes singular values above the largest one of the unedited weight."""
    prune_double_add: bool = False
    """Reproduce released code that adds the squashed change to the already edited weight."""


@dataclass
class NASRECTHparams(NASHparams):
    """MEMIT that writes only the entries with the largest relative change."""

    method: ClassVar[str] = "RECT"

    alg_name: str = "NAS-RECT"
    rect_keep: float = 0.4
    """Fraction of entries that are written."""


@dataclass
class NASAlphaEditHparams(NASHparams):
    """Edits projected onto the null space of what the layer usually sees."""

    method: ClassVar[str] = "AlphaEdit"
    file_defaults: ClassVar[dict[str, Any]] = {**NASHparams.file_defaults, "nullspace_threshold": 0.02, "L2": 10.0}

    alg_name: str = "NAS-AlphaEdit"
    v_lr: float = 1.5
    nullspace_threshold: float = 0.1
    """Directions of the second moment with a smaller eigenvalue count as its null space."""
    L2: float = 1.0
    """Ridge weight of the update."""


@dataclass
class NASENCOREHparams(NASHparams):
    """MEMIT with a penalty on the size of each step and early stopping of the target optimisation."""

    method: ClassVar[str] = "ENCORE"
    file_defaults: ClassVar[dict[str, Any]] = {
        **NASHparams.file_defaults,
        "update_norm_lambda": 20.0,
        "prob_cutoff": -2.0,
    }

    alg_name: str = "NAS-ENCORE"
    v_lr: float = 1.5
    update_norm_lambda: float = 1.0
    """Weight of the squared norm of each update."""
    prob_cutoff: float = -2.0
    """Early stop. Below 0: once all target tokens were the most probable ones in that many iterations; above 0: once
    the mean probability of the target exceeds it; 0: never."""
    mpes_exact5: bool = False
    """Reproduce the released rule, which counts iterations with exactly five right tokens."""


@dataclass
class NASLyapLockHparams(NASHparams):
    """Edits whose preservation weight grows with a virtual queue of past damage."""

    method: ClassVar[str] = "LyapLock"

    alg_name: str = "NAS-LyapLock"
    lyap_alpha: float = 60.0
    """Allowed damage, as a multiple of that of the first step."""
