"""Files for every shipped task whose right answers a reader can tell, and a language model that knows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs the packages of nas-plugin[eval]")

from lm_eval.api.model import LM

from nas_plugin.evaluation.capability.contain import quiet
from nas_plugin.evaluation.capability.run import run_suite
from nas_plugin.evaluation.capability.suite import STANDARD, load_suite

_PAIRS = [
    ("The cat sleeps on the mat.", "The cat sleeps.", True),
    ("The cat sleeps on the mat.", "The mat is on fire.", False),
    ("All trains were late on Monday.", "Some train was late.", True),
    ("All trains were late on Monday.", "No train was late.", False),
]
_REVIEWS = [("a delight from start to end", True), ("dull and far too long", False)]
_SENTENCES = [("The boy reads a book.", True), ("Boy the book a reads.", False)]
_PARAPHRASES = [
    ("He bought a car.", "A car was bought by him.", True),
    ("He bought a car.", "She sold a house.", False),
]
_QUESTIONS = [
    ("How many legs has a horse?", ["two", "three", "four", "five"], "C"),
    ("What is 2 + 2?", ["4", "5", "6", "7"], "A"),
    ("Which is a colour?", ["iron", "blue", "seven", "slow"], "B"),
    ("Which is a fruit?", ["car", "ship", "stone", "plum"], "D"),
]

# What only that record says -> whether it is true of it. GLUE: RTE's label 0 is entailment, everything else's 1 is yes.
TRUTH: dict[str, bool] = {
    **{claim: holds for _, claim, holds in _PAIRS},
    **dict(_REVIEWS),
    **dict(_SENTENCES),
    **{second: same for _, second, same in _PARAPHRASES},
}
LETTERS = {question: letter for question, _, letter in _QUESTIONS}
RECORDS: dict[str, list[dict[str, Any]]] = {
    "sst2": [{"sentence": text, "label": int(good)} for text, good in _REVIEWS],
    "cola": [{"sentence": text, "label": int(good)} for text, good in _SENTENCES],
    "mrpc": [{"sentence1": a, "sentence2": b, "label": int(same)} for a, b, same in _PARAPHRASES],
    "rte": [{"sentence1": a, "sentence2": b, "label": 0 if holds else 1} for a, b, holds in _PAIRS],
    "nli": [
        {"sentence1": a, "sentence2": b, "label": "entailment" if holds else "not_entailment"} for a, b, holds in _PAIRS
    ],
    "mnli": [
        {"premise": "It rains.", "hypothesis": "Water falls.", "label": 0},
        {"premise": "It rains.", "hypothesis": "It is Sunday.", "label": 1},
        {"premise": "It rains.", "hypothesis": "The sky is cloudless and dry.", "label": 2},
    ],
    "mmlu": [{"question": q, "choices": c, "answer": "ABCD".index(letter)} for q, c, letter in _QUESTIONS],
}
# True and false in the words of each task.
WORDS = {
    "local_sst2": ("positive", "negative"),
    "local_cola": ("yes", "no"),
    "local_mrpc": ("yes", "no"),
    "local_rte": ("yes", "no"),
    "local_rte_train": ("yes", "no"),
    "paper_sst2": ("positive", "negative"),
    "paper_cola": ("Yes", "No"),
    "paper_mrpc": ("Yes", "No"),
    "paper_rte_inverted": ("True", "False"),
    "paper_rte_train": ("True", "False"),
}
_MNLI = {"Water falls.": "true", "It is Sunday.": "unclear", "The sky is cloudless and dry.": "false"}


def write_data(folder: Path, records: Mapping[str, list[dict[str, Any]]] = RECORDS, times: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    for name, entries in records.items():
        (folder / f"{name}.json").write_text(json.dumps(entries * times), encoding="utf-8")
    return folder


class Reader(LM):
    """Answers by what a prompt says, never by its label; `contrary` is wrong about everything."""

    def __init__(self, contrary: bool = False) -> None:
        super().__init__()
        self.contrary = contrary
        self.asked: list[Any] = []

    def right(self, request: Any) -> str:
        prompt, task = request.args[0], request.task_name.removesuffix("_likelihood")
        if task.endswith("mmlu"):
            return next(letter for text, letter in LETTERS.items() if text in prompt)
        if task == "local_mnli":
            return next(word for text, word in _MNLI.items() if text in prompt)
        return WORDS[task][0 if next(truth for text, truth in TRUTH.items() if text in prompt) else 1]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.asked += requests
        likes = [(request.args[1] == f" {self.right(request)}") != self.contrary for request in requests]
        return [(-1.0 if like else -9.0, like) for like in likes]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.asked += requests
        texts = []
        for request in requests:
            right = self.right(request)
            pair = WORDS.get(request.task_name, ("A", "B"))
            wrong = pair[1] if right == pair[0] else pair[0]
            texts.append(f" {wrong if self.contrary else right}\n")
        return texts

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


def answers_of(
    lm: LM, names: list[str], data: Path, scratch: Path, protocol: str = STANDARD, limit: int | None = None
) -> dict[str, dict[str, float]]:
    scratch.mkdir()
    with quiet():
        return run_suite(lm, load_suite(names, data, protocol, scratch), limit)
