"""The batched scorer that everything teacher-forced goes through: answers to many prompts in few forward passes.

Rows are sorted by length, padded on the right and run together, with the head where an answer is predicted and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from nas_plugin.errors import ModelError
from nas_plugin.evaluation.probes import ProbeTokens
from nas_plugin.locate.sequences import TokenSequence, pad
from nas_plugin.model.trace import as_found, input_device

TOKENS_PER_PASS = 2048
"""Bound on the padded tokens of a forward pass, hence on its memory. A longer row runs alone."""
# Rows join a pass of longer ones if the padding they need there costs less than a pass of their own.
_PADDING_PER_PASS = 16
# Positions whose logits are widened to float32 at once: a large vocabulary makes them big.
_POSITIONS_AT_ONCE = 256

Advance = Callable[[int], object]
"""Told how many rows are done since it was last called."""


@dataclass(frozen=True)
class Scored:
    """What a model makes of one answer, given the prompt and the answer's own earlier tokens.

    Attributes:
        labels: The answer's token ids.
        predicted: Most probable token id at each of them.
        log_probabilities: Natural logarithm of the probability of each label.
    """

    labels: tuple[int, ...]
    predicted: tuple[int, ...]
    log_probabilities: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean negative log-probability per token, nats."""
        return -sum(self.log_probabilities) / len(self.log_probabilities)

    @property
    def exact(self) -> bool:
        """Every token is the most probable one."""
        return self.labels == self.predicted

    @property
    def token_accuracy(self) -> float:
        """Share of tokens that are the most probable one, 0 to 1."""
        return share_equal(self.predicted, self.labels)


def share_equal(left: Sequence[int], right: Sequence[int]) -> float:
    """Return the share of places at which two sequences of the same length agree, 0 to 1."""
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


def score(
    model: Any,
    rows: Sequence[ProbeTokens],
    *,
    tokens_per_pass: int = TOKENS_PER_PASS,
    advance: Advance = lambda _: None,
) -> list[Scored]:
    """Score answers with teacher forcing.

    Args:
        model: Causal language model; left as it is found.
        rows: Prompts with their answers. Equal rows run once.
        tokens_per_pass: Bound on the padded tokens of a forward pass.
        advance: Told of rows done.

    Returns:
        Their scores, in order.

    Raises:
        ModelError: The model has no output head to hook into.
    """
    if not rows:
        return []
    # Requests about the same things ask the same.
    distinct = sorted(dict.fromkeys(rows), key=lambda row: len(row.ids), reverse=True)
    parts = []
    with torch.no_grad(), as_found(model):
        for batch in _passes(distinct, tokens_per_pass):
            parts.append(_forward(model, batch))
            advance(len(batch))
    # Moved to the host once, after the last pass: the device never waits.
    predicted = iter(torch.cat([ids for ids, _ in parts]).tolist())
    logarithms = iter(torch.cat([values for _, values in parts]).tolist())
    found = {}
    for row in distinct:
        count = range(len(row.labels))
        found[row] = Scored(row.labels, tuple(next(predicted) for _ in count), tuple(next(logarithms) for _ in count))
    advance(len(rows) - len(distinct))
    return [found[row] for row in rows]


@contextmanager
def head_at(model: Any, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Run a model's head only where it is needed.

    Selecting at the head's door keeps what the family does on either side of it: final norm, scaling, capping.

    Args:
        model: Causal language model.
        select: Maps hidden states `(rows, positions, d_model)` to those that the head is to see.

    Yields:
        Nothing.

    Raises:
        ModelError: The model has no output head.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output head; load it as a causal language model.")

    def narrow(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (select(args[0]),)

    handle = head.register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


def narrowed(model: Any, logits: Tensor, rows: int, positions: int) -> Tensor:
    """Check that `head_at` had its effect.

    Args:
        model: Causal language model.
        logits: What it returned.
        rows: Rows that were selected.
        positions: Positions that were selected.

    Returns:
        The logits, `(rows, positions, vocabulary)`.

    Raises:
        ModelError: The head was not run as a module.
    """
    if logits.shape[:2] != (rows, positions):
        raise ModelError(
            f"{type(model).__name__} does not run its output head as a module; it cannot be evaluated here."
        )
    return logits


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32 at least, in which probabilities are taken."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _passes(rows: Sequence[ProbeTokens], tokens_per_pass: int) -> Iterator[Sequence[ProbeTokens]]:
    """Cut rows, longest first, into passes of bounded size and little padding."""
    start = width = 0
    for length, group in groupby(enumerate(rows), key=lambda item: len(item[1].ids)):
        numbers = [number for number, _ in group]
        if (width - length) * len(numbers) > _PADDING_PER_PASS:
            yield rows[start : numbers[0]]
            start, width = numbers[0], length
        width = max(width, length)
        while (count := max(1, tokens_per_pass // width)) <= numbers[-1] - start:
            yield rows[start : start + count]
            start, width = start + count, len(rows[start + count].ids)
    yield rows[start:]


def _forward(model: Any, rows: Sequence[ProbeTokens]) -> tuple[Tensor, Tensor]:
    """Return most probable ids and log-probabilities of the labels at every position that predicts one."""
    device = input_device(model)
    # Any id will do for padding: it is masked, and stands where no token before it looks.
    batch = pad([TokenSequence(row.ids, 0, row.first + 1) for row in rows], 0, device)
    wanted = [(number, row.first + i) for number, row in enumerate(rows) for i in range(len(row.labels))]
    row_of, position = torch.tensor(wanted, device=device).T

    def select(hidden: Tensor) -> Tensor:
        return hidden[row_of.to(hidden.device), position.to(hidden.device)][None]

    with head_at(model, select):
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    logits = narrowed(model, output.logits, 1, len(wanted))[0]
    labels = torch.tensor([label for row in rows for label in row.labels], device=logits.device)
    chosen = [
        wide(part.gather(1, ids[:, None]))[:, 0] - wide(part).logsumexp(1)
        for part, ids in zip(logits.split(_POSITIONS_AT_ONCE), labels.split(_POSITIONS_AT_ONCE), strict=True)
    ]
    return logits.argmax(-1), torch.cat(chosen)
