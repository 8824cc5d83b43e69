"""The edit session: locate, solve, anchor, write, keep; all state of one stream of edits on one model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas_plugin.admission import STOP, Requests, admit, read
from nas_plugin.anchor import Anchor
from nas_plugin.editors import make_editors
from nas_plugin.errors import EditedModelError
from nas_plugin.following import follow
from nas_plugin.foundation import Foundation, Given, lay_foundation
from nas_plugin.keep import Keeper, undo
from nas_plugin.keep.edits import save_edits
from nas_plugin.keep.keeper import noted
from nas_plugin.keep.ledger import REVERT, ROLLBACK
from nas_plugin.keep.resume import resume
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.sequences import Locator
from nas_plugin.locate.stored import statistics_folder
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.fingerprint import weights_fingerprint
from nas_plugin.model.pattern import try_out
from nas_plugin.parallel import Group
from nas_plugin.report import StepReport
from nas_plugin.request import EditRequest, as_requests
from nas_plugin.solve.descent import SolverSettings
from nas_plugin.solve.target import SolvedTargets, TargetSolver
from nas_plugin.standing import Standing
from nas_plugin.stepping import carry_out
from nas_plugin.write import METHODS


class EditSession(Standing):
    """Edits a model in place, one step after another; **this changes the model it is given**.

    Two sessions share nothing. A session notices when its edited weights were changed by somebody else: put back as before the
    last step, its state goes back too; put back as before the first, it starts afresh; anything else resets it with a warning.

    One that is kept is best used in a `with` statement, whose end saves what the last snapshot lacks.
    """

    def __init__(
        self,
        model: nn.Module,
        tok: Any,
        hparams: Any,
        *,
        contexts: ContextTemplates | Sequence[Sequence[str]] | None = None,
        moments: SecondMoments | Mapping[int, Tensor] | None = None,
        anchor: Anchor | float | None = None,
        pilots: Requests | None = None,
        edited: bool = False,
        progress: bool = True,
        keep: str | Path | None = None,
        group: Group | None = None,
    ) -> None:
        """Bind a session to a model; nothing is computed yet.

        Args:
            model: Hugging Face causal language model, unedited.
            tok: Its tokenizer; never changed.
            hparams: Hyperparameters of one of the six methods.
            contexts: Context templates to use instead of generating them.
            moments: Second moments to use instead of `stats_dir` and `mom2_dataset`.
            anchor: Anchor to use instead of measuring it.
            pilots: Facts to measure the anchor with, instead of `nas_pilots`.
            edited: The model is known to be edited already: whatever has to be measured on an unedited one must be given.
            progress: Show progress bars.
            keep: Folder for ledger and snapshots; by default `keep_dir`. None keeps nothing.
            group: Processes that share the measuring and carry out the same edits; by default those that torchrun or accelerate
                launch started, every one of which has to make this session. `nas_plugin.parallel.ALONE` shares nothing.

        Raises:
            NasPluginError: The model, the layers or the weights cannot be edited.
        """
        self.model, self.tok, self.hparams = model, tok, hparams
        self.group = Group.launched() if group is None else group
        super().__init__(EditableModel(model, hparams))
        self.locator = Locator(tok, self.em.max_positions, self.em.vocab_size)
        self.fingerprint = weights_fingerprint(model)
        self.on_reject: str = hparams.on_reject or STOP
        folder = keep if keep is not None else hparams.keep_dir
        self.keeper = None if folder is None or not self.group.main else Keeper(Path(folder), hparams.snapshot_every)
        self.given = Given.of(contexts, moments, anchor, pilots)
        self.edited = edited
        self.progress = progress
        self._foundation: Foundation | None = None
        self._targets: TargetSolver | None = None

    def __enter__(self) -> EditSession:
        """Return the session."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the session, after an error too: a step that failed has changed nothing."""
        self.close()

    def close(self) -> None:
        """Save what the newest snapshot in the folder lacks, if one is kept; the session can be used on.

        Without it the edits since that snapshot are carried out again when the folder is next used, which takes their time and
        the same bits of arithmetic: machine, versions, number of threads.
        """
        if self.keeper is not None:
            self.keeper.save_rest(self)

    @property
    def anchor(self) -> Anchor | None:
        """The anchor in use; None without NAS or before `prepare`."""
        return self._foundation.anchor if self._foundation is not None else None

    @property
    def anchor_value(self) -> float | None:
        """tau; None without NAS or before `prepare`."""
        return self.anchor.value if self.anchor is not None else None

    @property
    def foundation(self) -> Foundation:
        """Contexts, statistics and anchor; laid on first use."""
        return self.prepare()

    def prepare(self) -> Foundation:
        """Measure on the unedited model all that edits need: contexts, second moments, priors, anchor. Done once.

        Returns:
            What was measured.

        Raises:
            EditedModelError: The model is no longer what it was when the session began.
            UnsupportedArchitectureError: The model was described by hyperparameters and is not built as editing needs.
            NasPluginError: Statistics or anchor are missing, damaged or of another model.
        """
        if self._foundation is not None:
            return self._foundation
        self.check_unedited()
        self.group.agree("model", self.fingerprint)
        self.group.agree("hyperparameters", self.hparams.digest())
        foundation = lay_foundation(
            self.em,
            self.locator,
            self.hparams,
            self.fingerprint,
            self.given,
            edited=self.edited,
            progress=self.progress,
            group=self.group,
        )
        folder = None if self.hparams.stats_dir is None else statistics_folder(self.em, self.hparams, self.fingerprint)
        self.editors = make_editors(
            self.hparams, foundation.moments.matrices, self.weights.base, folder, keep=self.group.main
        )
        self._foundation = foundation
        return foundation

    def check_unedited(self) -> None:
        """Refuse to measure on a model that is not what it was when the session began, or is built as no editor can use.

        Raises:
            EditedModelError: Its edited weights have changed.
            UnsupportedArchitectureError: It was described by hyperparameters and is not built as editing needs.
        """
        if not self.weights.is_base():
            raise EditedModelError(
                "the model's weights have changed since this session began; contexts, statistics and anchor are measured on the "
                "unedited model only. Restore it, or make a new session."
            )
        if not self.em.paths.known:
            try_out(self.em)

    def edit(self, requests: Requests) -> StepReport:
        """Write one step: one request, or several at once.

        An edit that was carried out before is not again; one about the same fact as an earlier one is dealt with as
        `on_conflict` says. With `on_reject` "continue" bad requests and values that are not finite are left out and reported.

        Args:
            requests: Requests or records with `prompt`, `subject` and `target_new`.

        Returns:
            What was done.

        Raises:
            NasPluginError: A request is unusable, a value came out non-finite, or processes came to different weights. No weight
                has changed.
        """
        started = time.perf_counter()
        items = read(requests, self._check_tokens, self.on_reject)
        self.prepare()
        self.group.agree("requests", "".join(item.id for item in items))
        if self.keeper is not None:
            self.keeper.begin(self)
        follow(self)
        admit(items, self.history, self.hparams.on_conflict)
        return carry_out(self, items, started)

    def resume(self, requests: Requests | None = None) -> int:
        """Go on where a session that kept itself in the same folder was when it ended, killed or not.

        The newest usable snapshot is loaded; what the ledger has after it is carried out again and has to give the same
        weights. The random number generators of Python, NumPy and torch are put where they were at the snapshot.

        Args:
            requests: The stream as it will be given; refused if its beginning is not what the ledger has.

        Returns:
            Edits in the ledger.

        Raises:
            ResumeError: Model, hyperparameters, statistics or order differ, a piece is missing, or the weights come out
                different.
            LedgerError: The ledger is damaged.
            ProcessGroupError: There are several processes.
        """
        self.group.refuse("resuming a kept session")
        return resume(self, None if requests is None else as_requests(requests))

    def undo(self, *ids: str) -> None:
        """Take edits out of the model, whenever they were made, and leave the others.

        The stream is written again from its factors without them: exact in everything that is written, approximate in that
        later values were solved on a model that knew them. Needs `keep`. It cannot be rolled back.

        Args:
            *ids: Ids from reports or the ledger, or case ids.

        Raises:
            UndoError: An edit is unknown or does not stand, or nothing is kept.
            ProcessGroupError: There are several processes.
        """
        self.group.refuse("undoing an edit")
        self.prepare()
        if self.keeper is not None:
            self.keeper.begin(self)
        follow(self)
        undo(self, ids)

    def snapshot(self) -> None:
        """Save the present state in the folder that is kept, besides the snapshots of `snapshot_every`; nothing without one."""
        if self.keeper is not None:
            self.keeper.snapshot(self)

    def rollback(self) -> None:
        """Take the last step back: weights and state, bit for bit. A second call in a row has no effect."""
        if self._snapshots is None:
            return
        with noted(self.keeper, [{"event": ROLLBACK, "step": self.history.steps}]):
            self.take_back()

    def revert(self) -> None:
        """Go back to before the first edit: weights, bit for bit, and state."""
        keeper = self.keeper if self._foundation is not None else None
        if keeper is not None:
            keeper.begin(self)
        with noted(keeper, [{"event": REVERT}]):
            self.restart(None)

    def save_edits(self, path: str | Path) -> None:
        """Write the edited parameters, and nothing else, to a safetensors file that `nas_plugin.load_edits` reads."""
        save_edits(self, path)

    def solve(self, requests: Requests) -> SolvedTargets:
        """Solve values on the current weights without writing anything.

        Args:
            requests: Requests or records.

        Returns:
            The solver's result.

        Raises:
            NonFiniteError: A value is not finite.
        """
        checked = as_requests(requests)
        for request in checked:
            self._check_tokens(request)
        solved = self.solver().solve(checked)
        solved.refuse_not_finite(checked)
        return solved

    def solver(self) -> TargetSolver:
        """Return the session's one solver, which remembers how many requests fit into memory."""
        if self._targets is None:
            rule = METHODS[self.hparams.method].stopping_rule(self.hparams)
            settings = SolverSettings.from_hparams(self.hparams)
            self._targets = TargetSolver(self.em, self.locator, self.foundation.contexts, settings, rule)
        return self._targets

    def _check_tokens(self, request: EditRequest) -> None:
        """Tokenise once before any model call, so that what cannot be tokenised changes nothing."""
        self.locator.sequence(request, "{}", self.locator.target_ids(request)[:-1])
