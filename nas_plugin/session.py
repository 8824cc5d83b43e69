"""The edit session: locate, solve, anchor, write, keep; all state of one stream of edits on one model."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas_plugin.anchor import Anchor, AnchoredTargets, anchored
from nas_plugin.editors import make_editors
from nas_plugin.errors import EditedModelError, NonFiniteError
from nas_plugin.foundation import Foundation, Given, lay_foundation
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.keys import KeyPass
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.sequences import Locator
from nas_plugin.locate.stored import statistics_folder
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.fingerprint import weights_fingerprint
from nas_plugin.model.trace import as_found
from nas_plugin.report import EditReport, StepReport
from nas_plugin.request import EditRequest, as_requests
from nas_plugin.solve.descent import SolverSettings
from nas_plugin.solve.target import SolvedTargets, TargetSolver
from nas_plugin.weights import FOREIGN, RESET, ROLLED_BACK, EditedWeights
from nas_plugin.write import METHODS, LayerEditor
from nas_plugin.write.editor import Proposal

logger = logging.getLogger(__name__)

Requests = Iterable[EditRequest | Mapping[str, Any]] | EditRequest | Mapping[str, Any]


class EditSession:
    """Edits a model in place, one step after another; **this changes the model it is given**.

    Two sessions share nothing. A session notices when its edited weights were changed by somebody else: put back as before the
    last step, its state goes back too; put back as before the first, it starts afresh; anything else resets it with a warning.
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

        Raises:
            NasPluginError: The model, the layers or the weights cannot be edited.
        """
        self.model, self.tok, self.hparams = model, tok, hparams
        self.em = EditableModel(model, hparams)
        self.locator = Locator(tok, self.em.max_positions, self.em.vocab_size)
        self.weights = EditedWeights(self.em)
        self.fingerprint = weights_fingerprint(model)
        self.steps = 0
        self._given = Given(
            contexts
            if contexts is None or isinstance(contexts, ContextTemplates)
            else ContextTemplates(_grouped(contexts)),
            moments if moments is None or isinstance(moments, SecondMoments) else SecondMoments(dict(moments)),
            Anchor(float(anchor)) if isinstance(anchor, int | float) else anchor,
            None if pilots is None else as_requests(pilots),
        )
        self._edited = edited
        self._progress = progress
        self._foundation: Foundation | None = None
        self._targets: TargetSolver | None = None
        self._editors: dict[int, LayerEditor] = {}
        self._snapshots: dict[int, dict[str, Any]] | None = None

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters this session changes."""
        return tuple(self.em.parameter_names.values())

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
            NasPluginError: Statistics or anchor are missing, damaged or of another model.
        """
        if self._foundation is not None:
            return self._foundation
        if not self.weights.is_base():
            raise EditedModelError(
                "the model's weights have changed since this session began; contexts, statistics and anchor are measured on the "
                "unedited model only. Restore it, or make a new session."
            )
        foundation = lay_foundation(
            self.em,
            self.locator,
            self.hparams,
            self.fingerprint,
            self._given,
            edited=self._edited,
            progress=self._progress,
        )
        folder = None if self.hparams.stats_dir is None else statistics_folder(self.em, self.hparams, self.fingerprint)
        self._editors = make_editors(self.hparams, foundation.moments.matrices, self.weights.base, folder)
        self._foundation = foundation
        return foundation

    def edit(self, requests: Requests) -> StepReport:
        """Write one step: one request, or several at once.

        Args:
            requests: Requests or records with `prompt`, `subject` and `target_new`.

        Returns:
            What was done.

        Raises:
            NasPluginError: A request is unusable, or a value came out non-finite. No weight has changed.
        """
        started = time.perf_counter()
        checked = as_requests(requests)
        self._check_tokens(checked)
        self.prepare()
        self._follow_weights()
        for editor in self._editors.values():
            editor.fold()
        snapshots = {layer: editor.snapshot() for layer, editor in self._editors.items()}
        try:
            self.weights.open()
            solved = self._solver().solve(checked, keep_rows=len(self.em.layers) > 1)
            targets = anchored(solved, self.foundation.anchor, self.hparams.nas_skip_factor)
            masters = self._write(solved, targets)
            self.weights.commit(
                masters, {layer: self._editors[layer].view(matrix) for layer, matrix in masters.items()}
            )
        except BaseException:
            self._restore(snapshots)
            self.weights.close()
            raise
        self._snapshots = snapshots
        self.steps += 1
        return self._report(checked, solved, targets, time.perf_counter() - started)

    def rollback(self) -> None:
        """Take the last step back: weights and state, bit for bit. A second call in a row has no effect."""
        if self._snapshots is None:
            return
        self._restore(self._snapshots)
        self._snapshots = None
        self.weights.roll_back()
        self.steps -= 1

    def reset(self) -> None:
        """Go back to before the first edit: weights and state."""
        self._restart(None)

    def state_of_weights(self) -> str:
        """Say what somebody did to the edited weights since the last write; see `EditedWeights.state`."""
        return self.weights.state()

    def weights_before(self) -> dict[str, Tensor]:
        """Return the edited parameters as before the last step, on the CPU, by name."""
        return self.weights.stored_before()

    def norm_ratio(self) -> dict[int, float]:
        """Return |W| / |W0| by layer."""
        return self.weights.norm_ratios()

    def solve(self, requests: Requests) -> SolvedTargets:
        """Solve values on the current weights without writing anything.

        Args:
            requests: Requests or records.

        Returns:
            The solver's result.
        """
        checked = as_requests(requests)
        self._check_tokens(checked)
        return self._solver().solve(checked)

    def _solver(self) -> TargetSolver:
        """Return the session's one solver, which remembers how many requests fit into memory."""
        if self._targets is None:
            rule = METHODS[self.hparams.method].stopping_rule(self.hparams)
            settings = SolverSettings.from_hparams(self.hparams)
            self._targets = TargetSolver(self.em, self.locator, self.foundation.contexts, settings, rule)
        return self._targets

    def _check_tokens(self, requests: Sequence[EditRequest]) -> None:
        """Tokenise once before any model call, so that what cannot be tokenised changes nothing."""
        for request in requests:
            self.locator.sequence(request, "{}", self.locator.target_ids(request)[:-1])

    def _follow_weights(self) -> None:
        state = self.weights.state()
        if state == ROLLED_BACK:
            logger.info("the last step was rolled back by the caller; the state of %s follows", self.hparams.alg_name)
            self.rollback()
        elif state == RESET:
            logger.info("the model was restored by the caller; %s starts afresh", self.hparams.alg_name)
            self._restart(None)
        elif state == FOREIGN:
            logger.warning(
                "the edited weights were changed by something else than this session: %s forgets its %d steps and goes on "
                "from the weights as they are; statistics and anchor stay those of the unedited model",
                self.hparams.alg_name,
                self.steps,
            )
            self._restart(self.weights.current())

    def _restart(self, base: Mapping[int, Tensor] | None) -> None:
        self.weights.restart(base)
        self._editors = {layer: editor.afresh(self.weights.master[layer]) for layer, editor in self._editors.items()}
        self._snapshots, self.steps = None, 0

    def _restore(self, snapshots: Mapping[int, dict[str, Any]]) -> None:
        for layer, snapshot in snapshots.items():
            self._editors[layer].restore(snapshot)

    def _write(self, solved: SolvedTargets, targets: AnchoredTargets) -> dict[int, Tensor]:
        """Spread the residual over the layers, writing each before the next is measured (MEMIT, Algorithm 1)."""
        proposals: dict[int, Proposal] = {}
        applied: dict[int, Tensor] = {}
        with as_found(self.em.model):
            keys = KeyPass(self.em, self.foundation.contexts, solved.seen, solved.shared) if solved.seen else None
            for number, layer in enumerate(self.em.layers):
                # The solver's clean pass has seen the first layer, on the same weights.
                k, hidden = (solved.first_keys.T, solved.h0.T) if keys is None or number == 0 else keys.run(layer)
                residual = (targets.z.to(hidden.device).T - hidden) / (len(self.em.layers) - number)
                proposals[layer] = self._editors[layer].propose(self.weights.master[layer], k, residual)
                applied[layer] = proposals[layer].applied()
                if not bool(torch.isfinite(applied[layer]).all()):
                    raise NonFiniteError(f"the update of layer {layer} is not finite; nothing was written.")
                self.em.write(layer, applied[layer])
        masters = {layer: self._editors[layer].finish(proposals[layer], applied[layer]) for layer in self.em.layers}
        for layer, proposal in proposals.items():
            self._editors[layer].absorb(proposal, masters[layer])
        return masters

    def _report(
        self, requests: Sequence[EditRequest], solved: SolvedTargets, targets: AnchoredTargets, seconds: float
    ) -> StepReport:
        rows = zip(
            requests,
            solved.loss,
            solved.updates,
            targets.value_norm,
            targets.written_norm,
            targets.skipped,
            strict=True,
        )
        edits = tuple(EditReport(q, float(loss), int(n), float(v), float(w), bool(s)) for q, loss, n, v, w, s in rows)
        return StepReport(edits, self.weights.total_ratio(), seconds, self.steps)


def _grouped(templates: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(group) for group in templates)
