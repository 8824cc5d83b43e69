"""Checking that everything in a kept session's folder, and a saved model, is what the ledger says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from nas_plugin.errors import LedgerError, ModelError, SnapshotError, StatisticsError
from nas_plugin.keep import snapshots
from nas_plugin.keep.digests import MOMENTS_FILE, moments_digest, weights_digest
from nas_plugin.keep.fitting import fitting
from nas_plugin.keep.log import Log
from nas_plugin.keep.replay import Replay
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.reading import short

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def verify(log: Log) -> list[str]:
    """Check all files of a folder against its ledger, of which the chain was checked when it was read.

    Args:
        log: The ledger.

    Returns:
        What was checked, piece by piece.

    Raises:
        SnapshotError: A snapshot, a file of factors or the second moments are damaged, gone, or do not fit the ledger.
    """
    ledger, folder = log.ledger, log.folder / "snapshots"
    checked = [f"{len(ledger.lines)} ledger lines, chained to {ledger.chain[:12]}"]
    newest: Mapping[str, Any] | None = None
    found = snapshots.names(folder)
    for name in found:
        tensors, manifest = snapshots.read_snapshot(folder / name)
        lines = fitting(folder / name, manifest, ledger)
        if lines > len(ledger.lines):
            # Killed before the line that it is ahead of: `resume` passes it over, and so nothing depends on it.
            checked.append(f"snapshot {name}, which the ledger ends before")
            continue
        _check_weights(folder / name, tensors, ledger.lines[0]["parameters"], log.replay.marks[lines - 1].digest)
        checked.append(f"snapshot {name} and its weights")
        newest = manifest if newest is None else newest
    if newest is not None:
        checked.append(_check_factors(log, newest))
    if (log.folder / MOMENTS_FILE).exists():
        checked.append(_check_moments(log))
    return checked


def verify_model(log: Log, path: Path) -> str:
    """Compare a saved model with what the ledger says of the weights at its end.

    Args:
        log: The ledger.
        path: Folder that `save_pretrained` wrote.

    Returns:
        What was checked.

    Raises:
        LedgerError: The model holds other weights.
        ModelError: There is no such model.
    """
    if not path.is_dir():
        raise ModelError(f"{path} is no folder; give --model the folder that model.save_pretrained(...) wrote.")
    from transformers import AutoModelForCausalLM

    try:
        # In the number type that it was saved in, for the digest is one of bits; safetensors, so that nothing is unpickled.
        model = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="auto"
        )
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"the model in {path} cannot be loaded: {short(str(error), 300)}. Give --model the folder that "
            "model.save_pretrained(...) wrote."
        ) from error
    names = log.ledger.lines[0]["parameters"]
    parameters = dict(model.named_parameters())
    missing = [name for name in names if name not in parameters]
    if missing:
        raise LedgerError(
            f"the model in {path} has no parameter {short(missing[0])}, which the ledger's session edited; give the model that "
            "belongs to the ledger."
        )
    chosen = {name: parameters[name] for name in names}
    digest, wanted = weights_digest(chosen), log.replay.marks[-1].digest
    if digest != wanted:
        raise LedgerError(_differs(log, path, digest, wanted, {str(tensor.dtype) for tensor in chosen.values()}))
    return f"the {len(names)} edited parameter{'s'[: len(names) > 1]} of {path}, digest {digest[:12]}"


def _differs(log: Log, path: Path, digest: str, wanted: str, dtypes: set[str]) -> str:
    """Say what a model holds instead."""
    known = [number for number, mark in enumerate(log.replay.marks, start=1) if mark.digest == digest]
    if known:
        held = f"those after line {known[-1]}; the session went on, or the model was saved before its end"
    else:
        held = "those after none of its lines"
    return (
        f"the edited parameters of the model in {path} ({', '.join(sorted(dtypes))}) have the digest {digest[:12]}, the ledger "
        f"ends with {wanted[:12]}: they are {held}. Give the model that was saved at the end, in the number type it was edited "
        "in, or resume the session and save the model again."
    )


def _check_weights(path: Path, tensors: Mapping[str, Tensor], names: list[str], wanted: str) -> None:
    """Compare the matrices of a snapshot with a digest of parameters.

    The ledger does not say which number type the model has, nor which way its modules store their matrices: any that give the
    digest are those, for none gives it by chance.

    Raises:
        SnapshotError: None do.
    """
    try:
        layers = sorted(int(name.removesuffix(".master")) for name in tensors if name.endswith(".master"))
        served = [tensors.get(f"{layer}.served", tensors[f"{layer}.master"]) for layer in layers]
        fits = len(layers) == len(names) and wanted in _digests(dict(zip(names, served, strict=True)))
    except (LookupError, ValueError, TypeError, RuntimeError) as error:
        raise SnapshotError(f"{path} holds no weights of a session: {short(str(error), 200)}.") from error
    if not fits:
        raise SnapshotError(
            f"the weights in {path} do not have the digest {wanted[:12]} that the ledger says; remove it: "
            f"{snapshots.WITHOUT_IT}"
        )


def _check_moments(log: Log) -> str:
    """Check the second moments that a kept folder holds.

    Returns:
        What was checked.

    Raises:
        SnapshotError: They are damaged, or not those that the session was begun with.
    """
    path, wanted = log.folder / MOMENTS_FILE, str(log.ledger.lines[0].get("moments"))
    try:
        digest = moments_digest(SecondMoments.load(path).matrices)
    except StatisticsError as error:
        raise SnapshotError(f"{error.message} Remove the file: they are then measured again.") from error
    if digest != wanted:
        raise SnapshotError(
            f"{path} has the digest {digest[:12]}, the ledger begins with {wanted[:12]}; remove it: the second moments are then "
            "measured again."
        )
    return "the second moments"


def _digests(matrices: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the digests that matrices may have as parameters of a model."""
    for dtype, turned in itertools.product(_DTYPES, (False, True)):
        if all(torch.finfo(dtype).bits <= torch.finfo(matrix.dtype).bits for matrix in matrices.values()):
            yield weights_digest({name: (x.T if turned else x).to(dtype) for name, x in matrices.items()})


def _check_factors(log: Log, manifest: Mapping[str, Any]) -> str:
    """Check the files of factors that the newest snapshot names, and that they hold every step whose keys count.

    Returns:
        What was checked.

    Raises:
        SnapshotError: One is damaged or gone.
    """
    parts = manifest["factors"]
    for name, part in parts.items():
        snapshots.read_factors(log.folder / "factors" / Path(name).name, part["sha256"])
    history = Replay.of(log.ledger.lines[: manifest["lines"]], log.ledger.path).history
    there = {step for part in parts.values() for step in part["steps"]}
    missing = {entry.step for entry in history.counting()} - there
    if missing:
        raise SnapshotError(f"{log.folder}: the factors of step {min(missing)} are gone; restore the folder.")
    return f"{len(parts)} {'file' if len(parts) == 1 else 'files'} of factors for {len(there)} steps"
