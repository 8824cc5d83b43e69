"""Resuming: the newest snapshot, then what the ledger has after it, carried out again and compared."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nas_plugin.admission import Item
from nas_plugin.errors import ResumeError
from nas_plugin.history import digest_of
from nas_plugin.keep.ledger import EDIT, FOREIGN, REVERT, ROLLBACK, UNDO
from nas_plugin.keep.replay import Replay
from nas_plugin.progress import progress_bar
from nas_plugin.report import WRITTEN
from nas_plugin.request import EditRequest
from nas_plugin.stepping import carry_out

if TYPE_CHECKING:
    from nas_plugin.session import EditSession


def resume(session: EditSession, stream: Sequence[EditRequest] | None) -> int:
    """Bring a session to where the ledger ends; see `EditSession.resume`.

    Args:
        session: A session that has made no edit.
        stream: Requests that will be given, if their order is to be checked.

    Returns:
        Edits in the ledger.

    Raises:
        ResumeError: Something differs or is missing.
        LedgerError: The lines contradict each other.
    """
    keeper = session.keeper
    if keeper is None:
        raise ResumeError("this session keeps nothing; make it with EditSession(..., keep=folder) (keep_dir).")
    if session.history.entries or session.steps:
        raise ResumeError("this session has made edits already; resume before the first one, on the unedited model.")
    ledger = keeper.ledger
    if not ledger.lines:
        return 0
    keeper.check_subject(session)
    session.given = session.given.completed(*keeper.measured())
    session.prepare()
    keeper.check(session)
    # All lines, before the first is carried out.
    Replay.of(ledger.lines, ledger.path)
    edits = [line for line in ledger.lines if line["event"] == EDIT]
    if stream is not None:
        _check_order(edits, stream)
    keeper.resumed = True
    ledger.cursor = max(keeper.load(session), 1)
    with progress_bar("edits since the last snapshot", len(ledger.lines) - ledger.cursor, session.progress) as bar:
        while ledger.cursor < len(ledger.lines):
            before = ledger.cursor
            _carry_out_next(session, ledger.lines, ledger.cursor)
            bar.advance(bar.task_ids[0], ledger.cursor - before)
    last = next((line["weights"] for line in reversed(ledger.lines) if line["event"] == EDIT), None)
    if last is not None and ledger.lines[-1]["event"] == EDIT and session.weights_digest() != last:
        raise ResumeError(
            f"{keeper.folder}: the resumed weights are not those that the ledger's last line was written with; begin a new "
            "folder."
        )
    return len(edits)


def _carry_out_next(session: EditSession, lines: Sequence[Mapping[str, Any]], cursor: int) -> None:
    line = lines[cursor]
    event = line["event"]
    if event == EDIT:
        step = list(lines[cursor : cursor + line["of"]])
        session.solver().batch_size = line["batch_size"]
        carry_out(session, [_item(one) for one in step], time.perf_counter())
    elif event == ROLLBACK:
        session.rollback()
        if session.keeper is not None and session.keeper.ledger.cursor == cursor:
            raise ResumeError("the ledger takes a step back that cannot be taken back here; begin a new folder.")
    elif event == UNDO:
        session.undo(*line["ids"])
    elif event == REVERT:
        session.revert()
    elif event == FOREIGN:
        raise ResumeError(
            "the weights were changed by something else than the session, and the snapshot of that is gone; begin a new folder."
        )


def _item(line: Mapping[str, Any]) -> Item:
    request = None
    if line["fact"] is not None:
        request = EditRequest.restored(line["prompt"], line["subject"], line["target"], line["case"], line["start"])
    record = request or {
        "prompt": line["prompt"], "subject": line["subject"], "target_new": line["target"], "case_id": line["case"],
    }  # fmt: skip
    solved = line["solved"]
    return Item(
        line["id"],
        request,
        record,
        WRITTEN if solved else line["status"],
        None if solved else line["reason"],
        tuple(line["replaces"]),
    )


def _check_order(edits: Sequence[Mapping[str, Any]], stream: Sequence[EditRequest]) -> None:
    for number, (line, request) in enumerate(zip(edits, stream, strict=False), start=1):
        digest = digest_of(request.id, request.prompt, request.subject, request.target)
        if line["id"].split("-")[0] != digest:
            raise ResumeError(
                f"edit {number} of the ledger is {line['prompt']!r} -> {line['target']!r}, of this stream "
                f"{request.prompt!r} -> {request.target!r}; give the same data in the same order, or another folder."
            )
