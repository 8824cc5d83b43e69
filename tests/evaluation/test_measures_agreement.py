"""Metrics of cases with every field: one prompt at a time, other cases or other padding, the demo's scores, parts of them."""

from __future__ import annotations

import json

import pytest
import torch

from nas_plugin.demo import load_demo
from nas_plugin.demo.score import score
from nas_plugin.demo.world import World
from nas_plugin.evaluation.cases import Ask, Case
from nas_plugin.evaluation.measures import (
    PROTOCOLS,
    TEACHER_FORCED,
    base_outputs,
    measure,
    summarise_cases,
    template_of,
)
from nas_plugin.evaluation.streams.demo import read_world
from nas_plugin.request import EditRequest
from tests.conftest import PROMPTS, SUBJECTS, TARGETS, build_model, build_tokenizer
from tests.evaluation.measures_support import OneByOne, asks, mean


def real_cases(count: int = 6) -> list[Case]:
    """Cases with every field, in text of many lengths."""
    cases = []
    for i in range(count):
        other = [PROMPTS[(i + k) % 6].format(SUBJECTS[(i + 2 * k + 1) % 6]) for k in range(4)]
        long = "Therefore, because I said that you are a person. " * (i % 3)
        cases.append(
            Case(
                str(i),
                "counterfact",
                (EditRequest(long + PROMPTS[i], SUBJECTS[i], TARGETS[i]),),
                true_target=TARGETS[(i + 1) % 6],
                rephrases=(other[0], long + other[1]),
                neighbours=asks((other[2], "the city of Madrid"), (long + other[3], "Polish")),
                locality={"far": asks((long + other[1], "Steve Jobs"))},
                portability={"hop": asks((other[0], "a person"))},
                questions=(Ask(other[3], ("Polish", "a person")),),
                generation_prompts=(other[1], other[1]),
                reference_texts=(f"{SUBJECTS[i]} is a person in the city.",),
            )
        )
    return cases


def test_equals_one_prompt_at_a_time(family: str) -> None:
    model, tok, cases = build_model(family), build_tokenizer(), real_cases()
    naive = OneByOne(model, tok)
    before = OneByOne(build_model(family, seed=1), tok)
    base = base_outputs(before.model, tok, cases)
    for case, result in zip(cases, measure(model, tok, cases, base=base, protocols=TEACHER_FORCED), strict=True):
        new = case.requests[0].target
        rephrased = [naive.loss(p, new) < naive.loss(p, case.true_target) for p in case.rephrases]
        kept = [naive.loss(ask.prompt, ask.answers[0]) < naive.loss(ask.prompt, new) for ask in case.neighbours]
        pairs = [
            (naive.scored(a.prompt, a.answers[0])[1], before.scored(a.prompt, a.answers[0])[1]) for a in case.neighbours
        ]
        same = [mean([float(a == b) for a, b in zip(*pair, strict=True)]) for pair in pairs]
        assert result["generalization/probability"] == 100 * mean(rephrased)
        assert result["specificity/probability"] == 100 * mean(kept)
        assert result["locality/neighborhood/unchanged_tokens"] == pytest.approx(100 * mean(same))
        labels, predicted, _ = naive.scored(case.requests[0].prompt, new)
        share = mean([float(a == b) for a, b in zip(labels, predicted, strict=True)])
        assert result["efficacy/token_accuracy"] == pytest.approx(100 * share)


def test_nothing_depends_on_the_other_cases() -> None:
    model, tok, cases = build_model("gpt2"), build_tokenizer(), real_cases(4)
    base = json.loads(json.dumps(base_outputs(build_model("gpt2", seed=1), tok, cases)))
    together = measure(model, tok, cases, base=base)
    assert json.loads(json.dumps(together)) == together
    assert together == [measure(model, tok, [case], base=base)[0] for case in cases]
    assert together == measure(model, tok, cases[::-1], base=base)[::-1]
    assert {template_of(name) for result in together for name in result} == {
        name for name in PROTOCOLS if not name.startswith("score/")
    }


def test_equals_the_demos_own_scores() -> None:
    """Its answers are single words, whose probabilities it reads off the next word's."""
    model, tok = load_demo()
    count, generator = 40, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    stream = read_world(World())
    expected = score(model, tok, World().edits(len(stream))[:count], [])
    results = measure(model, tok, stream[:count], protocols=TEACHER_FORCED)
    summary = summarise_cases(results)
    assert 10 < expected.score < 90
    assert {name: summary[f"{name}/probability"]["mean"] for name in ("efficacy", "generalization", "specificity")} == {
        "efficacy": pytest.approx(expected.efficacy),
        "generalization": pytest.approx(expected.generalization),
        "specificity": pytest.approx(expected.specificity),
    }
    assert summary["score/probability"]["mean"] == pytest.approx(expected.score)


def test_the_tokenizers_padding_makes_no_difference() -> None:
    model, cases, results = build_model("gpt2"), real_cases(3), []
    for side, pad_token in (("left", "<eos>"), ("right", None), ("left", "e")):
        tok = build_tokenizer()
        tok.padding_side, tok.pad_token = side, pad_token
        results.append(measure(model, tok, cases, base=base_outputs(model, tok, cases)))
        assert (tok.padding_side, tok.pad_token) == (side, pad_token)
    assert results[0] == results[1] == results[2]


def test_only_what_is_asked_for_is_measured_with_what_it_is_made_of() -> None:
    model, tok, cases = build_model("llama"), build_tokenizer(), real_cases(2)
    base = base_outputs(model, tok, cases)
    everything = measure(model, tok, cases, base=base)
    passes: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert measure(model, tok, cases, base=base, protocols=()) == [{}, {}]
    assert not passes
    for name in PROTOCOLS:
        for whole, part in zip(everything, measure(model, tok, cases, base=base, protocols=[name]), strict=True):
            assert part.items() <= whole.items()
            assert name in {template_of(found) for found in part} or name.startswith("score/")
    handle.remove()
    made_of = measure(model, tok, cases, base=base, protocols=["score/token_accuracy"])[0]
    assert set(made_of) == {
        "efficacy/token_accuracy",
        "generalization/token_accuracy",
        "locality/neighborhood/unchanged_tokens",
        "locality/far/unchanged_tokens",
        "locality/unchanged_tokens",
    }
