"""Going through a stream with one editor, logging every edit and measuring at checkpoints."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nas_plugin
from nas_plugin.errors import NasPluginError, RequestError, RunError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.logs import RUN_FILE
from nas_plugin.evaluation.measures.asking import plan_of
from nas_plugin.evaluation.runner.bench import Bench
from nas_plugin.evaluation.runner.folder import DONE, STATE_FOLDER, STOPPED, RunFolder, check_empty, check_same
from nas_plugin.evaluation.runner.plan import Plan
from nas_plugin.evaluation.runner.stopping import stop_requests
from nas_plugin.evaluation.runner.tracking import Tracking, check_trackers
from nas_plugin.evaluation.runner.writers import Writer
from nas_plugin.evaluation.streams import Stream
from nas_plugin.progress import progress_bar

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "lm_eval", "easyeditor")

Advance = Callable[[int], object]
"""Told how many edits are done since it was last called."""


def run_stream(
    writer: Writer,
    stream: Stream,
    folder: Path,
    plan: Plan,
    *,
    held_out: Sequence[Case] = (),
    label: str | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    command: str = "",
    stop: Callable[[], bool] | None = None,
    advance: Advance | None = None,
    trackers: Sequence[Any] = (),
) -> bool:
    """Write a stream, one step after another, into a run folder.

    The folder is complete after every line, so that a run that was stopped or killed can be drawn, and gone on with from its
    last checkpoint: it then ends with the same weights, bit for bit, and the same logs but for times as one that was not
    interrupted (on the same machine, with the same number of threads).

    Args:
        writer: The editor, on a model that no edit has touched.
        stream: What is written: its first `plan.edits` cases.
        folder: Run folder.
        plan: Steps, checkpoints, measures.
        held_out: Cases that are never written, for the drift of hidden states.
        label: Name for tables and pictures; the method's own when None.
        resume: Go on with the run in the folder, if there is one.
        skip_bad: Leave out cases that this model or tokenizer cannot take, instead of raising.
        command: The command line, for the record.
        stop: Asked before every step whether to stop; by default SIGINT and SIGTERM do.
        advance: Told of edits done; by default a progress bar is shown.
        trackers: Experiment trackers that are told of every step and checkpoint: "tensorboard", "wandb", "trackio", or
            `accelerate.tracking.GeneralTracker` objects.

    Returns:
        Whether the stream was written to its end; False if it was stopped.

    Raises:
        RunError: The stream is shorter than the plan, the editor's state cannot be saved and the run should go on, or a
            tracker is unknown.
        PackageMissingError: A tracker's package is not installed.
        RunFolderError: There is a run in the folder, and `resume` is off.
        ResumeError: The run in the folder is of something else.
        RequestError: A case cannot be taken and `skip_bad` is off; nothing has been written.
        NasPluginError: The editor or a measurement refuses; what was logged before stays.
    """
    check_trackers(trackers)
    resume = resume and (folder / RUN_FILE).exists()
    group = writer.group
    with group.folder(folder, resume) as own, ExitStack() as stack:
        if stop is None:
            stop = stack.enter_context(stop_requests())
        if advance is None:
            bar = stack.enter_context(progress_bar(label or "edits", plan.edits, group.main))
            advance = partial(bar.advance, bar.task_ids[0])
        ask = stop
        told = _Told(lambda: group.any(ask()), advance, trackers if group.main else ())
        return _run(writer, stream, own, plan, held_out, label, resume, skip_bad, command, told)


@dataclass(frozen=True)
class _Told:
    """Who is asked and told while a run goes on."""

    stop: Callable[[], bool]
    advance: Advance
    trackers: Sequence[Any]


def _run(
    writer: Writer,
    stream: Stream,
    folder: Path,
    plan: Plan,
    held_out: Sequence[Case],
    label: str | None,
    resume: bool,
    skip_bad: bool,
    command: str,
    told: _Told,
) -> bool:
    if not resume:
        check_empty(folder)
    elif not writer.resumable:
        raise RunError(f"{folder}: an editor of EasyEdit cannot be gone on with; give another folder and run it again.")
    if len(stream.cases) < plan.edits:
        raise RunError(f"the stream {stream.name} has {len(stream.cases)} cases and {plan.edits} edits were planned.")
    header = {**writer.describe(), **plan.to_dict(), "stream": {"sha256": stream.sha256}}
    if label is not None:
        header["label"] = label
    if resume:
        # Before anything is measured; the grid is compared once it is known which cases are left out.
        check_same(folder, {key: value for key, value in header.items() if key != "grid"})
    writer.prepare(folder / STATE_FOLDER, resume)
    stream, plan, refused = _usable(writer, stream, plan, skip_bad)
    unfit = writer.check(held_out)
    held_out = [case for case in held_out if case.id not in unfit]
    header |= {
        **plan.to_dict(),
        "anchor": writer.anchor,
        "stream": _stream(stream, plan, refused),
        "versions": versions(),
        "command": command,
    }
    log = RunFolder.go_on(folder, header) if resume else RunFolder.start(folder, header)
    with ExitStack() as stack:
        try:
            tracking = Tracking.start(told.trackers, folder, header)
            stack.callback(tracking.finish)
            done = _go(log, writer, stream, plan, held_out, told.stop, told.advance, tracking)
        except BaseException as error:
            log.end(STOPPED, f"{type(error).__name__}: {error}")
            raise
    log.end(DONE if done else STOPPED)
    return done


def _go(
    log: RunFolder,
    writer: Writer,
    stream: Stream,
    plan: Plan,
    held_out: Sequence[Case],
    stop: Callable[[], bool],
    advance: Advance,
    tracking: Tracking,
) -> bool:
    begun = log.measured
    bench = Bench(writer, plan, stream.cases, held_out, log.base if begun else None)
    if not begun:
        log.base = bench.base
        line, results = bench.checkpoint(0, 0, 0.0)
        log.add_checkpoint(line, results)
        tracking.checkpoint(line)
    elif log.edits:
        writer.load(log.state_file(log.edits))
    advance(log.edits)
    for start in range(log.edits, plan.edits, plan.per_step):
        if stop():
            return False
        number = -(-start // plan.per_step) + 1
        lines = _step(log, writer, bench, start, plan.per_step, number)
        if tracking:
            tracking.step(lines, writer.norms())
        advance(log.edits - start)
        if log.edits in plan.grid:
            tracking.checkpoint(_checkpoint(log, writer, bench, number))
    return True


def _step(log: RunFolder, writer: Writer, bench: Bench, start: int, size: int, number: int) -> list[dict[str, Any]]:
    cases = bench.cases[start : start + size]
    written = writer.write(cases)
    immediate = bench.measure(cases)
    lines = [
        {"edit": edit, "step": number, **line, "immediate": metrics}
        for edit, (line, metrics) in enumerate(zip(written, immediate, strict=True), start=start + 1)
    ]
    log.add_edits(lines)
    return lines


def _checkpoint(log: RunFolder, writer: Writer, bench: Bench, number: int) -> dict[str, Any]:
    line, results = bench.checkpoint(log.edits, number, log.edit_seconds)
    kept = log.state_file(log.edits)
    if writer.resumable:
        writer.save(kept)
    log.add_checkpoint(line, results)
    # Only now: until its line was on disk, the run would have gone on from the checkpoint before.
    for manifest in log.state.glob("after_*.json"):
        if manifest != kept:
            manifest.unlink()
            manifest.with_suffix(".safetensors").unlink(missing_ok=True)
    return line


def _usable(writer: Writer, stream: Stream, plan: Plan, skip_bad: bool) -> tuple[Stream, Plan, dict[str, str]]:
    """Find the cases that this model cannot take before the first edit, and leave them out if that is wanted."""
    cases = stream.cases[: plan.edits]
    refused = writer.check(cases) | _unaskable(writer, plan, cases)
    if not refused:
        return replace(stream, cases=cases), plan, {}
    if not skip_bad:
        name, reason = next(iter(refused.items()))
        raise RequestError(
            f"{len(refused)} of {len(cases)} cases cannot be taken by this model; case {name}: {reason} Leave such cases "
            "out with skip_bad (--skip-bad)."
        )
    cases = tuple(case for case in cases if case.id not in refused)
    if not cases:
        raise RequestError(
            f"none of the {len(refused)} cases can be taken by this model; the first: {next(iter(refused.values()))}"
        )
    logger.warning("%d cases are left out, which this model cannot take: %s", len(refused), ", ".join(refused))
    grid = tuple(point for point in plan.grid if point < len(cases))
    return replace(stream, cases=cases), replace(plan, grid=(*grid, len(cases))), refused


def _unaskable(writer: Writer, plan: Plan, cases: Sequence[Case]) -> dict[str, str]:
    asked = plan.measures.asked(cases)
    try:
        plan_of(writer.model, writer.tok, asked)
    except NasPluginError:
        return {case.id: reason for case in asked if (reason := _why_unaskable(writer, case)) is not None}
    return {}


def _why_unaskable(writer: Writer, case: Case) -> str | None:
    try:
        plan_of(writer.model, writer.tok, [case])
    except RequestError as error:
        return error.message
    return None


def _stream(stream: Stream, plan: Plan, refused: dict[str, str]) -> dict[str, Any]:
    return {
        "name": stream.name,
        "file": stream.file,
        "sha256": stream.sha256,
        "cases": plan.edits,
        "family": stream.family,
        "schema": stream.schema,
        "left_out": [{"record": number, "reason": reason} for number, reason in stream.left_out]
        + [{"case_id": name, "reason": reason} for name, reason in refused.items()],
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those that decide results."""
    found = {"nas_plugin": nas_plugin.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
