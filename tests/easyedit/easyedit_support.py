"""Tiny models, facts and comparisons for the tests of the EasyEdit room."""

from __future__ import annotations

import random
import string
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nas_plugin.easyedit.host import Host

PEOPLE = ("Anna Berg", "Carl Dahl", "Emil Falk", "Greta Holm", "Ida Juhl", "Knut Lind")
PLACES = ("Rome", "Oslo", "Paris", "Bern")
TEXTS = [
    f"{person} was born in {place} and works in {other}" for person in PEOPLE for place in PLACES for other in PLACES
]
# Random text as well: second moments of a hundred similar sentences are singular.
_DICE = random.Random(0)
TEXTS += ["".join(_DICE.choices(string.ascii_letters + " ", k=100)) for _ in range(20)]
REQUESTS = [
    {
        "prompt": f"{person} was born in",
        "subject": person,
        "target_new": PLACES[i % 4],
        "ground_truth": PLACES[(i + 1) % 4],
    }
    for i, person in enumerate(PEOPLE[:4])
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the sentences of this file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = ["input_ids", "attention_mask"]  # GPT-2 would add token type embeddings, were it given any
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end, model_input_names=names)


def make_model(kind: str, vocab: int = 320, seed: int = 0) -> Any:
    """A random model with three blocks."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_positions=128, n_embd=32, n_layer=3, n_head=2))
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=vocab, max_position_embeddings=128, num_key_value_heads=2, **sizes)
        )
    torch.set_rng_state(state)
    return model.eval()


def columns(requests: list[dict[str, str]]) -> dict[str, list[str]]:
    """The parallel lists that `BaseEditor.edit` takes."""
    return {
        "prompts": [r["prompt"] for r in requests],
        "target_new": [r["target_new"] for r in requests],
        "ground_truth": [r["ground_truth"] for r in requests],
        "subject": [r["subject"] for r in requests],
    }


def staying(host: Host) -> dict[str, bool]:
    """How a user says that edits should stay: the wheel keeps them unless told otherwise."""
    return {"keep_original_weight": False} if host.is_wheel else {"sequential_edit": True}


def restoring(host: Host) -> dict[str, bool]:
    """How a user says that edits should be taken back."""
    return {"keep_original_weight": True} if host.is_wheel else {"sequential_edit": False}


def weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before: dict[str, torch.Tensor], model: Any) -> set[str]:
    """Names of the parameters that differ."""
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
