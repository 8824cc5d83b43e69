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
from nas_plugin.keep.lines import BEGIN, EDIT, FOREIGN, FORMAT, REVERT, ROLLBACK, UNDO, wrong_field
from nas_plugin.reading import parse_json

__all__ = ["BEGIN", "EDIT", "FOREIGN", "FORMAT", "REVERT", "ROLLBACK", "UNDO", "Ledger"]

_TIMES = {"time", "seconds", "chain"}
# An edit is a few hundred bytes; what is much longer is no line, and is not to be read into memory.
_LONGEST = 2**24


class Ledger:
    """One ledger file.

    Attributes:
        path: The file.
        lines: Its lines.
        cursor: How many of them have been carried out on the weights at hand.
        torn: Bytes at the end of the file, when it was read, that a kill has left of a line or a step.
    """

    def __init__(self, path: Path, *, repair: bool = True) -> None:
        """Read the file; half a line or half a step at its end, which a kill has left, is left out.

        Args:
            path: The file; it need not exist.
            repair: Cut off what is left out. Whoever only looks changes nothing.

        Raises:
            LedgerError: It is no ledger, or was changed.
        """
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.cursor = 0
        try:
            length, whole = self._read() if path.exists() else (0, 0)
            self.torn = length - whole
            if repair and self.torn:
                with path.open("r+b") as file:
                    file.truncate(whole)
                    os.fsync(file.fileno())
        except OSError as error:
            raise LedgerError(f"{path} cannot be read: {error.strerror}; give another folder.") from error

    def _read(self) -> tuple[int, int]:
        """Read the lines; return the bytes of the file, and of its whole steps."""
        ends = [0]
        with self.path.open("rb") as file:
            # A file ends its lines at newlines only; `splitlines` would also split at a stray carriage return.
            while (raw := file.readline(_LONGEST)).endswith(b"\n"):
                self.lines.append(self._parsed(raw[:-1], len(ends)))
                ends.append(ends[-1] + len(raw))
        if len(raw) == _LONGEST or (raw and not self.lines and not raw.startswith(b"{")):
            raise LedgerError(f"{self.path}, line {len(ends)}: no ledger; give another folder.")
        self._drop_torn_step()
        return ends[-1] + len(raw), ends[len(self.lines)]

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
            chained.append({**plain(line), "chain": chain})
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
        if not isinstance(line, dict):
            raise LedgerError(f"{where}: no event of a ledger. Restore the file, or begin a new folder.")
        if number == 1 and (line.get("event") != BEGIN or line.get("format") != FORMAT):
            raise LedgerError(
                f"{where}: expected the beginning of a ledger of the format {FORMAT}; begin a new folder."
            )
        if line.get("chain") != _chained(self.chain, line):
            raise LedgerError(
                f"{where}: its digest does not fit its content and the lines before it; the file was changed. Restore it, or "
                "begin a new folder."
            )
        wrong = wrong_field(line)
        if wrong is not None:
            raise LedgerError(f"{where}: {wrong}. Restore the file, or begin a new folder.")
        return line

    def _drop_torn_step(self) -> None:
        """Drop the lines of a last step that is not whole."""
        if not self.lines or self.lines[-1]["event"] != EDIT:
            return
        last, count = self.lines[-1], 0
        for line in reversed(self.lines):
            if line["event"] != EDIT or line["step"] != last["step"]:
                break
            count += 1
        if count < last["of"]:
            del self.lines[-count:]


def _chained(chain: str, line: Mapping[str, Any]) -> str:
    content = {key: value for key, value in plain(line).items() if key not in _TIMES}
    return hashlib.sha256((chain + json.dumps(content, sort_keys=True)).encode()).hexdigest()


def plain(value: Any) -> Any:
    """Turn what JSON has no word for into null, and tuples into lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value
