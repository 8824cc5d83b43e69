"""What a run needs of an editor, and the six editors as that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from nas_plugin.admission import CONTINUE
from nas_plugin.errors import RequestError, RunError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.runner.state import Measured, load_state, save_state
from nas_plugin.hparams import NASHparams
from nas_plugin.model.fingerprint import weights_fingerprint
from nas_plugin.parallel import Group
from nas_plugin.report import WRITTEN, EditReport
from nas_plugin.session import EditSession


class Writer(Protocol):
    """An editor that a run goes through a stream with.

    Attributes:
        model: What is measured; edited in place, or replaced.
        tok: Its tokenizer.
        hparams: Hyperparameters that name the edited layers; None where an editor has none.
        resumable: Whether its state can be saved.
        group: Processes that carry out the same run and share its measuring.
    """

    model: Any
    tok: Any
    hparams: Any
    resumable: bool
    group: Group

    @property
    def anchor(self) -> float | None:
        """tau, None without norm anchoring; known after `prepare`."""

    def prepare(self, folder: Path, resume: bool) -> None:
        """Do what is done once, on the unedited model; keep it in, or take it from, a folder."""

    def describe(self) -> dict[str, Any]:
        """Return the fields of `run.json` about method, hyperparameters and model."""

    def check(self, cases: Sequence[Case]) -> dict[str, str]:
        """Return why cases cannot be written, by their id, before anything is."""

    def write(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """Write the cases of a step; return their log entries, without numbers and metrics."""

    def norms(self) -> dict[str, Any]:
        """Return |W| / |W0| per layer and in total."""

    def save(self, manifest: Path) -> None:
        """Save what the edits so far have changed."""

    def load(self, manifest: Path) -> None:
        """Go to where a saved writer was."""


class SessionWriter:
    """One of the six editors, through an `EditSession`.

    Attributes:
        model: The model, edited in place.
        tok: Its tokenizer.
        hparams: Hyperparameters.
        resumable: True.
        group: Processes that carry out the same run, as torchrun or accelerate launch started them.
    """

    resumable = True

    def __init__(self, model: Any, tok: Any, hparams: NASHparams, *, progress: bool = True) -> None:
        """Bind the editor to an unedited model; nothing is computed yet.

        Args:
            model: The model.
            tok: Its tokenizer.
            hparams: Hyperparameters of one of the six methods.
            progress: Show progress bars while statistics and anchor are measured.
        """
        self.model, self.tok, self.hparams = model, tok, hparams
        self.group = Group.launched()
        self._progress = progress
        self._fingerprint = weights_fingerprint(model)
        self._session: EditSession | None = None

    @property
    def session(self) -> EditSession:
        """The session.

        Raises:
            RunError: `prepare` was not called.
        """
        if self._session is None:
            raise RunError("the editor has not been prepared; call prepare first.")
        return self._session

    @property
    def anchor(self) -> float | None:
        """tau, None without norm anchoring."""
        return self.session.anchor_value

    def prepare(self, folder: Path, resume: bool) -> None:
        """Measure contexts, statistics and anchor, or read those of the run that is gone on with.

        Args:
            folder: Where they are kept.
            resume: Take them from there.

        Raises:
            RunError: The run is to go on and its session is kept: the ledger may be further than the run's last checkpoint.
        """
        if resume and self.hparams.keep_dir is not None:
            raise RunError(
                f"a run goes on from its last checkpoint, and the ledger in {self.hparams.keep_dir} (keep_dir) may be further; "
                "run again with new folders for both, or go on with the kept session in Python (EditSession.resume)."
            )
        known = Measured.load(folder) if resume else None
        given = {} if known is None else vars(known)
        self._session = EditSession(
            self.model, self.tok, self.hparams, progress=self._progress, group=self.group, **given
        )
        self._session.on_reject = self.hparams.on_reject or CONTINUE
        laid = self._session.prepare()
        if known is None:
            Measured(laid.contexts, laid.moments, laid.anchor).save(folder)

    def describe(self) -> dict[str, Any]:
        """Return the fields of `run.json` about method, hyperparameters and model."""
        hparams = self.hparams.to_dict()
        return {
            "label": f"NAS-{self.hparams.method}" if self.hparams.use_nas else self.hparams.method,
            "method": self.hparams.method,
            "use_nas": self.hparams.use_nas,
            "model": hparams["model_name"],
            "hparams": hparams,
            "hparams_digest": self.hparams.digest(),
            "fingerprint": self._fingerprint,
        }

    def check(self, cases: Sequence[Case]) -> dict[str, str]:
        """Tokenise all requests in all contexts.

        Args:
            cases: Cases.

        Returns:
            Id of each case that cannot be written, and why.
        """
        reasons: dict[str, str] = {}
        locator, templates = self.session.locator, self.session.foundation.contexts.flat
        for case in cases:
            try:
                for request in case.requests:
                    target = locator.target_ids(request)[:-1]
                    for template in templates:
                        locator.sequence(request, template, target)
            except RequestError as error:
                reasons[case.id] = error.message
        return reasons

    def write(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """Write one step.

        What comes out not finite is rejected and the run goes on, unless `on_reject` says "stop": a model that has collapsed is
        a result, not an end.

        Args:
            cases: Its cases.

        Returns:
            Their log entries.
        """
        step = self.session.edit([request for case in cases for request in case.requests])
        reports = iter(step.edits)
        share = step.seconds / len(cases)
        return [entry(case, [next(reports) for _ in case.requests], share) for case in cases]

    def norms(self) -> dict[str, Any]:
        """Return |W| / |W0| per layer and in total."""
        layers = {str(layer): ratio for layer, ratio in self.session.norm_ratio().items()}
        return {"layers": layers, "total": self.session.weights.total_ratio()}

    def save(self, manifest: Path) -> None:
        """Save the session's state; see `save_state`. A folder that it is kept in gets a snapshot, too."""
        save_state(self.session, manifest)
        self.session.close()

    def load(self, manifest: Path) -> None:
        """Load the session's state; see `load_state`."""
        load_state(self.session, manifest)


def entry(case: Case, reports: Sequence[EditReport] | None, seconds: float) -> dict[str, Any]:
    """Make a case's log entry.

    Args:
        case: The case.
        reports: What became of its requests; None where the editor tells nothing.
        seconds: Its share of the step's wall-clock time.

    Returns:
        The entry. For a case of several requests numbers are means (updates: the sum), and "requests" has those of each.
    """
    first = case.requests[0]
    line: dict[str, Any] = {
        "case_id": case.id,
        "prompt": first.prompt,
        "subject": first.subject,
        "target": first.target,
        "loss": None,
        "updates": None,
        "value_norm": None,
        "written_norm": None,
        "skipped": False,
        "failed": None,
        "seconds": seconds,
    }
    if reports is not None:
        line |= _numbers(reports)
        line["failed"] = next((report.reason for report in reports if report.status != WRITTEN), None)
        if len(reports) > 1:
            line["requests"] = [_texts(report) | _numbers([report]) for report in reports]
    return line


def _texts(report: EditReport) -> dict[str, Any]:
    request = report.request
    if request is None:
        return {"prompt": None, "subject": None, "target": None}
    return {"prompt": request.prompt, "subject": request.subject, "target": request.target}


def _numbers(reports: Iterable[EditReport]) -> dict[str, Any]:
    reports = list(reports)
    return {
        "loss": fmean(report.loss for report in reports),
        "updates": sum(report.updates for report in reports),
        "value_norm": fmean(report.value_norm for report in reports),
        "written_norm": fmean(report.written_norm for report in reports),
        "skipped": all(report.skipped or report.status != WRITTEN for report in reports),
    }
