"""Letting a model write, many prompts at once, so that what it writes does not depend on the other prompts.

Prompts are padded on the left and every pass is given the whole attention mask and explicit positions. Sampling draws each
row's random numbers from the row's own seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_plugin.evaluation.measures.scoring import Advance, head_at, narrowed, wide
from nas_plugin.model.trace import as_found, input_device

TOP_K = 5
"""Tokens that sampling chooses among, as in ROME's and MEMIT's evaluation."""
# Bound on prompt and written tokens of all rows of a batch, hence on the cache's memory.
_CACHED_TOKENS = 4096

_Choice = Callable[[Tensor, int], Tensor]
"""Maps logits `(rows, vocabulary)` and the number of the step to token ids `(rows,)`."""


@dataclass(frozen=True)
class Opening:
    """Where writing starts.

    Attributes:
        ids: The prompt's token ids.
        new: Tokens to write at most.
        seed: Decides what is sampled; of no effect on greedy writing.
    """

    ids: tuple[int, ...]
    new: int
    seed: str = ""


def ends_of(model: Any, tok: Any) -> frozenset[int]:
    """Return the ids after which a text is over, by the model's generation settings and its tokenizer."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = named if isinstance(named, list | tuple) else [named]
    return frozenset(token for token in (*ids, tok.eos_token_id) if token is not None)


def write_greedily(
    model: Any, openings: Sequence[Opening], ends: Collection[int], *, advance: Advance = lambda _: None
) -> list[list[int]]:
    """Continue prompts with the most probable token each time.

    Args:
        model: Causal language model with a cache; left as it is found.
        openings: Prompts. Equal ones are continued once.
        ends: Ids after which a text is over.
        advance: Told of openings done.

    Returns:
        New token ids of each opening, without the end.
    """
    distinct = list(dict.fromkeys(openings))
    written: dict[Opening, list[int]] = {}
    for batch in _batches(distinct):
        written |= zip(batch, _write(model, batch, lambda logits, _: logits.argmax(-1), ends), strict=True)
        advance(len(batch))
    advance(len(openings) - len(distinct))
    return [written[opening] for opening in openings]


def write_sampled(model: Any, openings: Sequence[Opening], *, advance: Advance = lambda _: None) -> list[list[int]]:
    """Continue prompts with one of the `TOP_K` most probable tokens, drawn by their probabilities.

    Ends of text are written over, as in MEMIT's evaluation: every continuation has its full length.

    Args:
        model: Causal language model with a cache; left as it is found.
        openings: Prompts with seeds.
        advance: Told of openings done.

    Returns:
        New token ids of each opening.
    """
    written: dict[Opening, list[int]] = {}
    for batch in _batches(openings):
        draws = torch.nn.utils.rnn.pad_sequence([_draws(opening) for opening in batch], batch_first=True)

        def choose(logits: Tensor, step: int, draws: Tensor = draws) -> Tensor:
            top, ids = wide(logits).topk(min(TOP_K, logits.shape[-1]))
            below = top.softmax(-1).cumsum(-1)[:, :-1]
            place = (draws[:, step, None].to(below) >= below).sum(-1, keepdim=True)
            return ids.gather(1, place)[:, 0]

        written |= zip(batch, _write(model, batch, choose, ()), strict=True)
        advance(len(batch))
    return [written[opening] for opening in openings]


def _draws(opening: Opening) -> Tensor:
    """Return one uniform number per new token, on the CPU: the same on every machine and in every batch."""
    digest = hashlib.sha256(opening.seed.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(opening.new, generator=generator)


def _batches(openings: Sequence[Opening]) -> Iterator[list[Opening]]:
    """Put openings of similar length together, as many as the cache has room for."""
    batch: list[Opening] = []
    longest = new = 0
    for opening in sorted(openings, key=lambda o: len(o.ids), reverse=True):
        longest, new = max(longest, len(opening.ids)), max(new, opening.new)
        if batch and (longest + new) * (len(batch) + 1) > _CACHED_TOKENS:
            yield batch
            batch, longest, new = [], len(opening.ids), opening.new
        batch.append(opening)
    if batch:
        yield batch


def _write(model: Any, openings: Sequence[Opening], choose: _Choice, ends: Collection[int]) -> list[list[int]]:
    """Continue one batch until every row is over or has its length; return what each row wrote."""
    device = input_device(model)
    width = max(len(opening.ids) for opening in openings)
    # Any id will do for padding: it is masked.
    padded = [[0] * (width - len(o.ids)) + list(o.ids) for o in openings]
    mask = torch.tensor([[0] * (width - len(o.ids)) + [1] * len(o.ids) for o in openings], device=device)
    ids, positions = torch.tensor(padded, device=device), (mask.cumsum(1) - 1).clamp_min(0)
    limits = torch.tensor([opening.new for opening in openings], device=device)
    over, stops = limits <= 0, torch.tensor(sorted(ends), dtype=torch.long, device=device)
    cache: Any = None
    columns: list[Tensor] = []
    with torch.no_grad(), as_found(model), head_at(model, lambda hidden: hidden[:, -1:]):
        while not bool(over.all()):
            output = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            logits = narrowed(model, output.logits, len(openings), 1)[:, -1]
            ids = choose(logits, len(columns)).to(device)[:, None]
            columns.append(ids)
            over = over | torch.isin(ids[:, 0], stops) | (limits <= len(columns))
            # The whole mask each time: a part of it would be taken for the first positions.
            # Rows that are over stay where they are: a longer one may go on to a position that they do not have.
            cache, positions = output.past_key_values, positions[:, -1:] + ~over[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
    rows = torch.cat(columns, 1).tolist() if columns else [[] for _ in openings]
    return [_until_end(row[: opening.new], ends) for row, opening in zip(rows, openings, strict=True)]


def _until_end(ids: list[int], ends: Collection[int]) -> list[int]:
    return next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)
