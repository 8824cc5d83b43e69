"""Reading a run folder: what a run wrote about itself, its edits and its checkpoints.

A run that was killed while writing leaves half a line at the end of a log; that half is left out and said so. Anything else
that is not as the runner writes it is an error that names file, line and field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_plugin.errors import RunFolderError
from nas_plugin.evaluation.records import Fields, read_jsonl, read_object
from nas_plugin.reading import LARGEST, short

RUN_FILE, EDITS_FILE, CHECKPOINTS_FILE = "run.json", "edits.jsonl", "checkpoints.jsonl"
FORMAT = 1
_FARTHEST = 1e100
_LARGEST_MEASURED = 1e200
_LONGEST_NUMBER = 18


@dataclass(frozen=True)
class Statistic:
    """Mean, population standard deviation and number of values of one metric; the unit is the metric's."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Drift:
    """How far the hidden states of held-out prompts have moved at one layer; NaN where they were not finite.

    Attributes:
        pca_distance: Distance of the means in the plane of the first two principal components before the edits.
        full_distance: Distance of the means in the full space.
        spread: Root mean square distance from the mean, in the full space.
        cloud: At most 200 points in that plane.
    """

    pca_distance: float
    full_distance: float
    spread: float
    cloud: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class LoggedEdit:
    """One line of `edits.jsonl`.

    Attributes:
        edit: Number of the edit, from 1.
        case_id: Its case in the stream.
        value_norm: |v*| as solved; None for an editor that solves no value.
        written_norm: |v| as written; None likewise.
        skipped: Nothing was written for it.
        seconds: Its share of its step's wall-clock time.
        immediate: Metrics of its case right after its step.
    """

    edit: int
    case_id: str
    value_norm: float | None
    written_norm: float | None
    skipped: bool
    seconds: float
    immediate: Mapping[str, float]


@dataclass(frozen=True)
class LoggedCheckpoint:
    """One line of `checkpoints.jsonl`.

    Attributes:
        edits: Edits written so far.
        layer_norms: R_n = |W_n| / |W_0| per edited layer, in order of layers; empty where no weight is compared.
        norm: R_n over all edited layers, None likewise.
        final: Metrics over all cases so far.
        cohort: Metrics over the first cases of the stream only.
        perplexity: On held-out text, if measured.
        drift: Per layer, if measured.
        capability: Metrics per task, if measured.
    """

    edits: int
    layer_norms: Mapping[str, float]
    norm: float | None
    final: Mapping[str, Statistic]
    cohort: Mapping[str, Statistic]
    perplexity: float | None
    drift: Mapping[str, Drift]
    capability: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class RunLog:
    """A run folder.

    Attributes:
        folder: Where it lies.
        label: Name for tables and pictures.
        method: Editor, without the prefix for norm anchoring.
        use_nas: Whether norm anchoring was on.
        model: Name or path of the model.
        hparams: Hyperparameters as used.
        anchor: tau, None without norm anchoring.
        stream: What was edited: name, file, sha256, cases, family.
        edits_per_step: Requests written at once.
        grid: Numbers of edits after which it is measured.
        cohort: Number of first cases that are followed to the end.
        versions: Package versions.
        protocols: Definition of every metric.
        command: The command line.
        status: "running", "done" or "stopped".
        unavailable: Why the method could not run, None if it could.
        edits: Edits done.
        checkpoints: Measurements, the unedited model's first.
        torn: Names of logs whose last line was only half written.
    """

    folder: Path
    label: str
    method: str
    use_nas: bool
    model: str
    hparams: Mapping[str, Any]
    anchor: float | None
    stream: Mapping[str, Any]
    edits_per_step: int
    grid: tuple[int, ...]
    cohort: int
    versions: Mapping[str, Any]
    protocols: Mapping[str, str]
    command: str
    status: str
    unavailable: str | None
    edits: tuple[LoggedEdit, ...]
    checkpoints: tuple[LoggedCheckpoint, ...]
    torn: tuple[str, ...]


class _Logged(Fields):
    """Fields of a log, in which a number too large to be squared or drawn counts as infinite."""

    def maybe(self, name: str, kind: type) -> Any:
        """Take a field; see `Fields.maybe`."""
        value = super().maybe(name, kind)
        too_large = kind is float and value is not None and abs(value) > _LARGEST_MEASURED
        return math.copysign(math.inf, value) if too_large else value


def read_run(folder: Path) -> RunLog:
    """Read a run folder, finished or not.

    Args:
        folder: A folder that a run wrote.

    Returns:
        Its content; no edits and no checkpoints where the run had not come that far.

    Raises:
        RunFolderError: A file is missing, of another format, or holds what the runner does not write.
    """
    folder = Path(folder)
    run = _Logged(read_object(folder / RUN_FILE), str(folder / RUN_FILE))
    if (given := run.get("format", int)) != FORMAT:
        raise RunFolderError(
            f"{run.where}: format {given}; this version reads format {FORMAT}. Run it again with this one."
        )
    edits, torn_edits = _read_lines(folder / EDITS_FILE, _edit, lambda entry: entry.edit)
    checkpoints, torn_checkpoints = _read_lines(folder / CHECKPOINTS_FILE, _checkpoint, lambda entry: entry.edits)
    torn = [name for name, is_torn in ((EDITS_FILE, torn_edits), (CHECKPOINTS_FILE, torn_checkpoints)) if is_torn]
    return RunLog(
        folder=folder,
        **{name: run.get(name, str) for name in ("label", "method", "model", "command", "status")},
        **{name: run.get(name, dict) for name in ("hparams", "stream", "versions", "protocols")},
        use_nas=run.get("use_nas", bool),
        anchor=_finite({"anchor": run.maybe("anchor", float)}, run)["anchor"],
        edits_per_step=run.get("edits_per_step", int),
        grid=_grid(run),
        cohort=run.get("cohort", int),
        unavailable=run.maybe("unavailable", str),
        edits=edits,
        checkpoints=checkpoints,
        torn=tuple(torn),
    )


def _read_lines(
    path: Path, parse: Callable[[Fields], Any], number_of: Callable[[Any], int]
) -> tuple[tuple[Any, ...], bool]:
    lines = read_jsonl(path)
    entries = tuple(parse(_Logged(record, f"{path}, line {n}")) for n, record in enumerate(lines.records, start=1))
    if entries and number_of(entries[0]) < 0:
        raise RunFolderError(f"{path}, line 1: number {number_of(entries[0])}; expected 0 or more.")
    for line, (left, right) in enumerate(zip(entries, entries[1:], strict=False), start=2):
        if number_of(right) <= number_of(left):
            raise RunFolderError(
                f"{path}, line {line}: number {number_of(right)} after {number_of(left)}; expected them to rise. Two runs "
                "wrote into this folder; run it again into an empty one."
            )
    return entries, lines.torn


def _edit(fields: Fields) -> LoggedEdit:
    return LoggedEdit(
        edit=fields.get("edit", int),
        case_id=fields.get("case_id", str),
        value_norm=fields.maybe("value_norm", float),
        written_norm=fields.maybe("written_norm", float),
        skipped=fields.maybe("skipped", bool) or False,
        seconds=fields.get("seconds", float),
        immediate=_finite(fields.inner("immediate").numbers(), fields),
    )


def _checkpoint(fields: Fields) -> LoggedCheckpoint:
    norm = fields.inner("norm")
    layers = norm.inner("layers").numbers()
    return LoggedCheckpoint(
        edits=fields.get("edits", int),
        layer_norms={layer: layers[layer] for layer in in_layer_order(layers)},
        norm=norm.maybe("total", float),
        final=_statistics(fields.inner("final")),
        cohort=_statistics(fields.inner("cohort")),
        perplexity=fields.maybe("perplexity", float),
        drift=_drift(fields.inner("drift")),
        capability={
            task: fields.inner("capability").inner(task).numbers() for task in fields.inner("capability").values
        },
    )


def _statistics(fields: Fields) -> dict[str, Statistic]:
    inner = {name: fields.inner(name) for name in fields.values}
    return {
        name: Statistic(s.get("mean", float), s.get("std", float), s.get("count", int)) for name, s in inner.items()
    }


def _drift(fields: Fields) -> dict[str, Drift]:
    drifts = {}
    for layer in in_layer_order(fields.values):
        inner = fields.inner(layer)
        cloud = inner.get("cloud", list)
        if not all(isinstance(p, list) and len(p) == 2 and all(map(_is_place, p)) for p in cloud):
            raise RunFolderError(f"{inner.where}, field cloud: expected [x, y] pairs of finite numbers.")
        drifts[layer] = Drift(
            pca_distance=_or_nan(inner, "pca_distance"),
            full_distance=_or_nan(inner, "full_distance"),
            spread=_or_nan(inner, "spread"),
            cloud=tuple((float(x), float(y)) for x, y in cloud),
        )
    return drifts


def _or_nan(fields: Fields, name: str) -> float:
    value = fields.maybe(name, float)
    return math.nan if value is None else float(value)


def _grid(run: Fields) -> tuple[int, ...]:
    grid = run.get("grid", list)
    if not all(type(point) is int and 0 <= point <= LARGEST for point in grid):
        raise RunFolderError(f"{run.where}, field grid: {short(grid)}; expected a list of whole numbers.")
    return tuple(grid)


def _finite(numbers: dict[str, Any], fields: Fields) -> dict[str, Any]:
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise RunFolderError(f"{fields.where}, field {name}: {value}; expected a finite number or null.")
    return numbers


def _is_place(value: Any) -> bool:
    """Say whether it is a coordinate; the square of one must be a number still."""
    return type(value) in (int, float) and abs(value) < _FARTHEST


def in_layer_order(layers: Mapping[str, Any]) -> list[str]:
    """Sort layers by number; JSON keeps them as text, where 10 comes before 9.

    Args:
        layers: Anything keyed by layer.

    Returns:
        The keys, numbers first and in their order.
    """
    return sorted(layers, key=lambda layer: (not _is_number(layer), int(layer) if _is_number(layer) else 0, layer))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER
