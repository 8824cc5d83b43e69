"""The run folder: written line by line while a run goes on, cut back to its last whole checkpoint when it is gone on with."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_plugin.errors import ResumeError, RunFolderError
from nas_plugin.evaluation.logs import CHECKPOINTS_FILE, EDITS_FILE, FORMAT, RUN_FILE
from nas_plugin.evaluation.measures import protocols_of
from nas_plugin.evaluation.measures.stored import check_outputs
from nas_plugin.evaluation.records import Fields, read_jsonl, read_object
from nas_plugin.files import write_bytes, write_json
from nas_plugin.reading import short

BASE_FILE, CASES_FOLDER, STATE_FOLDER = "base.json", "cases", "state"
_LONGEST_NUMBER = 18
RUNNING, DONE, STOPPED = "running", "done", "stopped"
# What must be the same for a run to be gone on with, and what messages call it.
_SAME = {
    "label": "label",
    "fingerprint": "model weights (fingerprint)",
    "stream": "stream (sha256)",
    "edits_per_step": "number of edits per step",
    "grid": "grid of checkpoints",
    "cohort": "cohort",
    "measures": "measures",
}


class RunFolder:
    """One run's files; `start` or `go_on` opens it.

    Attributes:
        path: The folder.
        run: Content of `run.json`.
        edits: Cases written so far, 0 after `start`.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path = path
        self.run = run
        self.edits = 0
        self.edit_seconds = 0.0

    @classmethod
    def start(cls, path: Path, run: Mapping[str, Any]) -> RunFolder:
        """Begin a run in an empty folder.

        Args:
            path: The folder; made if need be.
            run: Content of `run.json`; format, status and protocols are added.

        Returns:
            The open folder.
        """
        folder = cls(path, {"format": FORMAT, "protocols": {}, "unavailable": None, **run, "status": RUNNING})
        folder._write_run()
        return folder

    @classmethod
    def go_on(cls, path: Path, run: Mapping[str, Any]) -> RunFolder:
        """Open a run that was stopped or killed, cutting off what follows its last whole checkpoint.

        Args:
            path: Its folder.
            run: What is asked now, as for `start`.

        Returns:
            The open folder; `edits` says how many of its edits stand.

        Raises:
            ResumeError: It was begun with something else; the message says what.
        """
        begun = read_object(path / RUN_FILE)
        check_same(path, run)
        begun.pop("failure", None)
        Fields(begun, str(path / RUN_FILE)).get("protocols", dict)
        folder = cls(path, {**begun, "command": run["command"], "versions": run["versions"], "status": RUNNING})
        folder._cut()
        folder._write_run()
        return folder

    @property
    def state(self) -> Path:
        """Where the run keeps what it needs to be gone on with."""
        return self.path / STATE_FOLDER

    @property
    def base(self) -> dict[str, Any] | None:
        """Outputs of the original model, None before they were stored."""
        file = self.path / BASE_FILE
        if not file.exists():
            return None
        outputs = read_object(file)
        check_outputs(outputs, str(file))
        return outputs

    @base.setter
    def base(self, outputs: Mapping[str, Any]) -> None:
        write_json(self.path / BASE_FILE, outputs)

    @property
    def measured(self) -> bool:
        """Whether the unedited model has been measured."""
        return bool(read_jsonl(self.path / CHECKPOINTS_FILE).records)

    def end(self, status: str, failure: str | None = None) -> None:
        """Write how the run ended.

        Args:
            status: "done" or "stopped".
            failure: What stopped it, if it was an error.
        """
        self.run |= {"status": status} | ({"failure": failure} if failure else {})
        self._write_run()

    def add_edits(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Log a step.

        Args:
            lines: One entry for each case.
        """
        self._define(name for line in lines for name in line["immediate"] or {})
        with (self.path / EDITS_FILE).open("ab") as file:
            for line in lines:
                file.write(_line(line))
        self.edits += len(lines)
        self.edit_seconds += sum(line["seconds"] for line in lines)

    def add_checkpoint(self, line: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
        """Log a checkpoint, durably: what was needed to go on from an earlier one may then be deleted.

        Args:
            line: The checkpoint.
            results: Metrics of each case so far.
        """
        self._define({**line["final"], **line["cohort"]})
        write_bytes(self.path / CASES_FOLDER / f"after_{line['edits']}.jsonl", b"".join(map(_line, results)))
        with (self.path / CHECKPOINTS_FILE).open("ab") as file:
            file.write(_line(line))
            file.flush()
            os.fsync(file.fileno())

    def _define(self, names: Iterable[str]) -> None:
        if new := set(names) - self.run["protocols"].keys():
            self.run["protocols"] = protocols_of({*self.run["protocols"], *new})
            self._write_run()

    def _write_run(self) -> None:
        write_json(self.path / RUN_FILE, self.run)

    def _cut(self) -> None:
        """Cut the logs to the last checkpoint whose state is there; without one, to nothing."""
        checkpoints = read_jsonl(self.path / CHECKPOINTS_FILE).records
        # A number and nothing else: it becomes part of a path.
        counts = self._column(CHECKPOINTS_FILE, checkpoints, "edits", int)
        while counts and counts[-1] and not self.state_file(counts[-1]).exists():
            counts.pop()
        checkpoints, self.edits = checkpoints[: len(counts)], counts[-1] if counts else 0
        edits = read_jsonl(self.path / EDITS_FILE).records
        numbers = self._column(EDITS_FILE, edits, "edit", int)
        kept = [line for line, number in zip(edits, numbers, strict=True) if number <= self.edits]
        if len(kept) != self.edits:
            raise ResumeError(
                f"{self.path}: {len(kept)} edits are logged before the checkpoint after {self.edits}; the folder was changed. "
                "Run it again into an empty one."
            )
        self.edit_seconds = sum(self._column(EDITS_FILE, kept, "seconds", float))
        for name, lines in ((EDITS_FILE, kept), (CHECKPOINTS_FILE, checkpoints)):
            write_bytes(self.path / name, b"".join(map(_line, lines)))
        for file in (self.path / CASES_FOLDER).glob("after_*.jsonl"):
            after = file.stem.removeprefix("after_")
            if after.isdecimal() and len(after) <= _LONGEST_NUMBER and int(after) > self.edits:
                file.unlink()

    def _column(self, name: str, lines: Sequence[Mapping[str, Any]], field: str, kind: type) -> list[Any]:
        where = self.path / name
        return [Fields(line, f"{where}, line {number}").get(field, kind) for number, line in enumerate(lines, start=1)]

    def state_file(self, edits: int) -> Path:
        """Return the manifest of the state after so many edits."""
        return self.state / f"after_{edits}.json"


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(entry), allow_nan=False) + "\n").encode()


def plain(value: Any) -> Any:
    """Turn what JSON has no word for into null.

    Args:
        value: Numbers, texts, lists and mappings.

    Returns:
        The same without NaN and infinities.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def check_empty(path: Path) -> None:
    """Refuse to write into another run.

    Args:
        path: A folder; it need not exist.

    Raises:
        RunFolderError: A run was begun in it.
    """
    if (path / RUN_FILE).exists():
        raise RunFolderError(f"{path} holds a run already; go on with it (resume, --resume), or give another folder.")


def clear(path: Path) -> None:
    """Remove what a run wrote into a folder, and nothing else.

    Args:
        path: The folder; it need not exist.
    """
    for pattern in (RUN_FILE, BASE_FILE, EDITS_FILE, CHECKPOINTS_FILE, f"{CASES_FOLDER}/after_*.jsonl"):
        for file in path.glob(pattern):
            file.unlink()


def check_same(path: Path, asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was begun with something else.

    Args:
        path: Its folder.
        asked: Fields of `run.json` as they would be now; only those given are compared.

    Raises:
        ResumeError: Something differs; the message says what.
    """
    begun = read_object(path / RUN_FILE)
    fields = Fields(begun, str(path / RUN_FILE))
    fields.maybe("stream", dict)
    for key, name in _SAME.items():
        if key in asked:
            before, now = begun.get(key), asked[key]
            if key == "stream":
                before, now = (value and value.get("sha256") for value in (before, now))
            if before != now:
                raise ResumeError(
                    f"{path} was begun with another {name}: {_short(before)}, now {_short(now)}. Give the same, or another "
                    "folder."
                )
    if begun.get("hparams_digest") != asked["hparams_digest"]:
        before = fields.inner("hparams").values
        changes = [
            f"{key}: {short(before.get(key))}, now {short(value)}"
            for key, value in asked["hparams"].items()
            if before.get(key) != value
        ]
        raise ResumeError(
            f"{path} was begun with other hyperparameters ({', '.join(changes)}). Give the same, or another folder."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
