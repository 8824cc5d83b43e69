"""Perplexity: by hand, and by a naive strided loop."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nas_plugin.errors import MeasureError, TokenizerError
from nas_plugin.evaluation.measures import perplexity
from nas_plugin.evaluation.measures.perplexity import _windows
from tests.conftest import PROMPTS, SUBJECTS, build_model, build_tokenizer
from tests.evaluation.measures_support import Numbers, OneByOne, Table

TOK: Any = Numbers()
TEXTS = [" ".join(prompt.format(s) for prompt in PROMPTS[:k]) for k, s in zip((6, 1, 3), SUBJECTS, strict=False)]


def test_tokens_count_alike_whatever_text_they_are_in() -> None:
    model = Table({1: {2: 0.5}, 2: {3: 0.25}, 3: {1: 0.2}})
    # Predicted are 2, 3, 1 with 0.5, 0.25, 0.2, and 2 with 0.5. A text of one token has nothing to predict.
    expected = math.exp(-(math.log(0.5) + math.log(0.25) + math.log(0.2) + math.log(0.5)) / 4)
    for window in (2, 3, 4, 32):
        assert perplexity(model, TOK, ["1 2 3 1", "1 2", "4"], window=window) == pytest.approx(expected, rel=1e-6)


def test_windows_predict_every_token_once_from_half_a_window() -> None:
    rows = list(_windows(range(11), 4))
    assert [(row.ids, row.labels) for row in rows] == [
        ((0, 1, 2), (1, 2, 3)),
        ((2, 3, 4), (4, 5)),
        ((4, 5, 6), (6, 7)),
        ((6, 7, 8), (8, 9)),
        ((7, 8, 9), (10,)),
    ]
    for length in range(2, 40):
        for window in range(2, 12):
            rows = list(_windows(range(length), window))
            assert [label for row in rows for label in row.labels] == list(range(1, length))
            assert all(len(row.ids) < window for row in rows)
            assert all(row.ids[row.first] == row.labels[0] - 1 for row in rows)
            assert all(row.first >= window // 2 - 1 for row in rows[1:])


@pytest.mark.parametrize("window", [7, 16, 120])
def test_equals_a_naive_strided_loop(family: str, window: int) -> None:
    model, tok = build_model(family), build_tokenizer()
    naive, losses = OneByOne(model, tok), []
    for text in TEXTS:
        ids, done = tok(text)["input_ids"], 1
        while done < len(ids):
            end = min(len(ids), max(window, done + window - window // 2))
            chunk = ids[max(0, end - window) : end]
            logs = naive.logits(chunk).log_softmax(-1)
            losses += [-float(logs[i - 1, chunk[i]]) for i in range(len(chunk) - (end - done), len(chunk))]
            done = end
    assert perplexity(model, tok, TEXTS, window=window) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_a_perplexity_too_large_for_a_float_is_infinite() -> None:
    model = Table({1: {2: 1e-30}})
    model.head.weight.data *= 1000
    assert perplexity(model, TOK, ["1 2"], window=4) == math.inf


def test_misuse_is_named() -> None:
    model = Table({})
    for window in (1, 33):
        with pytest.raises(MeasureError, match=f"window is {window}; give at least 2 and at most .*32"):
            perplexity(model, TOK, ["1 2"], window=window)
    with pytest.raises(MeasureError, match="no text has two tokens"):
        perplexity(model, TOK, ["1"], window=4)
    with pytest.raises(TokenizerError, match="text 1: token id 12"):
        perplexity(model, TOK, ["1 2", "1 12"], window=4)
