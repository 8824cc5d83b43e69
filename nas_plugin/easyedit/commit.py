"""Edits that stay in the model, whatever the version of EasyEdit does after its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas_plugin.easyedit.adapter import Adapter, adapter_of
from nas_plugin.errors import HparamsError
from nas_plugin.request import as_requests

if TYPE_CHECKING:
    from nas_plugin.report import EditReport, StepReport
    from nas_plugin.request import EditRequest
    from nas_plugin.session import EditSession

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CommitReport:
    """What became of a list of requests.

    Attributes:
        steps: One report per step of `batch_size` requests.
        committed: Whether the edited weights are the ones in the editor's model.
    """

    steps: tuple[StepReport, ...]
    committed: bool

    @property
    def edits(self) -> tuple[EditReport, ...]:
        """One report per request, in order."""
        return tuple(edit for step in self.steps for edit in step.edits)

    @property
    def skipped(self) -> int:
        """Number of requests that were left out on purpose."""
        return sum(step.skipped for step in self.steps)

    @property
    def norm_ratio(self) -> float:
        """Norm of the edited weights relative to the unedited ones after the last step."""
        return self.steps[-1].norm_ratio

    @property
    def seconds(self) -> float:
        """Time all steps took."""
        return sum(step.seconds for step in self.steps)


def commit_edits(
    editor: Any,
    requests: Sequence[Mapping[str, Any] | EditRequest] | Mapping[str, Any] | EditRequest,
    batch_size: int | None = None,
) -> CommitReport:
    """Edit the model of an EasyEdit editor for good.

    `BaseEditor.edit` of the current EasyEdit puts the original weights back unless it is told otherwise, and returns the model
    as if it were edited. This function never does.

    Args:
        editor: A `BaseEditor` with hyperparameters of one of the NAS classes.
        requests: One or many, with the keys `prompt`, `subject` and `target_new`; not changed.
        batch_size: How many requests share a step; by default `batch_size` of the editor's hyperparameters.

    Returns:
        A report with every edit's numbers.

    Raises:
        HparamsError: The editor has another method, or the batch size is not a positive whole number.
    """
    adapter = _adapter(editor)
    size = editor.hparams.batch_size if batch_size is None else batch_size
    if not isinstance(size, int) or size < 1:
        raise HparamsError(f"batch_size: {size!r} must be a whole number, 1 or more.")
    valid = as_requests(requests)  # all of them, before the first weight changes
    session = adapter.session(editor.model, editor.tok, editor.hparams)
    steps: list[StepReport] = []
    try:
        for start in range(0, len(valid), size):
            steps.append(session.edit(valid[start : start + size]))
    except Exception:
        done = sum(len(step.edits) for step in steps)
        LOG.error(
            "An edit failed; the %d requests before its step are in the model, the other %d are not.",
            done,
            len(valid) - done,
        )
        raise
    return CommitReport(tuple(steps), session.state_of_weights() == "unchanged")


def session_of(editor: Any) -> EditSession:
    """Return the session that an EasyEdit editor's edits go through: to undo, revert, save or export them, or to close it.

    Args:
        editor: A `BaseEditor` with hyperparameters of one of the NAS classes.

    Returns:
        The session; a new one where the editor has made no edit yet.

    Raises:
        HparamsError: The editor has another method.
        EditedModelError: The model holds edits of another session.
    """
    return _adapter(editor).session(editor.model, editor.tok, editor.hparams)


def _adapter(editor: Any) -> Adapter:
    adapter = adapter_of(getattr(editor, "apply_algo", None))
    if adapter is None:
        raise HparamsError(
            f"{getattr(editor, 'alg_name', type(editor).__name__)} is no method of nas_plugin; make the editor with "
            "hyperparameters of one of its classes, such as NASMEMITHparams."
        )
    return adapter
