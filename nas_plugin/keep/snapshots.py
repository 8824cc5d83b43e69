"""Snapshots: all that a stream's edits have made, so that resuming does not begin at the first edit.

A snapshot is a folder that is written under another name, synced and renamed; its manifest, with the digests of its other files,
is written last. Two are kept. Only safetensors and JSON; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from nas_plugin.errors import SnapshotError
from nas_plugin.files import sync_folder, write_json, write_tensors
from nas_plugin.reading import parse_json

logger = logging.getLogger(__name__)

FORMAT = "nas-plugin-snapshot-1"
_KEPT = 2
_STATE, _MANIFEST = "state.safetensors", "manifest.json"


def write_snapshot(folder: Path, name: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Write one snapshot and remove all but the last two.

    Args:
        folder: Folder of all snapshots.
        name: Its name; later ones sort after earlier ones.
        tensors: Its tensors.
        manifest: Everything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder / f".{name}"
    write_tensors(temporary / _STATE, tensors, {"format": FORMAT})
    digest = hashlib.sha256((temporary / _STATE).read_bytes()).hexdigest()
    write_json(temporary / _MANIFEST, {**manifest, "format": FORMAT, "sha256": {_STATE: digest}})
    sync_folder(temporary)
    target = folder / name
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    sync_folder(folder)
    for old in names(folder)[_KEPT:]:
        shutil.rmtree(folder / old)


def names(folder: Path) -> list[str]:
    """Return the names of the snapshots in a folder, newest first."""
    return sorted((path.name for path in folder.glob("[!.]*") if path.is_dir()), reverse=True)


def read_snapshot(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one snapshot.

    Args:
        path: Its folder.

    Returns:
        Tensors and manifest.

    Raises:
        SnapshotError: It is damaged or incomplete.
    """
    try:
        manifest = parse_json((path / _MANIFEST).read_bytes())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise SnapshotError(
                f"{path} is no snapshot of the format {FORMAT}; an earlier one is used if there is one."
            )
        data = (path / _STATE).read_bytes()
        if hashlib.sha256(data).hexdigest() != dict(manifest.get("sha256", {})).get(_STATE):
            raise SnapshotError(
                f"{path / _STATE} is damaged: its digest is not the manifest's; an earlier one is used."
            )
        # Copied: bytes of a file lie at other alignments than allocated ones, which shows in the last bits of products.
        tensors = {name: tensor.clone() for name, tensor in load(data).items()}
    except SnapshotError:
        raise
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise SnapshotError(f"cannot read the snapshot {path}: {str(error)[:200]}; an earlier one is used.") from error
    return tensors, manifest


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of the random number generators of Python, NumPy and torch, as tensors and numbers."""
    version, internal, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    keys = torch.tensor(legacy["state"]["key"].astype(np.int64))
    tensors = {
        "random.torch": torch.get_rng_state(),
        "random.python": torch.tensor(internal, dtype=torch.int64),
        "random.numpy": keys,
    }
    numbers = {
        "python": [version, gauss],
        "numpy": [int(legacy["state"]["pos"]), int(legacy["has_gauss"]), float(legacy["gauss"])],
    }
    return tensors, numbers


def restore_random_state(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Put the random number generators where they were.

    Args:
        tensors: First part of `random_state`.
        numbers: Second part.
    """
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["random.python"].tolist()), gauss))
    position, has_gauss, cached = numbers["numpy"]
    key = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, cached))
    torch.set_rng_state(tensors["random.torch"])


def write_factors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a part of the factor log.

    Args:
        path: File to write.
        tensors: "{step}.{layer}.keys" and "{step}.{layer}.values".

    Returns:
        SHA-256 of the file.
    """
    write_tensors(path, tensors, {"format": FORMAT})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_factors(path: Path, digest: str) -> dict[str, Tensor]:
    """Read a part of the factor log.

    Args:
        path: The file.
        digest: Its SHA-256 as noted when it was written.

    Returns:
        Its tensors.

    Raises:
        SnapshotError: It is damaged or gone.
    """
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise SnapshotError(
                f"{path} is damaged: its digest is not the one noted. Restore it, or begin a new folder."
            )
        return {name: tensor.clone() for name, tensor in load(data).items()}
    except (OSError, SafetensorError) as error:
        raise SnapshotError(f"cannot read the factors {path}: {error}. Restore it, or begin a new folder.") from error
