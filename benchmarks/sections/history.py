"""Does an edit get slower, or the process larger, as a stream goes on? On a tiny model, so that 2,000 edits take a minute."""

from __future__ import annotations

import gc
import statistics
from functools import partial
from typing import Any

import torch

from benchmarks import workload
from benchmarks.measure import Save, Section, cpu_seconds
from benchmarks.sections.edit import open_session
from nas_plugin.session import EditSession

_D_FF = 512
_LAYERS = (1, 2)
_MEMORY_FROM = 100
# Factors of the latest steps are folded into the gain 64 at a time: measured where as many of them are pending.
_FOLD = 64
_COLUMNS = ("method", "early edits", "early ms", "late edits", "late ms", "late ÷ early", "tensors' growth, bytes an edit",
            "key log, bytes an edit", "unexplained")  # fmt: skip


def measure(quick: bool, save: Save) -> Section:
    """Measure both methods.

    Args:
        quick: 500 edits instead of 2,000, memory over 320 edits instead of 896.
        save: Called with the section after each row.

    Returns:
        The table.
    """
    last, window, memory_until = (
        (500, 60, _MEMORY_FROM + 5 * _FOLD) if quick else (2000, 100, _MEMORY_FROM + 14 * _FOLD)
    )
    section = Section(
        "history",
        "Cost of history",
        f"4-layer model, d = 64, d_ff = {_D_FF}, edits of one request over 2 layers, 4 updates each. Early and late edits "
        f"alternate: a session at its first edits and one at its last, medians of {window} edits of CPU time each. Memory: bytes "
        f"of all live tensors at edit {_MEMORY_FROM} and at edit {memory_until}; key log: 8 bytes x d_ff x layers an edit.",
        _COLUMNS,
    )
    for method in ("AlphaEdit", "MEMIT"):
        section.rows.append(_row(method, last, window, memory_until))
        save(section)
    return section


def _row(method: str, last: int, window: int, memory_until: int) -> dict[str, Any]:
    asked = workload.requests(last)
    old, held = _session(method), {}
    for number in range(last - window):
        if number in (_MEMORY_FROM, memory_until):
            held[number] = _tensor_bytes()
        old.edit(asked[number])
    young, early, late = _session(method), [], []
    for request in asked[:9]:
        young.edit(request)
    for number in range(window):
        early.append(cpu_seconds(partial(young.edit, asked[9 + number])))
        late.append(cpu_seconds(partial(old.edit, asked[last - window + number])))
    before, after = statistics.median(early), statistics.median(late)
    growth = (held[memory_until] - held[_MEMORY_FROM]) / (memory_until - _MEMORY_FROM)
    log = 8.0 * _D_FF * len(_LAYERS) if method == "AlphaEdit" else 0.0
    return {
        "method": method,
        "early edits": f"10–{9 + window}",
        "early ms": before * 1e3,
        "late edits": f"{last - window + 1}–{last}",
        "late ms": after * 1e3,
        "late ÷ early": after / before,
        "tensors' growth, bytes an edit": growth,
        "key log, bytes an edit": log,
        "unexplained": growth - log,
    }


def _session(method: str) -> EditSession:
    model = workload.random_model("llama", layers=4, d_model=64, d_ff=_D_FF)
    hparams = workload.numbers(method, _LAYERS, v_num_grad_steps=5)
    return open_session(model, workload.tokenizer(), hparams, workload.statistics(_D_FF))


def _tensor_bytes() -> int:
    """Sum the storages of all live tensors; the process's resident memory also holds what allocators keep."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
