"""Letting models write in batches: as one prompt at a time without padding or cache, whoever else is in the batch."""

from __future__ import annotations

import pytest
import torch

from nas_plugin.evaluation.measures import writing
from nas_plugin.evaluation.measures.writing import Opening, ends_of, write_greedily, write_sampled
from nas_plugin.evaluation.probes import encode
from tests.conftest import PROMPTS, SUBJECTS, build_model, build_tokenizer
from tests.evaluation.measures_support import END, Numbers, OneByOne, Table

NEVER = 10_000
TEXTS = [
    "Therefore, because I said that you are a person. " * (i % 3) + PROMPTS[i % 6].format(SUBJECTS[(i * 5) % 6])
    for i in range(8)
]


def openings_of(new: int = 12, seeds: bool = False) -> list[Opening]:
    rows = encode(build_tokenizer(), TEXTS)
    return [Opening(ids, new + number % 3, f"case:{number}" if seeds else "") for number, ids in enumerate(rows)]


def test_greedy_by_hand() -> None:
    model = Table({1: {2: 0.9}, 2: {3: 0.6}, 3: {1: 0.5}, 4: {END: 0.9}, 5: {4: 0.8}})
    openings = [Opening((7, 1), 5), Opening((5,), 5), Opening((4,), 5), Opening((1,), 0), Opening((2,), 1)]
    assert ends_of(model, Numbers()) == {END}
    # 5 is followed by 4, and 4 by the end.
    assert write_greedily(model, openings, {END}) == [[2, 3, 1, 2, 3], [4], [], [], [3]]


def test_greedy_equals_one_prompt_at_a_time(family: str) -> None:
    model, tok = build_model(family), build_tokenizer()
    naive, openings = OneByOne(model, tok), openings_of()
    for end in (NEVER, naive.greedy(list(openings[0].ids), 9, NEVER)[4]):
        expected = [naive.greedy(list(opening.ids), opening.new, end) for opening in openings]
        assert write_greedily(model, openings, {end}) == expected
    assert len({tuple(row) for row in expected}) > 2


@pytest.mark.parametrize("write", [lambda m, o: write_greedily(m, o, {0}), write_sampled])
def test_writing_does_not_depend_on_the_rest_of_the_batch(family: str, write) -> None:
    """GPT-2's learned positions and rotary ones alike; EasyEdit's left padding without positions fails here on GPT-2."""
    model, openings = build_model(family), openings_of(seeds=True)
    together = write(model, openings)
    assert together == [write(model, [opening])[0] for opening in openings]
    assert together == write(model, openings[::-1])[::-1]
    assert together[:3] == write(model, openings[:3])


def test_a_small_cache_makes_more_batches_of_the_same_texts(monkeypatch) -> None:
    model, openings, shapes = build_model("gpt2"), openings_of(), []
    expected = write_greedily(model, openings, {0})
    monkeypatch.setattr(writing, "_CACHED_TOKENS", 100)
    handle = model.register_forward_pre_hook(
        lambda _m, _a, kwargs: shapes.append(kwargs["attention_mask"].shape), with_kwargs=True
    )
    assert write_greedily(model, openings, {0}) == expected
    handle.remove()
    assert all(shape.numel() <= 100 or shape[0] == 1 for shape in shapes)


def test_sampling_draws_from_the_five_most_probable_by_their_probabilities() -> None:
    given = {2: 0.4, 3: 0.2, 4: 0.15, 5: 0.1, 6: 0.1}
    model = Table({1: given})
    rows = write_sampled(model, [Opening((1,), 1, f"seed {number}") for number in range(2000)])
    counts = {token: sum(row == [token] for row in rows) / len(rows) for token in range(10)}
    # Five standard deviations of a share of 2,000 draws are at most 0.056.
    for token, probability in given.items():
        assert counts[token] == pytest.approx(probability / 0.95, abs=0.056)
    assert sum(counts[token] for token in given) == 1.0


def test_sampling_writes_over_ends_and_depends_on_the_seed_alone() -> None:
    model = Table({token: {END: 0.6} for token in range(10)})
    torch.manual_seed(1)
    first = write_sampled(model, [Opening((1, 2), 30, "a")])[0]
    torch.manual_seed(2)
    assert write_sampled(model, [Opening((1, 2), 30, "b"), Opening((1, 2), 30, "a")])[1] == first
    assert len(first) == 30 and END in first
    state = torch.get_rng_state()
    assert write_sampled(model, [Opening((1, 2), 30, "b")])[0] != first
    assert torch.equal(state, torch.get_rng_state())


def test_half_precision_and_the_model_as_found() -> None:
    model = build_model("llama", torch.bfloat16).train()
    rows = write_greedily(model, openings_of(), {0})
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert rows == write_greedily(model.eval(), openings_of(), {0})


def test_nothing_to_write() -> None:
    assert write_greedily(Table({}), [], {0}) == write_sampled(Table({}), []) == []
    assert write_greedily(Table({}), [Opening((1,), 0)], {0}) == [[]]


def test_rows_that_are_over_do_not_run_past_the_models_context() -> None:
    model = build_model("gpt2")
    last = model.config.n_positions - 1
    openings = [Opening((5,) * last, 1), Opening((5, 6), 20)]
    assert write_greedily(model, openings, {NEVER}) == [
        write_greedily(model, [opening], {NEVER})[0] for opening in openings
    ]
