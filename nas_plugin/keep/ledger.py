"""The ledger: an append-only journal, one line per edit, that everything else can be computed from again.

A line is on disk before the weights change. Lines are chained by digests, times left out, so that two ledgers of the same edits
end with the same digest and a line that was changed, lost or put in shows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_plugin.errors import LedgerError, ResumeError
from nas_plugin.files import sync_folder
from nas_plugin.reading import parse_json

FORMAT = "nas-plugin-ledger-1"
BEGIN, EDIT, ROLLBACK, REVERT, UNDO, FOREIGN = "begin", "edit", "rollback", "revert", "undo", "foreign"
_EVENTS = {BEGIN, EDIT, ROLLBACK, REVERT, UNDO, FOREIGN}
_TIMES = {"time", "seconds", "chain"}


class Ledger:
    """One ledger file.

    Attributes:
        path: The file.
        lines: Its lines.
        cursor: How many of them have been carried out on the weights at hand.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; half a line or half a step at its end, which a kill has left, is cut off.

        Args:
            path: The file; it need not exist.

        Raises:
            LedgerError: It is no ledger, or was changed.
        """
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.cursor = 0
        data = path.read_bytes() if path.exists() else b""
        length = 0
        # Not `splitlines`: it would also split at a stray carriage return, and take what follows for the end of the file.
        *whole, rest = data.split(b"\n")
        for number, raw in enumerate(whole, start=1):
            self.lines.append(self._parsed(raw, number))
            length += len(raw) + 1
        if not whole and rest and not rest.startswith(b"{"):
            raise LedgerError(f"{path}, line 1: no ledger; give another folder.")
        length -= self._torn_step()
        if length < len(data):
            with path.open("r+b") as file:
                file.truncate(length)
                os.fsync(file.fileno())

    @property
    def chain(self) -> str:
        """Digest of all lines, without times."""
        return str(self.lines[-1]["chain"]) if self.lines else ""

    def put(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add the lines of one event, durably; or, while a ledger is carried out again, compare with what it says.

        Args:
            lines: The lines, without chain.

        Raises:
            ResumeError: Carrying it out again gave something else.
        """
        chained, chain = [], self.lines[self.cursor - 1]["chain"] if self.cursor else ""
        for line in lines:
            chain = _chained(chain, line)
            chained.append({**_plain(line), "chain": chain})
        if self.cursor < len(self.lines):
            self._compare(chained)
        else:
            self._append(chained)
        self.cursor += len(chained)

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
        with self.path.open("ab") as file:
            start = file.tell()
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(start)
                raise
        if start == 0:
            sync_folder(self.path.parent)
        self.lines += [dict(line) for line in lines]

    def _compare(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for number, (ours, theirs) in enumerate(
            zip(lines, self.lines[self.cursor :], strict=False), start=self.cursor + 1
        ):
            if ours["chain"] != theirs["chain"]:
                differ = [key for key in ours if key not in _TIMES and ours[key] != theirs.get(key)]
                raise ResumeError(
                    f"{self.path}, line {number}: carrying the edit out again gave another {' and '.join(differ) or 'line'} "
                    "than the ledger says. Results are the same only on the same machine, with the same versions and number "
                    "of threads; go on there, or begin a new folder."
                )

    def _parsed(self, raw: bytes, number: int) -> dict[str, Any]:
        where = f"{self.path}, line {number}"
        try:
            line = parse_json(raw)
        except ValueError as error:
            raise LedgerError(
                f"{where}: no JSON ({str(error)[:80]}). Restore the file, or begin a new folder."
            ) from error
        if not isinstance(line, dict) or line.get("event") not in _EVENTS:
            raise LedgerError(f"{where}: no event of a ledger. Restore the file, or begin a new folder.")
        if number == 1 and (line["event"] != BEGIN or line.get("format") != FORMAT):
            raise LedgerError(
                f"{where}: expected the beginning of a ledger of the format {FORMAT}; begin a new folder."
            )
        if line.get("chain") != _chained(self.chain, line):
            raise LedgerError(
                f"{where}: its digest does not fit its content and the lines before it; the file was changed. Restore it, or "
                "begin a new folder."
            )
        return line

    def _torn_step(self) -> int:
        """Drop the lines of a last step that is not whole; return their length in bytes."""
        if not self.lines or self.lines[-1]["event"] != EDIT:
            return 0
        step = self.lines[-1]["step"]
        whole = [line for line in self.lines if line["event"] == EDIT and line["step"] == step]
        if len(whole) == self.lines[-1]["of"]:
            return 0
        del self.lines[-len(whole) :]
        return sum(len(json.dumps(line, allow_nan=False)) + 1 for line in whole)


def _chained(chain: str, line: Mapping[str, Any]) -> str:
    content = {key: value for key, value in _plain(line).items() if key not in _TIMES}
    return hashlib.sha256((chain + json.dumps(content, sort_keys=True)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Turn what JSON has no word for into null, and tuples into lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
