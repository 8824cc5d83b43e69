"""The rows of a batch of requests: for each, its prompt in every context, and "<subject> is a" where no prompt holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.sequences import Locator, TokenSequence
from nas_plugin.request import EditRequest


@dataclass(frozen=True)
class RowTexts:
    """Token sequences of some requests.

    Attributes:
        sequences: Rows, request by request: its contexts, the bare prompt first, then "<subject> is a" if it needs a row.
        column: Context of each row; the number of contexts for "<subject> is a".
        request: Request of each row.
        targets: Target ids of each request.
        contexts: Contexts per request.
    """

    sequences: tuple[TokenSequence, ...]
    column: tuple[int, ...]
    request: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    contexts: int

    @property
    def generated(self) -> tuple[int | None, ...]:
        """Context of each row that stands in a generated one; None for the others, which begin with nothing in common."""
        return tuple(column if 0 < column < self.contexts else None for column in self.column)

    def select(self, chosen: Sequence[int]) -> RowTexts:
        """Return the rows of some requests, renumbered in the order given.

        Args:
            chosen: Request numbers.

        Returns:
            Their rows.
        """
        by_request: dict[int, list[int]] = {}
        for row, request in enumerate(self.request):
            by_request.setdefault(request, []).append(row)
        rows = [(row, number) for number, request in enumerate(chosen) for row in by_request[request]]
        return RowTexts(
            tuple(self.sequences[row] for row, _ in rows),
            tuple(self.column[row] for row, _ in rows),
            tuple(number for _, number in rows),
            tuple(self.targets[request] for request in chosen),
            self.contexts,
        )


def row_texts(requests: Sequence[EditRequest], locator: Locator, contexts: ContextTemplates) -> RowTexts:
    """Build the rows of some requests.

    Args:
        requests: Requests.
        locator: Builds the sequences.
        contexts: Templates; the bare prompt is the first.

    Returns:
        The rows.
    """
    sequences: list[TokenSequence] = []
    column: list[int] = []
    owner: list[int] = []
    targets = tuple(locator.target_ids(request) for request in requests)
    for number, (asked, target) in enumerate(zip(requests, targets, strict=True)):
        rows = [locator.sequence(asked, template, target[:-1]) for template in contexts.flat]
        essence = locator.essence(asked)
        # A prompt that begins with the subject holds "<subject> is a" up to the place where it is read.
        if rows[0].up_to_subject() != essence:
            rows.append(essence)
        sequences += rows
        column += range(len(rows))
        owner += [number] * len(rows)
    return RowTexts(tuple(sequences), tuple(column), tuple(owner), targets, len(contexts.flat))


@dataclass(frozen=True)
class TargetRows:
    """Where n requests are read: which rows are theirs, and where target tokens and the KL term stand in them.

    Attributes:
        row_request: Request of each row, `(rows,)`.
        lookup: Subject's last token of each row, `(rows,)`.
        bare_row: Row of each request's bare prompt, `(n,)`.
        kl_row: Row in which its KL term is read, at the subject's last token, `(n,)`.
        token_request: Request of each target token, `(t,)`.
        token_cell: Its request and context as one number, request * contexts + context, `(t,)`.
        token_row: Its row, `(t,)`.
        token_position: Position whose logits predict it, `(t,)`.
        token_label: Its id, `(t,)`.
        target_length: Tokens of each target, `(n,)`.
        contexts: Contexts per request.
    """

    row_request: Tensor
    lookup: Tensor
    bare_row: Tensor
    kl_row: Tensor
    token_request: Tensor
    token_cell: Tensor
    token_row: Tensor
    token_position: Tensor
    token_label: Tensor
    target_length: Tensor
    contexts: int

    @classmethod
    def of(cls, texts: RowTexts, device: torch.device) -> TargetRows:
        """Say where the rows are read.

        Args:
            texts: The rows.
            device: Where to put the tensors.

        Returns:
            The places.
        """
        tokens, bare, kl = [], [], [0] * len(texts.targets)
        for row, (sequence, column, request) in enumerate(
            zip(texts.sequences, texts.column, texts.request, strict=True)
        ):
            if column == 0:
                bare.append(row)
                kl[request] = row
            elif column == texts.contexts:
                kl[request] = row
                continue
            first, cell = sequence.prompt_length - 1, request * texts.contexts + column
            tokens += [(request, cell, row, first + j, label) for j, label in enumerate(texts.targets[request])]

        def on_device(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, device=device)

        of_request, cell, in_row, position, label = torch.tensor(tokens, device=device).T
        return cls(
            on_device(texts.request),
            on_device([sequence.lookup for sequence in texts.sequences]),
            on_device(bare),
            on_device(kl),
            of_request,
            cell,
            in_row,
            position,
            label,
            on_device([len(target) for target in texts.targets]),
            texts.contexts,
        )

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Rows and positions at which logits are read: the target tokens, then the KL terms, each `(t + n,)`."""
        rows = torch.cat([self.token_row, self.kl_row])
        return rows, torch.cat([self.token_position, self.lookup[self.kl_row]])

    def take(self, active: Tensor) -> tuple[TargetRows, Tensor]:
        """Keep some requests, renumbered from 0.

        Args:
            active: Request numbers, ascending, `(k,)`.

        Returns:
            Their places, and the numbers of their rows.
        """
        renumber = torch.full_like(self.target_length, -1)
        renumber[active] = torch.arange(len(active), device=active.device)
        rows = (renumber[self.row_request] >= 0).nonzero()[:, 0]
        new_row = torch.zeros_like(self.row_request)
        new_row[rows] = torch.arange(len(rows), device=rows.device)
        kept = renumber[self.token_request] >= 0
        request = renumber[self.token_request[kept]]
        kept_places = TargetRows(
            renumber[self.row_request[rows]],
            self.lookup[rows],
            new_row[self.bare_row[active]],
            new_row[self.kl_row[active]],
            request,
            request * self.contexts + self.token_cell[kept] % self.contexts,
            new_row[self.token_row[kept]],
            self.token_position[kept],
            self.token_label[kept],
            self.target_length[active],
            self.contexts,
        )
        return kept_places, rows
