"""Edits taken from a folder: one that a session was kept in, or one that `nas-edit run` wrote. Nothing is edited again."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from nas_plugin import __version__
from nas_plugin.errors import EditsError, ExportError, RunFolderError, SnapshotError
from nas_plugin.evaluation.logs import RUN_FILE, RunLog, read_run
from nas_plugin.evaluation.records import Fields, read_object
from nas_plugin.evaluation.runner.folder import STATE_FOLDER
from nas_plugin.evaluation.runner.load import hparams_class, load_hparams
from nas_plugin.files import read_tensors
from nas_plugin.keep import snapshots
from nas_plugin.keep.digests import weights_digest
from nas_plugin.keep.edits import put
from nas_plugin.keep.fitting import fitting
from nas_plugin.keep.header import LoadedEdits
from nas_plugin.keep.log import Log, read_log
from nas_plugin.keep.reopen import HPARAMS_FILE
from nas_plugin.model.adapters import unwrapped
from nas_plugin.model.editable import EditableModel
from nas_plugin.reading import short
from nas_plugin.report import WRITTEN
from nas_plugin.share.base import in_dtype_of
from nas_plugin.share.card import scores_of
from nas_plugin.share.source import Change, Source, name_of

logger = logging.getLogger(__name__)

_NORMS_AGREE = 1e-5


def kept_edits(folder: str | Path, model: Any, tok: Any = None) -> Source:
    """Take the edits that a folder ends with, and put them into the model that they were made on; **this changes the model**.

    Args:
        folder: Folder that a session was kept in (`keep`, `keep_dir`), or that `nas-edit run` wrote.
        model: The unedited model; it is turned into the number type that it was edited in.
        tok: Its tokenizer, for an export of the whole model.

    Returns:
        What `export_edits` takes.

    Raises:
        ExportError: The folder does not hold the last weights, or they are of another model. No weight has changed.
        LedgerError: The ledger is damaged or missing.
        RunFolderError: The run's files are.
    """
    folder, inner = Path(folder), unwrapped(model)
    source = _of_run(folder, inner) if (folder / RUN_FILE).exists() else _of_ledger(folder, inner)
    stored = {change.name: change.stored(change.after) for change in source.changes}
    put({name: inner.get_parameter(name) for name in stored}, stored)
    return replace(source, model=model, tok=tok)


def holds_its_end(folder: str | Path) -> bool:
    """Tell whether a folder holds the weights that it ends with, so that no edit needs to be carried out again.

    Args:
        folder: Folder that a session was kept in, or that `nas-edit run` wrote.

    Returns:
        Whether there is a snapshot after the last line of the ledger. A run has only what its last checkpoint had.

    Raises:
        LedgerError: There is no ledger, or it is damaged.
    """
    folder = Path(folder)
    if (folder / RUN_FILE).exists():
        return True
    log = read_log(folder)
    inner = log.folder / "snapshots"
    for name in snapshots.names(inner):
        try:
            if fitting(inner / name, snapshots.read_snapshot(inner / name)[1], log.ledger) == len(log.ledger.lines):
                return True
        except SnapshotError:
            # Damaged, and so of no use here.
            continue
    return False


def model_of(folder: str | Path) -> str:
    """Return the name of the model that a folder's edits were made on.

    Args:
        folder: Folder that a session was kept in, or that `nas-edit run` wrote.

    Returns:
        The name or path.

    Raises:
        ExportError: The folder does not say it.
    """
    folder = Path(folder)
    if (folder / RUN_FILE).exists():
        return read_run(folder).model
    if (folder / HPARAMS_FILE).is_file():
        return str(load_hparams(folder / HPARAMS_FILE, {}).model_name)
    raise ExportError(f"{folder} does not say which model was edited; give --model.")


def _of_ledger(folder: Path, model: Any) -> Source:
    log = read_log(folder)
    first = log.ledger.lines[0]
    _check_base(folder, model, first["model"])
    names, wanted = list(first["parameters"]), log.replay.marks[-1].digest
    found = (one for one in _candidates(log, _unedited(folder, model, names)) if _digest(one) == wanted)
    changes = next(found, None)
    if changes is None:
        raise ExportError(
            f"{folder} has no snapshot of the weights that its ledger ends with (line {len(log.ledger.lines)}): the last edits "
            "were made after it. Hand export_edits the session that nas_plugin.keep.reopen.reopen gives, as nas-edit export "
            "does; or close the session after its last edit (session.close())."
        )
    anchor = first["anchor"]
    about = LoadedEdits(
        parameters=tuple(sorted(names)),
        version=__version__,
        base=first["model"],
        method=first["method"],
        use_nas=first["use_nas"],
        hparams=str(first.get("hyperparameters", "")),
        edits=sum(entry.stands for entry in log.replay.history.entries),
        anchor=None if anchor is None else _number(anchor.get("value"), f"{log.ledger.path}: the anchor"),
        weights=wanted,
    )
    return Source(model, None, changes, about, name_of(model), _decisive(folder, about.hparams), log.ledger.chain)


def _decisive(folder: Path, digest: str) -> dict[str, Any] | None:
    """Return the hyperparameters that lie beside a ledger, if they are those of its session."""
    file = folder / HPARAMS_FILE
    hparams = load_hparams(file, {}) if file.is_file() else None
    return hparams.decisive() if hparams is not None and hparams.digest() == digest else None


def _candidates(log: Log, unedited: tuple[Change, ...]) -> Iterator[tuple[Change, ...]]:
    """Yield what the ledger may end with: no change, and what snapshots hold, newest first."""
    yield unedited
    folder = log.folder / "snapshots"
    for name in snapshots.names(folder):
        try:
            yield _with(unedited, _served(snapshots.read_snapshot(folder / name)[0]))
        except (SnapshotError, LookupError, ValueError) as error:
            # Another one may do; if none does, that is an error.
            logger.warning("the snapshot %s is passed over: %s", name, short(str(error), 200))


def _served(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the matrices that a saved session served, by layer."""
    layers = sorted(int(name.removesuffix(".master")) for name in tensors if name.endswith(".master"))
    return [tensors.get(f"{layer}.served", tensors[f"{layer}.master"]) for layer in layers]


def _of_run(folder: Path, model: Any) -> Source:
    log = read_run(folder)
    count = log.checkpoints[-1].edits if log.checkpoints else 0
    manifest = folder / STATE_FOLDER / f"after_{count}.json"
    if not manifest.is_file():
        raise ExportError(
            f"{folder} holds no edited weights (there is no {manifest.relative_to(folder)}); only runs of this package's editors "
            "keep them, from their first checkpoint on."
        )
    content = read_object(manifest)
    fields = Fields(content, str(manifest))
    fingerprint, digest = fields.get("fingerprint", str), fields.get("hparams_digest", str)
    _check_base(folder, model, fingerprint)
    hparams = hparams_class(log.method, str(folder / RUN_FILE))(**dict(log.hparams))
    em = EditableModel(model, hparams)
    unedited = _unedited(folder, model, list(em.parameter_names.values()))
    try:
        changes = _with(unedited, _served(read_tensors(manifest.with_suffix(".safetensors"))[1]))
    except (OSError, ValueError, LookupError) as error:
        raise RunFolderError(
            f"cannot read {manifest.with_suffix('.safetensors')}: {short(str(error), 200)}; restore it, or run again."
        ) from error
    _check_norms(log, changes, manifest)
    history = fields.get("history", list)
    about = LoadedEdits(
        parameters=tuple(sorted(change.name for change in changes)),
        version=__version__,
        base=fingerprint,
        method=log.method,
        use_nas=log.use_nas,
        hparams=digest,
        edits=sum(isinstance(entry, dict) and entry.get("status") == WRITTEN for entry in history),
        anchor=log.anchor,
        weights=_digest(changes),
    )
    scores = scores_of(log.checkpoints[-1].final)
    return Source(model, None, changes, about, log.model, hparams.decisive(), None, scores)


def _check_base(folder: Path, model: Any, fingerprint: str) -> None:
    if not in_dtype_of(model, fingerprint):
        raise ExportError(
            f"{folder}: the edits were made on a model with the fingerprint {fingerprint[:64]!r}, which this one has in no "
            "number type: another model, or edited already. Give --model the unedited model they were made on."
        )


def _unedited(folder: Path, model: Any, names: list[str]) -> tuple[Change, ...]:
    """Return the matrices of the model as changes that change nothing.

    Raises:
        ExportError: The model has no such matrices.
    """
    present, modules = dict(model.named_parameters()), dict(model.named_modules())
    found = []
    for name in names:
        owner, held = modules.get(name.removesuffix(".weight")), present.get(name)
        if owner is None or held is None or held.dim() != 2 or held.device.type == "meta":
            raise ExportError(
                f"{folder}: {type(model).__name__} has no matrix {short(name)} at hand; give the model that was edited."
            )
        turned, stored = isinstance(owner, Conv1D), held.detach()
        kind = torch.float64 if held.dtype == torch.float64 else torch.float32
        matrix = (stored.T if turned else stored).to(kind, copy=True).contiguous()
        found.append(Change(name, matrix, matrix, turned, held.dtype))
    return tuple(found)


def _with(unedited: tuple[Change, ...], matrices: list[Tensor]) -> tuple[Change, ...]:
    """Return the changes to matrices; ValueError if they do not fit."""
    if len(unedited) != len(matrices):
        raise ValueError(f"it holds {len(matrices)} matrices, and {len(unedited)} were edited")
    for change, matrix in zip(unedited, matrices, strict=True):
        before = change.before
        if matrix.shape != before.shape or matrix.dtype != before.dtype or not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"{short(change.name)} is {matrix.dtype} {tuple(matrix.shape)}, or not finite")
    return tuple(
        replace(change, after=matrix.to(change.before.device))
        for change, matrix in zip(unedited, matrices, strict=True)
    )


def _digest(changes: tuple[Change, ...]) -> str:
    return weights_digest({change.name: change.stored(change.after) for change in changes})


def _check_norms(log: RunLog, changes: tuple[Change, ...], manifest: Path) -> None:
    """Compare |W| / |W0| with the last checkpoint: the state has no digest of its own."""
    logged = log.checkpoints[-1].norm
    now, base = (sum(float(getattr(one, name).norm()) ** 2 for one in changes) for name in ("after", "before"))
    if logged is not None and not math.isclose(math.sqrt(now / base), logged, rel_tol=_NORMS_AGREE):
        raise RunFolderError(
            f"{manifest}: |W| / |W0| is {math.sqrt(now / base):.6f}, and the last checkpoint says {logged:.6f}; the state is "
            "damaged or of another run. Restore it, or run again."
        )


def _number(value: Any, where: str) -> float:
    if type(value) not in {int, float} or not math.isfinite(value):
        raise EditsError(f"{where} is {short(value)}; expected a number. Restore the file.")
    return float(value)
