"""What keeping a session costs: the ledger's share of an edit, and a snapshot every hundred edits."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.measure import Save, Section
from benchmarks.sections.edit import open_session
from nas_plugin.session import EditSession

_LAYERS = (4, 5, 6, 7, 8)
_EVERY = 100
_COLUMNS = (
    "model",
    "method",
    "edit s",
    "kept edit s",
    "kept ÷ not kept",
    "snapshot s",
    "snapshot MiB",
    f"snapshot ÷ {_EVERY} edits, %",
    "kept at most",
)


def measure(quick: bool, save: Save) -> Section:
    """Measure both families.

    Args:
        quick: 6 rounds instead of 20.
        save: Called with the section after each row.

    Returns:
        The table.
    """
    rounds = 6 if quick else 20
    section = Section(
        "keep",
        "Cost of safety",
        f"12-layer models, d = 768, edits of one request over {len(_LAYERS)} layers. Two sessions edit in turn, one kept in a "
        f"folder and one not; medians of {rounds} edits. Snapshots are written between two edits; {max(3, rounds // 4)} of them. "
        "Wall-clock time, as most of a snapshot's is the disk's: on a shared machine seconds scatter, ratios less so.",
        _COLUMNS,
    )
    for family in workload.FAMILIES:
        for method in ("MEMIT", "AlphaEdit"):
            section.rows.append(_row(family, method, rounds))
            save(section)
    return section


def _row(family: str, method: str, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        plain, kept = _session(family, method), _session(family, method, keep=Path(folder), snapshot_every=10**6)
        asked = workload.requests(rounds + 2)
        times: dict[str, list[float]] = {"plain": [], "kept": [], "snapshot": []}
        for number, request in enumerate(asked):
            for name, session in (("plain", plain), ("kept", kept)):
                seconds = _seconds(session, request)
                if number >= 2:
                    times[name].append(seconds)
            if number % 4 == 1 and kept.keeper is not None:
                started = time.perf_counter()
                kept.keeper.snapshot(kept)
                times["snapshot"].append(time.perf_counter() - started)
        snapshots = [path for path in (Path(folder) / "snapshots").iterdir() if path.is_dir()]
        size = sum(file.stat().st_size for file in snapshots[0].iterdir())
    edit, safe, snapshot = (statistics.median(times[name]) for name in ("plain", "kept", "snapshot"))
    return {
        "model": family,
        "method": method,
        "edit s": edit,
        "kept edit s": safe,
        "kept ÷ not kept": safe / edit,
        "snapshot s": snapshot,
        "snapshot MiB": size / 2**20,
        f"snapshot ÷ {_EVERY} edits, %": 100 * snapshot / (_EVERY * edit),
        "kept at most": len(snapshots),
    }


def _session(family: str, method: str, keep: Path | None = None, **numbers: Any) -> EditSession:
    hparams = workload.numbers(method, _LAYERS, **numbers)
    given = workload.statistics(workload.D_FF[family])
    return open_session(workload.random_model(family), workload.tokenizer(), hparams, given, keep=keep)


def _seconds(session: EditSession, request: Any) -> float:
    started = time.perf_counter()
    session.edit(request)
    return time.perf_counter() - started
