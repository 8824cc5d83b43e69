"""Sentences about the runs: what came out, and what to mind when reading it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nas_plugin.evaluation.logs import RunLog
from nas_plugin.evaluation.report.content import Key
from nas_plugin.evaluation.report.runs import Run, by_method

_CONDITIONS: dict[str, Callable[[RunLog], Any]] = {
    "model": lambda log: log.model,
    "stream": lambda log: log.stream.get("name"),
    "stream file": lambda log: log.stream.get("sha256"),
    "length of the stream": lambda log: log.stream.get("cases"),
    "edits per step": lambda log: log.edits_per_step,
    "checkpoints": lambda log: log.grid,
    "number of first edits followed": lambda log: log.cohort,
}


def title(runs: Sequence[Run]) -> str:
    """Name the page.

    Args:
        runs: All runs.

    Returns:
        The names of those that could run if they are few, else their number.
    """
    labels = [run.label for run in runs if run.available] or [run.label for run in runs]
    return " and ".join(labels) if len(labels) < 3 else f"{len(labels)} runs compared"


def conditions(runs: Sequence[Run]) -> str:
    """Say under which conditions the runs were made, where all share them.

    Args:
        runs: All runs.

    Returns:
        One line.
    """
    first = runs[0].log
    shared = {name for name, value in _CONDITIONS.items() if all(value(run.log) == value(first) for run in runs)}
    facts = {
        "model": f"model {first.model}",
        "stream": f"stream {first.stream.get('name')}",
        "length of the stream": f"{first.stream.get('cases')} cases",
        "edits per step": "one edit per step"
        if first.edits_per_step == 1
        else f"{first.edits_per_step} edits per step",
        "checkpoints": f"{len(first.grid)} checkpoints",
    }
    return ", ".join(fact for name, fact in facts.items() if name in shared)


def verdicts(runs: Sequence[Run]) -> list[Key]:
    """Say for each method how long it held, and how much longer with norm anchoring.

    Args:
        runs: Runs with a score.

    Returns:
        One sentence per method.
    """
    runs = [run for run in runs if len(run.scores.edits)]
    sentences = []
    for method, members in by_method(runs).items():
        plain = [run for run in members if not run.log.use_nas]
        anchored = [run for run in members if run.log.use_nas]
        if len(plain) == len(anchored) == 1:
            sentences.append(Key(anchored[0].symbol, method, _pair(plain[0], anchored[0])))
        else:
            sentences += [Key(run.symbol, run.label, f"{_fate(run)}.") for run in members]
    return sentences


def notices(runs: Sequence[Run]) -> list[str]:
    """Say what to mind: conditions that differ, runs that did not end or did not start, logs that were cut.

    Args:
        runs: All runs.

    Returns:
        Sentences.
    """
    differing = [name for name, value in _CONDITIONS.items() if len({_hashable(value(run.log)) for run in runs}) > 1]
    said = [f"The runs differ in {', '.join(differing)}; compare them with that in mind."] if differing else []
    for run in runs:
        came = f"{len(run.log.edits)} edits; its last checkpoint is after {run.last.edits if run.last else 0}"
        if not run.available:
            said.append(f"{run.label} is unavailable: {run.log.unavailable}")
        elif run.log.status == "stopped":
            said.append(f"{run.label} was stopped after {came}.")
        elif run.log.status != "done":
            said.append(f"{run.label} is still running or was killed; it is shown as it was after {came}.")
        said += [
            f"{run.label}: the last line of {name} was only half written and is left out." for name in run.log.torn
        ]
    return said


def _pair(plain: Run, anchored: Run) -> str:
    if plain.collapse is None or anchored.collapse is None:
        longer = plain.collapse is not None and anchored.scores.edits[-1] > plain.collapse
        times = f" (at least {anchored.scores.edits[-1] / plain.collapse:.1f} times as long)" if longer else ""
        return f"{_fate(plain)}; with norm anchoring it {_fate(anchored)}{times if anchored.collapse is None else ''}."
    return f"{_fate(plain)}; with norm anchoring it {_fate(anchored)} ({anchored.collapse / plain.collapse:.1f} times as long)."


def _fate(run: Run) -> str:
    edits = run.scores.edits[-1]
    return f"does not collapse in {edits} edits" if run.collapse is None else f"collapses at {run.collapse} edits"


def _hashable(value: Any) -> Any:
    return value if isinstance(value, tuple) else repr(value)
