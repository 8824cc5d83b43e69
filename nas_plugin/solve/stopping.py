"""When an optimisation has gone far enough, request by request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepView:
    """What a rule may look at before an update; one row per request that is still being solved.

    Attributes:
        active: Numbers of these requests within the batch, `(k,)`.
        loss: Whole objective, `(k,)`.
        nll: Returns the target's mean negative log-likelihood in each context, `(k, contexts)`; column 0 is the bare prompt.
        correct: Returns how many target tokens are the argmax, `(k, contexts)`. Both are worked out only if a rule asks.
        target_length: Tokens of the target, `(k,)`.
    """

    active: Tensor
    loss: Tensor
    nll: Callable[[], Tensor]
    correct: Callable[[], Tensor]
    target_length: Tensor


Decision = Callable[[StepView], Tensor]


class StoppingRule(Protocol):
    """Makes a fresh decision function for each batch, so that counters never leak from one to the next."""

    def start(self, requests: int, device: torch.device) -> Decision:
        """Return a function from a view to a boolean per row: stop now, before the update."""


@dataclass(frozen=True)
class LossBelow:
    """Stop a request when its loss is below a threshold (MEMIT's released code: 0.05).

    Attributes:
        threshold: In nats.
    """

    threshold: float = 0.05

    def start(self, requests: int, device: torch.device) -> Decision:
        """Return the decision function; see `StoppingRule`."""
        return lambda view: view.loss < self.threshold


@dataclass(frozen=True)
class BatchMeanLoss:
    """Stop all requests together when the mean loss of the batch is below a threshold (NAS's released anchor pass).

    Attributes:
        threshold: In nats.
    """

    threshold: float = 0.05

    def start(self, requests: int, device: torch.device) -> Decision:
        """Return the decision function; see `StoppingRule`."""
        return lambda view: (view.loss.mean() < self.threshold).expand_as(view.loss)


@dataclass(frozen=True)
class MostProbable:
    """ENCORE's most-probable early stop (Gupta et al., 2025, section 4), beside the loss threshold.

    A negative cutoff stops after that many steps (in total, not in a row) at which every target token is the argmax in
    every generated context; the bare prompt does not count. A positive cutoff stops when the mean over contexts of
    exp(-NLL) exceeds it. Zero leaves only the loss threshold.

    Attributes:
        cutoff: `prob_cutoff` of ENCORE's hyperparameters.
        exactly_five: Count as the released code does, which asks for exactly five right tokens whatever the target's
            length (and so never fires on some targets of more than one token).
        loss: The loss threshold that applies as well.
    """

    cutoff: float
    exactly_five: bool = False
    loss: LossBelow = LossBelow()

    def start(self, requests: int, device: torch.device) -> Decision:
        """Return the decision function, with a counter per request; see `StoppingRule`."""
        hits = torch.zeros(requests, dtype=torch.long, device=device)
        by_loss = self.loss.start(requests, device)

        def decide(view: StepView) -> Tensor:
            stop = by_loss(view)
            if self.cutoff > 0:
                return stop | (torch.exp(-view.nll()).mean(1) > self.cutoff)
            if self.cutoff < 0:
                generated = view.correct()[:, 1:]
                wanted = 5 if self.exactly_five else generated.shape[1] * view.target_length
                hits[view.active] += (generated.sum(1) == wanted).long()
                stop = stop | (hits[view.active] >= abs(self.cutoff))
            return stop

        return decide
