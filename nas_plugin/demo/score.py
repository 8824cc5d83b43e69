"""What an edited demo model still knows: efficacy, generalization, specificity, and facts that no edit touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_plugin.demo.world import Edit, Fact

_ROWS_PER_PASS = 512


@dataclass(frozen=True)
class Scores:
    """Percentages, from the model's next-word probabilities (CounterFact's definitions, algorithm notes 7.2).

    Attributes:
        efficacy: Edits whose new object is more probable than the true one, on the edited prompt.
        generalization: The same on other phrasings, mean over an edit's phrasings.
        specificity: Neighbours (other people with the same true object) whose true object is still the more probable one.
        held_out: Facts about people never edited whose object is the most probable word of all.
    """

    efficacy: float
    generalization: float
    specificity: float
    held_out: float

    @property
    def score(self) -> float:
        """Harmonic mean of efficacy, generalization and specificity; 0 if one of them is."""
        parts = (self.efficacy, self.generalization, self.specificity)
        return 0.0 if min(parts) <= 0 else len(parts) / sum(1 / part for part in parts)


def score(model: nn.Module, tok: Any, edits: Sequence[Edit], held_out: Sequence[Fact]) -> Scores:
    """Ask the model about all edits so far and about what should have stayed.

    Args:
        model: The edited model.
        tok: Its tokenizer; words are single tokens.
        edits: Edits written so far.
        held_out: Facts about people never edited.

    Returns:
        The percentages.
    """
    groups = (
        [[edit.filled_prompt] for edit in edits],
        [list(e.paraphrases) for e in edits],
        [list(e.neighbours) for e in edits],
    )
    held_prompts = [fact.prompt(0) for fact in held_out]
    flat = [prompt for group in groups for prompts in group for prompt in prompts]
    logits = next_word_logits(model, tok, [*flat, *held_prompts])
    prefers_new: list[list[list[bool]]] = []
    row = 0
    for group in groups:
        prefers_new.append([])
        for edit, prompts in zip(edits, group, strict=True):
            new, true = (tok.convert_tokens_to_ids(word) for word in (edit.target_new, edit.ground_truth))
            rows = logits[row : row + len(prompts)]
            prefers_new[-1].append((rows[:, new] > rows[:, true]).tolist())
            row += len(prompts)
    rewrite, paraphrase, neighbour = (_percentage(group) for group in prefers_new)
    answers = torch.tensor([tok.convert_tokens_to_ids(fact.obj) for fact in held_out])
    known = float((logits[row:].argmax(1) == answers).double().mean()) * 100
    return Scores(rewrite, paraphrase, 100 - neighbour, known)


def next_word_logits(model: nn.Module, tok: Any, prompts: Sequence[str]) -> Tensor:
    """Return the logits after each prompt.

    Args:
        model: The model.
        tok: Its tokenizer.
        prompts: Prompts of any length.

    Returns:
        `(prompts, vocabulary)`, on the CPU, in the order given.
    """
    # Edits of people alike ask about the same neighbours.
    distinct = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    rows = tok(list(distinct))["input_ids"]
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(rows), _ROWS_PER_PASS):
        part = rows[start : start + _ROWS_PER_PASS]
        width = max(map(len, part))
        ids = torch.tensor([row + [tok.pad_token_id] * (width - len(row)) for row in part], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part], device=device)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        last = mask.sum(1) - 1
        parts.append(logits[torch.arange(len(part), device=device), last].float().cpu())
    return torch.cat(parts)[[distinct[prompt] for prompt in prompts]]


def _percentage(group: list[list[bool]]) -> float:
    """Mean over edits of the mean over an edit's prompts; edits without a prompt of this kind do not count."""
    means = [sum(answers) / len(answers) for answers in group if answers]
    return 100 * sum(means) / len(means) if means else float("nan")
