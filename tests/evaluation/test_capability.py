"""Capabilities of a live model: the numbers of a naive computation, and everything left as it was found."""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from nas_plugin.errors import CapabilityError, PackageMissingError, TokenizerError
from nas_plugin.evaluation.capability import DEFINITIONS, PAPER, capabilities, run, shipped_tasks
from nas_plugin.evaluation.capability.scores import weighted_f1
from nas_plugin.parallel import Group
from tests.conftest import build_model, build_tokenizer
from tests.evaluation.capability_support import write_data

SHORT = ["local_sst2", "local_cola", "local_rte"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", times=8)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to reach another machine."""
    attempts: list[Any] = []

    def refuse(*args: Any, **_: Any) -> None:
        attempts.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


def log_likelihood(model: Any, tok: Any, prompt: str, answer: str) -> tuple[float, int]:
    """Sum over the answer's tokens and their number, one row, one forward pass."""
    start = len(tok(prompt).input_ids)
    ids = torch.tensor([tok(prompt + answer).input_ids])
    with torch.no_grad():
        scores = model(input_ids=ids).logits[0].float().log_softmax(-1)
    tokens = range(start, ids.shape[1])
    return sum(float(scores[i - 1, ids[0, i]]) for i in tokens), len(tokens)


def naive_guess(model: Any, tok: Any, prompt: str, answers: list[str], mean: bool = False) -> int:
    totals = [log_likelihood(model, tok, prompt, answer) for answer in answers]
    values = [total / count if mean else total for total, count in totals]
    return values.index(max(values))


WORDS = ["Lyon", "person", "city", "live", "work", "Paris", "you", "because", "said"]


def reviews(seed: int, count: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{"sentence": " ".join(draw.choices(WORDS, k=6)), "label": draw.randrange(2)} for _ in range(count)]


def attentive_model(family: str, seed: int) -> Any:
    """A random model whose answer depends on the whole prompt, not on its last token alone."""
    model = build_model(family, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attn" in name and name.endswith(("c_proj.weight", "o_proj.weight")):
                parameter.mul_(20.0)
    return model


@pytest.mark.parametrize(("family", "seed"), [("gpt2", 1), ("llama", 0)])
def test_accuracy_and_f1_are_those_of_one_record_at_a_time(family: str, seed: int, tmp_path: Path) -> None:
    model, tok, records = attentive_model(family, seed), build_tokenizer(), reviews(seed=4, count=8)
    answers = [" negative", " positive"]
    guesses = [naive_guess(model, tok, f"Review: {record['sentence']}\nSentiment:", answers) for record in records]
    pairs = [(record["label"], guess) for record, guess in zip(records, guesses, strict=True)]
    right = sum(label == guess for label, guess in pairs)
    assert set(guesses) == {0, 1} and 0 < right < 8, "always the same answer proves nothing; take another seed"
    data = write_data(tmp_path / "data", {"sst2": records})
    for batch_size in (1, 3, "auto"):
        results = capabilities(model, tok, ["local_sst2"], data_dir=data, batch_size=batch_size)
        assert results["local_sst2"] == pytest.approx({"acc": 100 * right / 8, "f1": 100 * weighted_f1(pairs)})


def test_the_papers_scores_are_those_of_one_record_at_a_time(tmp_path: Path) -> None:
    model, tok = attentive_model("llama", 0), build_tokenizer()
    records = [*reviews(99, 10), *reviews(4, 8)]
    data = write_data(tmp_path / "data", {"sst2": records})
    pairs, parsed = [], []
    for record in records[10:]:
        prompt = f"Review :{record['sentence']}\nSentiment :"
        pairs.append((record["label"], naive_guess(model, tok, prompt, [" negative", " positive"], mean=True)))
        ids = torch.tensor([tok(prompt).input_ids])
        generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        text = tok.decode(generated[0, ids.shape[1] :], skip_special_tokens=True).lower()
        parsed.append(1 if "positive" in text else 0 if "negative" in text else -1)
    (metrics,) = capabilities(model, tok, ["local_sst2"], data_dir=data, protocol=PAPER, limit=8, batch_size=3).values()
    assert len({guess for _, guess in pairs}) == 2
    assert metrics["f1_new"] == pytest.approx(100 * weighted_f1(pairs))
    assert metrics["unparsable"] == 100 * parsed.count(-1) / 8


def test_log_likelihoods_and_generated_text_do_not_depend_on_the_batch() -> None:
    from lm_eval.api.instance import Instance

    from nas_plugin.evaluation.capability.live import LiveModel

    model, tok = build_model("gpt2"), build_tokenizer()
    prompts = ["The city is", "Marie Curie was born in the city of", "You"]
    asked = [
        Instance("loglikelihood", {}, (prompt, answer), 0, (name, 0, 1))
        for prompt in prompts
        for answer in (" xylophone", " quick ovens")
        for name in ("any", "paper_sst2_likelihood")
    ]
    for request, (value, _) in zip(
        asked, LiveModel(model, tok, 4).loglikelihood(asked, disable_tqdm=True), strict=True
    ):
        total, count = log_likelihood(model, tok, *request.args)
        assert count > 1 and value == pytest.approx(total if request.task_name == "any" else total / count, rel=1e-5)

    kwargs = {"until": [], "max_gen_toks": 5, "do_sample": False}
    texts = LiveModel(model, tok, 3).generate_until(
        [Instance("generate_until", {}, (prompt, kwargs), 0, ("any", i, 1)) for i, prompt in enumerate(prompts)],
        disable_tqdm=True,
    )
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([tok(prompt).input_ids])
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        assert text == tok.decode(alone[0, ids.shape[1] :], skip_special_tokens=True)


def test_close_answers_of_a_half_precision_model_do_not_tie() -> None:
    from lm_eval.api.instance import Instance

    from nas_plugin.evaluation.capability.live import LiveModel

    model, tok = build_model("llama", torch.bfloat16), build_tokenizer()
    ask = Instance("loglikelihood", {}, ("The city is", " Manila"), 0, ("any", 0, 1))
    ((value, _),) = LiveModel(model, tok, 1).loglikelihood([ask], disable_tqdm=True)
    assert value != float(torch.tensor(value, dtype=torch.bfloat16))


def snapshot(model: Any, tok: Any) -> dict[str, Any]:
    from datasets import config
    from huggingface_hub import constants
    from tqdm.std import tqdm

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers", "evaluate")]
    return {
        "weights": [(p.data_ptr(), p._version, p.requires_grad) for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "own": sorted(vars(model)),
        "generation": model.generation_config.to_dict(),
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "tokenizer": (tok.pad_token, tok.padding_side, tok.truncation_side, tok.backend_tokenizer.to_str()),
        "random": random.getstate(),
        "numpy": numpy.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "loggers": [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers],
        "bars": vars(tqdm)["__init__"],
        "offline": (config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE),
        "folder": Path.cwd(),
    }


@pytest.mark.parametrize("protocol", ["standard", "paper"])
def test_everything_is_left_as_it_was_found(
    protocol: str,
    data: Path,
    tmp_path: Path,
    no_network: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from datasets import config

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model, tok = build_model("llama"), build_tokenizer()
    tok.pad_token, tok.padding_side = None, "right"
    model.train()
    model.lm_head.eval()
    # Some models and tasks draw random numbers.
    model.model.register_forward_pre_hook(lambda *_: (random.random(), numpy.random.rand(), torch.rand(1)) and None)
    before = snapshot(model, tok)
    results = capabilities(model, tok, SHORT, data_dir=str(data), limit=4, protocol=protocol)
    assert snapshot(model, tok) == before
    assert len(results) == 3 and json.loads(json.dumps(results)) == results
    assert {metric for metrics in results.values() for metric in metrics} <= set(DEFINITIONS)
    assert no_network == [] and list(scratch.iterdir()) == [] and not (tmp_path / "cache").exists()
    assert capfd.readouterr() == ("", "")


def test_an_error_leaves_everything_as_it_was_found_too(data: Path) -> None:
    model, tok = build_model("llama"), build_tokenizer()
    model.train()
    (data / "rte.json").unlink()
    before = snapshot(model, tok)
    with pytest.raises(CapabilityError, match="rte.json"):
        capabilities(model, tok, SHORT, data_dir=data, limit=4)
    assert snapshot(model, tok) == before


def test_an_untied_head_stays_untied(data: Path) -> None:
    model, tok = build_model("gpt2"), build_tokenizer()
    assert model.config.tie_word_embeddings
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    capabilities(model, tok, ["local_sst2"], data_dir=data, limit=1)
    assert model.lm_head.weight is not model.get_input_embeddings().weight


def test_a_batch_that_does_not_fit_is_halved(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_LARGEST_BATCH", 4)
    model, tok = build_model("llama"), build_tokenizer()
    expected = capabilities(model, tok, SHORT, data_dir=data, limit=4, batch_size=1)
    sizes: list[int] = []

    def refuse(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise RuntimeError("The device is out of memory. Try less.")

    with_hook = model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert capabilities(model, tok, SHORT, data_dir=data, limit=4) == expected
    with_hook.remove()
    assert sizes[0] == 4 and set(sizes[1:]) == {2}


def test_cut_prompts_are_said_once(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tok = build_model("llama"), build_tokenizer()
    (data / "sst2.json").write_text(json.dumps([{"sentence": "so " * 300, "label": 1}] * 4), encoding="utf-8")
    capabilities(model, tok, ["local_sst2"], data_dir=data, batch_size=1)
    assert [record.getMessage()[:36] for record in caplog.records] == ["Some prompts were longer than the mo"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, r"tasks is \[\]; give at least one name"),
        ({"tasks": ["local_rte", "local_rte"]}, "each once"),
        ({"limit": 0}, "limit is 0; expected a positive number"),
        ({"limit": 0.5}, "limit is 0.5; expected a positive number"),
        ({"batch_size": -1}, "batch_size is -1; expected a positive number of rows, or 'auto'"),
        ({"batch_size": "auto:4"}, "batch_size is 'auto:4'"),
        ({"protocol": "own"}, "protocol is 'own'"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], message: str, data: Path) -> None:
    with pytest.raises(CapabilityError, match=message):
        capabilities(build_model("llama"), build_tokenizer(), **{"tasks": SHORT, "data_dir": data, **changes})


def test_tokenizers_that_cannot_be_used_are_named(data: Path) -> None:
    model, tok = build_model("llama"), build_tokenizer()
    with pytest.raises(TokenizerError, match="tok is a function; lm-eval needs a tokenizer of transformers"):
        capabilities(model, build_tokenizer, SHORT, data_dir=data)
    tok.eos_token = None
    with pytest.raises(TokenizerError, match="no EOS token"):
        capabilities(model, tok, SHORT, data_dir=data)


@pytest.fixture
def without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    yield


@pytest.mark.usefixtures("without_lm_eval")
def test_a_missing_lm_eval_says_how_to_install_it(data: Path) -> None:
    with pytest.raises(PackageMissingError, match=r"pip install 'nas-plugin\[eval\]'"):
        capabilities(build_model("llama"), build_tokenizer(), SHORT, data_dir=data)


def test_a_trained_model_on_the_real_files(shared_data: Path, no_network: list[Any]) -> None:
    folder = shared_data / "models" / "stories260K"
    model, tok = AutoModelForCausalLM.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    names = [name for name in shipped_tasks() if name != "local_mnli"]
    results = capabilities(model, tok, names, data_dir=shared_data / "capability", limit=4)
    assert list(results) == names and no_network == []
    assert all(0 <= metrics["acc"] <= 100 and 0 <= metrics["f1"] <= 100 for metrics in results.values())
    paper = capabilities(model, tok, shipped_tasks(PAPER), data_dir=shared_data / "capability", limit=4, protocol=PAPER)
    assert {name.removeprefix("paper_") for name in paper} == {
        "sst2",
        "mrpc",
        "cola",
        "rte_inverted",
        "rte_train",
        "mmlu",
    }
    # A model of children's stories says none of the words looked for.
    assert all(metrics["unparsable"] == 100 and metrics["f1"] == 0 for metrics in paper.values())


class Two(Group):
    """The first of two processes; the other one does nothing but fail where it is told to."""

    def __init__(self, failures: list[bool]) -> None:
        super().__init__(0, 2)
        self.failures = failures

    def any(self, flag: bool) -> bool:
        return flag or bool(self.failures and self.failures.pop(0))

    def mine(self, items: Sequence[Any]) -> Sequence[Any]:
        return items

    def gathered(self, values: Sequence[Any], count: int) -> list[Any]:
        return list(values)


def test_a_process_that_runs_out_of_memory_makes_all_try_again(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tok = build_model("gpt2"), build_tokenizer()
    wanted = capabilities(model, tok, SHORT, data_dir=data)
    # Asked twice for each kind of request: has anybody failed for good, is anybody out of memory?
    group = Two([False, True])
    assert capabilities(model, tok, SHORT, data_dir=data, group=group) == wanted
    assert "out of memory" in caplog.text and not group.failures
    with pytest.raises(RuntimeError, match="another process could not answer"):
        capabilities(model, tok, SHORT, data_dir=data, group=Two([True]))
