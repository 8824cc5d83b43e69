"""All that a session's edits have made, as tensors and plain values; one form for snapshots and for run folders.

Every tensor lies in memory by rows, before and after: sums over it depend on that order in their last bits. So a session that was
read goes on bit for bit like the one that was saved, on the same machine and with the same number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nas_plugin.errors import SnapshotError
from nas_plugin.history import History
from nas_plugin.reading import number, short

if TYPE_CHECKING:
    from nas_plugin.session import EditSession

DAMAGED = (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError)
"""What Python and torch raise over values that no session has saved."""


def packed(session: EditSession) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Pack a session, but for the keys of its gains.

    Args:
        session: The session, prepared, between two steps.

    Returns:
        Tensors by name, and values that JSON can hold.
    """
    tensors = session.weights.saved()
    editors = {}
    for layer, editor in session.editors.items():
        changed, editors[str(layer)] = editor.state()
        tensors |= {f"{layer}.{name}": tensor for name, tensor in changed.items()}
        if editor.w0 is not session.weights.base[layer]:
            # A copy: right after a foreign change it is the master itself, and no file holds one tensor under two names.
            tensors[f"{layer}.w0"] = editor.w0.clone()
    return tensors, {
        "steps": session.steps,
        "editors": editors,
        "history": session.history.to_list(),
        "last_step": session.history.steps,
        "order": session.history.order(),
        "batch_size": session.solver().batch_size,
    }


def unpack(
    session: EditSession,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    keys_of: Callable[[History], Mapping[int, Tensor]],
) -> None:
    """Put a session, and its model, where a packed one was; everything is checked before anything changes.

    Args:
        session: A prepared session on the unedited model.
        tensors: First part of `packed`.
        values: Second part.
        keys_of: Finds the keys of the gains, layer -> `(d_in, t)`; asked only where a history is carried.

    Raises:
        SnapshotError: Something is missing or does not fit this session.
    """
    try:
        history = _history(values)
        steps, batch_size = number(values, "steps", int), number(values, "batch_size", int)
        _check_matrices(session, tensors)
        carried = any(editor.carries for editor in session.editors.values())
        keys = keys_of(history) if carried else {}
        editors = {}
        for layer, editor in session.editors.items():
            prefix = f"{layer}."
            named = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            fresh = editor.afresh(named["w0"].to(editor.w0.device) if "w0" in named else session.weights.base[layer])
            fresh.load_state(named, values["editors"][str(layer)], keys.get(layer, fresh.gain.base[:, :0]))
            editors[layer] = fresh
    except DAMAGED as error:
        if isinstance(error, SnapshotError):
            raise
        reason = f"it lacks {error}" if isinstance(error, KeyError) else short(str(error), 200)
        raise SnapshotError(f"the saved state is damaged or does not fit this session: {reason}.") from error
    session.weights.load_saved(tensors)
    session.editors, session.history = editors, history
    session.steps, session.solver().batch_size = steps, max(batch_size, 1)


def _history(values: Mapping[str, Any]) -> History:
    history = History.from_list(values["history"], number(values, "last_step", int))
    if history.order() != values["order"]:
        raise ValueError("the edits are not in the order that their digest says")
    return history


def _check_matrices(session: EditSession, tensors: Mapping[str, Tensor]) -> None:
    for layer, base in session.weights.base.items():
        for name in (f"{layer}.master", f"{layer}.served", f"{layer}.w0"):
            if name not in tensors:
                if name.endswith("master"):
                    raise KeyError(name)
                continue
            matrix = tensors[name]
            if matrix.shape != base.shape or matrix.dtype != base.dtype or not bool(torch.isfinite(matrix).all()):
                raise ValueError(f"{name} is {matrix.dtype} {tuple(matrix.shape)}, or not finite")
