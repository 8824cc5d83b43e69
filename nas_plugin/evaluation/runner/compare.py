"""Several editors on the same stream and grid, each from the same unedited model, in processes of their own."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_plugin.errors import RunError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.logs import EDITS_FILE, RUN_FILE
from nas_plugin.evaluation.runner.entrants import Entrant
from nas_plugin.evaluation.runner.folder import DONE, STOPPED, RunFolder, check_empty, clear
from nas_plugin.evaluation.runner.plan import Plan
from nas_plugin.evaluation.runner.stopping import stop_requests
from nas_plugin.evaluation.runner.tracking import check_trackers
from nas_plugin.evaluation.streams import Stream
from nas_plugin.parallel import Group
from nas_plugin.progress import progress_bar

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
# What a worker process was given when it was started.
_shared: dict[str, Any] = {}


@dataclass(frozen=True)
class Job:
    """One entrant's run; goes to a process.

    Attributes:
        entrant: Who.
        stream: On what.
        held_out: Cases that nobody writes.
        folder: Run folder.
        plan: Steps, checkpoints, measures.
        resume: Go on with the run in the folder, if there is one.
        skip_bad: Leave out cases that the model cannot take.
        command: The command line, for the record.
        trackers: Names of experiment trackers; see `run_stream`.
    """

    entrant: Entrant
    stream: Stream
    held_out: Sequence[Case]
    folder: Path
    plan: Plan
    resume: bool
    skip_bad: bool
    command: str
    trackers: Sequence[str] = ()


def compare(
    entrants: Sequence[Entrant],
    stream: Stream,
    out: Path,
    plan: Plan,
    *,
    held_out: Sequence[Case] = (),
    resume: bool = False,
    skip_bad: bool = False,
    command: str = "",
    workers: int | None = None,
    trackers: Sequence[str] = (),
) -> Path:
    """Run editors side by side, one thread each, and draw the report.

    An editor of EasyEdit that cannot run is reported with the reason. One that is gone on with starts again, because its state
    cannot be saved. SIGINT and SIGTERM stop every run after its present step.

    Args:
        entrants: The editors.
        stream: What is written.
        out: A folder for the run folders, named as the entrants, and `report.html`.
        plan: Steps, checkpoints, measures.
        held_out: Cases that are never written.
        resume: Go on with the runs in the folder.
        skip_bad: Leave out cases that the model cannot take.
        command: The command line, for the record.
        workers: Processes; as many as there are cores when None.
        trackers: Names of experiment trackers; see `run_stream`.

    Returns:
        The report.

    Raises:
        RunError: An entrant is there twice, or a tracker is unknown.
        PackageMissingError: A tracker's package is not installed.
        ProcessGroupError: torchrun or accelerate launch started several processes.
        RunFolderError: There is a run in one of the folders, and `resume` is off.
        Exception: What ended the run of one of the six editors, after all others have ended and the report is drawn.
    """
    # matplotlib is imported only where something is drawn.
    from nas_plugin.evaluation.report import write_report

    Group.launched().refuse("comparing editors, each in a process of its own,")
    check_trackers(trackers)
    labels = [who.label for who in entrants]
    if len(set(labels)) < len(labels):
        raise RunError(f"{', '.join(labels)}: name every method once.")
    out = out.resolve()
    jobs = [
        Job(who, stream, held_out, out / who.label, plan, resume, skip_bad, command, tuple(trackers))
        for who in entrants
    ]
    if not resume:
        for job in jobs:
            check_empty(job.folder)
    errors = _run_all(jobs, workers)
    write_report([job.folder for job in jobs if (job.folder / RUN_FILE).exists()], out / "report.html")
    for job, error in zip(jobs, errors, strict=True):
        if error is not None and not job.entrant.is_host:
            raise error
    return out / "report.html"


def _run_all(jobs: Sequence[Job], workers: int | None) -> list[BaseException | None]:
    context = multiprocessing.get_context("spawn")
    stopping, done = context.Event(), context.SimpleQueue()
    able = [job for job in jobs if job.entrant.unavailable is None]
    count = min(len(able), workers or os.cpu_count() or 1)
    futures: dict[int, Future[bool]] = {}
    with stop_requests() as asked, progress_bar(f"{len(jobs)} editors", sum(job.plan.edits for job in able)) as bar:
        if able:
            with ProcessPoolExecutor(count, context, initializer=_begin, initargs=(stopping, done)) as pool:
                futures = {id(job): pool.submit(_run, job) for job in able}
                pending = set(futures.values())
                while pending:
                    _, pending = wait(pending, timeout=_POLL_SECONDS)
                    while not done.empty():
                        bar.advance(bar.task_ids[0], done.get())
                    if asked():
                        stopping.set()
    errors: list[BaseException | None] = []
    for job in jobs:
        error = futures[id(job)].exception() if id(job) in futures else None
        reason = job.entrant.unavailable if error is None else f"{type(error).__name__}: {error}"
        if reason is not None:
            logger.warning("%s: %s", job.entrant.label, reason)
            if job.entrant.is_host:
                _report_unavailable(job, reason)
        errors.append(error)
    return errors


def _report_unavailable(job: Job, reason: str) -> None:
    """Say why a method of EasyEdit wrote nothing; one that failed later keeps its logs, where the runner has said so."""
    edits = job.folder / EDITS_FILE
    if edits.exists() and edits.stat().st_size:
        return
    clear(job.folder)
    stream = job.stream
    folder = RunFolder.start(
        job.folder,
        {
            "label": job.entrant.label,
            "method": job.entrant.label,
            "use_nas": False,
            "model": str(job.entrant.hparams.model_name),
            "hparams": {},
            "anchor": None,
            "stream": {
                "name": stream.name,
                "file": stream.file,
                "sha256": stream.sha256,
                "cases": job.plan.edits,
                "family": stream.family,
            },
            **job.plan.to_dict(),
            "versions": {},
            "command": job.command,
            "unavailable": reason,
        },
    )
    folder.end(STOPPED)


def _begin(stopping: Any, done: Any) -> None:
    import signal

    import torch
    from transformers.utils import logging as transformers_logging

    # Bars of several processes would write over each other.
    transformers_logging.disable_progress_bar()
    # One process a core: threads would only get in each other's way, and the order of sums would depend on them.
    torch.set_num_threads(1)
    # A terminal sends its interrupt to every process; the first one decides when the others stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _shared.update(stopping=stopping, done=done)


def _run(job: Job) -> bool:
    from nas_plugin.evaluation.runner.load import load_model
    from nas_plugin.evaluation.runner.run import run_stream
    from nas_plugin.evaluation.runner.writers import SessionWriter, Writer

    stopping, done = _shared["stopping"], _shared["done"]
    if stopping.is_set():
        return False
    who, resume = job.entrant, job.resume
    if who.is_host and resume and (job.folder / RUN_FILE).exists():
        if _status(job.folder) == DONE:
            done.put(job.plan.edits)
            return True
        clear(job.folder)
        resume = False
    model, tok = load_model(who.hparams)
    writer: Writer
    if who.host_file is not None:
        from nas_plugin.evaluation.runner.hosts import HostWriter

        unrelated = [case.requests[0].prompt for case in job.held_out]
        writer = HostWriter(model, tok, who.label, who.host_file, who.host_settings or {}, unrelated)
    else:
        writer = SessionWriter(model, tok, who.hparams, progress=False)
    return run_stream(
        writer,
        job.stream,
        job.folder,
        job.plan,
        held_out=job.held_out,
        label=who.label,
        resume=resume,
        skip_bad=job.skip_bad,
        command=job.command,
        stop=lambda: stopping.is_set() or _orphaned(),
        advance=done.put,
        trackers=job.trackers,
    )


def _orphaned() -> bool:
    """Tell whether the process that started this one is gone, so that nobody waits for what this one does."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _status(folder: Path) -> str:
    from nas_plugin.evaluation.records import read_object

    return str(read_object(folder / RUN_FILE).get("status"))
