"""Whether a snapshot belongs to a ledger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_plugin.errors import LedgerError, SnapshotError
from nas_plugin.history import History
from nas_plugin.keep import snapshots
from nas_plugin.keep.ledger import Ledger
from nas_plugin.keep.lines import FOREIGN
from nas_plugin.keep.replay import Replay
from nas_plugin.reading import number, short


def fitting(path: Path, manifest: Mapping[str, Any], ledger: Ledger) -> int:
    """Check that a snapshot was made along a ledger.

    Args:
        path: The snapshot, for messages.
        manifest: Its manifest.
        ledger: The ledger.

    Returns:
        Lines of the ledger that the snapshot comprises; one more than there are where the session was killed between
        snapshot and line.

    Raises:
        SnapshotError: It is of another ledger, or says something else than the ledger's lines.
    """
    try:
        return _lines(manifest, ledger)
    except LedgerError as error:
        reason = error.message
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else short(str(error), 200)
    raise SnapshotError(f"{path} does not fit {ledger.path.name}: {reason}; {snapshots.WITHOUT_IT}")


def _lines(manifest: Mapping[str, Any], ledger: Ledger) -> int:
    lines, ahead = number(manifest, "lines", int), number(manifest, "ahead", int)
    _check_parts(manifest["factors"])
    if ahead > 1 or not 0 < lines - ahead <= len(ledger.lines):
        raise ValueError("the ledger ends before it")
    if ledger.lines[lines - ahead - 1]["chain"] != manifest["chain"]:
        raise ValueError("it is of another ledger")
    if lines > len(ledger.lines):
        return int(lines)
    if ahead and ledger.lines[lines - 1]["event"] != FOREIGN:
        # Killed between snapshot and line; the session went on otherwise.
        raise ValueError("the ledger goes on otherwise")
    told = History.from_list(manifest["history"], number(manifest, "last_step", int))
    ours = Replay.of(ledger.lines[:lines], ledger.path).history
    if (told.to_list(), told.steps) != (ours.to_list(), ours.steps):
        raise ValueError("its edits are not those of the ledger")
    return int(lines)


def _check_parts(parts: Any) -> None:
    for name, part in parts.items():
        steps = part["steps"]
        if not isinstance(part["sha256"], str) or not isinstance(steps, list) or not all(type(x) is int for x in steps):
            raise ValueError(f"{str(name)[:80]} is no part of the factors")
