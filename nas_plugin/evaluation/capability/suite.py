"""Tasks by name: the shipped ones over a folder of local files, and any other that lm-eval knows.

Imports lm-eval only where tasks are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from nas_plugin.errors import CapabilityError
from nas_plugin.evaluation.capability.contain import offline
from nas_plugin.evaluation.capability.scores import SHOTS
from nas_plugin.reading import parse_json, short

STANDARD, PAPER = "standard", "paper"
LIKELIHOOD = "_likelihood"
# RTE is inverted in the paper's code, and what it calls MNLI is RTE's training split: their names there say so.
_IN_PAPER = {
    "local_sst2": "paper_sst2",
    "local_mrpc": "paper_mrpc",
    "local_cola": "paper_cola",
    "local_rte": "paper_rte_inverted",
    "local_rte_train": "paper_rte_train",
    "local_mmlu": "paper_mmlu",
}
# lm-eval's own default, for tasks that draw few-shot examples.
_FEWSHOT_SEED = 1234


@dataclass
class Suite:
    """Tasks ready to run.

    Attributes:
        tasks: Name -> lm-eval's task.
        groups: Name -> lm-eval's group, whose metrics it derives from those of its tasks.
        members: Name that was asked for -> names of the tasks behind it.
    """

    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)

    def add(self, asked: str, loaded: Mapping[str, Any]) -> None:
        """Take in what lm-eval loaded for a name."""
        self.tasks.update(loaded["tasks"])
        self.groups.update(loaded.get("groups") or {})
        self.members[asked] = list(loaded["tasks"])


def tasks_folder() -> Path:
    """Where the shipped task files are: inside an installed package, beside it in a source checkout.

    Returns:
        The folder that holds `local_sst2.yaml` and so on.

    Raises:
        CapabilityError: The installation carries no task files.
    """
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "_tasks", package.parent / "eval" / "tasks"):
        if (folder / "local_sst2.yaml").is_file():
            return folder
    raise CapabilityError(f"No task files beside {package}; the installation is incomplete: reinstall nas-plugin.")


def shipped_tasks(protocol: str = STANDARD) -> tuple[str, ...]:
    """Names of the shipped tasks that a protocol has.

    Args:
        protocol: "standard" or "paper".

    Returns:
        Sorted names, those to ask `capabilities` for.

    Raises:
        CapabilityError: There is no such protocol.
    """
    if protocol not in (STANDARD, PAPER):
        raise CapabilityError(f"protocol is {protocol!r}; expected {STANDARD!r} or {PAPER!r}.")
    if protocol == PAPER:
        return tuple(sorted(_IN_PAPER))
    return tuple(sorted(path.stem for path in tasks_folder().glob("local_*.yaml")))


def load_suite(names: Sequence[str], data_dir: Path | None, protocol: str, scratch: Path) -> Suite:
    """Load tasks.

    Args:
        names: Names of shipped tasks, or of tasks, groups or tags of lm-eval.
        data_dir: Folder with the files of the shipped tasks.
        protocol: "standard" or "paper".
        scratch: An empty folder; the data sets of shipped tasks live there as long as the suite does.

    Returns:
        The tasks.

    Raises:
        CapabilityError: A name is unknown, or data are missing or malformed.
    """
    shipped = shipped_tasks(protocol)
    suite = Suite()
    if local := [name for name in names if name in shipped]:
        if protocol == PAPER:
            # The generated answers and the likelihoods of the answer words are two tasks to lm-eval.
            local = [_IN_PAPER[name] + kind for name in local for kind in ("", LIKELIHOOD)]
        _load_local(suite, local, data_dir, SHOTS + 1 if protocol == PAPER else 1, scratch)
    if others := [name for name in names if name not in shipped]:
        if protocol == PAPER:
            raise CapabilityError(f"The paper's protocol has no task {others[0]!r}; it has {', '.join(shipped)}.")
        _load_known(suite, others, shipped)
    return suite


def _load_local(suite: Suite, names: Sequence[str], data_dir: Path | None, least: int, scratch: Path) -> None:
    from lm_eval.tasks import TaskManager

    if data_dir is None:
        raise CapabilityError(f"{names[0]} is measured on a local file; give the folder that holds it as data_dir.")
    index = TaskManager(include_path=str(tasks_folder()), include_defaults=False).task_index
    overlays = scratch / "tasks"
    overlays.mkdir()
    for name in names:
        shipped = index[name].cfg or {}
        data = Path(data_dir).expanduser().resolve() / shipped["dataset_kwargs"]["data_files"]["test"]
        _check_file(data, shipped["metadata"]["fields"], least)
        overlay = {
            "include": str(tasks_folder() / f"{name}.yaml"),
            "task": name,
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(scratch / "datasets")},
        }
        (overlays / f"{name}.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    manager = TaskManager(include_path=str(overlays), include_defaults=False)
    with offline():
        for name in names:
            suite.add(name, manager.load([name]))


def _load_known(suite: Suite, names: Sequence[str], shipped: Sequence[str]) -> None:
    manager = _known_tasks()
    for name in names:
        if name not in manager.task_index:
            raise CapabilityError(
                f"No task {name!r}: neither shipped ({', '.join(shipped)}) nor known to the installed lm-eval."
            )
        try:
            suite.add(name, manager.load([name]))
        except OSError as error:
            raise CapabilityError(f"lm-eval's task {name!r} could not load its data: {error}") from error
        for member in suite.members[name]:
            task = suite.tasks[member]
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(_FEWSHOT_SEED)


@cache
def _known_tasks() -> Any:
    """Index lm-eval's own tasks, thousands of files, once."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _check_file(path: Path, fields: Mapping[str, Any], least: int) -> None:
    try:
        records = parse_json(path.read_bytes())
    except OSError as error:
        raise CapabilityError(f"{path}: cannot be read ({error.strerror}); put the task's data there.") from error
    except ValueError as error:
        raise CapabilityError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(records, list):
        raise CapabilityError(f"{path}: expected a list of records, got {type(records).__name__}.")
    if len(records) < least:
        raise CapabilityError(f"{path}: {len(records)} records; expected {least} or more.")
    for number, record in enumerate(records):
        for name, kind in fields.items():
            value = record.get(name) if isinstance(record, dict) else None
            if not _fits(value, kind):
                raise CapabilityError(f"{path}, record {number}, {name}: expected {_wanted(kind)}, got {short(value)}.")


def _fits(value: Any, kind: Any) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if isinstance(kind, int):
        return isinstance(value, list) and len(value) == kind and all(isinstance(text, str) for text in value)
    return type(value) is type(kind[0]) and value in kind


def _wanted(kind: Any) -> str:
    if kind == "text":
        return "text"
    return f"{kind} texts" if isinstance(kind, int) else "one of " + ", ".join(map(repr, kind))
