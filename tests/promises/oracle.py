"""A model, statistics and facts for which EasyEdit's own editors were run once, and what they gave.

Nothing here depends on a random number generator, so that the stored numbers hold for any version of torch. They are in
`oracle.json`; `tests/easyedit/record_oracle.py` made them, and a test beside it makes them again wherever EasyEdit's sources are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

ORACLE = Path(__file__).parent / "oracle.json"
METHODS = ("MEMIT", "AlphaEdit")
LAYERS = (0, 1)
WIDTH, INNER = 8, 16
CONTEXTS = [["{}"], ["You know. {}", "Because. {}"]]
REQUESTS = [
    {"prompt": "Anna Berg was born in", "subject": "Anna Berg", "target_new": "Rome", "ground_truth": "Oslo"},
    {"prompt": "Carl works in", "subject": "Carl", "target_new": "Bern", "ground_truth": "Rome"},
    {"prompt": "The home of Ida Juhl is", "subject": "Ida Juhl", "target_new": "Paris", "ground_truth": "Bern"},
]
NUMBERS = {
    "layers": list(LAYERS),
    "fact_token": "subject_last",
    "v_num_grad_steps": 6,
    "v_lr": 0.1,
    "v_weight_decay": 0.5,
    "clamp_norm_factor": 0.75,
    "kl_factor": 0.0625,
    "mom2_update_weight": 3.0,
}
RIDGE, THRESHOLD = 0.5, 0.4


def waves(shape: tuple[int, ...], number: int) -> torch.Tensor:
    """Numbers between -1 and 1 without a pattern that a linear map would see; `number` picks another lot."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin((places + 1) ** 1.5 + 7 * number).reshape(shape)


def oracle_model() -> Any:
    config = GPT2Config(
        vocab_size=257, n_positions=64, n_embd=WIDTH, n_layer=3, n_head=2, n_inner=INNER, bos_token_id=256, eos_token_id=256
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            lot = waves(tuple(parameter.shape), number)
            parameter.copy_(1 + 0.1 * lot if ".ln_" in name and name.endswith("weight") else 0.6 * lot)
    model.config._name_or_path = "oracle"
    return model


def oracle_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab={**letters, "<end>": 256}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    names = ["input_ids", "attention_mask"]  # GPT-2 would add token type embeddings, were it given any
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>", model_input_names=names)


def oracle_moments() -> dict[int, torch.Tensor]:
    """Well-conditioned second moments, layer -> `(INNER, INNER)`, with about half the spectrum below the threshold."""
    found = {}
    for layer in LAYERS:
        rows = waves((64, INNER), 100 + layer) * torch.linspace(0.3, 1.5, INNER, dtype=torch.float64)
        found[layer] = rows.T @ rows / len(rows)
    return found
