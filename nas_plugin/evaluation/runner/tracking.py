"""What a run logs, told to experiment trackers as well, through accelerate; off unless asked for.

The run folder stays the record: trackers are told the same numbers, after they are on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from nas_plugin.errors import PackageMissingError, RunError

TRACKERS = {
    "tensorboard": "pip install 'nas-plugin[track]'",
    "wandb": "pip install wandb",
    "trackio": "pip install trackio",
}
"""Trackers by name, and how each is installed."""
PROJECT = "nas-edit"
_FOLDER = "tensorboard"
_OF_EDITS = ("loss", "updates", "value_norm", "written_norm")


def check_trackers(names: Sequence[Any]) -> None:
    """Refuse trackers that are not there, before anything takes time.

    Args:
        names: Names of trackers, or `accelerate.tracking.GeneralTracker` objects, which are taken as they are.

    Raises:
        RunError: There is no tracker of that name.
        PackageMissingError: Its package is not installed, or accelerate is too old for it.
    """
    named = [name for name in names if isinstance(name, str)]
    for name in named:
        if name not in TRACKERS:
            raise RunError(f"there is no tracker {name!r}; there are {', '.join(TRACKERS)}.")
    if not named:
        return
    from accelerate.tracking import get_available_trackers

    there = {getattr(kind, "value", kind) for kind in get_available_trackers()}
    for name in named:
        if name not in there:
            raise PackageMissingError(
                f"the tracker {name!r} needs a package that is not installed here: {TRACKERS[name]} (or a newer accelerate)."
            )


class Tracking:
    """The trackers of one run; without any, every call does nothing."""

    def __init__(self, trackers: Sequence[Any]) -> None:
        self._trackers = list(trackers)

    @classmethod
    def start(cls, trackers: Sequence[Any], folder: Path, run: Mapping[str, Any]) -> Tracking:
        """Open trackers and tell them what is run.

        Args:
            trackers: Names, each once, or trackers of accelerate that are open.
            folder: Run folder; TensorBoard's files go into `tensorboard/` there.
            run: Content of `run.json`; label, method, model and hyperparameters are told.

        Returns:
            The trackers.
        """
        check_trackers(trackers)
        opened = [
            _opened(tracker, folder, str(run["label"])) if isinstance(tracker, str) else tracker
            for tracker in dict.fromkeys(trackers)
        ]
        told = {name: run.get(name) for name in ("label", "method", "use_nas", "model", "anchor", "edits_per_step")}
        told |= {f"hparams/{key}": value for key, value in run.get("hparams", {}).items()}
        for tracker in opened:
            # What every tracker takes: numbers, texts, truth values.
            tracker.store_init_configuration({key: _simple(value) for key, value in told.items()})
        return cls(opened)

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def step(self, lines: Sequence[Mapping[str, Any]], norms: Mapping[str, Any]) -> None:
        """Tell a step.

        Args:
            lines: Its log entries.
            norms: |W| / |W0| per layer and in total after it.
        """
        values: dict[str, float | None] = {"step/seconds": sum(line["seconds"] for line in lines)}
        values["step/skipped"] = sum(bool(line["skipped"]) for line in lines)
        for name in _OF_EDITS:
            known = [line[name] for line in lines if line.get(name) is not None]
            values[f"step/{name}"] = fmean(known) if known else None
        self._tell(values | dict(_norms(norms)), lines[-1]["edit"])

    def checkpoint(self, line: Mapping[str, Any]) -> None:
        """Tell a checkpoint.

        Args:
            line: Its log entry.
        """
        values: dict[str, float | None] = {
            f"{part}/{name}": statistic["mean"]
            for part in ("final", "cohort")
            for name, statistic in line[part].items()
        }
        values["checkpoint/perplexity"] = line["perplexity"]
        values["checkpoint/seconds"] = line["eval_seconds"]
        for layer, drift in (line["drift"] or {}).items():
            values[f"drift/layer_{layer}"] = drift["full_distance"]
        for task, metrics in (line["capability"] or {}).items():
            values |= {f"capability/{task}/{name}": value for name, value in metrics.items()}
        self._tell(values | dict(_norms(line["norm"])), line["edits"])

    def finish(self) -> None:
        """Close them."""
        for tracker in self._trackers:
            tracker.finish()

    def _tell(self, values: Mapping[str, float | None], edits: int) -> None:
        finite = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
        for tracker in self._trackers:
            tracker.log(finite, step=edits)


def _opened(name: str, folder: Path, label: str) -> Any:
    from accelerate import PartialState, tracking

    PartialState()  # the trackers ask it which process they are in
    if name == "tensorboard":
        tracker = tracking.TensorBoardTracker(label, logging_dir=folder / _FOLDER)
    else:
        # These two call a project what others call a run.
        kind = tracking.LOGGER_TYPE_TO_CLASS[name]
        tracker = kind(PROJECT, name=label, **({"dir": str(folder)} if name == "wandb" else {}))
    if hasattr(tracker, "start"):  # older releases of accelerate start in the constructor
        tracker.start()
    return tracker


def _norms(norms: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    yield "norm_ratio/total", norms["total"]
    for layer, ratio in norms["layers"].items():
        yield f"norm_ratio/layer_{layer}", ratio


def _simple(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
