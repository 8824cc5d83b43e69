"""Looking at a kept session's ledger: what was done, and which edits stand now. Nothing here changes a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_plugin.errors import LedgerError
from nas_plugin.keep.ledger import Ledger, plain
from nas_plugin.keep.lines import BEGIN, EDIT
from nas_plugin.keep.replay import Replay

LEDGER_FILE = "ledger.jsonl"


@dataclass(frozen=True)
class Log:
    """A ledger that was read to be looked at.

    Attributes:
        ledger: The ledger.
        replay: What its lines come to.
    """

    ledger: Ledger
    replay: Replay

    @property
    def folder(self) -> Path:
        """Folder that the session was kept in."""
        return self.ledger.path.parent


@dataclass(frozen=True)
class Row:
    """One event of a ledger.

    Attributes:
        line: Its line.
        edit: Number of the edit, from 1; None for any other event.
        now: Status that the edit has at the end of the ledger; None for any other event.
    """

    line: dict[str, Any]
    edit: int | None = None
    now: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """The line as JSON can hold it, and for an edit its present status as `now`."""
        content: dict[str, Any] = plain(self.line if self.now is None else {**self.line, "now": self.now})
        return content


@dataclass(frozen=True)
class Wanted:
    """Which events are asked for; all that is given has to fit. Events that are no edits have nothing but ids.

    Attributes:
        status: Present status of the edit.
        subject: Part of its subject, in capitals or not.
        case: Its case id.
        id: Its id; an undo of it is shown too.
        alarms: Only edits of steps that crossed `norm_alarm`.
        last: At most so many, the last ones.
    """

    status: str | None = None
    subject: str | None = None
    case: str | None = None
    id: str | None = None
    alarms: bool = False
    last: int | None = None

    def takes(self, row: Row) -> bool:
        """Tell whether an event is asked for, `last` aside."""
        line = row.line
        if row.now is None:
            of_edits = (self.status, self.subject, self.case, self.alarms or None)
            return of_edits == (None,) * 4 and (self.id is None or self.id in line.get("ids", ()))
        return (
            self.status in {None, row.now}
            and (self.subject is None or self.subject.casefold() in line["subject"].casefold())
            and self.case in {None, line["case"]}
            and self.id in {None, line["id"]}
            and (line["alarm"] or not self.alarms)
        )


@dataclass(frozen=True)
class Summary:
    """A ledger in a few numbers.

    Attributes:
        method: The editor, with "NAS-" where values were anchored.
        model: Fingerprint of the unedited model.
        statuses: Present status -> number of edits.
        norm: |W| / |W0| at the end; None if no line says it, as after an undo.
        seconds: Time that the edits took.
        alarms: Steps that crossed `norm_alarm`.
        torn: Bytes at the end of the file that are no whole step.
    """

    method: str
    model: str
    statuses: dict[str, int]
    norm: float | None
    seconds: float
    alarms: int
    torn: int


def read_log(path: Path) -> Log:
    """Read a ledger without changing it.

    Args:
        path: The folder that a session was kept in, or the ledger itself.

    Returns:
        The ledger.

    Raises:
        LedgerError: There is none, it was changed, or its lines contradict each other.
    """
    file = path / LEDGER_FILE if path.is_dir() else path
    if not file.exists():
        raise LedgerError(
            f"there is no ledger at {file}; give the folder that a session was kept in (keep, keep_dir), or the ledger in it."
        )
    ledger = Ledger(file, repair=False)
    if not ledger.lines:
        raise LedgerError(f"{file} holds no whole line; give the folder of a session that has made an edit.")
    return Log(ledger, Replay.of(ledger.lines, file))


def rows(log: Log, wanted: Wanted) -> list[Row]:
    """Choose events of a ledger.

    Args:
        log: The ledger.
        wanted: Which.

    Returns:
        The events, in order.
    """
    statuses = iter(log.replay.history.entries)
    found, edits = [], 0
    for line in log.ledger.lines:
        if line["event"] == EDIT:
            edits += 1
            found.append(Row(line, edits, next(statuses).status))
        elif line["event"] != BEGIN:
            found.append(Row(line))
    found = [row for row in found if wanted.takes(row)]
    return found if wanted.last is None else found[max(len(found) - wanted.last, 0) :]


def summary(log: Log) -> Summary:
    """Sum a ledger up.

    Args:
        log: The ledger.

    Returns:
        Its numbers.
    """
    first, edits = log.ledger.lines[0], _edits(log.ledger.lines)
    return Summary(
        f"{'NAS-' if first['use_nas'] else ''}{first['method']}",
        first["model"],
        dict(Counter(entry.status for entry in log.replay.history.entries)),
        log.replay.marks[-1].norm,
        float(sum(line.get("seconds") or 0.0 for line in edits)),
        len({line["step"] for line in edits if line["alarm"]}),
        log.ledger.torn,
    )


def _edits(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == EDIT]
