"""The edits alone: one safetensors file with the parameters that a session changed, and what they belong to.

Such a file is a few matrices instead of a model. It is read only onto the model that the edits were made on, which its header
names by fingerprint; everything is checked before the first parameter changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nas_plugin import __version__
from nas_plugin.errors import EditsError
from nas_plugin.files import read_tensors, write_tensors
from nas_plugin.keep.digests import weights_digest
from nas_plugin.model.fingerprint import weights_fingerprint
from nas_plugin.reading import number, parse_json, short
from nas_plugin.weights import UNCHANGED

if TYPE_CHECKING:
    from nas_plugin.session import EditSession

FORMAT = "nas-plugin-edits-1"
# One key, because safetensors writes several in another order each time, and the same edits are to give the same bytes.
_KEY = "nas-plugin-edits"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class LoadedEdits:
    """What a file of edits says about them.

    Attributes:
        parameters: Names of the parameters it holds, sorted.
        version: Version of this package that made the edits.
        base: Fingerprint of the model as it was when their session began.
        method: Method, as "MEMIT".
        use_nas: Whether norms were anchored.
        hparams: Digest of the hyperparameters.
        edits: Number of edits that stand.
        anchor: tau; None without NAS.
        weights: Digest of the parameters, as `EditSession.weights_digest` gives it.
    """

    parameters: tuple[str, ...]
    version: str
    base: str
    method: str
    use_nas: bool
    hparams: str
    edits: int
    anchor: float | None
    weights: str


def save_edits(session: EditSession, path: str | Path) -> None:
    """Write the parameters that a session edits, exactly as its model holds them, atomically; the same edits give the same bytes.

    Args:
        session: The session.
        path: File to write; missing folders are made.

    Raises:
        EditsError: The edited weights are not what the session wrote last, or not finite.
    """
    state = session.state_of_weights()
    if state != UNCHANGED:
        raise EditsError(
            f"the edited weights were changed by something else than this session ({state}), so they are not its edits; save "
            "right after editing, or make the next edit first."
        )
    parameters = session.weights.stored_parameters()
    try:
        _check(parameters)
    except ValueError as error:
        raise EditsError(f"these edits could not be loaded again: {error}; nothing was written.") from error
    about = LoadedEdits(
        parameters=tuple(sorted(parameters)),
        version=__version__,
        base=session.fingerprint,
        method=session.hparams.method,
        use_nas=session.hparams.use_nas,
        hparams=session.hparams.digest(),
        edits=sum(entry.stands for entry in session.history.entries),
        anchor=session.anchor_value,
        weights=weights_digest(parameters),
    )
    write_edits(path, parameters, about)


def write_edits(path: str | Path, parameters: Mapping[str, Tensor], about: LoadedEdits) -> None:
    """Write parameters and what is known about them.

    Args:
        path: File to write.
        parameters: Matrices by name, as the modules store them.
        about: What the header is to say.
    """
    write_tensors(Path(path), parameters, {_KEY: _text_of(about)})


def load_edits(model: nn.Module, path: str | Path, *, check: bool = True) -> LoadedEdits:
    """Put saved edits into the model that they were made on, in place; **this changes the model it is given**.

    Args:
        model: The model as it was before the edits, in the same dtype, on any devices.
        path: File that `EditSession.save_edits` wrote.
        check: Refuse a model with another fingerprint than the one the edits were made on. Nothing else is left out without it.

    Returns:
        What the file says about the edits.

    Raises:
        EditsError: The file is damaged, or its parameters do not fit the model or belong to another. No weight has changed.
    """
    about, tensors = read_edits(path)
    targets = _targets(model, path, tensors)
    if check:
        found = weights_fingerprint(model)
        if found != about.base:
            raise EditsError(
                f"{path}: the edits were made on a model with the fingerprint {about.base[:64]!r}, this one has {found!r}: "
                "another model, another dtype, or edited already. Load the unedited model they were made on; if you know that "
                "these parameters belong here, pass check=False."
            )
    with torch.no_grad():
        for name, parameter in targets.items():
            # Into the parameter that is there: whatever shares or places its memory stays as it is.
            parameter.copy_(tensors[name])
    return about


def read_edits(path: str | Path) -> tuple[LoadedEdits, dict[str, Tensor]]:
    """Read a file of edits without a model.

    Args:
        path: The file.

    Returns:
        What it says, and its matrices by parameter name, on the CPU; finite, and those that were saved.

    Raises:
        EditsError: It is no such file, or damaged.
    """
    try:
        metadata, tensors = read_tensors(Path(path))
        about = _parsed(metadata.get(_KEY), tuple(sorted(tensors)))
        _check(tensors)
        _check_digest(tensors, about.weights)
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"it lacks {short(error.args[0])}" if isinstance(error, KeyError) else str(error)[:300]
        raise EditsError(f"cannot read edits from {path}: {reason}. Save them again, or restore the file.") from error
    return about, tensors


def _text_of(about: LoadedEdits) -> str:
    """Write the header's text: sorted, with a digest of itself, so that one changed character shows."""
    values: dict[str, Any] = {**asdict(about), "format": FORMAT}
    del values["parameters"]  # the file's own names
    return json.dumps({**values, "sha256": _sha256(values)}, sort_keys=True)


def _sha256(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _parsed(text: str | None, names: tuple[str, ...]) -> LoadedEdits:
    """Read the header's text; ValueError, LookupError or TypeError if it is none."""
    values = parse_json(text) if text is not None else {}
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        given = short(values.get("format")) if isinstance(values, dict) else "no object"
        raise ValueError(f"its format is {given}, and this release reads {FORMAT!r}")
    about = LoadedEdits(
        parameters=names,
        version=_string(values, "version"),
        base=_string(values, "base"),
        method=_string(values, "method"),
        use_nas=bool(values["use_nas"]),
        hparams=_string(values, "hparams"),
        edits=number(values, "edits", int),
        anchor=None if values["anchor"] is None else number(values, "anchor", float),
        weights=_string(values, "weights"),
    )
    if _text_of(about) != text:
        raise ValueError("its header does not have the digest that it says")
    return about


def _string(values: Mapping[str, Any], name: str) -> str:
    value = values[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {short(value)}; expected a text")
    return value


def _check(tensors: Mapping[str, Tensor]) -> None:
    """Refuse, by ValueError, what is no set of finite matrices."""
    if not tensors:
        raise ValueError("it holds no parameters")
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or tensor.numel() == 0 or tensor.dtype not in _DTYPES:
            raise ValueError(f"{short(name)} is {tensor.dtype} {tuple(tensor.shape)}, not a matrix of numbers")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{short(name)} holds NaN or infinity")


def _check_digest(tensors: Mapping[str, Tensor], digest: str) -> None:
    if weights_digest(tensors) != digest:
        raise ValueError("its parameters do not have the digest that its header says")


def _targets(model: nn.Module, path: str | Path, tensors: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Find the parameters to write, and refuse those that cannot take what the file holds."""
    present = dict(model.named_parameters(remove_duplicate=False))
    owners: dict[tuple[torch.device, int], list[str]] = {}
    for name, held in present.items():
        # By memory: two parameters may be one, and two may lie in the same place.
        owners.setdefault((held.device, held.data_ptr()), []).append(name)
    for name, tensor in tensors.items():
        parameter = present.get(name)
        if parameter is None:
            raise EditsError(
                f"{path}: {type(model).__name__} has no parameter {short(name)}; load the model that the edits were made on."
            )
        if parameter.shape != tensor.shape or parameter.dtype != tensor.dtype:
            raise EditsError(
                f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, in this model {parameter.dtype} "
                f"{tuple(parameter.shape)}; load the model that the edits were made on, in the same dtype."
            )
        if parameter.device.type == "meta":
            raise EditsError(f"{path}: {name} is on the meta device (offloaded); load that layer onto a real device.")
        shared = owners[parameter.device, parameter.data_ptr()]
        if len(shared) > 1:
            raise EditsError(
                f"{path}: {name} is shared with {[other for other in shared if other != name]} in this model; writing it would "
                "change both. Load the model with weights of their own."
            )
    return {name: present[name] for name in tensors}
