"""Pilot facts solved once, so that anchors of many parts of them cost one pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch

from nas_plugin.anchor import Anchor, measure_anchor
from nas_plugin.errors import AnchorError
from nas_plugin.pilots import pilot_requests
from nas_plugin.request import EditRequest
from nas_plugin.session import EditSession
from nas_plugin.solve.descent import SolverSettings
from nas_plugin.solve.target import SolvedTargets, TargetSolver
from nas_plugin.write import METHODS

PAPER = "paper"


class Pilots(TargetSolver):
    """An editor's own target solver that has solved its facts on the unedited model and hands the results out again.

    Attributes:
        requests: The facts.
        norms: |v*| of each, [facts].
    """

    def __init__(self, session: EditSession, requests: Sequence[EditRequest]) -> None:
        """Solve the facts.

        Args:
            session: A session without edits.
            requests: Facts, each once.
        """
        rule = METHODS[session.hparams.method].stopping_rule(session.hparams)
        settings = SolverSettings.from_hparams(session.hparams)
        super().__init__(session.em, session.locator, session.foundation.contexts, settings, rule)
        self.requests = tuple(requests)
        self._solved = super().solve(self.requests)
        self._row = {request: row for row, request in enumerate(self.requests)}
        self.norms: list[float] = self._solved.values.norm(dim=1).tolist()

    def solve(
        self,
        requests: Sequence[EditRequest],
        advance: Callable[[int], None] = lambda _: None,
        *,
        keep_rows: bool = False,
    ) -> SolvedTargets:
        """Hand out the results of some of the facts; see `TargetSolver.solve`."""
        rows = torch.tensor([self._row[request] for request in requests], device=self._solved.delta.device)
        advance(len(requests))
        solved = self._solved
        return SolvedTargets(
            delta=solved.delta[rows],
            h0=solved.h0[rows],
            v0=solved.v0[rows],
            loss=solved.loss[rows],
            updates=solved.updates[rows],
            first_keys=solved.first_keys[rows],
            finite=solved.finite[rows],
        )

    def anchor_of(self, requests: Sequence[EditRequest]) -> Anchor:
        """Measure the anchor with some of the facts (Eq. 14, raw mean)."""
        # The sample is all of them, so that its seed decides nothing.
        return measure_anchor(self, requests, mode=PAPER, count=len(requests), seed=0, provenance={}, progress=False)


def drawn(pool: Sequence[EditRequest], count: int, seed: int) -> list[EditRequest]:
    """Draw pilots as the anchor's own measurement does.

    Args:
        pool: Facts to draw from.
        count: How many.
        seed: Seed of the sample.

    Returns:
        The sample; any first part of it is a sample too.
    """
    return random.Random(seed).sample(list(pool), count)


def pilot_pool(source: str) -> list[EditRequest]:
    """Read the facts that the anchor is measured with.

    Args:
        source: `nas_pilots` of the hyperparameters.

    Returns:
        The facts, each once.

    Raises:
        AnchorError: There are none.
    """
    pool = list(dict.fromkeys(pilot_requests(source)))
    if not pool:
        raise AnchorError(f"nas_pilots {source!r} holds no facts; name a JSON list of records, or 'builtin'.")
    return pool
