"""Keeps one session on disk, and brings it back.

The ledger says what was done; it is written before the weights change. Snapshots save doing all of it again. Between the two lies
the factor log: keys and values of each step, of which `undo` and the histories of the carrying methods are made again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_plugin.anchor import Anchor
from nas_plugin.errors import ResumeError, SnapshotError
from nas_plugin.interrupts import uninterrupted
from nas_plugin.keep import snapshots
from nas_plugin.keep.digests import MOMENTS_FILE, moments_digest
from nas_plugin.keep.factor_log import FactorLog, StepFactors
from nas_plugin.keep.fitting import fitting
from nas_plugin.keep.ledger import BEGIN, FORMAT, Ledger, plain
from nas_plugin.keep.reopen import write_hparams
from nas_plugin.keep.replay import Replay, rolled_back_next
from nas_plugin.keep.state import DAMAGED, packed, unpack
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.moments import SecondMoments

if TYPE_CHECKING:
    from nas_plugin.session import EditSession

logger = logging.getLogger(__name__)


class Keeper:
    """One session's folder: `ledger.jsonl`, `snapshots/`, `factors/`, `hparams.yaml`, `moments.safetensors`.

    Attributes:
        folder: The folder.
        ledger: The ledger.
        log: Keys and values of each step.
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
        self.log = FactorLog(folder / "factors")
        self._since = 0
        self._saved = 1
        self._owes = False

    def promise(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write what is about to be done; see `noted`.

        Args:
            lines: Lines of the ledger.

        Raises:
            ResumeError: What was promised before was not done.
        """
        self._check_settled()
        self.ledger.put(lines)
        self._owes = True

    def fulfilled(self) -> None:
        """Note that what the last lines say is done."""
        self._owes = False

    def _check_settled(self) -> None:
        if self._owes:
            raise ResumeError(
                f"{self.folder}: an error came between the ledger's last line and what it says, so that the model may be neither "
                "before nor after it; load the unedited model, make a new session with this folder and resume() it."
            )

    def save_rest(self, session: EditSession) -> None:
        """Save what the newest snapshot lacks, unless the session is not where its ledger ends.

        Args:
            session: The session.
        """
        lines = self.ledger.lines
        if not self._saved < self.ledger.cursor == len(lines):
            return
        if not self._owes and session.weights_digest() == Replay.of(lines, self.ledger.path).marks[-1].digest:
            self.snapshot(session)
        else:
            logger.warning(
                "%s: the model is not where the ledger ends; edits since the last snapshot are carried out again when the "
                "session is resumed",
                self.folder,
            )

    def begin(self, session: EditSession) -> None:
        """Write the first line, or compare it with that of the session that is gone on with.

        Args:
            session: The session, prepared, before its first edit.

        Raises:
            ResumeError: The folder holds edits of another session, or they were not resumed.
        """
        self._check_settled()
        if self.ledger.lines and not self.resumed:
            raise ResumeError(
                f"{self.folder} holds {len(self.ledger.lines) - 1} ledger lines of edits that this model does not have; call "
                "resume() first, or give an empty folder."
            )
        if self.ledger.cursor == 0:
            write_hparams(session, self.folder)
            if session.hparams.stats_dir is None or session.given.moments is not None:
                # They lie in no file of `stats_dir`; measured again, with another number of threads say, they would differ in
                # their last bits and be refused.
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
        self.log.note(step, factors)
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
        self.log.write()
        self._since = 0
        tensors, values = packed(session)
        drawn, generators = snapshots.random_state(session.em.input_device)
        manifest = {
            **values,
            "random": generators,
            "lines": self.ledger.cursor + ahead,
            "chain": self.ledger.lines[self.ledger.cursor - 1]["chain"],
            "ahead": ahead,
            "factors": self.log.parts,
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
                self.log.parts = manifest["factors"]
                # Before the session changes: a snapshot without them is not used.
                snapshots.restore_random_state(tensors, manifest["random"], session.em.input_device)
                unpack(session, tensors, manifest, self.log.keys)
            except SnapshotError as error:
                logger.warning("%s", error)
            except DAMAGED as error:
                logger.warning("%s lacks %s; an earlier one is used", path, str(error)[:200])
            else:
                self._saved = max(lines, 1)
                return lines
        self.log.parts = {}
        return 0


@contextmanager
def noted(keeper: Keeper | None, lines: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Write into the ledger what the block does, before it is done; an interrupt waits until both are.

    If the block fails, the keeper refuses to go on: ledger and model no longer agree.

    Args:
        keeper: Of the session; None keeps nothing.
        lines: Lines of the ledger; none where nothing is to be told.

    Yields:
        Nothing.
    """
    with uninterrupted():
        if keeper is None or not lines:
            yield
            return
        keeper.promise(lines)
        yield
        keeper.fulfilled()


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
        "moments": moments_digest(foundation.moments.matrices),
        "anchor": None if foundation.anchor is None else asdict(foundation.anchor),
    }
