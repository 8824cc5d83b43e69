"""Hyperparameters: one dataclass per editor, YAML files in and plain mappings out. Imports no torch."""

from nas_plugin.hparams.base import DEMO_MODEL, NASHparams
from nas_plugin.hparams.catalog import (
    MARKS,
    HparamsFile,
    Problem,
    Setting,
    copy_hparams,
    list_hparams,
    show_hparams,
    validate_hparams,
)
from nas_plugin.hparams.files import shipped_folder, shipped_names
from nas_plugin.hparams.methods import (
    NASAlphaEditHparams,
    NASENCOREHparams,
    NASLyapLockHparams,
    NASMEMITHparams,
    NASPRUNEHparams,
    NASRECTHparams,
)
from nas_plugin.hparams.new import new_hparams

__all__ = [
    "DEMO_MODEL",
    "MARKS",
    "HparamsFile",
    "NASAlphaEditHparams",
    "NASENCOREHparams",
    "NASHparams",
    "NASLyapLockHparams",
    "NASMEMITHparams",
    "NASPRUNEHparams",
    "NASRECTHparams",
    "Problem",
    "Setting",
    "copy_hparams",
    "list_hparams",
    "new_hparams",
    "shipped_folder",
    "shipped_names",
    "show_hparams",
    "validate_hparams",
]
