"""Undo: the stream written again from its factors, without some of its edits.

From the unedited matrices W0, every step that stands is written again with the keys and values it was written with, without the
columns of the undone edits: R = V - W K, then the method's own recursion. Nothing of an undone edit is left in weights, history,
queue or PRUNE base; without anything left out the result is the present weights but for rounding. What is not done again is
solving: the values of later edits were found, and the keys of upper layers measured, on a model that knew the undone ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from nas_plugin.errors import UndoError
from nas_plugin.history import History
from nas_plugin.keep.keeper import noted
from nas_plugin.keep.ledger import UNDO
from nas_plugin.write.editor import LayerEditor

if TYPE_CHECKING:
    from nas_plugin.keep.factor_log import StepFactors
    from nas_plugin.session import EditSession


def undo(session: EditSession, ids: Sequence[str]) -> None:
    """Undo edits of a session; see `EditSession.undo`.

    Args:
        session: The session.
        ids: Ids of edits, or case ids.

    Raises:
        UndoError: Nothing is kept, or an edit is unknown or does not stand.
    """
    if session.keeper is None:
        raise UndoError(
            "this session keeps nothing to undo with; make it with EditSession(..., keep=folder) (keep_dir)."
        )
    chosen = [standing(session.history, name) for name in ids]
    history = session.history.without(chosen)
    columns: dict[int, list[int]] = {}
    for entry in history.counting():
        if entry.column is not None:
            columns.setdefault(entry.step, []).append(entry.column)
    steps = session.keeper.log.of_steps(sorted(columns))
    rebuilt = {layer: _again(session, layer, steps, columns) for layer in session.em.layers}
    masters = {layer: matrix for layer, (matrix, _) in rebuilt.items()}
    editors = {layer: editor for layer, (_, editor) in rebuilt.items()}
    served = {layer: editors[layer].view(matrix) for layer, matrix in masters.items()}
    session.weights.check_finite(served)
    after = {"weights": session.weights_digest(served), "norm_after": session.weights.total_of(served)}
    with noted(session.keeper, [{"event": UNDO, "ids": chosen, **after}]):
        session.weights.put(masters, served)
        session.editors, session.history = editors, history
        session.forget_rollback()


def standing(history: History, name: str) -> str:
    """Find an edit that can be undone.

    Args:
        history: The edits so far.
        name: Its id, or its case id.

    Returns:
        Its id.

    Raises:
        UndoError: There is none, or it does not stand.
    """
    entry = history.named(name)
    if entry is None:
        raise UndoError(f"no edit is called {name!r}; give the id of a report or of the ledger, or a case id.")
    if not entry.stands:
        raise UndoError(f"the edit {entry.id} does not stand: it is {entry.status}; only a written edit can be undone.")
    return entry.id


def _again(
    session: EditSession, layer: int, steps: dict[int, StepFactors], columns: dict[int, list[int]]
) -> tuple[Tensor, LayerEditor]:
    """Write one layer again: steps in order, chosen columns of each."""
    present = session.editors[layer]
    editor, matrix = present.afresh(present.w0), present.w0
    for step, factors in steps.items():
        chosen = factors[layer]
        keys = chosen.keys[:, columns[step]].to(matrix.device, matrix.dtype)
        values = chosen.values[:, columns[step]].to(matrix.device, matrix.dtype)
        editor.fold()
        proposal = editor.propose(matrix, keys, values - matrix @ keys)
        after = editor.finish(proposal, proposal.applied())
        editor.absorb(proposal, after)
        matrix = after.contiguous()
    return matrix, editor
