"""Peak memory of a piece of work, by the allocator's own account: no sampling, no resident set."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def live_bytes() -> int:
    """Bytes of all storages that a live tensor holds."""
    gc.collect()
    held = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


def peak_above(work: Callable[[], Any], folder: Path) -> tuple[int, Any]:
    """Most bytes allocated at once during some work, beyond those before it; and what it returned."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = work()
    trace = folder / "trace.json"
    seen.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    # The count goes on from one profile to the next.
    before = events[0]["args"]["Total Allocated"] - events[0]["args"]["Bytes"]
    return max(event["args"]["Total Allocated"] for event in events) - before, result
