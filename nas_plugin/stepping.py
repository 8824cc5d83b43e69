"""Carrying out one step: solve, anchor, write, guard, note, commit - in this order, so that nothing is half done."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nas_plugin.admission import STOP, Item
from nas_plugin.anchor import AnchoredTargets, anchored
from nas_plugin.errors import NonFiniteError, NormAlarmError
from nas_plugin.history import entry_of, fact_of
from nas_plugin.keep.keeper import noted
from nas_plugin.keep.ledger import EDIT
from nas_plugin.report import KNOWN, REJECTED, SKIPPED, WRITTEN, EditReport, StepReport
from nas_plugin.request import EditRequest
from nas_plugin.solve.target import SolvedTargets, not_finite
from nas_plugin.writing import Factors, spread

if TYPE_CHECKING:
    from nas_plugin.session import EditSession

logger = logging.getLogger(__name__)


def carry_out(session: EditSession, items: Sequence[Item], started: float) -> StepReport:
    """Carry out the requests of one step.

    Args:
        session: The session, prepared, its weights as it left them.
        items: The requests and what has been decided about them; those with the status "written" are to be.
        started: When the step began, as `time.perf_counter` has it.

    Returns:
        What was done.

    Raises:
        NonFiniteError: A value or an update is not finite, and rejected edits stop the session.
        NormAlarmError: A matrix would outgrow `norm_alarm`, and that stops the session.
    """
    step = _Step(session, items)
    todo = [item for item in items if item.status == WRITTEN]
    with ExitStack() as doing:
        try:
            if todo:
                step.attempt(todo)
            seconds = time.perf_counter() - started
            step.agree()
            lines = step.lines(seconds)
            # Before the weights change: what is written is in the ledger, whatever happens next.
            doing.enter_context(noted(session.keeper, lines))
        except BaseException:
            step.take_back()
            raise
        step.commit(lines)
    step.snapshot()
    return StepReport(tuple(step.report(item) for item in items), session.weights.total_ratio(), seconds, session.steps)


class _Step:
    """One step under way."""

    def __init__(self, session: EditSession, items: Sequence[Item]) -> None:
        self.session, self.items = session, items
        self.number = session.history.steps + 1
        self.rebuilt = [layer for layer, editor in session.editors.items() if editor.fold()]
        self.snapshots = {layer: editor.snapshot() for layer, editor in session.editors.items()}
        self.norm_before = session.weights.total_ratio()
        self.largest_before = max(session.weights.norm_ratios().values())
        self.opened = False
        self.alarm = False
        self.solved: set[int] = set()
        self.masters: dict[int, Tensor] | None = None
        self.served: dict[int, Tensor] = {}
        self.factors: dict[int, Factors] = {}
        self.numbers: dict[int, dict[str, Any]] = {}
        self.columns: dict[int, int] = {}

    def attempt(self, todo: Sequence[Item]) -> None:
        """Solve and write; what comes out not finite is rejected as a whole, unless that stops the session."""
        try:
            self.write(todo)
        except NonFiniteError as error:
            if self.session.on_reject == STOP:
                raise
            self.refuse(todo, error.message)

    def write(self, todo: Sequence[Item]) -> None:
        """Solve and write; the weights of the model are intermediate ones afterwards."""
        session, hparams = self.session, self.session.hparams
        self.solved = {id(item) for item in todo}
        self.opened = True
        session.weights.open()
        requests = [item.request for item in todo if item.request is not None]
        solver = session.solver()
        solved = solver.solve(requests, keep_rows=len(session.em.layers) > 1).as_in(session.group)
        kept = self._kept(todo, requests, solved)
        if not kept:
            self.take_back()
            return
        going = [todo[number] for number in kept]
        solved = solved.only(kept)
        targets = anchored(solved, session.foundation.anchor, hparams.nas_skip_factor)
        for item, skipped in zip(going, targets.skipped.tolist(), strict=True):
            if skipped:
                # Before anything is forgotten: what is not written takes no other edit's place.
                item.drop(SKIPPED, "its value exceeds nas_skip_factor anchors")
        replaced = session.history.columns_of({name for item in going for name in item.replaces})
        for editor in session.editors.values():
            editor.forget(replaced)
        masters, self.factors = spread(
            session.em,
            session.foundation.contexts,
            session.editors,
            session.weights.master,
            solved,
            targets,
            kept,
            log=session.keeper is not None,
            group=session.group,
        )
        self.served = {layer: session.editors[layer].view(matrix) for layer, matrix in masters.items()}
        session.weights.check_finite(self.served)
        self._check_norm()
        self.masters = masters
        self._note(going, solved, targets)

    def _kept(self, todo: Sequence[Item], requests: Sequence[EditRequest], solved: SolvedTargets) -> list[int]:
        if self.session.on_reject == STOP:
            solved.refuse_not_finite(requests)
            return list(range(len(todo)))
        good = solved.finite.tolist()
        for item, fine in zip(todo, good, strict=True):
            if not fine and item.request is not None:
                item.drop(REJECTED, not_finite(item.request))
                logger.warning("the edit %s is rejected: %s", item.id, item.reason)
        return [number for number, fine in enumerate(good) if fine]

    def _check_norm(self) -> None:
        """Compare with the alarm; it is said once, when it is crossed."""
        hparams, weights = self.session.hparams, self.session.weights
        if hparams.norm_alarm is None:
            return
        ratio = weights.ratio_of(self.served)
        self.alarm = ratio > hparams.norm_alarm >= self.largest_before
        if ratio > hparams.norm_alarm and hparams.on_norm_alarm == STOP:
            raise NormAlarmError(
                f"this step would make an edited matrix {ratio:.2f} times as large as the unedited one, more than norm_alarm "
                f"{hparams.norm_alarm}; nothing was written. Stop here, undo edits, or raise norm_alarm."
            )
        if self.alarm:
            logger.warning(
                "an edited matrix is now %.2f times as large as the unedited one (norm_alarm %s): the model may be about to "
                "collapse",
                ratio,
                hparams.norm_alarm,
            )

    def _note(self, going: Sequence[Item], solved: SolvedTargets, targets: AnchoredTargets) -> None:
        rows = zip(
            going, solved.loss, solved.updates, targets.value_norm, targets.written_norm, targets.skipped, strict=True
        )
        for column, (item, loss, updates, value, written, skipped) in enumerate(rows):
            self.columns[id(item)] = column
            self.numbers[id(item)] = {
                "loss": float(loss),
                "updates": int(updates),
                "value_norm": float(value),
                "written_norm": float(written),
                "skipped": bool(skipped),
            }

    def agree(self) -> None:
        """Make sure that all processes are about to have the same weights."""
        session = self.session
        if session.group.size > 1:
            session.group.agree("weights", session.weights_digest(self.served if self.masters is not None else None))

    def refuse(self, todo: Sequence[Item], reason: str) -> None:
        """Reject what was to be written; the weights are as before."""
        logger.warning("a step of %d edits is rejected: %s", len(todo), reason)
        self.take_back()
        for item in todo:
            if item.status == WRITTEN or id(item) in self.columns:
                item.drop(REJECTED, reason)

    def take_back(self) -> None:
        """Put editors and model back as they were before the step."""
        self.session.restore(self.snapshots)
        if self.opened:
            self.session.weights.close()
        self.opened, self.masters, self.alarm = False, None, False
        self.columns, self.numbers, self.factors = {}, {}, {}

    def commit(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Make the step part of the session."""
        session = self.session
        entries = [entry_of(line) for line in lines]
        session.history.add(entries)
        if self.masters is not None:
            session.weights.commit(self.masters, self.served)
            session.done(
                self.snapshots,
                [entry.id for entry in entries],
            )
        if session.keeper is not None and self.factors:
            session.keeper.factors(self.number, self.factors)

    def snapshot(self) -> None:
        """Save the session if it is time to; not while a ledger is carried out again."""
        keeper = self.session.keeper
        if keeper is not None and keeper.due() and keeper.ledger.cursor == len(keeper.ledger.lines):
            keeper.snapshot(self.session)

    def lines(self, seconds: float) -> list[dict[str, Any]]:
        """Return the ledger's lines."""
        told = [item for item in self.items if item.status != KNOWN]
        session = self.session
        digest = after = None
        if session.keeper is not None and told:
            digest = session.weights_digest(self.served if self.masters is not None else None)
        if self.masters is not None:
            after = session.weights.total_of(self.served)
        return [
            {
                "event": EDIT,
                "id": item.id,
                "case": item.case,
                "step": self.number,
                "of": len(told),
                **_texts(item),
                "column": self.columns.get(id(item)),
                "solved": id(item) in self.solved,
                "status": item.status,
                "reason": item.reason,
                "replaces": list(item.replaces),
                **self.numbers.get(id(item), {}),
                "norm_before": self.norm_before,
                "norm_after": self.norm_before if after is None else after,
                "alarm": self.alarm,
                "rebuilt": self.rebuilt,
                "batch_size": session.solver().batch_size,
                "weights": digest,
                "seconds": seconds / len(told),
                "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
            for item in told
        ]

    def report(self, item: Item) -> EditReport:
        """Say what became of a request."""
        numbers = self.numbers.get(id(item), {})
        return EditReport(
            item.request,
            numbers.get("loss", math.nan),
            numbers.get("updates", 0),
            numbers.get("value_norm", math.nan),
            numbers.get("written_norm", math.nan),
            numbers.get("skipped", False),
            item.id,
            item.status,
            item.reason,
            item.replaces,
        )


def _texts(item: Item) -> dict[str, Any]:
    request = item.request
    if request is None:
        record = item.record if isinstance(item.record, Mapping) else {}
        given = {key: record.get(name) for key, name in (("prompt", "prompt"), ("subject", "subject"))}
        texts = {key: value if isinstance(value, str) else repr(value)[:80] for key, value in given.items()}
        return {**texts, "start": None, "target": repr(record.get("target_new"))[:80], "fact": None}
    return {
        "prompt": request.prompt,
        "subject": request.subject,
        "start": request.start,
        "target": request.target,
        "fact": list(fact_of(request)),
    }
