"""What a ledger's lines come to, without any weights: which edits stand, and what the weights were after each line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_plugin.errors import LedgerError
from nas_plugin.history import TAKEN_BACK, UNDONE, History, entry_of
from nas_plugin.keep.lines import BEGIN, EDIT, REVERT, ROLLBACK, UNDO


@dataclass(frozen=True)
class Mark:
    """The weights after a line.

    Attributes:
        digest: As the ledger says.
        norm: |W| / |W0|; None where no line says it.
    """

    digest: str
    norm: float | None


@dataclass
class Replay:
    """A ledger gone through.

    Attributes:
        history: Its edits, with the statuses they have at the end.
        marks: The weights after each line.
    """

    history: History = field(default_factory=History)
    marks: list[Mark] = field(default_factory=list)
    # What a rollback goes back to, as `EditSession` has it: ids of the last step that wrote something, the weights before it.
    _last_ids: tuple[str, ...] = ()
    _before: Mark | None = None

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]], path: Path) -> Replay:
        """Go through the lines of a ledger.

        Args:
            lines: Whole steps.
            path: The file, for messages.

        Returns:
            What they come to.

        Raises:
            LedgerError: A line contradicts those before it.
        """
        replay, number = cls(), 0
        while number < len(lines):
            line = lines[number]
            step = lines[number : number + line["of"]] if line["event"] == EDIT else [line]
            wrong = replay._wrong(step)
            if wrong is not None:
                raise LedgerError(
                    f"{path}, line {number + 1}: {wrong}; no session writes that. Restore the file, or begin a new folder."
                )
            replay._take(step)
            number += len(step)
        return replay

    def _wrong(self, step: Sequence[Mapping[str, Any]]) -> str | None:
        """Say what in a step does not fit what was before it."""
        first = step[0]
        event = first["event"]
        if (event == BEGIN) != (not self.marks):
            return "the ledger begins here"
        if event == ROLLBACK and not self._last_ids:
            return "there is no step to roll back"
        if event == UNDO and any(self._stands(name) is not True for name in first["ids"]):
            return "it undoes an edit that does not stand"
        if event != EDIT:
            return None
        number, count = self.history.steps + 1, first["of"]
        same = [line for line in step if (line["event"], line.get("step"), line.get("of")) == (EDIT, number, count)]
        if len(same) != count:
            return f"expected the {count} lines of step {number}"
        names = [line["id"] for line in step]
        if len(set(names)) < len(names) or any(self.history.find(name) is not None for name in names):
            return "the id of an earlier edit comes again"
        if any(self._stands(name) is None for line in step for name in line["replaces"]):
            return "it replaces an edit that is not there"
        return None

    def _stands(self, name: str) -> bool | None:
        entry = self.history.find(name)
        return None if entry is None else entry.stands

    def _take(self, step: Sequence[Mapping[str, Any]]) -> None:
        """Carry a step out, but for its weights."""
        first = step[0]
        event, now = first["event"], self.marks[-1] if self.marks else Mark(first["weights"], 1.0)
        if event == EDIT:
            self.history.add(entry_of(line) for line in step)
            if any(line["column"] is not None for line in step):
                self._last_ids, self._before = tuple(line["id"] for line in step), now
            now = Mark(first["weights"], first.get("norm_after"))
        elif event == ROLLBACK:
            self.history.take_back(self._last_ids, TAKEN_BACK)
            now = self._before or now
        elif event == UNDO:
            self.history.take_back(first["ids"], UNDONE)
            now = Mark(first["weights"], first["norm_after"])
        elif event != BEGIN:
            self.history.clear()
            now = self.marks[0] if event == REVERT else Mark(first["weights"], None)
        if event not in {EDIT, BEGIN}:
            self._last_ids, self._before = (), None
        self.marks += [now] * len(step)


def rolled_back_next(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether lines begin with taking back the step before them, which a session that was loaded has no memory of.

    Args:
        lines: Lines of a ledger after a snapshot.

    Returns:
        Whether they do.
    """
    for line in lines:
        if line["event"] != EDIT or line["column"] is not None:
            return bool(line["event"] == ROLLBACK)
    return False
