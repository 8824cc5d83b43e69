"""Perplexity on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nas_plugin.errors import MeasureError
from nas_plugin.evaluation.measures.scoring import score
from nas_plugin.evaluation.probes import Bounds, ProbeTokens, encode
from nas_plugin.parallel import ALONE, Group


def perplexity(model: Any, tok: Any, texts: Iterable[str], *, window: int, group: Group = ALONE) -> float:
    """Measure the perplexity of texts, every token counting alike.

    Each text is read on its own, in windows that overlap by half: after the first window a token is predicted from at least
    `window // 2` tokens before it, and is counted once. The first token of a text is only read.

    Args:
        model: Causal language model; left as it is found.
        tok: Its tokenizer; never changed.
        texts: Texts.
        window: Length of a window in tokens.
        group: Processes that share the windows.

    Returns:
        exp of the mean negative log-probability per token; infinite if that is too large for a float.

    Raises:
        MeasureError: The window does not fit the model, or no text has two tokens.
        TokenizerError: The tokenizer belongs to another model.
    """
    bounds = Bounds.of(model)
    if window < 2 or (bounds.max_positions is not None and window > bounds.max_positions):
        raise MeasureError(
            f"window is {window}; give at least 2 and at most what the model attends to ({bounds.max_positions})."
        )
    rows: list[ProbeTokens] = []
    for number, ids in enumerate(encode(tok, list(texts))):
        if len(ids) > 1:
            bounds.check(ids, 0, f"text {number}")
            rows.extend(_windows(ids, window))
    if not rows:
        raise MeasureError("no text has two tokens; perplexity needs text to predict.")
    mine = [list(scored.log_probabilities) for scored in score(model, group.mine(rows))]
    total = math.fsum(-value for values in group.gathered(mine, len(rows)) for value in values)
    try:
        return math.exp(total / sum(len(row.labels) for row in rows))
    except OverflowError:
        return math.inf


def _windows(ids: Sequence[int], window: int) -> Iterator[ProbeTokens]:
    """Cut a text into windows, each with the tokens that it is to predict: those that none before it has."""
    done = 1
    while done < len(ids):
        end = min(len(ids), max(window, done + window - window // 2))
        start = max(0, end - window)
        yield ProbeTokens(tuple(ids[start : end - 1]), tuple(ids[done:end]))
        done = end
