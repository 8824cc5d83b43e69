"""What a ledger's lines are: their events, and the kind of value that each field holds.

A chain of digests shows that a file was changed, but whoever changes it may chain it again. So whatever the readers of a ledger
rely on is checked once, here, before anything is done with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from nas_plugin.reading import LARGEST, short
from nas_plugin.report import REJECTED, SKIPPED, WRITTEN

FORMAT = "nas-plugin-ledger-1"
BEGIN, EDIT, ROLLBACK, REVERT, UNDO, FOREIGN = "begin", "edit", "rollback", "revert", "undo", "foreign"


def wrong_field(line: Mapping[str, Any]) -> str | None:
    """Find what a line of a ledger may not hold.

    Args:
        line: The line.

    Returns:
        What is wrong; None if nothing is.
    """
    event = line.get("event")
    if not isinstance(event, str) or event not in _FIELDS:
        return f"event is {short(event)}"
    for name, fits in _FIELDS[event].items():
        if name not in line:
            return f"field '{name}' is missing"
        if not fits(line[name]):
            return f"field '{name}' is {short(line[name])}"
    for name in _NUMBERS if event == EDIT else ():
        if not _number(line.get(name)):
            return f"field '{name}' is {short(line[name])}"
    return _wrong_edit(line) if event == EDIT else None


def _wrong_edit(line: Mapping[str, Any]) -> str | None:
    """Find what does not fit together in the line of an edit."""
    fact = line["fact"]
    if fact is None:
        # What was no request can only have been refused.
        return "a record that is no request was written" if line["solved"] or line["status"] == WRITTEN else None
    prompt, subject, start = line["prompt"], line["subject"], line["start"]
    if start is None or prompt[start : start + len(subject)] != subject:
        return "its subject is not where field 'start' says"
    if fact != [subject, f"{prompt[:start]}{{}}{prompt[start + len(subject) :]}"]:
        return "field 'fact' is not that of prompt and subject"
    return None


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(inner, str) for inner in value)


def _fact(value: Any) -> bool:
    return value is None or (_texts(value) and len(value) == 2)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _mapping_or_none(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _whole_or_none(value: Any) -> bool:
    return value is None or _whole(value)


def _count(value: Any) -> bool:
    return _whole(value) and value > 0


def _number(value: Any) -> bool:
    return (
        value is None or (type(value) is float and math.isfinite(value)) or (type(value) is int and _whole(abs(value)))
    )


def _status(value: Any) -> bool:
    return isinstance(value, str) and value in {WRITTEN, SKIPPED, REJECTED}


_NUMBERS = ("loss", "updates", "value_norm", "written_norm", "norm_before", "norm_after", "seconds")
_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    BEGIN: {
        "format": _text,
        "model": _text,
        "method": _text,
        "use_nas": _truth,
        "parameters": _texts,
        "weights": _text,
        "contexts": _mapping,
        "anchor": _mapping_or_none,
    },
    EDIT: {
        "id": _text,
        "case": _text_or_none,
        "step": _count,
        "of": _count,
        "prompt": _text,
        "subject": _text,
        "start": _whole_or_none,
        "target": _text,
        "fact": _fact,
        "column": _whole_or_none,
        "solved": _truth,
        "status": _status,
        "reason": _text_or_none,
        "replaces": _texts,
        "alarm": _truth,
        "batch_size": _count,
        "weights": _text,
    },
    ROLLBACK: {},
    REVERT: {},
    UNDO: {"ids": _texts, "weights": _text, "norm_after": _number},
    FOREIGN: {"weights": _text},
}
