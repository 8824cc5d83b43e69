"""The rows of a batch of requests: for each, its prompt in every context, then "<subject> is a"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.sequences import Locator, PaddedBatch, pad
from nas_plugin.request import EditRequest


@dataclass(frozen=True)
class TargetRows:
    """Rows of n requests, and where in them the target tokens are predicted.

    Attributes:
        inputs: Token ids, mask and subject's last token, `(n (contexts + 1), positions)`.
        contexts: Contexts per request.
        token_request: Request of each target token, `(t,)`.
        token_context: Its context, `(t,)`.
        token_position: Position whose logits predict it, `(t,)`.
        token_label: Its id, `(t,)`.
        target_length: Tokens of each target, `(n,)`.
    """

    inputs: PaddedBatch
    contexts: int
    token_request: Tensor
    token_context: Tensor
    token_position: Tensor
    token_label: Tensor
    target_length: Tensor

    @property
    def per_request(self) -> int:
        """Rows per request."""
        return self.contexts + 1

    @property
    def token_row(self) -> Tensor:
        """Row of each target token, `(t,)`."""
        return self.token_request * self.per_request + self.token_context

    @property
    def bare_rows(self) -> Tensor:
        """Row of each request's bare prompt, `(n,)`."""
        return torch.arange(len(self.target_length), device=self.target_length.device) * self.per_request

    @property
    def kl_rows(self) -> Tensor:
        """Row of each request's "<subject> is a", `(n,)`."""
        return self.bare_rows + self.contexts

    def rows_of(self, active: Tensor) -> Tensor:
        """Return the rows of some requests, in order.

        Args:
            active: Request numbers `(k,)`.

        Returns:
            Row numbers `(k (contexts + 1),)`.
        """
        return (active[:, None] * self.per_request + torch.arange(self.per_request, device=active.device)).reshape(-1)

    def take(self, active: Tensor) -> TargetRows:
        """Keep some requests, renumbered from 0.

        Args:
            active: Request numbers `(k,)`.

        Returns:
            Their rows.
        """
        renumber = torch.full_like(self.target_length, -1)
        renumber[active] = torch.arange(len(active), device=active.device)
        kept = renumber[self.token_request] >= 0
        return TargetRows(
            self.inputs.rows(self.rows_of(active)),
            self.contexts,
            renumber[self.token_request[kept]],
            self.token_context[kept],
            self.token_position[kept],
            self.token_label[kept],
            self.target_length[active],
        )


def target_rows(
    requests: Sequence[EditRequest], locator: Locator, contexts: ContextTemplates, device: torch.device
) -> TargetRows:
    """Build the rows of a batch.

    Args:
        requests: Requests.
        locator: Builds the sequences.
        contexts: Templates; the bare prompt is the first.
        device: Where to put the tensors.

    Returns:
        The rows.
    """
    rows, tokens = [], []
    targets = [locator.target_ids(request) for request in requests]
    for number, (asked, target) in enumerate(zip(requests, targets, strict=True)):
        for column, template in enumerate(contexts.flat):
            row = locator.sequence(asked, template, target[:-1])
            tokens += [(number, column, row.prompt_length - 1 + j, wanted) for j, wanted in enumerate(target)]
            rows.append(row)
        rows.append(locator.essence(asked))
    request, context, position, label = torch.tensor(tokens, device=device).T
    lengths = torch.tensor([len(target) for target in targets], device=device)
    return TargetRows(pad(rows, locator.pad_id, device), len(contexts.flat), request, context, position, label, lengths)
