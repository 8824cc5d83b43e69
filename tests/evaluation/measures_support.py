"""A model whose probabilities are a table, with a tokenizer of numbers; and a model asked one prompt at a time, naively."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from nas_plugin.evaluation.cases import Ask, Case
from nas_plugin.request import EditRequest

VOCAB = 10
END = 9


class Table(nn.Module):
    """The next token's probabilities depend on the last token alone: `{token: {next: probability}}`, the rest shared."""

    def __init__(self, rows: dict[int, dict[int, float]], max_positions: int = 32) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=max_positions)
        self.generation_config = SimpleNamespace(eos_token_id=[END])
        self.embedding = nn.Embedding.from_pretrained(torch.eye(VOCAB))
        self.head = nn.Linear(VOCAB, VOCAB, bias=False)
        probabilities = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
        for token in range(VOCAB):
            given = rows.get(token, {})
            probabilities[token] = (1 - sum(given.values())) / (VOCAB - len(given))
            for following, probability in given.items():
                probabilities[token, following] = probability
        self.head.weight = nn.Parameter(probabilities.log().float().T.contiguous())

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> Any:
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)), past_key_values=past_key_values)


class Numbers:
    """Each word is its own id."""

    eos_token_id = None

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        rows = [[int(word) for word in text.split()] for text in texts]
        return {"input_ids": rows, "special_tokens_mask": [[0] * len(row) for row in rows]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def table_case(prompt: str = "1 2", target: str = "3", name: str = "a", **fields: Any) -> Case:
    request = EditRequest(prompt, prompt.split()[0], target)
    return Case(name, fields.pop("family", "counterfact"), (request,), **fields)


def asks(*pairs: tuple[str, str]) -> tuple[Ask, ...]:
    return tuple(Ask(prompt, (answer,)) for prompt, answer in pairs)


class OneByOne:
    """The plain way: one text at a time, no padding, no cache, every logit."""

    def __init__(self, model: Any, tok: Any) -> None:
        self.model, self.tok = model, tok

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([ids])).logits[0].float()

    def scored(self, prompt: str, answer: str) -> tuple[list[int], list[int], list[float]]:
        """Labels, most probable tokens, log-probabilities of the labels."""
        start = len(self.tok(prompt)["input_ids"])
        ids = self.tok(f"{prompt} {answer}")["input_ids"]
        rows = self.logits(ids)[start - 1 : -1]
        labels = ids[start:]
        logs = rows.log_softmax(-1)[range(len(labels)), labels]
        return labels, rows.argmax(-1).tolist(), logs.tolist()

    def loss(self, prompt: str, answer: str) -> float:
        logs = self.scored(prompt, answer)[2]
        return -sum(logs) / len(logs)

    def greedy(self, ids: list[int], new: int, end: int) -> list[int]:
        written: list[int] = []
        while len(written) < new:
            token = int(self.logits([*ids, *written])[-1].argmax())
            if token == end:
                break
            written.append(token)
        return written


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
