"""Which edits a session has carried out, and which of them stand: the ledger's image in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nas_plugin.report import WRITTEN
from nas_plugin.request import EditRequest

_ID_LENGTH = 16
REPLACED, UNDONE, TAKEN_BACK = "replaced", "undone", "taken back"

Fact = tuple[str, str]
"""Subject, and prompt with `{}` in its place."""


def fact_of(request: EditRequest) -> Fact:
    """Return what a request is about, whatever its target."""
    return request.subject, f"{request.prompt[: request.start]}{{}}{request.prompt[request.end :]}"


def digest_of(case: str | None, prompt: Any, subject: Any, target: Any) -> str:
    """Name an edit by what it says, the same on every machine.

    Args:
        case: Its case id.
        prompt: Prompt.
        subject: Subject.
        target: Target; like the two before whatever stands there in a record that is no request.

    Returns:
        Sixteen hex digits of a SHA-256.
    """
    content = json.dumps([case, prompt, subject, target], default=repr)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_LENGTH]


@dataclass
class Entry:
    """One edit of a stream.

    Attributes:
        id: Its stable name.
        case: Its case id.
        fact: What it is about; None for a record that was no request.
        target: What the model was made to say.
        step: Number of the ledger's step, never used twice.
        column: Its column among the keys of the step; None if it has none.
        status: As in `EditReport`, or "replaced", "undone" or "taken back" since.
        replaces: Ids of the edits that it took the place of.
    """

    id: str
    case: str | None
    fact: Fact | None
    target: str | None
    step: int
    column: int | None
    status: str
    replaces: tuple[str, ...] = ()

    @property
    def stands(self) -> bool:
        """Whether the model is to say this."""
        return self.status == WRITTEN

    @property
    def counts(self) -> bool:
        """Whether its key is part of the weights' history."""
        return self.column is not None and self.status not in {REPLACED, UNDONE, TAKEN_BACK}


@dataclass
class History:
    """All edits of a stream, in order.

    Attributes:
        entries: The edits.
        steps: Number of the latest step.
    """

    entries: list[Entry] = field(default_factory=list)
    steps: int = 0
    _by_id: dict[str, Entry] = field(default_factory=dict)
    _standing: dict[Fact, Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Iterable[Entry], steps: int) -> History:
        """Make a history of entries with the statuses they have.

        Args:
            entries: The edits, in order.
            steps: Number of the latest step.

        Returns:
            The history.
        """
        history = cls(list(entries), steps)
        history._by_id = {entry.id: entry for entry in history.entries}
        history._standing = {entry.fact: entry for entry in history.entries if entry.stands and entry.fact is not None}
        return history

    def to_list(self) -> list[dict[str, Any]]:
        """Return the entries as plain values."""
        return [vars(entry).copy() for entry in self.entries]

    @classmethod
    def from_list(cls, entries: Iterable[Mapping[str, Any]], steps: int) -> History:
        """Make a history of what `to_list` returned, and JSON may have held since.

        Args:
            entries: The entries.
            steps: Number of the latest step.

        Returns:
            The history.
        """
        read = []
        for entry in entries:
            fact = entry["fact"]
            values = {"fact": None if fact is None else (fact[0], fact[1]), "replaces": tuple(entry["replaces"])}
            read.append(Entry(**{**entry, **values}))
        return cls.of(read, steps)

    def without(self, ids: Collection[str]) -> History:
        """Return the history in which some edits are undone; this one stays as it is.

        Args:
            ids: The edits.

        Returns:
            The other history.
        """
        other = History.from_list(self.to_list(), self.steps)
        other.take_back(ids, UNDONE)
        return other

    def clear(self) -> None:
        """Record that no edit stands any more; their ids stay taken."""
        self.take_back([entry.id for entry in self.entries], TAKEN_BACK)

    def find(self, id: str) -> Entry | None:
        """Return the edit of this id."""
        return self._by_id.get(id)

    def named(self, name: str) -> Entry | None:
        """Return the edit of this id, or the latest standing one with this case id."""
        found = self._by_id.get(name)
        if found is not None:
            return found
        cases = [entry for entry in self.entries if entry.case == name]
        return next((entry for entry in reversed(cases) if entry.stands), cases[-1] if cases else None)

    def standing(self, fact: Fact) -> Entry | None:
        """Return the edit that decides what the model says about a fact."""
        return self._standing.get(fact)

    def latest(self, base: str) -> Entry | None:
        """Return the latest edit with a digest, whatever its number."""
        found, number, name = None, 1, base
        while name in self._by_id:
            found = self._by_id[name]
            number += 1
            name = f"{base}-{number}"
        return found

    def add(self, entries: Iterable[Entry]) -> None:
        """Record a step.

        Args:
            entries: Its edits; those which they replace do not stand any more.
        """
        for entry in entries:
            self.steps = max(self.steps, entry.step)
            self.entries.append(entry)
            self._by_id[entry.id] = entry
            for name in entry.replaces:
                self._by_id[name].status = REPLACED
            if entry.stands and entry.fact is not None:
                self._standing[entry.fact] = entry

    def take_back(self, ids: Collection[str], status: str) -> None:
        """Record that edits do not stand any more; those which they replaced stand again.

        Args:
            ids: The edits.
            status: "undone" or "taken back".
        """
        for name in ids:
            self._by_id[name].status = status
        gone = {UNDONE, TAKEN_BACK}
        replaced = {name for entry in self.entries if entry.status not in gone for name in entry.replaces}
        for entry in self.entries:
            if entry.status == REPLACED and entry.id not in replaced:
                entry.status = WRITTEN
        self._standing = {entry.fact: entry for entry in self.entries if entry.stands and entry.fact is not None}

    def counting(self) -> list[Entry]:
        """Return the edits whose keys make up the history, in the order of the gain's columns."""
        return [entry for entry in self.entries if entry.counts]

    def columns_of(self, ids: Collection[str]) -> list[int]:
        """Return where the keys of edits stand among the gain's columns."""
        if not ids:
            return []
        return [column for column, entry in enumerate(self.counting()) if entry.id in ids]

    def order(self) -> str:
        """Return a digest of all ids in order."""
        return hashlib.sha256("".join(entry.id for entry in self.entries).encode()).hexdigest()


def entry_of(line: Mapping[str, Any]) -> Entry:
    """Make an entry of a ledger line.

    Args:
        line: A line about an edit.

    Returns:
        The entry.
    """
    fact = line["fact"]
    return Entry(
        line["id"],
        line["case"],
        None if fact is None else (fact[0], fact[1]),
        line["target"],
        line["step"],
        line["column"],
        line["status"],
        tuple(line["replaces"]),
    )
