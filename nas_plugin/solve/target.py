"""The one target solver: an additive correction to the last edited block's output that makes the model say the target.

Source: ROME (Meng et al., 2022), Eq. 4, in the form of MEMIT's released `compute_z`, for all requests of a step at once. Where a
norm stands between the MLP and the residual stream, the correction is ROME's own: added to the MLP's output, before that norm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from nas_plugin.errors import NonFiniteError
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.keys import SeenRows
from nas_plugin.locate.resumed import SharedPrefix, share_prefixes
from nas_plugin.locate.sequences import Locator
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.residual import MlpNorm
from nas_plugin.model.trace import as_found
from nas_plugin.parallel import Group
from nas_plugin.request import EditRequest
from nas_plugin.solve.descent import Descent, SolverSettings
from nas_plugin.solve.forward import (
    CleanRows,
    CorrectedForward,
    NormedForward,
    Places,
    can_reuse_prefix,
    clean_rows,
)
from nas_plugin.solve.objective import Objective
from nas_plugin.solve.passes import pass_cost
from nas_plugin.solve.rows import RowTexts, TargetRows, row_texts
from nas_plugin.solve.stopping import LossBelow, StepView, StoppingRule

logger = logging.getLogger(__name__)

REQUESTS_PER_BATCH = 16
_ASK_EVERY = 4
_TENSORS = ("delta", "h0", "v0", "loss", "updates", "first_keys", "finite")


@dataclass(frozen=True)
class SolvedTargets:
    """Result for n requests, in the compute dtype.

    Attributes:
        delta: Correction of the value, `(n, d_out)`; without a norm behind the MLP that of the block's output, too.
        h0: Output of the last edited block before the edit, bare prompt, subject's last token, `(n, d_out)`.
        v0: Output of that block's MLP at the same place, `(n, d_out)`.
        loss: Objective at the last evaluation, `(n,)`.
        updates: Number of updates made, `(n,)`.
        first_keys: Keys at the first edited layer, seen in the same pass, `(n, d_in)`.
        finite: Whether correction and loss came out finite, `(n,)`.
        seen: The rows at the first edited layer, for the keys of later ones; empty unless they were asked for.
        shared: What these rows have in common; None if they were run without it.
        norm: Norm between that MLP and the residual stream; None where there is none.
    """

    delta: Tensor
    h0: Tensor
    v0: Tensor
    loss: Tensor
    updates: Tensor
    first_keys: Tensor
    finite: Tensor
    seen: tuple[SeenRows, ...] = ()
    shared: SharedPrefix | None = None
    norm: MlpNorm | None = None

    @property
    def values(self) -> Tensor:
        """Solved values v* = v0 + delta, `(n, d_out)`."""
        return self.v0 + self.delta

    def reached(self, values: Tensor) -> Tensor:
        """Return the output of the last edited block with other values in place of `v0`.

        Args:
            values: MLP outputs, `(n, d_out)`.

        Returns:
            Hidden states `(n, d_out)`.
        """
        if self.norm is None:
            return (self.h0 - self.v0) + values
        return (self.h0 - self.norm(self.v0)) + self.norm(values)

    def only(self, kept: Sequence[int]) -> SolvedTargets:
        """Leave requests out of what is written; their rows stay where a key pass looks for them.

        Args:
            kept: Numbers of the requests that stay.

        Returns:
            The result for them.
        """
        if len(kept) == len(self.loss):
            return self
        return replace(self, **{name: getattr(self, name)[list(kept)] for name in _TENSORS})

    def as_in(self, group: Group) -> SolvedTargets:
        """Return the result of the group's first process.

        Args:
            group: The processes, all of which have solved the same requests.

        Returns:
            Its result, with the rows as this process has run them.
        """
        if group.size == 1:
            return self
        first: dict[str, Any] = {name: group.from_main(getattr(self, name)) for name in _TENSORS}
        return replace(self, **first)

    def refuse_not_finite(self, requests: Sequence[EditRequest]) -> None:
        """Refuse a value that is NaN or infinite.

        Args:
            requests: The requests that were solved.

        Raises:
            NonFiniteError: A loss or a correction is NaN or infinite; the message names the first request with one.
        """
        if not bool(self.finite.all()):
            raise NonFiniteError(not_finite(requests[int((~self.finite).nonzero()[0])]))


def not_finite(request: EditRequest) -> str:
    """Say that the value of a request is not finite."""
    return (
        f"the value of {request.prompt!r} -> {request.target!r} came out NaN or infinite; the model is damaged or overflows: "
        "load it in a wider dtype, or lower v_lr."
    )


@dataclass(frozen=True)
class _Step:
    requests: Sequence[EditRequest]
    texts: RowTexts
    shared: SharedPrefix | None
    keep_rows: bool


class TargetSolver:
    """Solves values on the current weights; the model is left as it was found.

    Attributes:
        batch_size: Most requests solved at once.
    """

    def __init__(
        self,
        em: EditableModel,
        locator: Locator,
        contexts: ContextTemplates,
        settings: SolverSettings,
        rule: StoppingRule | None = None,
    ) -> None:
        """Bind the solver.

        Args:
            em: The model.
            locator: Builds the sequences.
            contexts: Templates; the bare prompt is the first.
            settings: Numbers of the optimisation.
            rule: When to stop; by default when the loss is below 0.05.
        """
        self.em = em
        self.locator = locator
        self.contexts = contexts
        self.settings = settings
        self.rule = rule if rule is not None else LossBelow()
        self.batch_size = REQUESTS_PER_BATCH

    def solve(
        self,
        requests: Sequence[EditRequest],
        advance: Callable[[int], None] = lambda _: None,
        *,
        keep_rows: bool = False,
    ) -> SolvedTargets:
        """Solve the values of a step's requests, each independently of the others.

        Args:
            requests: Requests.
            advance: Called with the number of requests solved since the last call.
            keep_rows: Keep the rows for a `KeyPass`.

        Returns:
            Corrections and what they were measured against; see `finite` before they are used.
        """
        texts = row_texts(requests, self.locator, self.contexts)
        # Alike in the tokens that every step runs over, from the subject's last one on, so that a batch holds little padding.
        bare = [row for row, column in zip(texts.sequences, texts.column, strict=True) if column == 0]
        order = sorted(range(len(bare)), key=lambda i: (len(bare[i].ids) - bare[i].lookup, len(bare[i].ids)))
        with as_found(self.em.model):
            step = _Step(requests, texts, self._shared(texts), keep_rows)
            parts = self._in_batches(step, order, advance)
        back = torch.tensor(order, device=parts[0].delta.device).argsort()
        whole: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts])[back] for name in _TENSORS}
        seen = tuple(seen for part in parts for seen in part.seen)
        return replace(parts[0], **whole, seen=seen, shared=step.shared if keep_rows else None)

    def _in_batches(self, step: _Step, order: Sequence[int], advance: Callable[[int], None]) -> list[SolvedTargets]:
        """Solve batch by batch, halving the batch when memory runs out; it stays halved for the next steps."""
        parts: list[SolvedTargets] = []
        done = 0
        while done < len(order):
            batch = order[done : done + self.batch_size]
            try:
                parts.append(self._solve_batch(step, batch))
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or len(batch) == 1:
                    raise
                self.batch_size = len(batch) // 2
                logger.warning("out of memory with %d requests at once: going on with %d", len(batch), self.batch_size)
                clear_device_cache(garbage_collection=True)
                continue
            done += len(batch)
            advance(len(batch))
        return parts

    def _shared(self, texts: RowTexts) -> SharedPrefix | None:
        """Run what the rows of a context begin with; None where the model takes the plain form."""
        if not can_reuse_prefix(self.em, max(len(row.ids) for row in texts.sequences)):
            return None
        return share_prefixes(self.em, texts.sequences, texts.generated, self.locator.pad_id, pass_cost(self.em))

    def _solve_batch(self, step: _Step, batch: Sequence[int]) -> SolvedTargets:
        em, dtype, texts = self.em, self.em.compute_dtype, step.texts.select(batch)
        rows = TargetRows.of(texts, em.input_device)
        clean = clean_rows(em, texts.sequences, texts.generated, step.shared, self.locator.pad_id)
        h0, v0 = clean.hidden[rows.bare_row].to(dtype), clean.value[rows.bare_row].to(dtype)
        # What the correction is added to measures it: in MEMIT the block's output, in ROME the MLP's.
        origin = h0 if em.value_norm is None else v0
        descent = Descent(origin, self.settings)
        self._descend(rows, clean, origin, descent)
        finite = torch.isfinite(descent.delta).all(1) & (torch.isfinite(descent.loss) | (self.settings.steps == 1))
        keys = self._first_keys(texts, rows, clean)
        seen = (_seen_rows(texts, clean, batch, em.input_device),) if step.keep_rows else ()
        return SolvedTargets(
            descent.delta, h0, v0, descent.loss, descent.updates, keys, finite, seen, norm=em.value_norm
        )

    @torch.enable_grad()
    def _descend(self, rows: TargetRows, clean: CleanRows, origin: Tensor, descent: Descent) -> None:
        """Make the updates; requests that have stopped leave the batch."""
        decide = self.rule.start(len(origin), origin.device)
        # Asking which requests have stopped makes an accelerator wait; there, finished ones run along for a few steps.
        ask_every = 1 if origin.device.type == "cpu" else _ASK_EVERY
        active = torch.arange(len(origin), device=origin.device)
        every_row = torch.arange(len(rows.row_request), device=origin.device)
        objective = Objective(self.em, rows, self._corrected(clean, every_row, rows.places), origin, self.settings)
        view, reference = rows, None
        for step in range(1, self.settings.steps):
            delta = descent.running.requires_grad_(True)
            seen = objective(delta, reference)
            reference = seen.current if reference is None else reference
            loss = seen.loss.detach()
            descent.record(loss, decide(StepView(active, loss, seen.nll, seen.correct, view.target_length)))
            ask = step % ask_every == 0
            if ask and not bool(descent.going.any()):
                break
            (gradient,) = torch.autograd.grad(seen.loss.sum(), delta)
            descent.update(gradient, step)
            if ask and not bool(descent.going.all()):
                stays = descent.going.nonzero()[:, 0]
                descent.keep(stays)
                active, reference = active[stays], reference[stays]
                view, of_rows = rows.take(active)
                forward = self._corrected(clean, of_rows, view.places)
                objective = Objective(self.em, view, forward, origin[active], self.settings)
        descent.keep(active[:0])

    def _corrected(self, clean: CleanRows, rows: Tensor, places: Places) -> CorrectedForward:
        forward, norm = clean.corrected(rows, places), self.em.value_norm
        return forward if norm is None else NormedForward(forward, norm, clean.value[rows].to(self.em.compute_dtype))

    def _first_keys(self, texts: RowTexts, rows: TargetRows, clean: CleanRows) -> Tensor:
        """Average the keys of the first edited layer, which the clean pass has seen, over the contexts."""
        keys = clean.keys.to(self.em.compute_dtype)
        weights = (*self.contexts.weights, 0.0)
        share = torch.tensor([weights[column] for column in texts.column], dtype=keys.dtype, device=keys.device)
        total = torch.zeros(len(rows.bare_row), keys.shape[1], dtype=keys.dtype, device=keys.device)
        return total.index_add(0, rows.row_request, keys * share[:, None])


def _seen_rows(texts: RowTexts, clean: CleanRows, batch: Sequence[int], device: torch.device) -> SeenRows:
    """Keep what a key pass needs: the contexts of each request, without "<subject> is a"."""
    chosen = [row for row, column in enumerate(texts.column) if column < texts.contexts]
    columns = torch.tensor([texts.generated[row] or 0 for row in chosen], device=device)
    return SeenRows(clean.resumed.take(torch.tensor(chosen, device=device)), tuple(batch), columns)
