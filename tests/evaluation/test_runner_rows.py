"""One prompt at a time behind the interface of a batched model: the same numbers, and no padding in sight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_plugin.demo import load_demo
from nas_plugin.evaluation.measures import base_outputs, measure, perplexity
from nas_plugin.evaluation.runner import Measures
from nas_plugin.evaluation.runner.rows import RowByRow
from tests.evaluation.runner_support import alike, stream_of

EVERYTHING = Measures(generate=True, own_prompts=True)


class Watching(nn.Module):
    """Records what it is called with, and where it is told that prompts end."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.key_id = -1
        self.seen: list[tuple[int, int]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        assert len(input_ids) == 1 and bool(attention_mask.all())
        self.seen.append((input_ids.shape[1], self.key_id))
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    return load_demo()


def test_all_metrics_equal_those_of_the_batched_model(embedded) -> None:
    model, tok = embedded
    cases = EVERYTHING.asked(alike(3).cases)
    base = base_outputs(model, tok, cases)
    one_by_one = RowByRow(model, model)
    assert base_outputs(one_by_one, tok, cases) == base
    settings = {"base": base, "protocols": EVERYTHING.protocols}
    for left, right in zip(
        measure(one_by_one, tok, cases, **settings), measure(model, tok, cases, **settings), strict=True
    ):
        assert left.keys() == right.keys() and left == pytest.approx(right)
        assert "fluency" in left and "efficacy/generated" in left
    texts = [" ".join(["Today the road is long ."] * 8)]
    assert perplexity(one_by_one, tok, texts, window=16) == pytest.approx(perplexity(model, tok, texts, window=16))


def test_whoever_wants_to_know_is_told_where_the_prompt_ends(embedded) -> None:
    model, tok = embedded
    case = stream_of(12).cases[0]
    watching = Watching(model)
    measure(RowByRow(watching, model), tok, [case], protocols=["efficacy/exact"])
    prompt = len(tok(case.requests[0].prompt)["input_ids"])
    # One word is one token here: the row is the prompt, and its last token predicts.
    assert watching.seen == [(prompt, prompt - 1)]
    watching.seen.clear()
    measure(RowByRow(watching, model), tok, [case], protocols=["efficacy/generated"])
    lengths, ends = zip(*watching.seen, strict=True)
    assert set(ends) == {prompt - 1} and list(lengths) == list(range(prompt, prompt + len(lengths)))


def test_ends_are_those_of_each_row_whatever_the_padding(embedded) -> None:
    model, _ = embedded
    watching = Watching(model)
    rows = RowByRow(watching, model)
    ids = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
    right = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        handle = rows.head.register_forward_pre_hook(lambda _, args: (args[0][[0, 1, 1], [2, 3, 4]][None],))
        logits = rows(ids, right).logits
        handle.remove()
        alone = model(torch.tensor([[5, 6, 7]])).logits[0, 2], *model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 3:]
    assert logits.shape[:2] == (1, 3) and torch.allclose(logits[0], torch.stack(alone), atol=1e-5)
    assert watching.seen == [(3, 2), (5, 3)]
    left = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        handle = rows.head.register_forward_pre_hook(lambda _, args: (args[0][:, -1:],))
        last = rows(torch.tensor([[0, 0, 5, 6, 7], [5, 6, 7, 8, 9]]), left).logits
        handle.remove()
    assert last.shape[:2] == (2, 1) and torch.allclose(last[0, 0], alone[0], atol=1e-5)
