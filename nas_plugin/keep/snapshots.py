"""Snapshots: all that a stream's edits have made, so that resuming does not begin at the first edit.

A snapshot is a folder that is written under another name, synced and renamed; its manifest, with the digests of its other files,
is written last. Two are kept. Only safetensors and JSON; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas_plugin.errors import SnapshotError
from nas_plugin.files import read_tensors, sync_folder, write_json, write_tensors
from nas_plugin.reading import parse_json

FORMAT = "nas-plugin-snapshot-1"
WITHOUT_IT = "without it resume() uses an earlier one, or carries out again what the ledger says."
"""What a snapshot that cannot be used means."""
_KEPT = 2
_STATE, _MANIFEST = "state.safetensors", "manifest.json"
# A million edits have a few hundred megabytes of history.
_LONGEST = 2**29
_CHUNK = 2**22


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
    digest = write_tensors(temporary / _STATE, tensors, {"format": FORMAT})
    content = {**manifest, "format": FORMAT, "sha256": {_STATE: digest}}
    write_json(temporary / _MANIFEST, {**content, "digest": manifest_digest(content)})
    sync_folder(temporary)
    target = folder / name
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    sync_folder(folder)
    for old in names(folder)[_KEPT:]:
        shutil.rmtree(folder / old)


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return what a manifest notes of its own content, for a changed digit in it is still JSON."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        manifest = _read_manifest(path / _MANIFEST)
        tensors = _read_checked(path / _STATE, manifest["sha256"][_STATE])
    except (OSError, ValueError, LookupError, TypeError, MemoryError) as error:
        raise SnapshotError(f"cannot read the snapshot {path}: {str(error)[:200]}; {WITHOUT_IT}") from error
    return tensors, manifest


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of the random number generators of Python, NumPy, torch and a device, as tensors and numbers."""
    version, internal, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    keys = torch.tensor(legacy["state"]["key"].astype(np.int64))
    tensors = {
        "random.torch": torch.get_rng_state(),
        "random.python": torch.tensor(internal, dtype=torch.int64),
        "random.numpy": keys,
    }
    if device.type != "cpu":
        tensors["random.device"] = torch.get_device_module(device).get_rng_state(device)
    numbers = {
        "python": [version, gauss],
        "numpy": [int(legacy["state"]["pos"]), int(legacy["has_gauss"]), float(legacy["gauss"])],
    }
    return tensors, numbers


def restore_random_state(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], device: torch.device) -> None:
    """Put the random number generators where they were.

    Args:
        tensors: First part of `random_state`.
        numbers: Second part.
        device: The device.
    """
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["random.python"].tolist()), gauss))
    position, has_gauss, cached = numbers["numpy"]
    key = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, cached))
    torch.set_rng_state(tensors["random.torch"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(tensors["random.device"], device)


def write_factors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a part of the factor log.

    Args:
        path: File to write.
        tensors: "{step}.{layer}.keys" and "{step}.{layer}.values".

    Returns:
        SHA-256 of the file.
    """
    return write_tensors(path, tensors, {"format": FORMAT})


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
        return _read_checked(path, digest)
    except (OSError, ValueError) as error:
        raise SnapshotError(f"cannot read the factors {path}: {error}. Restore it, or begin a new folder.") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LONGEST:
        raise ValueError("its manifest is too long for one")
    manifest = parse_json(path.read_bytes())
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"its manifest is none of the format {FORMAT}")
    if manifest.get("digest") != manifest_digest(manifest):
        raise ValueError("its manifest has not the digest that was noted")
    return manifest


def _read_checked(path: Path, digest: str) -> dict[str, Tensor]:
    if _sha256(path) != digest:
        raise ValueError(f"{path.name} has not the digest that was noted")
    return read_tensors(path)[1]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
