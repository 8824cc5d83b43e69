"""The edits alone: one safetensors file with the parameters that a session changed, and what they belong to.

Such a file is a few matrices instead of a model, whole (format 1) or, where that takes fewer bytes, as factors (format 2). It is
read only onto the model that the edits were made on, which its header names by fingerprint; everything is checked before the
first parameter changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nas_plugin import __version__
from nas_plugin.errors import EditsError
from nas_plugin.files import read_tensors, write_tensors
from nas_plugin.keep.digests import weights_digest
from nas_plugin.keep.factored import Factored
from nas_plugin.keep.header import KEY, LoadedEdits, about_of, text_in, text_of, values_of
from nas_plugin.model.adapters import unwrapped
from nas_plugin.model.fingerprint import tensor_digest, weights_fingerprint
from nas_plugin.reading import short
from nas_plugin.weights import UNCHANGED

if TYPE_CHECKING:
    from nas_plugin.session import EditSession

__all__ = ["LoadedEdits", "edits_of", "load_edits", "read_edits", "save_edits", "write_edits"]

FORMAT = "nas-plugin-edits-1"
FACTORED = "nas-plugin-edits-2"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Held = Tensor | Factored
"""A parameter as a file of edits holds it."""


def save_edits(session: EditSession, path: str | Path) -> None:
    """Write the parameters that a session edits, exactly as its model holds them, atomically; the same edits give the same bytes.

    Args:
        session: The session.
        path: File to write; missing folders are made.

    Raises:
        EditsError: The edited weights are not what the session wrote last, or not finite.
    """
    about, parameters = edits_of(session)
    write_edits(path, parameters, about)


def edits_of(session: EditSession) -> tuple[LoadedEdits, dict[str, Tensor]]:
    """Take a session's edits to be written.

    Args:
        session: The session.

    Returns:
        What is known about them, and the parameters as the model holds them.

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
    return about, parameters


def write_edits(path: str | Path, parameters: Mapping[str, Held], about: LoadedEdits) -> None:
    """Write parameters and what is known about them.

    Args:
        path: File to write.
        parameters: Matrices by name, as the modules store them, or factors of them.
        about: What the header is to say.
    """
    pieces: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, held in parameters.items():
        if isinstance(held, Factored):
            pieces |= {f"{name}.{part}": tensor for part, tensor in held.tensors().items()}
            numbers[name] = held.numbers()
        else:
            pieces[name] = held
    if numbers:
        text = text_of(about, FACTORED, {"factors": numbers, "pieces": pieces_digest(pieces)})
    else:
        text = text_of(about, FORMAT)
    write_tensors(Path(path), pieces, {KEY: text})


def load_edits(model: nn.Module, path: str | Path, *, check: bool = True) -> LoadedEdits:
    """Put saved edits into the model that they were made on, in place; **this changes the model it is given**.

    Args:
        model: The model as it was before the edits, in the same dtype, on any devices.
        path: File that `EditSession.save_edits` or `export_edits` wrote.
        check: Refuse a model with another fingerprint than the one the edits were made on. Nothing else is left out without it.

    Returns:
        What the file says about the edits.

    Raises:
        EditsError: The file is damaged, or its parameters do not fit the model or belong to another. No weight has changed.
    """
    model = unwrapped(model)
    about, held = read_edits(path)
    targets = targets_of(model, path, {name: (one.shape, one.dtype) for name, one in held.items()})
    if check:
        check_base(model, path, about)
    tensors = {name: one.restored(targets[name]) if isinstance(one, Factored) else one for name, one in held.items()}
    if about.factored:
        try:
            _check(tensors)
            _check_digest(tensors, about.weights)
        except ValueError as error:
            raise EditsError(
                f"{path}: its factors and this model's matrices do not give the weights that were saved: {error}. Load the "
                "unedited model that the edits were made on."
            ) from error
    put(targets, tensors)
    return about


def check_base(model: nn.Module, path: str | Path, about: LoadedEdits) -> None:
    """Refuse another model than the one that edits were made on.

    Args:
        model: The model.
        path: The file, for messages.
        about: What it says.

    Raises:
        EditsError: It is another.
    """
    found = weights_fingerprint(model)
    if found != about.base:
        raise EditsError(
            f"{path}: the edits were made on a model with the fingerprint {about.base[:64]!r}, this one has {found!r}: "
            "another model, another dtype, or edited already. Load the unedited model they were made on; if you know that "
            "these parameters belong here, pass check=False."
        )


def put(targets: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy matrices into parameters.

    Args:
        targets: Parameters by name.
        tensors: What they are to hold.
    """
    with torch.no_grad():
        for name, parameter in targets.items():
            # Into the parameter that is there: whatever shares or places its memory stays as it is.
            parameter.copy_(tensors[name])


def read_edits(path: str | Path) -> tuple[LoadedEdits, dict[str, Held]]:
    """Read a file of edits without a model.

    Args:
        path: The file.

    Returns:
        What it says, and its matrices by parameter name, on the CPU, whole or as factors; those that were saved, and finite if
        they are whole.

    Raises:
        EditsError: It is no such file, or damaged.
    """
    try:
        metadata, tensors = read_tensors(Path(path))
        return _parsed(metadata.get(KEY), tensors)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EditsError(
            f"cannot read edits from {path}: {reason_of(error)}. Save them again, or restore the file."
        ) from error


def reason_of(error: Exception) -> str:
    """Say what was wrong with a file, from what Python says of it."""
    return f"it lacks {short(error.args[0])}" if isinstance(error, KeyError) else str(error)[:300]


def _parsed(text: str | None, tensors: dict[str, Tensor]) -> tuple[LoadedEdits, dict[str, Held]]:
    """Read what a file holds; ValueError, LookupError or TypeError if it is nothing of ours."""
    values = values_of(text, FORMAT, FACTORED)
    if values["format"] == FORMAT:
        about = about_of(values, tuple(sorted(tensors)))
        _check(tensors)
        _check_digest(tensors, about.weights)
        return about, dict(tensors)
    if pieces_digest(tensors) != text_in(values, "pieces"):
        raise ValueError("its factors do not have the digest that its header says")
    held: dict[str, Held] = {}
    factors = values["factors"]
    if not isinstance(factors, dict):
        raise ValueError(f"its factors are {short(factors)}")
    for name, numbers in factors.items():
        parts = {part: tensors.pop(f"{name}.{part}") for part in Factored.PARTS}
        held[name] = Factored.read(parts, numbers)
    if tensors:
        _check(tensors)
    return about_of(values, tuple(sorted({*held, *tensors})), tuple(sorted(held))), {**tensors, **held}


def pieces_digest(pieces: Mapping[str, Tensor]) -> str:
    """Hash tensors and their names."""
    digests = [f"{name}|{tensor_digest(tensor)}" for name, tensor in sorted(pieces.items())]
    return hashlib.sha256("\n".join(digests).encode("utf-8", "surrogatepass")).hexdigest()


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


def targets_of(
    model: nn.Module, path: str | Path, wanted: Mapping[str, tuple[torch.Size, torch.dtype]]
) -> dict[str, nn.Parameter]:
    """Find the parameters to write, and refuse those that cannot take what a file holds.

    Args:
        model: The model.
        path: The file, for messages.
        wanted: Shape and number type by name.

    Returns:
        The parameters by name.

    Raises:
        EditsError: One is not there, differs, is offloaded or shared.
    """
    present = dict(model.named_parameters(remove_duplicate=False))
    owners: dict[tuple[torch.device, int], list[str]] = {}
    for name, held in present.items():
        # By memory: two parameters may be one, and two may lie in the same place.
        owners.setdefault((held.device, held.data_ptr()), []).append(name)
    for name, (shape, dtype) in wanted.items():
        parameter = present.get(name)
        if parameter is None:
            raise EditsError(
                f"{path}: {type(model).__name__} has no parameter {short(name)}; load the model that the edits were made on."
            )
        if parameter.shape != shape or parameter.dtype != dtype:
            raise EditsError(
                f"{path}: {name} is {dtype} {tuple(shape)}, in this model {parameter.dtype} "
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
    return {name: present[name] for name in wanted}
