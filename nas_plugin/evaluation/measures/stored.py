"""Outputs of the original model as they come back from a file: checked once, so that measuring can rely on them."""

from __future__ import annotations

import math
from typing import Any

from nas_plugin.errors import RunFolderError
from nas_plugin.evaluation.records import Fields
from nas_plugin.reading import short


def check_outputs(outputs: dict[str, Any], where: str) -> None:
    """Refuse what `base_outputs` and `DriftProbe.base` cannot have returned; whether it is of these cases is seen later.

    Args:
        outputs: Content of `base.json`.
        where: The file, for messages.

    Raises:
        RunFolderError: A field is missing or holds something else.
    """
    fields = Fields(outputs, where)
    fields.get("format", int)
    locality = fields.inner("locality")
    for case in locality.values:
        groups = locality.inner(case)
        for group in groups.values:
            for row in groups.get(group, list):
                if not isinstance(row, list) or not all(type(token) is int for token in row):
                    raise RunFolderError(f"{groups.where}, field {group}: {short(row)}; expected a list of tokens.")
    frequencies = fields.inner("document_frequencies")
    for count in (fields.get("documents", int), *(frequencies.get(term, int) for term in frequencies.values)):
        if count < 0:
            raise RunFolderError(f"{where}: {count} documents; expected 0 or more.")
    if fields.maybe("drift", dict) is not None:
        _check_drift(fields.inner("drift"))


def _check_drift(drift: Fields) -> None:
    drift.get("prompts", int)
    drift.get("layers", dict)
    layers = drift.inner("layers")
    for layer in layers.values:
        plane = layers.inner(layer)
        mean, axes = plane.get("mean", list), plane.get("axes", list)
        if len(axes) != 2 or not all(_is_vector(row, len(mean)) for row in (mean, *axes)):
            raise RunFolderError(f"{plane.where}: expected a mean and two axes, lists of as many finite numbers.")


def _is_vector(row: Any, length: int) -> bool:
    return isinstance(row, list) and len(row) == length and all(_is_finite(value) for value in row)


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False
