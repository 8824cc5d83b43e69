"""Conducting a study: its editors side by side in processes, its numbers and tables in a folder."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nas_plugin.errors import RunError
from nas_plugin.evaluation.measures import protocols_of
from nas_plugin.evaluation.report.content import Table
from nas_plugin.evaluation.runner.folder import plain
from nas_plugin.evaluation.runner.run import versions
from nas_plugin.evaluation.studies.shared import Advance, Setting, Study
from nas_plugin.evaluation.studies.written import markdown
from nas_plugin.files import write_bytes, write_json
from nas_plugin.hparams import DEMO_MODEL
from nas_plugin.parallel import Group
from nas_plugin.progress import progress_bar

STUDY_FILE, TABLE_FILE = "study.json", "study.md"
FORMAT = 1
_POLL_SECONDS = 0.2


def conduct(
    study: Study,
    setting: Setting,
    methods: Sequence[str],
    out: Path,
    *,
    command: str = "",
    workers: int | None = None,
) -> list[Table]:
    """Run a study for several editors; what is finished is on disk before the next one is.

    Args:
        study: The study.
        setting: On what.
        methods: Editors, as `Setting.hparams_for` takes them.
        out: Folder for `study.json` (all numbers) and `study.md` (the tables).
        command: The command line, for the record.
        workers: Editors at the same time, each in a process with its own model; by default as many as there are cores for the
            embedded model, else one. A study of times takes one.

    Returns:
        The tables.

    Raises:
        RunError: An editor is unknown or named twice; nothing was run.
        ProcessGroupError: torchrun or accelerate launch started several processes.
        NasPluginError: A study cannot be made as asked; the editors that were finished are on disk.
    """
    Group.launched().refuse("a study, which has processes of its own,")
    named = {method.partition("=")[0]: method for method in methods}
    if len(named) < len(methods):
        raise RunError(f"{', '.join(methods)}: name every editor once.")
    hparams = {label: setting.hparams_for(method).to_dict() for label, method in named.items()}
    started = time.perf_counter()
    found: dict[str, dict[str, Any]] = {}
    with progress_bar(study.title, study.units * len(named)) as bar:
        demo = all(values["model_name"] == DEMO_MODEL for values in hparams.values())
        size = _size(study, len(named), workers, demo)
        for label, result in _results(study, setting, named, size, partial(bar.advance, bar.task_ids[0])):
            found[label] = result
            results = {label: found[label] for label in named if label in found}
            tables = study.tables(results)
            head = {
                "format": FORMAT,
                "study": study.name,
                "command": command,
                "settings": {**asdict(setting), **asdict(study)},
                "hparams": hparams,
                "protocols": protocols_of({name for r in results.values() for name in r.get("metrics", {}).values()}),
                "versions": versions(),
                "seconds": time.perf_counter() - started,
            }
            write_json(out / STUDY_FILE, plain({**head, "results": results}))
            write_bytes(out / TABLE_FILE, markdown(study.title, tables, head).encode())
    return tables


def _size(study: Study, editors: int, workers: int | None, demo: bool) -> tuple[int, int]:
    """Return the number of processes, and of threads in each."""
    if study.alone:
        return 1, 1
    cores = os.cpu_count() or 1
    wanted = min(editors, workers or (cores if demo else 1))
    # At one thread sums are taken in the same order whatever the machine; a model for which that is too slow gets all cores.
    return wanted, 1 if demo else max(1, cores // wanted)


def _results(
    study: Study, setting: Setting, named: Mapping[str, str], size: tuple[int, int], advance: Advance
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the editors, each as soon as there is a process for it; yields them as they are done."""
    context = multiprocessing.get_context("spawn")
    workers, threads = size
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool,
    ):
        done = manager.Queue()
        pending: dict[Future[dict[str, Any]], str] = {
            pool.submit(study.run, setting, method, done.put): label for label, method in named.items()
        }
        while pending:
            finished, _ = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            advance(_drained(done))
            for future in finished:
                label = pending.pop(future)
                try:
                    result = future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                yield label, result


def _drained(done: Any) -> int:
    total = 0
    while True:
        try:
            total += done.get_nowait()
        except queue.Empty:
            return total
