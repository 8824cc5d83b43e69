"""Keeps one session on disk, and brings it back.

The ledger says what was done; it is written before the weights change. Snapshots save doing all of it again. Between the two lies
the factor log: keys and values of each step, of which `undo` and the histories of the carrying methods are made again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nas_plugin.anchor import Anchor
from nas_plugin.errors import ResumeError, SnapshotError
from nas_plugin.history import History
from nas_plugin.keep import snapshots
from nas_plugin.keep.digests import weights_digest
from nas_plugin.keep.fitting import fitting
from nas_plugin.keep.ledger import BEGIN, FORMAT, Ledger, plain
from nas_plugin.keep.reopen import write_hparams
from nas_plugin.keep.replay import rolled_back_next
from nas_plugin.keep.state import DAMAGED, packed, unpack
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.writing import Factors

if TYPE_CHECKING:
    from nas_plugin.session import EditSession

logger = logging.getLogger(__name__)

StepFactors = dict[int, Factors]
MOMENTS_FILE = "moments.safetensors"


class Keeper:
    """One session's folder: `ledger.jsonl`, `snapshots/`, `factors/`, `hparams.yaml`, `moments.safetensors`.

    Attributes:
        folder: The folder.
        ledger: The ledger.
    """

    def __init__(self, folder: Path, every: int) -> None:
        """Open a folder.

        Args:
            folder: The folder; made with the first edit.
            every: Edits between snapshots.
        """
        self.folder = folder
        self.every = every
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.resumed = not self.ledger.lines
        self._recent: dict[int, StepFactors] = {}
        self._parts: dict[str, dict[str, Any]] = {}
        self._since = 0
        self._saved = 1

    @property
    def unsaved(self) -> bool:
        """Whether there are edits that no snapshot has, all of them carried out on the weights at hand."""
        return self._saved < self.ledger.cursor == len(self.ledger.lines)

    def begin(self, session: EditSession) -> None:
        """Write the first line, or compare it with that of the session that is gone on with.

        Args:
            session: The session, prepared, before its first edit.

        Raises:
            ResumeError: The folder holds edits of another session, or they were not resumed.
        """
        if self.ledger.lines and not self.resumed:
            raise ResumeError(
                f"{self.folder} holds {len(self.ledger.lines) - 1} ledger lines of edits that this model does not have; call "
                "resume() first, or give an empty folder."
            )
        if self.ledger.cursor == 0:
            write_hparams(session, self.folder)
            if session.hparams.stats_dir is None:
                # Measured again, with another number of threads say, they would differ in their last bits and be refused.
                session.foundation.moments.save(self.folder / MOMENTS_FILE)
            self.ledger.put([{**_subject(session), **_measured(session)}])

    def check(self, session: EditSession) -> None:
        """Refuse to go on with the edits of another session.

        Args:
            session: The session, prepared with what `measured` returned.

        Raises:
            ResumeError: Statistics, contexts or anchor differ.
        """
        self._compare(_measured(session))

    def check_subject(self, session: EditSession) -> None:
        """Refuse another model, other hyperparameters or another format, before anything is measured.

        Args:
            session: The session.

        Raises:
            ResumeError: Something differs.
        """
        self._compare(_subject(session))

    def _compare(self, ours: Mapping[str, Any]) -> None:
        theirs = self.ledger.lines[0]
        for key, value in plain(ours).items():
            if theirs.get(key) != value:
                raise ResumeError(
                    f"{self.folder} was begun with another {key.replace('_', ' ')}: {str(theirs.get(key))[:80]}, now "
                    f"{str(value)[:80]}. Give the same, or another folder."
                )

    def measured(self) -> tuple[ContextTemplates, Anchor | None, SecondMoments | None]:
        """Return what need not be measured again: contexts and anchor that the ledger begins with, and second moments.

        The moments are None where `stats_dir` has them, or in a folder of an earlier version.

        Raises:
            NasPluginError: They are none.
        """
        first, where = self.ledger.lines[0], str(self.ledger.path)
        anchor = None if first["anchor"] is None else Anchor.from_values(first["anchor"], where)
        moments = self.folder / MOMENTS_FILE
        return (
            ContextTemplates.from_values(first["contexts"], where),
            anchor,
            SecondMoments.load(moments) if moments.exists() else None,
        )

    def factors(self, step: int, factors: StepFactors) -> None:
        """Note what a step wrote."""
        self._recent[step] = factors
        self._since += next(iter(factors.values())).keys.shape[1]

    def due(self) -> bool:
        """Tell whether it is time for a snapshot."""
        return self._since >= self.every

    def snapshot(self, session: EditSession, ahead: int = 0) -> None:
        """Save the session.

        Args:
            session: The session, between two steps.
            ahead: Ledger lines that belong to this state and are not written yet.
        """
        if self._recent:
            steps = sorted(self._recent)
            name = f"steps-{steps[0]:08d}-{steps[-1]:08d}.safetensors"
            tensors = {
                f"{step}.{layer}.{kind}": getattr(factors, kind)
                for step, layers in self._recent.items()
                for layer, factors in layers.items()
                for kind in ("keys", "values")
            }
            digest = snapshots.write_factors(self.folder / "factors" / name, tensors)
            self._parts[name] = {"sha256": digest, "steps": steps}
            self._recent = {}
        self._since = 0
        tensors, values = packed(session)
        drawn, generators = snapshots.random_state(session.em.input_device)
        manifest = {
            **values,
            "random": generators,
            "lines": self.ledger.cursor + ahead,
            "chain": self.ledger.lines[self.ledger.cursor - 1]["chain"],
            "ahead": ahead,
            "factors": self._parts,
        }
        snapshots.write_snapshot(
            self.folder / "snapshots", f"lines-{self.ledger.cursor + ahead:09d}", tensors | drawn, manifest
        )
        self._saved = self.ledger.cursor + ahead

    def load(self, session: EditSession) -> int:
        """Bring a session to its latest usable snapshot.

        Args:
            session: A prepared session on the unedited model.

        Returns:
            Ledger lines that the snapshot comprises; 0 without one. Damaged ones are passed over.
        """
        for name in snapshots.names(self.folder / "snapshots"):
            path = self.folder / "snapshots" / name
            try:
                tensors, manifest = snapshots.read_snapshot(path)
                lines = fitting(path, manifest, self.ledger)
                if lines > len(self.ledger.lines):
                    logger.warning("%s: the ledger ends before it; it is not used", path)
                    continue
                if rolled_back_next(self.ledger.lines[lines:]):
                    logger.warning("%s holds a step that is rolled back next; an earlier one is used", path)
                    continue
                self._parts = manifest["factors"]
                # Before the session changes: a snapshot without them is not used.
                snapshots.restore_random_state(tensors, manifest["random"], session.em.input_device)
                unpack(session, tensors, manifest, self._keys)
            except SnapshotError as error:
                logger.warning("%s", error)
            except DAMAGED as error:
                logger.warning("%s lacks %s; an earlier one is used", path, str(error)[:200])
            else:
                self._saved = max(lines, 1)
                return lines
        self._parts = {}
        return 0

    def of_steps(self, steps: Sequence[int]) -> dict[int, StepFactors]:
        """Read the factors of steps.

        Args:
            steps: Their numbers.

        Returns:
            Step -> layer -> factors.

        Raises:
            SnapshotError: A part of the log is damaged or gone.
        """
        wanted, found = set(steps), dict(self._recent)
        for name, part in self._parts.items():
            if not wanted.intersection(part["steps"]):
                continue
            tensors = snapshots.read_factors(self.folder / "factors" / Path(name).name, part["sha256"])
            try:
                for step in wanted.intersection(part["steps"]):
                    prefix = f"{step}."
                    layers = sorted({int(key.split(".")[1]) for key in tensors if key.startswith(prefix)})
                    found[step] = {
                        layer: Factors(tensors[f"{step}.{layer}.keys"], tensors[f"{step}.{layer}.values"])
                        for layer in layers
                    }
            except (LookupError, ValueError) as error:
                raise SnapshotError(
                    f"{self.folder / 'factors' / name} holds something else than factors; restore it."
                ) from error
        missing = wanted - found.keys()
        if missing:
            raise SnapshotError(f"{self.folder}: the factors of step {min(missing)} are gone; restore the folder.")
        return {step: found[step] for step in sorted(wanted)}

    def _keys(self, history: History) -> dict[int, Tensor]:
        """Collect the keys of all edits that count, in order: layer -> `(d_in, t)`."""
        counting = history.counting()
        columns: dict[int, list[Tensor]] = {}
        for step, layers in self.of_steps(sorted({entry.step for entry in counting})).items():
            stay = [entry.column for entry in counting if entry.step == step]
            for layer, factors in layers.items():
                columns.setdefault(layer, []).append(factors.keys[:, stay])
        return {layer: torch.cat(parts, 1) for layer, parts in columns.items()}


def _subject(session: EditSession) -> dict[str, Any]:
    """What is edited, and how."""
    return {
        "event": BEGIN,
        "format": FORMAT,
        "model": session.fingerprint,
        "method": session.hparams.method,
        "use_nas": session.hparams.use_nas,
        "hyperparameters": session.hparams.digest(),
        "parameters": list(session.parameter_names),
        "weights": session.weights_digest(),
    }


def _measured(session: EditSession) -> dict[str, Any]:
    """What was measured on the unedited model; of the statistics, which may take gigabytes, a digest."""
    foundation = session.foundation
    return {
        "contexts": foundation.contexts.to_values(),
        "moments": weights_digest({str(layer): matrix for layer, matrix in foundation.moments.matrices.items()}),
        "anchor": None if foundation.anchor is None else asdict(foundation.anchor),
    }
