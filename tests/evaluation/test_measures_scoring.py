"""The batched scorer: log-probabilities by hand and by a naive loop, in every dtype; the head only where it is needed."""

from __future__ import annotations

import math

import pytest
import torch

from nas_plugin.errors import ModelError
from nas_plugin.evaluation.measures.scoring import score
from nas_plugin.evaluation.probes import Bounds, Probe, ProbeTokens, tokenise
from tests.conftest import PROMPTS, SUBJECTS, TARGETS, build_model, build_tokenizer
from tests.evaluation.measures_support import VOCAB, OneByOne, Table

PAIRS = [
    ("Therefore, because I said that you are a person. " * (i % 3) + prompt.format(SUBJECTS[i]), answer)
    for i, prompt in enumerate(PROMPTS)
    for answer in (TARGETS[i], "the city of Madrid where people live")
]


def rows_of(model, tok) -> list[ProbeTokens]:
    probes = [Probe(0, "", "", prompt, answer, "x") for prompt, answer in PAIRS]
    return tokenise(probes, tok, Bounds.of(model))


def test_numbers_by_hand() -> None:
    model = Table({2: {3: 0.5, 4: 0.3}, 3: {5: 0.6, 6: 0.2}})
    # After 2 the most probable is 3, after 3 it is 5.
    right, wrong = score(model, [ProbeTokens((1, 2, 3), (3, 5)), ProbeTokens((1, 2, 3), (3, 6))])
    assert right.predicted == wrong.predicted == (3, 5)
    assert right.log_probabilities == pytest.approx((math.log(0.5), math.log(0.6)))
    assert right.loss == pytest.approx(-(math.log(0.5) + math.log(0.6)) / 2)
    assert wrong.loss == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2)
    assert (right.exact, right.token_accuracy) == (True, 1.0)
    assert (wrong.exact, wrong.token_accuracy) == (False, 0.5)


def test_equals_one_prompt_at_a_time(family: str) -> None:
    model, tok = build_model(family), build_tokenizer()
    naive = OneByOne(model, tok)
    for found, pair in zip(score(model, rows_of(model, tok)), PAIRS, strict=True):
        labels, predicted, logs = naive.scored(*pair)
        assert (list(found.labels), list(found.predicted)) == (labels, predicted)
        assert found.log_probabilities == pytest.approx(logs, abs=2e-5)


def test_probabilities_of_half_precision_logits_are_taken_in_float32() -> None:
    model, tok = build_model("llama", torch.bfloat16), build_tokenizer()
    row = rows_of(model, tok)[1]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, row.first :].float()
    expected = logits.log_softmax(-1)[range(len(row.labels)), row.labels].tolist()
    assert score(model, [row])[0].log_probabilities == pytest.approx(expected, abs=1e-5)


def test_float64_stays_float64() -> None:
    model, tok = build_model("llama", torch.float64), build_tokenizer()
    row = rows_of(model, tok)[1]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, row.first :]
    expected = logits.log_softmax(-1)[range(len(row.labels)), row.labels].tolist()
    assert score(model, [row])[0].log_probabilities == pytest.approx(expected, abs=1e-13)


def test_order_and_repetition_make_no_difference() -> None:
    model, tok = build_model("gpt2"), build_tokenizer()
    rows = rows_of(model, tok)
    once = score(model, rows)
    assert score(model, rows[::-1]) == once[::-1]
    done: list[int] = []
    assert score(model, rows + rows, advance=done.append) == once + once
    assert sum(done) == 2 * len(rows)
    assert score(model, []) == []


def test_each_distinct_row_runs_once_with_the_head_at_its_answer() -> None:
    model, tok = build_model("llama"), build_tokenizer()
    rows, seen = rows_of(model, tok), []
    handle = model.get_output_embeddings().register_forward_hook(lambda _m, _a, output: seen.append(output.shape[1]))
    score(model, rows + rows)
    handle.remove()
    assert sum(seen) == sum(len(row.labels) for row in rows)


def test_a_model_without_a_head_is_named() -> None:
    model = Table({})
    model.get_output_embeddings = lambda: None
    with pytest.raises(ModelError, match="Table has no output head"):
        score(model, [ProbeTokens((1,), (2,))])


def test_a_head_that_is_not_run_as_a_module_is_named() -> None:
    model = Table({})
    model.get_output_embeddings = lambda: torch.nn.Linear(VOCAB, VOCAB)
    with pytest.raises(ModelError, match="does not run its output head as a module"):
        score(model, [ProbeTokens((1, 2), (3,))])
