"""A session's state on disk: what it measured before the first edit, and what its edits have changed since.

Tensors lie in safetensors files, everything else in a JSON manifest beside them that is written last: a state without a manifest
is none. Nothing is pickled. A tensor keeps the order of its elements in memory, because sums over it depend on that order in
their last bits; so a session that was loaded goes on bit for bit like the one that was saved, on the same machine and with the
same number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_plugin.anchor import Anchor
from nas_plugin.errors import ResumeError, RunFolderError
from nas_plugin.evaluation.records import Fields, read_object
from nas_plugin.files import read_tensors, write_json, write_tensors
from nas_plugin.history import History
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.reading import short
from nas_plugin.session import EditSession
from nas_plugin.write.editor import LayerEditor
from nas_plugin.write.gain import Gain
from nas_plugin.write.methods import LyapLock

_FORMAT = "nas-plugin-state-1"
_CONTEXTS, _MOMENTS, _ANCHOR = "contexts.json", "moments.safetensors", "anchor.json"


@dataclass(frozen=True)
class Measured:
    """What a session measured on the unedited model, as arguments of `EditSession`.

    Attributes:
        contexts: Context templates.
        moments: Second moments.
        anchor: The anchor; None without norm anchoring.
    """

    contexts: ContextTemplates
    moments: SecondMoments
    anchor: Anchor | None

    def save(self, folder: Path) -> None:
        """Write all of it.

        Args:
            folder: Where to.
        """
        if self.anchor is not None:
            self.anchor.save(folder / _ANCHOR)
        self.moments.save(folder / _MOMENTS)
        write_json(folder / _CONTEXTS, {"groups": self.contexts.groups, "seed": self.contexts.seed})

    @classmethod
    def load(cls, folder: Path) -> Measured | None:
        """Read what `save` wrote.

        Args:
            folder: Where it lies.

        Returns:
            The measurements, None if they were not saved to the end.

        Raises:
            RunFolderError: The contexts are damaged.
        """
        if not (folder / _CONTEXTS).exists():
            return None
        contexts = Fields(read_object(folder / _CONTEXTS), str(folder / _CONTEXTS))
        groups = contexts.get("groups", list)
        if not all(isinstance(group, list) and group and all(isinstance(t, str) for t in group) for group in groups):
            raise RunFolderError(f"{contexts.where}, field groups: {short(groups)}; expected lists of templates.")
        anchor = folder / _ANCHOR
        return cls(
            ContextTemplates(tuple(map(tuple, groups)), contexts.maybe("seed", int)),
            SecondMoments.load(folder / _MOMENTS),
            Anchor.load(anchor) if anchor.exists() else None,
        )


class _Packed:
    """Tensors by name with the order of their elements, between a session and files."""

    def __init__(self, tensors: dict[str, Tensor] | None = None, columns: list[str] | None = None) -> None:
        self.tensors = tensors if tensors is not None else {}
        self.columns = set(columns or ())

    def put(self, name: str, tensor: Tensor) -> None:
        if _by_columns(tensor):
            self.columns.add(name)
            tensor = tensor.T
        self.tensors[name] = tensor

    def take(self, name: str, like: Tensor, columns: int | None = None) -> Tensor:
        """Take a matrix of the rows and the kind of numbers of another, and so many columns; any number when None."""
        try:
            tensor = self.tensors[name].to(like.device)
        except KeyError as error:
            raise ResumeError(
                f"the saved state has no tensor {name!r}; it is damaged. Run again from the start."
            ) from error
        tensor = tensor.T if name in self.columns and tensor.dim() == 2 else tensor
        fits = tensor.dim() == 2 and tensor.shape[0] == like.shape[0] and tensor.dtype == like.dtype
        if not fits or (columns is not None and tensor.shape[1] != columns):
            raise ResumeError(
                f"tensor {name!r} of the saved state is {tensor.dtype} {tuple(tensor.shape)}, which does not fit this session; "
                "it is damaged. Run again from the start."
            )
        return tensor


def save_state(session: EditSession, manifest: Path) -> None:
    """Save all that a session's edits have changed.

    Args:
        session: The session, between two steps.
        manifest: JSON file to write; the tensors go beside it.
    """
    packed, weights = _Packed(), session.weights
    editors = {}
    for layer, editor in session.editors.items():
        packed.put(f"{layer}.master", weights.master[layer])
        if weights._served[layer] is not weights.master[layer]:
            packed.put(f"{layer}.served", weights._served[layer])
        editors[str(layer)] = _pack_editor(editor, str(layer), packed)
    write_tensors(manifest.with_suffix(".safetensors"), packed.tensors, {"format": _FORMAT})
    write_json(
        manifest,
        {
            "format": _FORMAT,
            "fingerprint": session.fingerprint,
            "hparams_digest": session.hparams.digest(),
            "steps": session.steps,
            "history": session.history.to_list(),
            "last_step": session.history.steps,
            "columns": sorted(packed.columns),
            "editors": editors,
        },
    )


def load_state(session: EditSession, manifest: Path) -> None:
    """Put a fresh session, and its model, where a saved one was.

    Args:
        session: A session on the unedited model, made with what the saved one had measured.
        manifest: What `save_state` wrote.

    Raises:
        ResumeError: The state is of another model or other hyperparameters, or it is damaged.
    """
    try:
        content = read_object(manifest)
    except RunFolderError as error:
        raise ResumeError(error.message) from error
    for key, now in (
        ("format", _FORMAT),
        ("fingerprint", session.fingerprint),
        ("hparams_digest", session.hparams.digest()),
    ):
        if content.get(key) != now:
            raise ResumeError(
                f"{manifest}: {key} is {short(content.get(key))}, here it is {now}; the state is of another session."
            )
    session.prepare()
    try:
        _unpack(session, Fields(content, str(manifest)), manifest.with_suffix(".safetensors"))
    except ResumeError:
        # The weights are as they were; the editors may be halfway.
        session.revert()
        raise
    except RunFolderError as error:
        session.revert()
        raise ResumeError(f"{error.message} The saved state is damaged. Run again from the start.") from error


def _unpack(session: EditSession, content: Fields, tensors: Path) -> None:
    """Unpack all of a state before the first weight changes."""
    packed = _Packed(_read(tensors), [name for name in content.get("columns", list) if isinstance(name, str)])
    weights, steps = session.weights, content.get("steps", int)
    try:
        history = History.from_list(content.get("history", list), content.get("last_step", int))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ResumeError(
            f"{content.where}: its edits are damaged ({short(error)}). Run again from the start."
        ) from error
    masters, served = {}, {}
    for layer, editor in session.editors.items():
        base = weights.base[layer]
        masters[layer] = served[layer] = packed.take(f"{layer}.master", base, base.shape[1])
        if f"{layer}.served" in packed.tensors:
            served[layer] = packed.take(f"{layer}.served", base, base.shape[1])
        _unpack_editor(editor, str(layer), packed, content.inner("editors").inner(str(layer)))
    if not all(bool(torch.isfinite(matrix).all()) for matrix in (*masters.values(), *served.values())):
        raise ResumeError(f"{tensors} holds weights that are NaN or infinite; it is damaged. Run again from the start.")
    weights.master, weights._served = masters, served
    weights.close()
    session.steps, session.history = steps, history


def _pack_editor(editor: LayerEditor, name: str, packed: _Packed) -> dict[str, Any]:
    values: dict[str, Any] = {"gain": _pack_gain(editor.gain, name, packed)}
    if isinstance(editor, LyapLock):
        values |= {
            "queue": editor.queue,
            "solved_queue": editor._solved_queue,
            "first_deviation": editor._first_deviation,
            "has_last": editor._last is not None,
        }
        if editor._last is not None:
            packed.put(f"{name}.last_keys", editor._last[0])
            packed.put(f"{name}.unachieved", editor._last[1])
    return values


def _unpack_editor(editor: LayerEditor, name: str, packed: _Packed, values: Fields) -> None:
    _unpack_gain(editor.gain, name, packed, values.inner("gain"))
    if isinstance(editor, LyapLock):
        editor.queue, editor._solved_queue = values.get("queue", float), values.get("solved_queue", float)
        editor._first_deviation = values.maybe("first_deviation", float)
        if values.get("has_last", bool):
            keys = packed.take(f"{name}.last_keys", editor.gain.base)
            rows = editor.gain.base.new_empty(editor.w0.shape[0], 0)
            editor._last = keys, packed.take(f"{name}.unachieved", rows, keys.shape[1])


def _pack_gain(gain: Gain, name: str, packed: _Packed) -> dict[str, Any]:
    """Keep a gain's history; the prior is made, or read from where it is kept, again."""
    values: dict[str, Any] = {"by_columns": _by_columns(gain.base)}
    if not gain.carries:
        return values
    packed.put(f"{name}.gain", gain.base)
    packed.put(f"{name}.pending", gain.pending)
    packed.put(f"{name}.keys", gain.keys)
    return values | {
        "settled": gain._settled,
        "scale": gain._scale,
        "next_probe": gain._next_probe,
        # Keys of each step: how many, and whether they lie in memory by columns.
        "steps": [[keys.shape[1], _by_columns(keys)] for keys in gain._keys],
    }


def _unpack_gain(gain: Gain, name: str, packed: _Packed, values: Fields) -> None:
    # A prior that was made and one that was read differ in the order of their elements.
    by_columns = values.get("by_columns", bool)
    gain.base = _laid(gain.base, by_columns)
    if gain._prior is not None:
        gain._prior = _laid(gain._prior, by_columns)
    if not gain.carries:
        return
    gain.base.copy_(packed.take(f"{name}.gain", gain.base, gain.base.shape[1]))
    gain.pending = packed.take(f"{name}.pending", gain.base)
    gain._settled, gain._next_probe = values.get("settled", int), values.get("next_probe", int)
    gain._scale = values.get("scale", float)
    steps = values.get("steps", list)
    if not all(isinstance(step, list) and [*map(type, step)] == [int, bool] and step[0] >= 0 for step in steps):
        raise RunFolderError(
            f"{values.where}, field steps: {short(steps)}; expected pairs of a number and true or false."
        )
    if not 0 <= gain._settled <= gain.pending.shape[1]:
        raise RunFolderError(
            f"{values.where}, field settled: {gain._settled}; there are {gain.pending.shape[1]} columns."
        )
    counts = [count for count, _ in steps]
    parts = packed.take(f"{name}.keys", gain.base, sum(counts)).split(counts, 1) if counts else ()
    gain._keys = [_laid(part, by_columns) for part, (_, by_columns) in zip(parts, steps, strict=True)]
    gain._absorbed = sum(counts)


def _laid(tensor: Tensor, by_columns: bool) -> Tensor:
    return tensor.T.contiguous().T if by_columns else tensor.contiguous()


def _by_columns(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and not tensor.is_contiguous() and tensor.T.is_contiguous()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)[1]
    except (OSError, ValueError) as error:
        raise ResumeError(f"cannot read the saved state {path}: {error}. Run again from the start.") from error
