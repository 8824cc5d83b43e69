"""Batched evaluation: numbers by hand, of a naive loop on every family, and of EasyEdit; order, padding, memory, errors."""

from __future__ import annotations

import copy
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import ByT5Tokenizer

from nas_plugin.errors import EmptyTargetError, ModelError, PromptTooLongError, RequestError, TokenizerError
from nas_plugin.evaluation import evaluate_requests, summarise
from tests.conftest import PROMPTS, SUBJECTS, TARGETS, build_model, build_tokenizer

EDIT = {"prompt": "Lyon was born in", "target_new": "Manila"}


def ask(i: int) -> str:
    return PROMPTS[i % 6].format(SUBJECTS[(i + i // 6) % 6])


def build_records(count: int = 8) -> list[dict[str, Any]]:
    """Requests of every shape: lists, single strings, parts left out, prompts and answers of many lengths."""
    records: list[dict[str, Any]] = []
    for i in range(count):
        long = "Therefore, because I said that you are a person. " * (i % 3)
        record: dict[str, Any] = {"prompt": long + ask(i), "target_new": TARGETS[i % 6], "ground_truth": None}
        record |= {"locality": {}, "portability": {}}
        if i % 3 != 1:
            record["rephrase_prompt"] = ask(i + 7)
        if i % 4 != 2:
            prompts = [ask(i + k) for k in range(3)]
            answers = ["Polish", "the city of Madrid where people live", "Steve Jobs"]
            record["locality"]["Forgetfulness"] = {"prompt": prompts, "ground_truth": answers}
        if i % 2:
            record["locality"]["Relation_Specificity"] = {"prompt": ask(i + 3), "ground_truth": "Dutch"}
            record["portability"] = {"Reasoning": {"prompt": [ask(i + 4)], "ground_truth": ["a person"]}}
        records.append(record)
    return records


class Naive:
    """One prompt at a time, whole forward, every logit."""

    def __init__(self, model: Any, tok: Any) -> None:
        self.model, self.tok = model, tok

    def answer(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        start = len(self.tok(prompt)["input_ids"])
        ids = self.tok(prompt + " " + target)["input_ids"]
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0]
        return logits.argmax(-1)[start - 1 : -1].tolist(), ids[start:]

    def accuracy(self, prompt: str, target: str) -> float:
        answer, labels = self.answer(prompt, target)
        return sum(a == b for a, b in zip(answer, labels, strict=True)) / len(labels)

    def evaluate(self, record: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {"rewrite_acc": [self.accuracy(record["prompt"], record["target_new"])]}
        if "rephrase_prompt" in record:
            result["rephrase_acc"] = [self.accuracy(record["rephrase_prompt"], record["target_new"])]
        pairs = {part: {key: in_lists(group) for key, group in record[part].items()} for part in PARTS}
        result["locality"] = {
            f"{key}_output": [self.answer(*pair)[0] for pair in group] for key, group in pairs["locality"].items()
        }
        result["portability"] = {
            f"{key}_acc": [self.accuracy(*pair) for pair in group] for key, group in pairs["portability"].items()
        }
        return result


PARTS = ("locality", "portability")


def in_lists(group: dict[str, Any]) -> list[tuple[str, str]]:
    if isinstance(group["prompt"], str):
        return [(group["prompt"], group["ground_truth"])]
    return list(zip(group["prompt"], group["ground_truth"], strict=True))


class Scripted(nn.Module):
    """Predicts a token from the last one alone, by a table."""

    def __init__(self, successor: dict[int, int], vocab: int = 8) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=16)
        self.embedding = nn.Embedding.from_pretrained(torch.eye(vocab))
        self.head = nn.Linear(vocab, vocab, bias=False)
        table = torch.zeros(vocab, vocab)
        for token, following in successor.items():
            table[following, token] = 1.0
        self.head.weight = nn.Parameter(table)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))


def words(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
    rows = [[int(word) for word in text.split()] for text in texts]
    return {"input_ids": rows, "special_tokens_mask": [[0] * len(row) for row in rows]}


SCRIPTED = [
    {
        "prompt": "1 2",
        "target_new": "3 4 6",
        "rephrase_prompt": "7 5",
        "locality": {"near": {"prompt": ["1", "4 2"], "ground_truth": ["7 7", "1"]}},
        "portability": {"hop": {"prompt": "5", "ground_truth": "1 7"}},
    },
    {"prompt": "5", "target_new": "1", "locality": {}, "portability": {}},
]


def test_numbers_by_hand() -> None:
    # 1 -> 2 -> 3 -> 4 -> 5 -> 1, 7 -> 7
    model = Scripted({1: 2, 2: 3, 3: 4, 4: 5, 5: 1, 7: 7})
    first, second = evaluate_requests(model, words, SCRIPTED)
    # After 2, 3, 4 come 3, 4, 5; wanted are 3, 4, 6. After 5, 3, 4 come 1, 4, 5.
    assert first["rewrite_acc"] == [2 / 3]
    assert first["rephrase_acc"] == [1 / 3]
    # After 1, 7 come 2, 7; after 2 comes 3.
    assert first["locality"] == {"near_output": [[2, 7], [3]]}
    # After 5, 1 come 1, 2; wanted are 1, 7.
    assert first["portability"] == {"hop_acc": [1 / 2]}
    assert second == {"rewrite_acc": [1.0], "locality": {}, "portability": {}}
    assert summarise([first, second]) == {
        "rewrite_acc": pytest.approx(5 / 6),
        "rephrase_acc": pytest.approx(1 / 3),
        "locality": {},
        "portability": {"hop_acc": 0.5},
    }


def test_locality_is_the_share_of_answers_kept() -> None:
    before = evaluate_requests(Scripted({1: 2, 2: 3, 7: 7}), words, SCRIPTED)
    after = evaluate_requests(Scripted({1: 2, 2: 6, 7: 5}), words, SCRIPTED, pre=before)
    assert after[0]["locality"] == {"near_output": [[2, 5], [6]], "near_acc": [0.5, 0.0]}
    assert summarise(after)["locality"] == {"near_acc": 0.25}


def answered_records(model: Any, tok: Any) -> list[dict[str, Any]]:
    """Requests with answers that a random model gives at least in part, so that accuracies are not all 0."""
    naive = Naive(model, tok)
    prompts = [prompt.format(subject) for prompt in PROMPTS for subject in SUBJECTS]
    pairs = [(prompt, tok.decode(naive.answer(prompt, target)[0]).strip()) for prompt in prompts for target in TARGETS]
    usable = [pair for pair in pairs if pair[1] and naive.accuracy(*pair) > 0]
    assert len(usable) >= 4
    return [
        {
            "prompt": prompt,
            "target_new": answer,
            "ground_truth": None,
            "rephrase_prompt": prompt,
            "locality": {},
            "portability": {"a": {"prompt": [prompt, other], "ground_truth": ["Polish", last]}},
        }
        for (prompt, answer), (other, last) in zip(usable, usable[1:], strict=False)
    ]


def test_equals_one_prompt_at_a_time(family: str) -> None:
    model, tok = build_model(family), build_tokenizer()
    naive, records = Naive(model, tok), build_records() + answered_records(model, tok)
    expected = [naive.evaluate(record) for record in records]
    assert evaluate_requests(model, tok, records) == expected
    assert summarise(expected)["rewrite_acc"] > 0 < summarise(expected)["portability"]["a_acc"]


def test_padding_side_and_pad_token_make_no_difference(family: str) -> None:
    model, records = build_model(family), build_records(4)
    results = []
    for side, pad_token in (("left", "<eos>"), ("right", "<eos>"), ("left", "e"), ("right", None)):
        tok = build_tokenizer()
        tok.padding_side, tok.pad_token = side, pad_token
        results.append(evaluate_requests(model, tok, records))
        assert (tok.padding_side, tok.pad_token) == (side, pad_token)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("kind", ["BOS", "BOS and EOS", "EOS of a slow tokenizer"])
def test_special_tokens_around_the_text_and_in_it(kind: str) -> None:
    """EasyEdit miscounts here: it takes every token that equals the pad token for padding."""
    tok: Any = ByT5Tokenizer() if "slow" in kind else build_tokenizer()
    if "slow" not in kind:
        template = "<eos> $A" if kind == "BOS" else "<eos> $A <eos>"
        tok.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<eos>", 0)])
    end = "" if "slow" in kind else tok.eos_token  # ByT5 adds no EOS after one
    prompt, answer = f"The language{tok.eos_token} is{end}", "Dutch"
    record = EDIT | {"locality": {"a": {"prompt": prompt, "ground_truth": answer}}}
    model = build_model("llama")
    start, whole = (tok(text, add_special_tokens=False)["input_ids"] for text in (prompt, f"{prompt} {answer}"))
    before = [] if "slow" in kind else [0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([before + whole])).logits[0]
    expected = logits.argmax(-1)[len(before + start) - 1 : -1].tolist()
    assert evaluate_requests(model, tok, [record])[0]["locality"]["a_output"] == [expected]


@pytest.mark.parametrize("bound", [1, 64, 300, 10_000])
def test_memory_bound_and_head_rows(bound: int) -> None:
    model, tok, records = build_model("llama"), build_tokenizer(), build_records()
    shapes: list[torch.Size] = []
    heads: list[int] = []
    watch = [
        model.register_forward_pre_hook(
            lambda _m, _a, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
        ),
        model.get_output_embeddings().register_forward_hook(lambda _m, _a, output: heads.append(output.shape[1])),
    ]
    results = evaluate_requests(model, tok, records, tokens_per_pass=bound)
    for handle in watch:
        handle.remove()
    assert all(shape.numel() <= bound or shape[0] == 1 for shape in shapes)
    assert sum(shape[0] for shape in shapes) == len(set(all_pairs(records))) < len(all_pairs(records))
    assert sum(heads) == sum(len(Naive(model, tok).answer(*pair)[1]) for pair in set(all_pairs(records)))
    assert results == evaluate_requests(model, tok, records)


def all_pairs(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    pairs = []
    for record in records:
        for field in ("prompt", "rephrase_prompt"):
            pairs += [(record[field], record["target_new"])] if field in record else []
        pairs += [pair for part in PARTS for group in record[part].values() for pair in in_lists(group)]
    return pairs


def test_model_tokenizer_and_requests_are_left_as_found() -> None:
    model, tok, records = build_model("gpt2").train(), build_tokenizer(), build_records()
    given = copy.deepcopy(records)
    first = evaluate_requests(model, tok, records)
    assert records == given
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert evaluate_requests(model.eval(), tok, records) == first


def test_missing_parts_are_absent() -> None:
    model, tok = build_model("llama"), build_tokenizer()
    empty = {"rephrase_prompt": None, "locality": None, "portability": {"a": None, "b": {"prompt": None}}}
    nothing = {"locality": {"a": {"prompt": [], "ground_truth": []}}}
    results = evaluate_requests(model, tok, [EDIT, EDIT | empty, EDIT | nothing])
    assert results[0].keys() == {"rewrite_acc", "locality", "portability"}
    assert results[0] == results[1] == results[2]
    assert evaluate_requests(model, tok, []) == []
    assert summarise([]) == {"locality": {}, "portability": {}}


MALFORMED = [
    ({"prompt": None}, "request 1, prompt is a NoneType", RequestError),
    ({"target_new": ["Rome"]}, r"request 1, target_new is a list \(\['Rome'\]\)", RequestError),
    ({"target_new": " "}, "request 1, target_new is empty", EmptyTargetError),
    ({"rephrase_prompt": 3, "case_id": 7}, r"request 1 \(case 7\), rephrase_prompt is a int", RequestError),
    ({"locality": ["x"]}, "request 1, locality is a list", RequestError),
    ({"locality": {"near": "x"}}, "request 1, locality.near is a str", RequestError),
    ({"locality": {"near": {"prompt": "x"}}}, r"locality.near\[0\], ground_truth is a NoneType", RequestError),
    (
        {"locality": {"near": {"prompt": "x", "ground_truth": ["y"]}}},
        r"near\[0\], ground_truth is a list",
        RequestError,
    ),
    (
        {"portability": {"hop": {"prompt": ["x"], "ground_truth": "y"}}},
        r"hop: prompt \(list of 1\).*\(str\)",
        RequestError,
    ),
    ({"portability": {"hop": {"prompt": ["x", "y"], "ground_truth": ["z"]}}}, r"hop: .*of 2.*of 1", RequestError),
    (
        {"portability": {"hop": {"prompt": ["x", ""], "ground_truth": ["y", "z"]}}},
        r"hop\[1\], prompt is empty",
        EmptyTargetError,
    ),
    ({"prompt": "a person " * 100}, "request 1, prompt: .* attends to 128", PromptTooLongError),
]


@pytest.mark.parametrize(("change", "message", "error"), MALFORMED)
def test_malformed_requests_are_named(change: dict[str, Any], message: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=message) as caught:
        evaluate_requests(build_model("llama"), build_tokenizer(), [EDIT, EDIT | change])
    assert isinstance(caught.value, RequestError)


def test_other_misuse_is_named() -> None:
    model, tok = build_model("llama"), build_tokenizer()
    record = EDIT | {"locality": {"near": {"prompt": "Lyon", "ground_truth": "English"}}}
    results = evaluate_requests(model, tok, [record])
    with pytest.raises(RequestError, match="request 0 is a str"):
        evaluate_requests(model, tok, ["x"])
    with pytest.raises(RequestError, match="pre holds 1 results for 2 requests"):
        evaluate_requests(model, tok, [record, record], pre=results)
    with pytest.raises(RequestError, match="pre has no near_output of the same lengths"):
        evaluate_requests(model, tok, [record], pre=[{"locality": {}}])
    with pytest.raises(TokenizerError, match="outside the model's vocabulary of 8"):
        evaluate_requests(Scripted({}), tok, [record])
    model.set_output_embeddings(None)
    with pytest.raises(ModelError, match="no output head"):
        evaluate_requests(model, tok, [record])


@pytest.fixture(scope="module")
def host() -> Any:
    """Current EasyEdit; the released wheel pads on the tokenizer's side and is wrong for lists."""
    if not os.environ.get("EASYEDIT_HOME"):
        pytest.skip("needs current EasyEdit: set EASYEDIT_HOME to a checkout")
    from nas_plugin.easyedit.host import load_host

    return load_host()


def as_easyedit(host: Any, model: Any, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    tok = build_tokenizer()
    tok.model_input_names = ["input_ids", "attention_mask"]  # EasyEdit passes on whatever the tokenizer returns
    settings = SimpleNamespace(alg_name="NAS-MEMIT", max_length=40)
    results = [host.compute_edit_quality(model, "tiny", settings, tok, record, "cpu") for record in records]
    for result in results:
        result.pop("metric_meta")
    return results


def test_equals_easyedit_on_llama(host: Any) -> None:
    model, tok = build_model("llama"), build_tokenizer()
    records = build_records(12) + answered_records(model, tok)
    assert evaluate_requests(model, tok, records) == as_easyedit(host, model, records)


def test_equals_easyedit_on_gpt2_one_prompt_at_a_time(host: Any) -> None:
    """Its numbers are wrong for lists on GPT-2: it pads them on the left and leaves out the position ids."""
    model, tok = build_model("gpt2"), build_tokenizer()
    records = [
        {
            "prompt": prompt,
            "target_new": answer,
            "ground_truth": None,
            "rephrase_prompt": prompt,
            "locality": {"a": {"prompt": [prompt], "ground_truth": [answer]}},
            "portability": {"b": {"prompt": prompt, "ground_truth": answer}},
        }
        for prompt, answer in all_pairs(build_records(12) + answered_records(model, tok))
    ]
    assert evaluate_requests(model, tok, records) == as_easyedit(host, model, records)
