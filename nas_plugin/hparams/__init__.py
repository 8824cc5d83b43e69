"""Hyperparameters: one dataclass per editor, YAML files in and plain mappings out. Imports no torch."""

from nas_plugin.hparams.base import DEMO_MODEL, NASHparams
from nas_plugin.hparams.files import shipped_folder, shipped_names
from nas_plugin.hparams.methods import (
    NASAlphaEditHparams,
    NASENCOREHparams,
    NASLyapLockHparams,
    NASMEMITHparams,
    NASPRUNEHparams,
    NASRECTHparams,
)

__all__ = [
    "DEMO_MODEL",
    "NASAlphaEditHparams",
    "NASENCOREHparams",
    "NASHparams",
    "NASLyapLockHparams",
    "NASMEMITHparams",
    "NASPRUNEHparams",
    "NASRECTHparams",
    "shipped_folder",
    "shipped_names",
]
